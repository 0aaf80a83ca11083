import re
import threading
from unittest.mock import Mock

import pytest
from transformers import DynamicCache

from longlora.errors import ConfigError, DataError
from longlora.inference.answer import StreamedAnswer
from longlora.inference.chat_model import ChatModel, ChatSettings, load_chat_model
from longlora.inference.conversation import Chat
from longlora.inference.streaming_cache import StreamingCache

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DOCUMENT = "The ship lay still upon the sea. " * 3


def start(chat_model: ChatModel, **settings: object) -> Chat:
    chosen = ChatSettings(**{"max_new_tokens": 10} | settings)
    return Chat(chat_model, chosen)


def say(conversation: Chat, question: str) -> StreamedAnswer:
    answer, _ = conversation.ask(question)
    list(answer)
    conversation.finish(question, answer)
    return answer


def prompt_text(chat_model: ChatModel, answer: StreamedAnswer) -> str:
    return chat_model.tokenizer.decode(answer.prompt)


def test_the_document_stands_before_the_first_question_in_the_papers_prompt(chat_model: ChatModel) -> None:
    conversation = start(chat_model)
    conversation.set_document("sea.txt", DOCUMENT)
    first = say(conversation, "Where?")
    assert prompt_text(chat_model, first) == f"[INST]{DOCUMENT}\n\nWhere?[/INST]"
    second = say(conversation, "Why?")
    expected = f"[INST]{DOCUMENT}\n\nWhere?[/INST]{first.text}</s>[INST]Why?[/INST]"
    assert prompt_text(chat_model, second) == expected


def test_the_models_own_template_comes_first(chat_model: ChatModel) -> None:
    chat_model.tokenizer.chat_template = CHATML
    answer = say(start(chat_model, system="Be brief."), "Where?")
    assert prompt_text(chat_model, answer) == "<|system|>Be brief.<|end|><|user|>Where?<|end|><|assistant|>"


def test_the_document_is_read_once_and_asked_about_often(chat_model: ChatModel) -> None:
    conversation = start(chat_model)
    conversation.set_document("sea.txt", DOCUMENT)
    reports: list[tuple[int, int]] = []
    assert conversation.read_document(lambda done, total: reports.append((done, total))) == []
    length = len(f"[INST]{DOCUMENT}\n\n")  # a token for each byte
    assert conversation.usage().used == reports[-1][0] == length
    for question in ("Where?", "Why?"):
        answer = say(conversation, question)
        assert answer.num_reused == length
        conversation.clear()
        assert conversation.usage().used == length
    fresh = start(chat_model)
    fresh.set_document("sea.txt", DOCUMENT)
    assert say(fresh, "Why?").text == answer.text


def test_reading_a_document_can_be_stopped_and_goes_on_with_the_question(
    chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longlora.inference.reading.PIECE_TOKENS", 16)
    conversation = start(chat_model)
    conversation.set_document("sea.txt", DOCUMENT)
    stop = threading.Event()
    (note,) = conversation.read_document(lambda done, total: stop.set() if done >= 32 else None, stop)
    length = len(f"[INST]{DOCUMENT}\n\n")
    assert note == f"stopped after 32 of {length} tokens; a question reads the rest"
    answer = say(conversation, "Where?")
    assert answer.num_reused == 32
    whole = start(chat_model)
    whole.set_document("sea.txt", DOCUMENT)
    whole.read_document()
    assert say(whole, "Where?").text == answer.text


def test_a_document_that_is_too_long_loses_its_middle(chat_model: ChatModel) -> None:
    conversation = start(chat_model)
    text = f"It begins. {'x' * 2000} It ends."
    (note,) = conversation.set_document("long.txt", text)
    document = conversation.document
    assert document is not None
    assert document.text.startswith("It begins. xxx") and document.text.endswith("xxx It ends.")
    assert "[…]" in document.text
    kept = len(chat_model.tokens(document.text))
    assert f"long.txt has 2,020 tokens, and {512 - 10 - 64 - 15} fit" in note
    assert f"{2020 - kept:,} (" in note and "cut out of its middle" in note
    assert 0.9 * (512 - 10 - 64 - 15) < kept <= 512 - 10 - 64 - 15
    answer, notes = conversation.ask("y" * 64)  # so much is kept free for a question
    assert notes == []
    assert answer.max_new_tokens == 10
    with pytest.raises(DataError, match=r"long.txt has 2,020 tokens, and .* be cut"):
        start(chat_model, cut=False).set_document("long.txt", text)


def test_the_oldest_questions_are_forgotten_to_make_room(chat_model: ChatModel) -> None:
    conversation = start(chat_model, max_new_tokens=100)
    conversation.set_document("sea.txt", DOCUMENT)
    first = say(conversation, "first " * 20)
    while True:
        answer, notes = conversation.ask("again " * 20)
        if notes:
            break
        list(answer)
        conversation.finish("again " * 20, answer)
    assert re.fullmatch(r"the oldest (question was|\d questions were) forgotten to make room", notes[0])
    text = prompt_text(chat_model, answer)
    assert text.startswith(f"[INST]{DOCUMENT}\n\nagain again") and "first first" not in text
    assert first.text not in text or first.text == ""
    assert len(answer.prompt) + 100 <= 512
    list(answer)
    assert answer.num_reused >= len(DOCUMENT)


def test_a_question_that_does_not_fit_is_refused_and_a_long_one_gets_a_short_answer(chat_model: ChatModel) -> None:
    conversation = start(chat_model, max_new_tokens=100)
    with pytest.raises(DataError, match=r"have 613 tokens, and the context of 512"):
        conversation.ask("x" * 600)
    answer, notes = conversation.ask("x" * 480)
    assert notes == ["19 tokens of context are left for the answer"]
    assert answer.max_new_tokens == 512 - 493


@pytest.mark.parametrize("template", [None, CHATML], ids=["paper", "own"])
def test_streaming_with_room_for_all_is_the_ordinary_conversation(template: str | None) -> None:
    chat_model = load_chat_model(
        "tiny", dtype="float32"
    )  # what it says is text, and gives the same tokens when it is read again
    chat_model.tokenizer.chat_template = template or chat_model.tokenizer.chat_template
    plain, streaming = start(chat_model, system="Be brief."), start(chat_model, system="Be brief.", stream_window=256)
    assert streaming.is_streaming and not plain.is_streaming
    for conversation in (plain, streaming):
        conversation.set_document("sea.txt", DOCUMENT)
        conversation.read_document()
        for question in ("def first(", "import os", "class Sea:"):
            say(conversation, question)
    assert [turn.answer for turn in streaming.turns] == [turn.answer for turn in plain.turns]
    assert streaming.usage().used == plain.usage().used
    streaming.clear()
    assert streaming.usage().used == 0
    assert say(streaming, "def first(").text == plain.turns[0].answer


def test_streaming_takes_documents_of_any_length_and_never_ends(chat_model: ChatModel) -> None:
    conversation = start(chat_model, stream_window=64, cut=False)
    assert conversation.set_document("long.txt", "x" * 1500) == ["long.txt: 1,500 tokens"]
    for _ in range(3):
        say(conversation, "And then?")
    usage = conversation.usage()
    assert (usage.used, usage.context, len(conversation.turns)) == (64, 64, 3)


def test_a_template_that_rewrites_the_past_gets_the_question_alone(chat_model: ChatModel) -> None:
    chat_model.tokenizer.chat_template = "{{ messages | length }}:{{ messages[-1]['content'] }}|"
    assert chat_model.tokenizer.decode(chat_model.continuation([], "Yes.", "Why?")) == "1:Why?|"


def test_messages_leave_the_document_out(chat_model: ChatModel) -> None:
    conversation = start(chat_model, system="Be brief.")
    conversation.set_document("sea.txt", DOCUMENT)
    answer = say(conversation, "Where?")
    assert conversation.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": answer.text},
    ]


def test_what_a_template_refuses_is_told(chat_model: ChatModel) -> None:
    chat_model.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(ConfigError, match=r"chat template of random refuses this .*no system here"):
        start(chat_model).ask("Where?")


def test_windows_that_cannot_be_are_refused(chat_model: ChatModel) -> None:
    with pytest.raises(ConfigError, match=r"1,000 tokens is more than random reads \(512\)"):
        start(chat_model, stream_window=1000)
    with pytest.raises(ConfigError, match="window=3"):
        start(chat_model, stream_window=3)
    assert isinstance(start(chat_model).memory.cache, DynamicCache)
    assert isinstance(start(chat_model, stream_window=99).memory.cache, StreamingCache)


@pytest.mark.parametrize("window", [None, 256])
def test_a_failure_amid_reading_leaves_nothing_that_a_later_answer_would_see(
    chat_model: ChatModel, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longlora.inference.reading.PIECE_TOKENS", 32)
    expected, conversation = start(chat_model, stream_window=window), start(chat_model, stream_window=window)
    for each in (expected, conversation):
        say(each, "Who was there at the beginning of it all?")
    last = chat_model.model.model.layers[-1]
    with monkeypatch.context() as broken:  # the first layer has read the piece by then
        broken.setattr(last, "forward", Mock(side_effect=[MemoryError("no room")]))
        with pytest.raises(MemoryError, match="no room"):
            say(conversation, "Why?")
    fresh = start(chat_model)  # which reads all that was said at once
    fresh.turns = list(expected.turns)
    answers = [say(each, "And where?").text for each in (conversation, fresh)]
    assert answers[0] == answers[1]


def test_an_answer_that_was_given_up_is_not_remembered_in_a_stream(chat_model: ChatModel) -> None:
    expected, conversation = start(chat_model, stream_window=64), start(chat_model, stream_window=64)
    answer, _ = conversation.ask("Who was there?")
    list(answer)  # and the visitor is gone before it is finished
    assert say(conversation, "Where?").text == say(expected, "Where?").text


def test_settings_out_of_range_are_refused(chat_model: ChatModel) -> None:
    for values, complaint in (
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 0.5}, "no effect without a temperature"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            ChatSettings(**values)
    with pytest.raises(ConfigError, match="answers of 512 tokens leave no room for a question in a context of 512"):
        start(chat_model, max_new_tokens=512)
    assert ChatSettings().answer_length(256) == 64
    assert ChatSettings().answer_length(100_000) == 512

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from longlora.inference.answer import StreamedAnswer
from longlora.inference.chat_model import ChatModel, ChatSettings, load_chat_model
from longlora.inference.reading import Memory, shared_prefix


def answer_to(
    chat_model: ChatModel, text: str, memory: Memory, settings: ChatSettings | None = None, *, length: int = 12
) -> StreamedAnswer:
    settings = settings or ChatSettings()
    prompt = chat_model.tokens(text)
    return StreamedAnswer(chat_model, prompt, memory, settings, max_new_tokens=length)


def whole(answer: StreamedAnswer) -> str:
    assert "".join(answer) == answer.text
    return answer.text


def reference(chat_model: ChatModel, text: str, length: int = 12) -> str:
    """What `generate` says to the whole text at once, with no memory of ours."""
    ids = torch.tensor([chat_model.tokens(text)], device=chat_model.model.device)
    output = chat_model.model.generate(ids, max_new_tokens=length, do_sample=False)
    return chat_model.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_an_answer_is_what_generate_says_and_comes_in_pieces(chat_model: ChatModel) -> None:
    answer = answer_to(chat_model, "Tell me about the sea.", Memory(chat_model))
    pieces = list(answer)
    assert "".join(pieces) == answer.text == reference(chat_model, "Tell me about the sea.")
    assert (answer.num_reused, answer.num_read) == (0, len("Tell me about the sea."))
    assert 0 < answer.seconds_to_first_token <= answer.seconds
    assert not answer.stopped


def test_what_was_read_is_not_read_again_and_changes_no_answer(chat_model: ChatModel) -> None:
    memory = Memory(chat_model)
    document = "the ship lay still upon the sea. " * 5
    first = answer_to(chat_model, f"{document}Where?", memory)
    assert whole(first) == reference(chat_model, f"{document}Where?")
    second = answer_to(chat_model, f"{document}Who was there?", memory)
    assert whole(second) == reference(chat_model, f"{document}Who was there?")
    assert second.num_reused == len(f"{document}Wh")
    assert second.num_read == len("o was there?")
    again = answer_to(chat_model, f"{document}Who was there?", memory)
    assert whole(again) == second.text
    assert again.num_read == 1


def test_reused_keys_are_those_of_a_fresh_reading(chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longlora.inference.reading.PIECE_TOKENS", 7)
    memory, fresh = Memory(chat_model), Memory(chat_model)
    tokens = chat_model.tokens("once upon a time there was a ship")
    memory.read(tokens)
    memory.note(tokens)
    prompt = [*tokens[:19], 5, 6, 7]
    assert memory.begin(prompt) == 19
    memory.read(prompt[19:])
    fresh.read(prompt)
    for reused, expected in zip(memory.cache.layers, fresh.cache.layers, strict=True):
        torch.testing.assert_close(reused.keys, expected.keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(reused.values, expected.values, atol=1e-5, rtol=0)


def test_a_stopped_answer_leaves_the_memory_in_order() -> None:
    chat_model = load_chat_model("tiny", dtype="float32")  # whose answers have words, by which they come
    memory = Memory(chat_model)
    answer = answer_to(chat_model, "def add(", memory, length=200)
    for count, _ in enumerate(answer):
        if count == 0:
            answer.stopping.set()
    assert answer.stopped and not answer.finished
    assert 0 < answer.num_written < 200
    assert memory.cache.get_seq_length() == len(memory.tokens) == answer.num_read + answer.num_written
    assert whole(answer_to(chat_model, "def add_two(", memory)) == reference(chat_model, "def add_two(")


def test_giving_up_an_answer_stops_it() -> None:
    chat_model = load_chat_model("tiny")
    memory = Memory(chat_model)
    answer = answer_to(chat_model, "def add(", memory, length=200)
    pieces = iter(answer)
    next(pieces)
    pieces.close()
    assert answer.stopped
    assert memory.cache.get_seq_length() == len(memory.tokens) < 200


def test_reading_can_be_stopped_between_two_pieces(chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longlora.inference.reading.PIECE_TOKENS", 8)
    memory = Memory(chat_model)
    reports: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        reports.append((done, total))
        if done >= 16:
            answer.stopping.set()

    answer = StreamedAnswer(
        chat_model,
        chat_model.tokens("x" * 50),
        memory,
        ChatSettings(),
        max_new_tokens=5,
        progress=report,
    )
    assert whole(answer) == ""
    assert reports == [(8, 49), (16, 49)]
    assert memory.tokens == chat_model.tokens("x" * 16)
    assert answer.seconds_to_first_token is None


def test_what_goes_wrong_in_the_thread_is_told_to_the_reader(chat_model: ChatModel) -> None:
    answer = answer_to(chat_model, "Tell me.", Memory(chat_model))
    answer.prompt[0] = 10_000  # no such token
    with pytest.raises(IndexError):
        list(answer)


def test_an_answer_ends_with_the_models_own_end_token(chat_model: ChatModel) -> None:
    memory = Memory(chat_model)
    first = answer_to(chat_model, "Tell me.", memory, length=3)
    list(first)
    third = memory.tokens[-1]
    chat_model.model.generation_config.eos_token_id = [third, 1]
    answer = answer_to(chat_model, "Tell me.", Memory(chat_model))
    list(answer)
    assert answer.finished
    assert answer.num_written <= 3


def test_drawn_tokens_come_again_with_the_seed(chat_model: ChatModel, seed: int) -> None:
    settings = ChatSettings(temperature=1.5, top_p=0.9)
    texts = []
    for each in (seed, seed, seed + 1):
        torch.manual_seed(each)
        texts.append(whole(answer_to(chat_model, "Tell me.", Memory(chat_model), settings, length=30)))
    assert texts[0] == texts[1] != texts[2]


def test_a_streaming_memory_with_room_for_all_says_the_same(chat_model: ChatModel) -> None:
    memory = Memory(chat_model, 512)
    assert whole(answer_to(chat_model, "Tell me about the sea.", memory)) == reference(
        chat_model, "Tell me about the sea."
    )


def test_a_streaming_memory_goes_on_and_on(chat_model: ChatModel) -> None:
    memory = Memory(chat_model, 64)
    for _ in range(3):
        assert len(whole(answer_to(chat_model, "the ship lay still upon the sea " * 5, memory, length=40))) > 0
    assert memory.cache.layers[0].keys.shape[2] <= 64
    assert memory.cache.get_seq_length() >= 3 * (160 + 1)
    memory.forget()
    assert memory.cache.get_seq_length() == 0


def test_a_cache_that_cannot_go_back_is_read_again(
    chat_model: ChatModel, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(seed)
    config = MistralConfig(**chat_model.model.config.to_dict() | {"model_type": "mistral", "sliding_window": 16})
    chat_model.model = MistralForCausalLM(config).eval()
    memory = Memory(chat_model)
    text = "the ship lay still upon the sea. "
    list(answer_to(chat_model, f"{text}Where?", memory))
    with caplog.at_level("WARNING", logger="longlora"):
        second = answer_to(chat_model, f"{text}Who?", memory)
        assert whole(second) == reference(chat_model, f"{text}Who?")
    assert second.num_reused == 0
    assert "read again" in caplog.text


@pytest.mark.parametrize(("one", "other", "expected"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 4], 1)])
def test_shared_prefix(one: list[int], other: list[int], expected: int) -> None:
    assert shared_prefix(one, other) == shared_prefix(other, one) == expected

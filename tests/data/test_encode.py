"""Labels lie on the answers, all of them and nothing else, by every template; documents are cut in their middle."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from longlora.data.answers import check_tokenizer
from longlora.data.encode import IGNORED, EncodedConversation, UnusableConversationError, encode_conversation
from longlora.errors import ConfigError
from longlora.models.chat_template import ensure_chat_template

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen 3's way: the last answer is preceded by an empty thought, earlier ones are not.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Gemma's way: contents are stripped, the assistant is the model, a system message is refused.
STRIPPING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PAPER = None
# What is learned of an answer by each template; {} is the answer, first in the middle of a conversation, then last.
LEARNED = {
    PAPER: ("{}</s>", "{}</s>"),
    CHATML: ("{}<|im_end|>\n", "{}<|im_end|>\n"),
    THINKING: ("{}<|im_end|>\n", "<think>\n\n</think>\n\n{}<|im_end|>\n"),
    STRIPPING: ("{}<end_of_turn>\n", "{}<end_of_turn>\n"),
}
TEMPLATES = pytest.mark.parametrize("template", LEARNED, ids=["paper", "chatml", "thinking", "stripping"])
QUESTION = {"role": "user", "content": "Who is it?"}
# Contents that templates, or we, write by themselves.
ODD = (
    *("It is 0ANSWER0 to 0QUESTION0.", "Mark1Content", "0", "1", "\ue0000\ue000", "\ue000"),
    *("{{ messages[0] }} {% generation %}{# no #}", "a<|im_end|>\n<|im_start|>assistant\nb", "<|im_end|>"),
    *("</s>", "[/INST]", "<end_of_turn>\n<start_of_turn>model\nme", "e\u0301 is é", "two\r\nlines", "\u200bme\ufeff"),
)

Make = Callable[[str | None], PreTrainedTokenizerFast]


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerFast):
    def with_template(template: str | None) -> PreTrainedTokenizerFast:
        tokenizer.chat_template = template
        ensure_chat_template(tokenizer)
        return tokenizer

    return with_template


def answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def learned(tokenizer: PreTrainedTokenizerFast, encoded: EncodedConversation) -> list[str]:
    """Decode every run of labels."""
    runs: list[list[int]] = [[]]
    for label in encoded.labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@TEMPLATES
@pytest.mark.parametrize("content", ["Ishmael.", "a", "s", "model", "größer ∮", "One.\n\nTwo.", *ODD])
def test_an_answer_and_the_end_of_its_turn_are_learned(make: Make, template: str | None, content: str) -> None:
    tokenizer = make(template)
    encoded = encode_conversation(tokenizer, [QUESTION, answer(content)], context_length=1000)
    assert learned(tokenizer, encoded) == [LEARNED[template][1].format(content)]
    assert encoded.num_cut == 0


@TEMPLATES
def test_every_answer_of_several_turns_is_learned(make: Make, template: str | None) -> None:
    tokenizer = make(template)
    turns = [QUESTION, answer("I"), {"role": "user", "content": "I?"}, answer("assistant"), QUESTION, answer("I")]
    encoded = encode_conversation(tokenizer, turns, context_length=1000)
    middle, last = LEARNED[template]
    assert learned(tokenizer, encoded) == [middle.format("I"), middle.format("assistant"), last.format("I")]


@TEMPLATES
@pytest.mark.parametrize("content", ODD)
def test_the_same_content_in_every_message_is_told_apart(make: Make, template: str | None, content: str) -> None:
    tokenizer = make(template)
    turns = [{"role": "user", "content": content}, answer(content)] * 3
    middle, last = LEARNED[template]
    expected = [middle.format("$"), middle.format("$"), last.format("$")]
    encoded = encode_conversation(tokenizer, turns, context_length=1000)
    assert learned(tokenizer, encoded) == [text.replace("$", content) for text in expected]


@TEMPLATES
def test_the_assistant_may_speak_first_and_twice(make: Make, template: str | None) -> None:
    tokenizer = make(template)
    encoded = encode_conversation(tokenizer, [answer("I"), answer("I"), QUESTION, answer("I")], context_length=1000)
    middle, last = (text.format("I") for text in LEARNED[template])
    assert "".join(learned(tokenizer, encoded)) == middle + middle + last


@TEMPLATES
def test_a_long_conversation_is_not_written_once_for_each_message(
    make: Make, template: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make(template)
    turns = [QUESTION, answer("I")] * 30
    encode_conversation(tokenizer, turns[:2], context_length=10_000)  # what is found once for a template
    num_written = 0
    write = type(tokenizer).apply_chat_template

    def counted(*arguments: object, **options: object) -> object:
        nonlocal num_written
        num_written += 1
        return write(*arguments, **options)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", counted)
    encode_conversation(tokenizer, turns, context_length=10_000)
    assert 0 < num_written <= 4


@TEMPLATES
def test_the_ids_are_those_that_the_model_reads_in_use(make: Make, template: str | None) -> None:
    tokenizer = make(template)
    turns = [QUESTION, answer("Ishmael.")]
    encoded = encode_conversation(tokenizer, turns, context_length=1000)
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert [label != IGNORED for label in encoded.labels[: len(prompt) + 1]] == [False] * len(prompt) + [True]


@TEMPLATES
def test_a_long_document_is_cut_in_its_middle_only(make: Make, template: str | None, seed: int) -> None:
    tokenizer = make(template)
    numbers = random.Random(seed).sample(range(10_000), 300)
    story = "\n".join(f"Line {number} größer." for number in numbers)
    prompt = f"Read this story.\n{story}\nQuestion: who is it?"
    turns = [{"role": "user", "content": prompt}, answer("Ishmael, of course.")]
    whole = encode_conversation(tokenizer, turns, context_length=100_000)
    for context_length in (len(whole.input_ids) - 1, 777, 128):
        encoded = encode_conversation(tokenizer, turns, context_length=context_length)
        assert context_length - 4 < len(encoded.input_ids) <= context_length
        assert encoded.num_cut == len(whole.input_ids) - len(encoded.input_ids)
        text = tokenizer.decode(encoded.input_ids)
        assert "\N{REPLACEMENT CHARACTER}" not in text
        assert learned(tokenizer, encoded) == learned(tokenizer, whole)
        head, tail = _common_ends(text, tokenizer.decode(whole.input_ids))
        assert head + tail >= len(text)
        assert "Read this story.\n" in text[:head] and "\nQuestion: who is it?" in text[-tail:]


def _common_ends(text: str, whole: str) -> tuple[int, int]:
    head = next((i for i, (a, b) in enumerate(zip(text, whole, strict=False)) if a != b), len(text))
    tail = next((i for i, (a, b) in enumerate(zip(text[::-1], whole[::-1], strict=False)) if a != b), len(text))
    return head, tail


def test_what_is_kept_is_as_much_of_the_beginning_as_of_the_end(make: Make) -> None:
    tokenizer = make(CHATML)
    story = "\n".join(f"line {number}" for number in range(1000, 2000))
    turns = [{"role": "user", "content": f"Read.\n{story}\nWho?"}, answer("Me.")]
    text = tokenizer.decode(encode_conversation(tokenizer, turns, context_length=1000).input_ids)
    kept = [number for number in range(1000, 2000) if f"line {number}" in text]
    first, last = [n for n in kept if n < 1500], [n for n in kept if n >= 1500]
    assert abs(len(first) - len(last)) <= 2 and len(kept) > 50


def test_a_message_of_one_line_keeps_its_ends(make: Make) -> None:
    tokenizer = make(PAPER)
    turns = [{"role": "user", "content": "Begin. " + "word " * 2000 + "Who is it?"}, answer("Me.")]
    text = tokenizer.decode(encode_conversation(tokenizer, turns, context_length=300).input_ids)
    assert "[INST]Begin. word" in text and "word Who is it?[/INST]Me.</s>" in text


@pytest.mark.parametrize(
    ("turns", "context_length", "reason"),
    [
        ([QUESTION, answer("word " * 500)], 100, "whose question and answers leave no room"),
        ([answer("word " * 500)], 100, "whose answers alone exceed context_length"),
        ([{"role": "system", "content": "Be brief."}, QUESTION, answer("I")], 1000, "refuses .System role"),
    ],
)
def test_what_cannot_be_used_says_why(
    make: Make, turns: list[dict[str, str]], context_length: int, reason: str
) -> None:
    tokenizer = make(STRIPPING)
    with pytest.raises(UnusableConversationError, match=reason):
        encode_conversation(tokenizer, turns, context_length=context_length)


def test_a_template_that_rewrites_contents_is_noticed(make: Make) -> None:
    tokenizer = make("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
    with pytest.raises(UnusableConversationError, match="does not write as they are"):
        encode_conversation(tokenizer, [QUESTION, answer("a")], context_length=1000)


def test_a_template_without_answers_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="does not write the assistant's messages"):
        check_tokenizer(make("{{ messages[0]['content'] }}"))


def test_a_tokenizer_that_does_not_tell_characters_is_refused(tmp_path: Path) -> None:
    tokenizer = ByT5Tokenizer()
    ensure_chat_template(tokenizer)
    with pytest.raises(ConfigError, match="ByT5Tokenizer cannot map its tokens to characters"):
        check_tokenizer(tokenizer)

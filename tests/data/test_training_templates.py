"""Every template of text models that TRL ships: the model's own ids, TRL's labels, and the same from our search."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.data.families import TEMPLATES, conversations, family
from transformers import PreTrainedTokenizerFast

from longlora.data.answers import place_of, places_of
from longlora.data.encode import IGNORED, EncodedConversation, UnusableConversationError, encode_conversation
from longlora.data.template_text import ChatWriter, marked_template

Row = tuple[list[dict[str, Any]], tuple[dict[str, Any], ...]]

# TRL marks what the template writes to ask for an answer, or a part of it, as learned too.
MARKS_HEADERS = ("deepseek_r1_distill", "deepseekv3", "gptoss", "muse_glimmer", "qwen2_5")
REFUSALS = (
    "with tools that",
    "with tool_calls that",
    "with reasoning_content that",
    "whose tool message",
    "whose assistant message beside tool_calls",
    "whose messages cannot be told apart",
    "whose tool_calls end where a search",
    "without a token of an answer",
    "Conversation roles must alternate",
    "System role not supported",
    "After the optional system message, conversation roles must alternate",
    "Cannot pass both content and thinking",
)
NO_LIMIT = 1 << 40


def encode(tokenizer: PreTrainedTokenizerFast, row: Row, method: Any = None) -> EncodedConversation | None:
    messages, tools = row
    try:
        return encode_conversation(tokenizer, messages, context_length=NO_LIMIT, tools=tools, method=method)
    except UnusableConversationError as error:
        assert any(reason in str(error) for reason in REFUSALS), str(error)
        return None


def check(name: str, build: str, row: Row) -> None:
    tokenizer = family(name, build)
    messages, tools = row
    encoded = encode(tokenizer, row)
    if encoded is None:
        return
    own = tokenizer(ChatWriter(tokenizer, tools).write(messages), add_special_tokens=False)["input_ids"]
    ends_without = name == "glm4moe" and messages[-1]["role"] == "assistant"
    assert encoded.input_ids[: len(own)] == own and len(encoded.input_ids) == len(own) + ends_without
    assert encoded.are_ended
    if encoded.method == "search":
        return
    marked = marked_template(tokenizer, tokenizer.chat_template)
    by_trl = tokenizer.apply_chat_template(
        messages, tools=list(tools) or None, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
    )
    assert by_trl["input_ids"] == encoded.input_ids
    differing = [i for i, mask in enumerate(by_trl["assistant_masks"]) if bool(mask) != (encoded.labels[i] != IGNORED)]
    # transformers masks the first of several tokens of a character alone where that is the last of a span.
    text = tokenizer.apply_chat_template(messages, tools=list(tools) or None, chat_template=marked, tokenize=False)
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert all(encoded.labels[i] != IGNORED and places[i] == places[i - 1] for i in differing)
    compare_search(name, tokenizer, row, encoded)


def compare_search(name: str, tokenizer: PreTrainedTokenizerFast, row: Row, by_marks: EncodedConversation) -> None:
    searched = encode(tokenizer, row, "search")
    if searched is None:
        return
    assert searched.input_ids == by_marks.input_ids
    for i, (ours, theirs) in enumerate(zip(searched.labels, by_marks.labels, strict=True)):
        if ours != theirs:
            assert name in MARKS_HEADERS and ours == IGNORED, tokenizer.decode(by_marks.input_ids[i - 5 : i + 5])
    if name in MARKS_HEADERS:
        for ours, theirs in zip(runs(searched.labels), runs(by_marks.labels), strict=True):
            header = tokenizer.decode(theirs[: len(theirs) - len(ours)])
            header = header.replace("> ", ">")  # sentence pieces write a space after a token
            assert theirs[len(theirs) - len(ours) :] == ours
            assert header in ("<｜Assistant｜>", "<|start|>assistant", "\n", "")


def runs(labels: list[int]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(row=conversations(max_messages=24))
def test_ids_are_the_models_and_labels_are_trls(name: str, row: Row) -> None:
    check(name, "bytes", row)


@pytest.mark.slow
@pytest.mark.parametrize("build", ["bytes", "sentence pieces"])
@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(row=conversations())
def test_ids_are_the_models_and_labels_are_trls_at_length(name: str, build: str, row: Row) -> None:
    check(name, build, row)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=2, suppress_health_check=list(HealthCheck))
@given(row=conversations(bare=True))
def test_plain_conversations_by_turns_are_never_refused(name: str, row: Row) -> None:
    messages = [message for message in row[0] if message["role"] != "system"]
    messages = messages[: len(messages) // 2 * 2]
    for build in ("bytes", "sentence pieces"):
        for method in (None, "search"):
            encoded = encode_conversation(family(name, build), messages, context_length=NO_LIMIT, method=method)
            assert encoded.are_ended
            assert len(runs(encoded.labels)) == len(messages) // 2


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(row=conversations(max_messages=12, bare=True))
def test_all_places_at_once_are_those_one_by_one(name: str, row: Row) -> None:
    messages, tools = row
    writer = ChatWriter(family(name), tools)
    try:
        text = writer.write(messages)
        places = places_of(writer, messages, text)
    except UnusableConversationError:
        return
    assert places == [place_of(writer, messages, text, index) for index in range(len(messages))]


def test_what_trl_marks_is_seen_to_matter() -> None:
    row = ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], ())
    tokenizer = family("llama3")
    encoded = encode(tokenizer, row)
    assert encoded is not None and encoded.method == "marks"
    shifted = EncodedConversation(**{**vars(encoded), "labels": [IGNORED, *encoded.labels[:-1]]})
    with pytest.raises(AssertionError):
        compare_search("llama3", tokenizer, row, shifted)

"""What a row says beside its texts is followed, or named; every answer is learned from its first token to its end."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.data.families import TEMPLATES, TOOLS, tokenizer_for
from transformers import PreTrainedTokenizerFast

from longlora.data.conversation_rows import tokenize_conversations
from longlora.data.sources import read_conversations
from longlora.errors import DataError
from longlora.models.chat_template import ensure_chat_template

QUESTION, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ishmael."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "rate", "arguments": '{"of": "£"}'}}]}
RESULT = {"role": "tool", "name": "rate", "content": "SIGNAL"}
SHAREGPT = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ishmael."}]
CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
LLAMA2 = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{- ' ' ~ m.content.strip() ~ ' ' ~ eos_token -}}"
    "{%- else -%}{{- bos_token ~ '[INST] ' ~ m.content.strip() ~ ' [/INST]' -}}{%- endif -%}{%- endfor -%}"
)
GLM = (
    "{{- '[gMASK]<sop>' -}}{%- for m in messages -%}{{- '<|' ~ m.role ~ '|>\n' ~ m.content -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}{#- <|user|> <|assistant|> -#}"
)
PHI3 = (
    "{%- for m in messages -%}{{- '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
    "{#- <|user|> -#}"
)
QWEN3 = TEMPLATES["qwen3"]


def rows_of(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tokenize_conversations(
        read_conversations(str(source)), tokenizer, context_length=4096, cache_dir=tmp_path / "c", show_progress=False
    )
    return list(found)


def learned(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> list[str]:
    runs: list[list[int]] = [[]]
    for label in row["labels"]:
        if label != -100:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER | {"reasoning_content": "SIGNAL"}]},
        {"messages": [QUESTION, ANSWER | {"reasoning": "SIGNAL"}]},
        {"messages": [QUESTION, ANSWER | {"content": "<think>\nSIGNAL\n</think>\n\nIshmael.\n"}]},
        {"system": "SIGNAL", "messages": [QUESTION, ANSWER]},
        {"system": "SIGNAL", "conversations": SHAREGPT},
        {"system": "SIGNAL", "prompt": "Who?", "completion": "Ishmael."},
        {"system": "SIGNAL", "instruction": "Who?", "output": "Ishmael."},
        {"tools": json.dumps([{"name": "SIGNAL", "parameters": {}}]), "messages": [QUESTION, ANSWER]},
        {"messages": [QUESTION, CALL, RESULT, ANSWER]},
        {"instruction": "Who?", "output": "Ishmael.", "history": [["SIGNAL", "Yes."]]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "SIGNAL"}]}, ANSWER]},
        {"conversations": [*SHAREGPT[:1], {"from": "function_call", "value": '{"name": "SIGNAL", "arguments": {}}'}]},
    ],
)
def test_what_a_row_says_stands_in_the_text(tmp_path: Path, row: dict[str, Any]) -> None:
    tokenizer = tokenizer_for(QWEN3)
    (found,) = rows_of(tmp_path, tokenizer, [row])
    assert "SIGNAL" in tokenizer.decode(found["input_ids"])


def test_a_thought_is_learned_with_its_answer(tmp_path: Path) -> None:
    tokenizer = tokenizer_for(QWEN3)
    answers = [ANSWER | {"reasoning_content": "hm"}, ANSWER | {"content": "<think>\nhm\n</think>\n\nIshmael."}]
    for found in rows_of(tmp_path, tokenizer, [{"messages": [QUESTION, answer]} for answer in answers]):
        assert learned(tokenizer, found) == ["<think>\nhm\n</think>\n\nIshmael.<|im_end|>\n"]


def test_thoughts_that_the_template_drops_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_for(QWEN3)
    thinking = ANSWER | {"reasoning_content": "hm"}
    with caplog.at_level(logging.INFO, logger="longlora"):
        (found,) = rows_of(tmp_path, tokenizer, [{"messages": [QUESTION, thinking] * 2}])
    assert learned(tokenizer, found) == ["Ishmael.<|im_end|>\n", "<think>\nhm\n</think>\n\nIshmael.<|im_end|>\n"]
    assert "1 thoughts of earlier answers are not learned" in caplog.text
    assert "found by a search" in caplog.text


@pytest.mark.parametrize("name", ["weight", "train", "loss"])
@pytest.mark.parametrize("template", [CHATML, LLAMA2, TEMPLATES["llama3"]], ids=["chatml", "llama 2", "by marks"])
def test_an_answer_of_weight_0_is_read_and_not_learned(tmp_path: Path, template: str, name: str) -> None:
    tokenizer = tokenizer_for(template)
    messages = [QUESTION, ANSWER | {"content": "BAD", name: 0}, QUESTION, ANSWER | {name: 1}]
    (found,) = rows_of(tmp_path, tokenizer, [{"messages": messages}])
    (text,) = learned(tokenizer, found)
    assert "Ishmael." in text and "BAD" not in text
    assert "BAD" in tokenizer.decode(found["input_ids"])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [message | {"weight": 1} for message in ({"role": "system", "content": "S"}, QUESTION, ANSWER)]},
        {"messages": [QUESTION | {"loss": True}, ANSWER | {"loss": True}]},
        {"messages": [QUESTION | {"weight": 0, "train": False}, ANSWER | {"weight": 1.0}]},
        {"prompt": [QUESTION | {"weight": 1}, ANSWER | {"weight": 1}, QUESTION], "completion": [ANSWER]},
        {"messages": [QUESTION, ANSWER | {"prefix": False, "train_detail": [], "annotations": [], "refusal": ""}]},
    ],
)
def test_what_asks_for_nothing_else_is_taken_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any]
) -> None:
    tokenizer = tokenizer_for(CHATML)
    with caplog.at_level(logging.INFO, logger="longlora"):
        (found,) = rows_of(tmp_path, tokenizer, [row])
    assert learned(tokenizer, found) == ["Ishmael.<|im_end|>\n"]
    assert "not read" not in caplog.text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [QUESTION, ANSWER | {"reasoning_content": "hm"}]}, "with reasoning_content that"),
        ({"messages": [QUESTION, CALL, RESULT, ANSWER]}, "with tool_calls that"),
        ({"messages": [QUESTION, ANSWER], "tools": [*TOOLS]}, "with tools that"),
        ({"messages": [QUESTION, ANSWER], "images": ["a.png"]}, "with a column 'images', which is not supported"),
        ({"messages": [QUESTION, ANSWER], "history": [["a", "b"]]}, "with a column 'history', which is not supported"),
        ({"messages": [QUESTION, ANSWER], "weight": 0.5}, "with a column 'weight', which is not supported"),
        ({"messages": [QUESTION, ANSWER | {"weight": 0.5}]}, "with a message of weight 0.5"),
        ({"messages": [QUESTION | {"weight": 2}, ANSWER]}, "with a message of weight 2"),
        ({"messages": [QUESTION, ANSWER | {"prefix": True}]}, "with a message's prefix, which is not supported"),
        ({"messages": json.dumps([QUESTION, ANSWER])}, "with str instead of a list of messages"),
        ({"messages": [QUESTION | {"train": True}, ANSWER]}, "with train True on a message of the user"),
        ({"messages": [QUESTION, ANSWER | {"weight": 0}]}, "whose answers all have weight 0"),
        ({"messages": [QUESTION, ANSWER | {"function_call": {"name": "f"}}]}, "with a message's function_call"),
        ({"messages": [QUESTION, ANSWER | {"reasoning_content": 7}]}, "with int instead of text"),
        ({"messages": [QUESTION, ANSWER | {"tool_calls": [{}]}]}, "with tool_calls without a function's name"),
        ({"messages": [{"role": "system", "content": "a"}, QUESTION, ANSWER], "system": "b"}, "with a system column"),
        ({"messages": [QUESTION, ANSWER], "tools": "{"}, "with tools that are not JSON"),
        ({"messages": [QUESTION, ANSWER], "tools": [7]}, "with tools that are not a list of objects"),
        ({"messages": [QUESTION, ANSWER], "tools": 7}, "with tools that are not a list of objects"),
        ({"messages": [QUESTION, 7]}, "with a message that is not an object"),
        ({"instruction": "a", "output": "b", "history": ["a"]}, "with a history that is not a list of pairs"),
        ({"instruction": "a", "output": "b", "history": ["ab"]}, "with a history that is not a list of pairs"),
        ({"instruction": "a", "output": "b", "history": 7}, "with a history that is not a list of pairs"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    tokenizer = tokenizer_for("{#- <|im_start|> <|im_end|> -#}" + CHATML)
    with pytest.raises(DataError) as error:
        rows_of(tmp_path, tokenizer, [row])
    assert reason in str(error.value)


def test_what_nobody_reads_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"messages": [QUESTION | {"lang": "en", "name": "Bob"}, ANSWER], "source": "a book", "empty": None}
    with caplog.at_level(logging.INFO, logger="longlora"):
        rows_of(tmp_path, tokenizer_for(CHATML), [row])
    assert "not read: column 'source' (1 rows), message field 'lang' (1 rows), message field 'name' (1" in caplog.text


@pytest.mark.parametrize("template", [None, CHATML], ids=["paper", "chatml"])
@pytest.mark.parametrize("count", [2, 10, 12, 22, 40])
def test_conversations_of_any_length_are_learned(tmp_path: Path, template: str | None, count: int) -> None:
    tokenizer = tokenizer_for(CHATML)
    tokenizer.chat_template = template
    ensure_chat_template(tokenizer)
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n} ends."} for n in range(count)]
    rows = [{"messages": turns}, {"messages": [{"role": "system", "content": "Be kind."}, *turns]}]
    for found in rows_of(tmp_path, tokenizer, rows):
        end = "</s>" if template is None else "<|im_end|>\n"
        assert learned(tokenizer, found) == [f"turn {n} ends.{end}" for n in range(1, count, 2)]


@pytest.mark.parametrize("build", ["bytes", "sentence pieces"])
@pytest.mark.parametrize("answer", ["Yes", "No", "a", "The answer is Paris."])
def test_the_first_token_of_an_answer_holds_the_space_before_it(tmp_path: Path, build: str, answer: str) -> None:
    tokenizer = tokenizer_for(LLAMA2, build=build)
    messages = [QUESTION, ANSWER | {"content": answer}] * 2
    (found,) = rows_of(tmp_path, tokenizer, [{"messages": messages}])
    asked = tokenizer.apply_chat_template(messages[:1], return_dict=False)
    first = next(index for index, label in enumerate(found["labels"]) if label != -100)
    assert (first, found["input_ids"][:first]) == (len(asked), asked)
    assert [text.strip() for text in learned(tokenizer, found)] == [f"{answer} </s>"] * 2


@pytest.mark.parametrize(
    ("template", "middle", "last"),
    [(GLM, "<|user|>", "<|user|>"), (PHI3, "<|end|>\n", "<|end|>\n</s>"), (CHATML, "<|im_end|>\n", "<|im_end|>\n")],
    ids=["glm", "phi 3", "chatml"],
)
def test_the_end_of_a_turn_is_learned(tmp_path: Path, template: str, middle: str, last: str) -> None:
    tokenizer = tokenizer_for(template)
    two, one = rows_of(tmp_path, tokenizer, [{"messages": [QUESTION, ANSWER] * 2}, {"messages": [QUESTION, ANSWER]}])
    assert learned(tokenizer, two) == [f"Ishmael.{middle}", f"Ishmael.{last}"]
    assert learned(tokenizer, one) == [f"Ishmael.{last}"]


def test_a_template_without_an_end_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_for("{%- for m in messages -%}{{- '\n' ~ m.role ~ ': ' ~ m.content -}}{%- endfor -%}")
    rows_of(tmp_path, tokenizer, [{"messages": [QUESTION, ANSWER] * 2}])
    assert "the end of a turn is not learned in 1 conversations" in caplog.text

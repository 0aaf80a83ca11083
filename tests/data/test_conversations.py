"""Rows of every form become the same messages; rows that cannot be used are counted with the reason."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from longlora.data.sources import read_conversations
from longlora.errors import DataError

QUESTION, ANSWER = "Who sails?", "Ishmael."
MESSAGES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": MESSAGES, "source": "a book"},
    "alpaca": {"instruction": QUESTION, "output": ANSWER},
    "alpaca with empty fields": {"instruction": QUESTION, "input": "", "output": ANSWER, "system": None},
    "prompt": {"prompt": QUESTION, "completion": ANSWER},
    "prompt of messages": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    "prompt of messages, completion of text": {"prompt": MESSAGES[:1], "completion": ANSWER},
    "prompt of text, completion of messages": {"prompt": QUESTION, "completion": MESSAGES[1:]},
    "sharegpt with text": {"conversations": [{"from": "human", "text": QUESTION}, {"from": "gpt", "text": ANSWER}]},
    "sharegpt with empty fields": {
        "conversations": [
            {"from": "human", "value": QUESTION, "text": None},
            {"from": "gpt", "value": None, "text": ANSWER},
        ]
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "sails?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        ]
    },
    "a completion that is wanted": {"prompt": QUESTION, "completion": ANSWER, "label": True},
    "sharegpt": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
}


def write(path: Path, rows: list[Mapping[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text(json.dumps(rows))
    return str(path)


def read(source: str) -> list[list[dict[str, str]]]:
    return [list(conversation.messages) for _, conversation in read_conversations(source)]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_messages(tmp_path: Path, form: str, suffix: str) -> None:
    assert read(write(tmp_path / f"a{suffix}", [FORMS[form]])) == [MESSAGES]


def test_a_saved_data_set_is_read_too(tmp_path: Path) -> None:
    Dataset.from_list([FORMS["alpaca"]]).save_to_disk(tmp_path / "saved")
    assert read(str(tmp_path / "saved")) == [MESSAGES]


def test_input_stands_under_the_instruction_and_system_before_it(tmp_path: Path) -> None:
    row = {"instruction": "Sum it up.", "input": "Call me Ishmael.", "output": ANSWER, "system": "Be brief."}
    (messages,) = read(write(tmp_path / "a.json", [row]))
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Sum it up.\nCall me Ishmael."},
        {"role": "assistant", "content": ANSWER},
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "output": " "}, "with an empty answer"),
        ({"instruction": "a", "output": None}, "with an empty answer"),
        ({"instruction": "a", "output": 7}, "with int instead of text in column 'output'"),
        ({"instruction": "a"}, "without the columns of a conversation"),
        ({"messages": []}, "without messages"),
        ({"messages": MESSAGES[:1]}, "without an answer"),
        ({"messages": [{"role": "user"}]}, "with a message without content, value or text (its fields: role)"),
        (
            {"conversations": [{"from": "human", "words": "4"}]},
            "with a message without content, value or text (its fields: from, words)",
        ),
        ({"conversations": [{"value": "4"}]}, "with a message without role or from (its fields: value)"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "with dict instead of text in a message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}]},
            "with a part of type 'image' in a message; only text parts are read",
        ),
        (
            {"messages": MESSAGES, "chosen": "a", "rejected": "b"},
            "with a column 'chosen', which is not supported (docs/conversations.md)",
        ),
        ({"prompt": "a", "completion": "b", "label": False}, "with label false: its completion is undesirable"),
        ({"messages": [{"role": "critic", "content": "4"}]}, "with a message of the unknown role 'critic'"),
        ({"instruction": "a", "output": "\ud800"}, "not UTF-8 text"),
    ],
)
def test_bad_rows_are_counted_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any], reason: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="longlora"):
        assert read(write(tmp_path / "a.jsonl", [FORMS["messages"], row])) == [MESSAGES]
    assert "skipped 1 files or rows" in caplog.text
    assert f"1 {reason}: {tmp_path / 'a.jsonl'}:2" in caplog.text


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "Call me Ishmael."}])
    with pytest.raises(DataError, match=r"no columns of a conversation \(columns: text\); each row needs messages"):
        read(source)


def test_preferences_are_refused_with_what_can_be_done(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(DataError, match=r"those of preferences, which are not trained on: keep only chosen"):
        read(source)


def test_a_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Call me Ishmael.")
    with pytest.raises(DataError, match=r"no readable conversation in .*1 not a table of conversations"):
        read(str(tmp_path / "a.txt"))

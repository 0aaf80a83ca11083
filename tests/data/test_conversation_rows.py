"""From files of conversations to rows: cached, counted, and packed without losing or mixing a label."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from longlora.data import conversation_rows
from longlora.data.conversation_rows import pack_conversations, tokenize_conversations
from longlora.data.sources import read_conversations
from longlora.errors import DataError
from longlora.models.chat_template import ensure_chat_template

ANSWERS = ["Ishmael.", "A whale, " * 9, "Nobody.", "The sea " * 30, "In Nantucket.", "Queequeg " * 3]


@pytest.fixture
def chat_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    ensure_chat_template(tokenizer)
    return tokenizer


def write(path: Path, answers: list[str], question: str = "Who is it?") -> str:
    path.write_text(json.dumps([{"instruction": f"{question} {a[:3]}", "output": a} for a in answers]))
    return str(path)


def tokenize(source: str, tokenizer: PreTrainedTokenizerFast, cache_dir: Path, context_length: int = 400) -> Any:
    return tokenize_conversations(
        read_conversations(source),
        tokenizer,
        context_length=context_length,
        cache_dir=cache_dir,
        show_progress=False,
    )


def answers_in(rows: Any, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Decode the labels of each conversation in each row, by the lengths of the pieces."""
    answers = []
    for row in rows:
        start = 0
        for length in row["seq_lengths"]:
            labels = [label for label in row["labels"][start : start + length] if label != -100]
            answers.append(tokenizer.decode(labels).removesuffix("</s>"))
            start += length
        assert start == len(row["input_ids"]) == len(row["labels"])
    return answers


@pytest.mark.parametrize("packing", [True, False])
def test_no_answer_is_lost_or_mixed(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast, cache_dir: Path, packing: bool
) -> None:
    conversations = tokenize(write(tmp_path / "a.json", ANSWERS), chat_tokenizer, cache_dir)
    rows = pack_conversations(conversations, context_length=400, packing=packing)
    assert sorted(answers_in(rows, chat_tokenizer)) == sorted(ANSWERS)
    assert all(len(row["input_ids"]) <= 400 for row in rows)
    assert (len(rows) < len(ANSWERS)) == packing


def test_rows_and_counts_are_found_again(
    tmp_path: Path,
    chat_tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = write(tmp_path / "a.json", [*ANSWERS, "so " * 400])
    first = tokenize(source, chat_tokenizer, cache_dir)
    monkeypatch.setattr(conversation_rows, "encode_conversation", None)
    with caplog.at_level(logging.INFO, logger="longlora"):
        again = tokenize(source, chat_tokenizer, cache_dir)
    assert again.to_dict() == first.to_dict()
    num_learned = sum(label != -100 for labels in first["labels"] for label in labels)
    assert f"6 conversations with {sum(map(len, first['input_ids'])):,} tokens, {num_learned:,} of them" in caplog.text
    assert "left out 1 conversations whose question and answers leave no room" in caplog.text


def test_another_context_or_template_is_tokenized_anew(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    source = write(tmp_path / "a.json", ANSWERS)
    first = tokenize(source, chat_tokenizer, cache_dir)
    short = tokenize(source, chat_tokenizer, cache_dir, context_length=100)
    assert len(short) < len(first)
    chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace("[INST]", "Q: ").replace("[/INST]", "A: ")
    assert tokenize(source, chat_tokenizer, cache_dir)["input_ids"][0] != first["input_ids"][0]


def test_what_was_cut_is_told(
    tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "a.json", ANSWERS[:3], question="Read.\n" + "line\n" * 500 + "Who is it?")
    rows = tokenize(source, chat_tokenizer, cache_dir)
    assert {len(ids) for ids in rows["input_ids"]} == {400}
    assert "3 conversations exceed context_length=400" in caplog.text


def test_nothing_usable_is_an_error(tmp_path: Path, chat_tokenizer: PreTrainedTokenizerFast, cache_dir: Path) -> None:
    source = write(tmp_path / "a.json", ["so " * 400])
    with pytest.raises(DataError, match=r"no conversation can be trained on: 1 conversations whose question"):
        tokenize(source, chat_tokenizer, cache_dir)

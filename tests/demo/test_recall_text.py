"""Made-up documents: rows of exactly one context whose questions can be answered, in words that no test asks for."""

import json
import random
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from longlora.data.document_rows import pack_rows, tokenize_documents
from longlora.data.sources import read_documents
from longlora.demo.recall_text import vocabulary, write_recall_documents
from longlora.evaluation.haystack import names
from longlora.models.load import load_tokenizer
from longlora.tiny import tiny_model_directory
from longlora.tiny.stdlib import standard_library_files

CONTEXT = 1024


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model_directory()))


def test_documents_are_rows_and_hold_their_answers(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    files = standard_library_files("train")[:20]
    file = write_recall_documents(tmp_path / "made-up.jsonl", files, tokenizer, CONTEXT, count=3)
    documents = tokenize_documents(read_documents(str(file)), tokenizer, cache_dir=tmp_path, show_progress=False)
    assert [len(ids) for ids in documents["input_ids"]] == [CONTEXT] * 3
    assert pack_rows(documents, context_length=CONTEXT)["seq_lengths"] == [[CONTEXT]] * 3

    distances = []
    for line in file.read_text().splitlines():
        text = json.loads(line)["text"]
        for question in re.finditer(r"What is (the .+?)\? The .+? is (\w+)\.", text):
            fact = text.index(f"{question[1][1:]} is {question[2]}.")
            assert fact < question.start()
            distances.append(len(tokenizer(text[fact : question.start()])["input_ids"]))
    assert len(distances) > 6 and max(distances) > 0.75 * CONTEXT

    before = file.stat().st_mtime_ns
    write_recall_documents(file, files, tokenizer, CONTEXT, count=1)
    assert file.stat().st_mtime_ns == before


def test_no_name_that_the_tests_ask_for_is_learned() -> None:
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in standard_library_files("train")[:80]]
    words = vocabulary(texts)
    asked = {word for name in names(random.Random(0), 200) for word in name.split()}
    assert len(words) > 300 and not asked & set(words)

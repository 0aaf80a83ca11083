"""Training records, and the file that holds them."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from longlora.corpus.qa.documents import Document
from longlora.corpus.qa.duplicates import Asked
from longlora.corpus.qa.settings import Settings
from longlora.corpus.qa.templates import PromptSet
from longlora.corpus.qa.work import Candidate, Outcome

DUPLICATE = "duplicate question"


def make_records(
    document: Document, outcome: Outcome, *, prompts: PromptSet, settings: Settings, dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Turn what passed into records of LongAlpaca's form: the whole document and the question, the answer, the origin.

    Reasons for what did not pass are counted in `dropped`.
    """
    asked = Asked(settings.duplicate_similarity)
    for candidate in outcome.candidates:
        reason = candidate.dropped
        if reason is None and candidate.pair and not asked.is_new(candidate.pair.question):
            reason = DUPLICATE
        if reason is not None or candidate.pair is None:
            dropped[reason or ""] += 1
            continue
        yield {
            "instruction": prompts.record.fill(
                document=document.text.strip(), question=candidate.pair.question
            ).strip(),
            "output": candidate.pair.answer,
            "provenance": _provenance(document, candidate, settings),
        }


def _provenance(document: Document, candidate: Candidate, settings: Settings) -> dict[str, Any]:
    assert candidate.pair is not None
    return {
        "source": document.name,
        "sha256": document.sha256,
        "document_kind": document.kind,
        "document_tokens": document.num_tokens,
        "is_cut": document.is_cut,
        "question_kind": candidate.call.template,
        "asked_over": candidate.scope,
        "sections": [list(section) for section in candidate.call.sections],
        "quotes": list(candidate.pair.quotes),
        "quotes_checked": settings.quotes,
        "judgement": candidate.verdict,
        "model": candidate.reply.model,
        "prompt_sha256": candidate.call.template_sha256,
        "seed": candidate.call.seed,
        "call": candidate.call.key,
        "time": candidate.reply.time,
    }


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records one by one, as lines for a name that ends in .jsonl and as a JSON list for any other; their number.

    A reader sees the old file or the whole new one.
    """
    temporary = path.with_name(f".{path.name}.partial")
    is_lines = path.suffix == ".jsonl"
    number = 0
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write("" if is_lines else "[")
            for number, record in enumerate(records, start=1):
                between = "" if is_lines else "\n" if number == 1 else ",\n"
                file.write(between + json.dumps(record, ensure_ascii=False) + ("\n" if is_lines else ""))
            file.write("" if is_lines else "\n]\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return number

"""Check a training file: row lengths, rows that are cut, unusable, repeated or leaked, and the questions' quality."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.corpus.near_duplicates import NearDuplicates, RunIndex, signature
from longlora.corpus.quality import Quality
from longlora.corpus.question_rows import Row, read_rows
from longlora.data.answers import check_tokenizer
from longlora.data.encode import IGNORED, EncodedConversation, UnusableConversationError, encode_conversation
from longlora.data.row_readers import Finding
from longlora.support.progress import shown

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_NO_LIMIT = 1 << 62
# Two texts on one subject do not share half of their runs of words by chance.
_LEAKED_SHARE = 0.5
_SAME_QUESTION = 0.9


@dataclass
class CheckReport:
    """The results of a check; `describe` puts the findings into words."""

    file: str
    context_length: int | None  # tokens of a row in training; None to measure lengths only
    prompts: list[int] = field(default_factory=list)  # tokens of each row outside its answers; 0 for a text
    answers: list[int] = field(default_factory=list)  # tokens that are learned; for a text, all
    kinds: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    num_texts: int = 0  # texts, which training packs and never cuts
    num_cut_tokens: int = 0
    cut: Finding = field(default_factory=Finding)
    unusable: dict[str, Finding] = field(default_factory=dict)  # rows that training skips, by reason
    repeated: Finding = field(default_factory=Finding)
    leaked_documents: Finding = field(default_factory=Finding)
    leaked_rows: Finding = field(default_factory=Finding)  # the subset that also asks the same question
    leaked_questions: Finding = field(default_factory=Finding)  # without a document, and also asked in another file
    without_end: Finding = field(default_factory=Finding)
    dropped_thoughts: Finding = field(default_factory=Finding)
    num_searched: int = 0  # conversations whose answers had to be searched for, as the template does not mark them
    example: EncodedConversation | None = None  # the first conversation
    quality: Quality = field(default_factory=Quality)  # of questions about documents

    @property
    def lengths(self) -> dict[str, list[int]]:
        """Lengths in tokens of each usable row, by part: `text`, or `prompt`, `answer` and `row`."""
        if not any(self.prompts):
            return {"text": self.answers}
        rows = [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]
        return {"prompt": self.prompts, "answer": self.answers, "row": rows}

    def describe(self) -> list[tuple[str, Finding]]:
        """Return each kind of finding that occurred, described in words, the worst first."""
        findings = [
            ("ask the same question about the same document as another file", self.leaked_rows),
            ("use a document that is also in another file", self.leaked_documents),
            ("ask a question without a document that another file also asks", self.leaked_questions),
            *((reason, finding) for reason, finding in sorted(self.unusable.items())),
            ("do not teach the end of a turn: the chat template writes no token for it", self.without_end),
            ("lose the thoughts of earlier answers, which the chat template also omits in use", self.dropped_thoughts),
            ("quote passages that are not in their document", self.quality.not_found),
            ("have all words of the answer in the question", self.quality.given_away),
            ("repeat an earlier row", self.repeated),
            (f"exceed {self.context_length} tokens: {self.num_cut_tokens:,} are cut from their documents", self.cut),
        ]
        return [(words, finding) for words, finding in findings if finding.count]

    def to_dict(self) -> dict[str, Any]:
        """Return the results for JSON, with lengths as percentiles."""
        values = {name: value for name, value in vars(self).items() if name not in ("example", "prompts", "answers")}
        findings = {name: asdict(value) for name, value in values.items() if isinstance(value, Finding)}
        unusable = {reason: asdict(finding) for reason, finding in self.unusable.items()}
        tokens = {
            name: {"total": sum(lengths), **percentiles(lengths)} for name, lengths in self.lengths.items() if lengths
        }
        return values | findings | {"unusable": unusable, "tokens": tokens, "quality": self.quality.to_dict()}


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """Return percentiles; each is a length that occurs (the nearest row's), not a mean of two."""
    found = np.percentile(values, PERCENTILES, method="nearest")
    return {f"p{percent}": int(value) for percent, value in zip(PERCENTILES, found, strict=True)}


class _Seen:
    """The documents and questions of the files to compare against."""

    def __init__(self) -> None:
        self._documents = RunIndex()
        self._questions = NearDuplicates(_SAME_QUESTION)
        self._asked: dict[str, list[tuple[str, frozenset[str]]]] = {}
        """Names and questions of the rows about each document, by the document's digest."""

    def add(self, row: Row) -> None:
        if not row.document:
            self._questions.add(row.name, signature(row.question, run_words=1))
            return
        digest = _digest(row.document)
        if digest not in self._asked:  # many questions share a document
            self._documents.add(digest, row.document)
        self._asked.setdefault(digest, []).append((row.name, _words(row.question)))

    def question(self, row: Row) -> str | None:
        """Return the name of a row that asks the same question without a document."""
        match = self._questions.find(signature(row.question, run_words=1))
        return str(match[0]) if match else None

    def document(self, row: Row) -> tuple[str, str | None] | None:
        """Return the name of a row with the same document, and of one that also asks the same question about it."""
        match = self._documents.find(row.document)
        if match is None or match[1] < _LEAKED_SHARE:
            return None
        words, asked = _words(row.question), self._asked[match[0]]
        same = (name for name, other in asked if words and len(words & other) >= _SAME_QUESTION * len(words | other))
        return f"{asked[0][0]} ({match[1]:.0%} of its runs of words)", next(same, None)


def check_file(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int | None = None,
    against: Sequence[str] = (),
    text_column: str = "text",
) -> CheckReport:
    """Check a file the way training would read it, and compare it with files that must not share its documents.

    Without a context length only lengths are measured: nothing is cut and questions are not judged.

    Raises:
        DataError: a file cannot be used.
        ConfigError: the tokenizer is not suitable for conversations.
    """
    seen = _Seen()
    for other in against:
        known, _ = read_rows(other, text_column=text_column)
        for row in shown(known, f"Reading {other}", total=None):
            seen.add(row)
    report = CheckReport(source, context_length)
    rows, skipped = read_rows(source, text_column=text_column)
    earlier: set[str] = set()
    for row in shown(rows, f"Checking {source}", total=None):
        report.num_rows += 1
        _check_tokens(row, tokenizer, report)
        digest = _digest("\0".join((row.document, row.question, row.answer)))
        if digest in earlier:
            report.repeated.add(row.name)
        earlier.add(digest)
        if context_length is not None:
            report.quality.add(row)
        if against:
            _check_leak(row, seen, report)
    report.num_rows += len(skipped)
    report.unusable |= skipped.findings
    return report


def _check_tokens(row: Row, tokenizer: PreTrainedTokenizerBase, report: CheckReport) -> None:
    if not row.messages:
        report.num_texts += 1
        report.kinds[row.kind] += 1
        report.prompts.append(0)
        report.answers.append(len(tokenizer(row.document, verbose=False)["input_ids"]))
        return
    check_tokenizer(tokenizer)
    limit = report.context_length or _NO_LIMIT
    try:
        encoded = encode_conversation(tokenizer, row.messages, context_length=limit, tools=row.tools)
    except UnusableConversationError as error:
        report.unusable.setdefault(str(error), Finding()).add(row.name)
        return
    report.kinds[row.kind] += 1
    num_learned = sum(label != IGNORED for label in encoded.labels)
    report.answers.append(num_learned)
    report.prompts.append(len(encoded.labels) - num_learned + encoded.num_cut)
    report.example = report.example or encoded
    report.num_searched += encoded.method == "search"
    if not encoded.are_ended:
        report.without_end.add(row.name)
    if encoded.num_thoughts_dropped:
        report.dropped_thoughts.add(f"{row.name} ({encoded.num_thoughts_dropped})")
    if encoded.num_cut:
        report.num_cut_tokens += encoded.num_cut
        report.cut.add(f"{row.name} ({encoded.num_cut:,} tokens)")


def _check_leak(row: Row, seen: _Seen, report: CheckReport) -> None:
    if not row.document:
        if other := seen.question(row):
            report.leaked_questions.add(f"{row.name} and {other}")
        return
    match = seen.document(row)
    if match is not None:
        report.leaked_documents.add(f"{row.name} and {match[0]}")
        if match[1] is not None and row.question:
            report.leaked_rows.add(f"{row.name} and {match[1]}")


def _words(text: str) -> frozenset[str]:
    return frozenset("".join(letter if letter.isalnum() else " " for letter in text.casefold()).split())


def _digest(text: str) -> str:
    return hashlib.blake2b(" ".join(text.split()).casefold().encode("utf-8", "replace"), digest_size=16).hexdigest()

"""How long rows are by a tokenizer, in numbers and in a picture: prompt and answer apart, as they are trained on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.corpus.question_rows import Row, read_rows
from longlora.data import encode_conversation
from longlora.data.encode import IGNORED, UnusableConversationError, check_tokenizer
from longlora.support.progress import shown

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_NO_LIMIT = 1 << 62
_BINS = 30


@dataclass
class Lengths:
    """Tokens of every row of a file."""

    file: str
    tokenizer: str
    prompts: list[int] = field(default_factory=list)
    """Tokens that are read: all but the answers. Of a text, none."""
    answers: list[int] = field(default_factory=list)
    """Tokens that are learned. Of a text, all."""
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that cannot be used, by the reason."""

    @property
    def totals(self) -> list[int]:
        """Tokens of each row."""
        return [prompt + answer for prompt, answer in zip(self.prompts, self.answers, strict=True)]

    @property
    def columns(self) -> dict[str, list[int]]:
        """The lengths worth showing, by their name."""
        if any(self.prompts):
            return {"prompt": self.prompts, "answer": self.answers, "row": self.totals}
        return {"text": self.answers}

    def to_dict(self) -> dict[str, Any]:
        """Return what a machine may want to read."""
        return {
            "file": self.file,
            "tokenizer": self.tokenizer,
            "rows": len(self.prompts),
            "tokens": {name: {"total": sum(values), **percentiles(values)} for name, values in self.columns.items()},
            "kinds": dict(self.kinds.most_common()),
            "left_out": dict(self.left_out),
        }


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """Return percentiles as lengths that occur: the nearest row's, not a mean of two."""
    found = np.percentile(values, PERCENTILES, method="nearest")
    return {f"p{percent}": int(value) for percent, value in zip(PERCENTILES, found, strict=True)}


def measure_lengths(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, text_column: str = "text", progress: bool = True
) -> Lengths:
    """Tokenise every row as training does, without any limit.

    Args:
        path: a file of conversations, or of texts.
        tokenizer: with a chat template.
        text_column: of texts.
        progress: whether to draw a bar.

    Raises:
        DataError: the file cannot be used.
        ConfigError: the tokenizer does not serve for conversations.
    """
    rows, skipped = read_rows(path, text_column=text_column)
    lengths = Lengths(str(path), tokenizer.name_or_path)
    for row in shown(rows, "Tokenizing", total=None, progress=progress):
        try:
            prompt, answer = _tokens(row, tokenizer)
        except UnusableConversationError as error:
            lengths.left_out[str(error)] += 1
            continue
        lengths.prompts.append(prompt)
        lengths.answers.append(answer)
        lengths.kinds[row.kind] += 1
    lengths.left_out.update(skipped.counts)
    return lengths


def _tokens(row: Row, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Count the tokens that are read and those that are learned."""
    if not row.messages:
        return 0, len(tokenizer(row.document, verbose=False)["input_ids"])
    check_tokenizer(tokenizer)
    encoded = encode_conversation(tokenizer, row.messages, context_length=_NO_LIMIT, tools=row.tools)
    learned = sum(label != IGNORED for label in encoded.labels)
    return len(encoded.labels) - learned, learned


def draw_lengths(lengths: Lengths, path: Path) -> None:
    """Draw a histogram for prompts and one for answers, each with its median, on scales that double."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    columns = {name: values for name, values in lengths.columns.items() if name != "row"}
    figure = Figure(figsize=(5 * len(columns) + 1, 3.6), layout="constrained")
    for number, (name, values) in enumerate(columns.items()):
        axes = figure.add_subplot(1, len(columns), number + 1)
        low, high = max(1, min(values)), max(2, *values)
        edges = np.geomspace(low * 0.98, high * 1.02, _BINS + 1)
        axes.hist(np.maximum(values, 1), bins=edges.tolist(), color=f"C{number}", alpha=0.85)
        median = percentiles(values)["p50"]
        axes.axvline(median, color="black", linewidth=1, linestyle="--")
        axes.annotate(f" median {median:,}", (median, axes.get_ylim()[1]), va="top")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(f"tokens of the {name}")
        axes.set_ylabel("rows")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{Path(lengths.file).name}: {len(lengths.prompts):,} rows", fontsize="medium")
    figure.savefig(path, dpi=130)

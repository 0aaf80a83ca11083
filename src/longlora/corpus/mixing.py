"""Mix long and short question sets in a given ratio, like LongAlpaca-12k, with nine long rows to three short ones."""

import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlora.corpus.question_rows import Row, read_rows, write_rows
from longlora.errors import ConfigError, DataError

logger = logging.getLogger("longlora")


@dataclass(frozen=True)
class MixedPart:
    """One of the two sources."""

    source: str
    num_rows: int  # usable rows
    num_used: int
    num_characters: int  # in all messages of the rows used


def parse_ratio(text: str) -> tuple[int, int]:
    """Parse a ratio such as `9:3`.

    Raises:
        ConfigError: it is not a ratio of two whole numbers above 0.
    """
    left, _, right = (part.strip() for part in text.partition(":"))
    if left.isdigit() and right.isdigit() and int(left) > 0 and int(right) > 0:
        return int(left), int(right)
    raise ConfigError(f"--ratio must be two whole numbers above 0, long rows to short ones, as in 9:3; got {text!r}")


def mix(long: str, short: str, out: Path, *, ratio: tuple[int, int], seed: int = 0) -> dict[str, MixedPart]:
    """Write as many rows as the ratio allows, none twice, chosen and shuffled with `seed`; return what is in each part.

    Rows are written as `messages` with their `source`, whatever their original format. Both sources are held in memory.

    Raises:
        DataError: a source has too few rows for the ratio, or `out` is one of the sources.
    """
    for source in (long, short):
        if Path(source).exists() and out.exists() and out.samefile(source):
            raise DataError(f"{out} is one of the sources; write to another file")
    sources = [(name, _conversations(name), share) for name, share in zip((long, short), ratio, strict=True)]
    times = min(len(rows) // share for _, rows, share in sources)
    if times == 0:
        sizes = " and ".join(str(len(rows)) for _, rows, _ in sources)
        raise DataError(f"a ratio of {ratio[0]}:{ratio[1]} needs that many rows, found {sizes}; use a smaller ratio")
    choose = random.Random(seed)
    mixed: list[Row] = []
    parts = {}
    for kind, (name, rows, share) in zip(("long", "short"), sources, strict=True):
        chosen = choose.sample(rows, times * share)
        characters = sum(len(message["content"]) for row in chosen for message in row.messages)
        parts[kind] = MixedPart(name, len(rows), len(chosen), characters)
        mixed += chosen
    choose.shuffle(mixed)
    write_rows(out, map(_record, mixed))
    return parts


def _conversations(source: str) -> list[Row]:
    rows, skipped = read_rows(source)
    found = list(rows)
    if not found[0].messages:
        raise DataError(f"{source} contains texts; only conversations can be mixed, texts are used in training as is")
    if skipped:
        logger.warning("skipped %d rows of %s: %s", len(skipped), source, skipped.summary())
    return found


def _record(row: Row) -> dict[str, Any]:
    more = {"tools": list(row.tools), "provenance": dict(row.provenance)}
    return {
        "messages": list(row.messages),
        **{name: value for name, value in more.items() if value},
        "source": row.name,
    }

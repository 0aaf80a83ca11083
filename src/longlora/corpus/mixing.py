"""Mixes long and short question sets in a given ratio, as LongAlpaca-12k has nine long rows for three short ones."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlora.corpus.question_rows import write_rows
from longlora.data import read_conversations
from longlora.errors import ConfigError, DataError


@dataclass(frozen=True)
class Part:
    """One of the two sources."""

    source: str
    num_rows: int
    """Usable rows there are."""
    num_used: int
    num_characters: int
    """Of the rows used, in all messages."""


@dataclass(frozen=True)
class Mix:
    """What was written."""

    long: Part
    short: Part

    @property
    def num_rows(self) -> int:
        """Rows written."""
        return self.long.num_used + self.short.num_used


def parse_ratio(text: str) -> tuple[int, int]:
    """Read a ratio such as `9:3`.

    Raises:
        ConfigError: it is none.
    """
    left, separator, right = text.partition(":")
    if separator and left.strip().isdigit() and right.strip().isdigit() and int(left) > 0 and int(right) > 0:
        return int(left), int(right)
    raise ConfigError(f"--ratio must be two whole numbers above 0, long rows to short ones, as in 9:3; got {text!r}")


def mix(long: str, short: str, out: Path, *, ratio: tuple[int, int], seed: int = 0) -> Mix:
    """Write as many rows as there are in the ratio, none twice, in an order and a choice that `seed` decides.

    Rows come out as `messages` with the `source` they come from, whatever form they had. All of both sources is held in
    memory.

    Raises:
        DataError: a source holds too few rows for the ratio, or `out` is one of the sources.
    """
    for source in (long, short):
        if Path(source).exists() and out.exists() and out.samefile(source):
            raise DataError(f"{out} is one of the sources; write to another file")
    sources = {name: list(read_conversations(name)) for name in (long, short)}
    times = min(len(sources[name]) // share for name, share in zip((long, short), ratio, strict=True))
    if times == 0:
        sizes = f"{len(sources[long])} and {len(sources[short])}"
        raise DataError(f"a ratio of {ratio[0]}:{ratio[1]} needs as many rows, found {sizes}; use a smaller ratio")
    choose = random.Random(seed)
    chosen = {
        name: choose.sample(sources[name], times * share) for name, share in zip((long, short), ratio, strict=True)
    }
    rows = [*chosen[long], *chosen[short]]
    choose.shuffle(rows)
    write_rows(out, _records(rows))
    return Mix(*(_part(name, sources[name], chosen[name]) for name in (long, short)))


def _records(rows: Sequence[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    for name, conversation in rows:
        tools = {"tools": list(conversation.tools)} if conversation.tools else {}
        yield {"messages": list(conversation.messages), **tools, "source": name}


def _part(name: str, rows: Sequence[Any], used: Sequence[tuple[str, Any]]) -> Part:
    characters = sum(len(message["content"]) for _, conversation in used for message in conversation.messages)
    return Part(name, len(rows), len(used), characters)

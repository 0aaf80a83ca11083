"""Where rows are cut into segments, which heads take which cuts, and what kernels derive from that once a forward pass.

B batch rows, H query heads, H_kv key-value heads, T tokens of a row, N = B·T tokens of the batch.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Made = TypeVar("Made")


class Run(NamedTuple):
    """Neighbouring segments alike: their length, how many there are, and how many sink tokens each sees before itself.

    All three are counts; lengths are in tokens.
    """

    length: int
    num_segments: int
    sinks: int


@dataclass(frozen=True)
class HeadShard:
    """Which part of a layer's heads is here: all, or one of `count` equal parts that as many processes hold.

    Under Ulysses sequence parallelism each process has whole rows of some heads (arXiv 2309.14509). Which half of the
    heads one belongs to goes by its place among all of them, so that any number of processes computes the same.
    """

    index: int = 0
    count: int = 1

    def num_unshifted(self, num_heads: int) -> int:
        """Of the `num_heads` query heads here, how many are among the first ⌈H/2⌉ of all."""
        return min(max((num_heads * self.count + 1) // 2 - num_heads * self.index, 0), num_heads)


ALL_HEADS = HeadShard()


@dataclass(frozen=True)
class CutPoints:
    """Where the flattened batch of N tokens is cut, for each half of the heads, as lengths of segments that sum to N.

    `shifted` is None when all heads share the cuts of `unshifted`: full causal attention within documents.

    Each segment also sees the first `sink_tokens` tokens of its document, as far as they lie before it. For that the
    lengths of the documents must be known; without sink tokens they are not kept.

    One object serves all layers of a forward pass, so it keeps what the kernels make of it (`once`).
    """

    unshifted: tuple[int, ...]
    shifted: tuple[int, ...] | None
    sink_tokens: int = 0
    documents: tuple[int, ...] = ()
    group_size: int | None = field(default=None, compare=False)  # the segments say what is computed
    heads: HeadShard = ALL_HEADS
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        """N, the tokens of the flattened batch."""
        return self.once("tokens", lambda: sum(self.unshifted))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what `make` returned when it was first called for this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def num_unshifted(self, num_heads: int) -> int:
        """How many of the query heads here have the cuts of `unshifted`; they come first."""
        return num_heads if self.shifted is None else self.heads.num_unshifted(num_heads)

    @property
    def halves(self) -> tuple[bool, ...]:
        """Of which halves of the heads there are cuts, as values of `shifted`."""
        return (False,) if self.shifted is None else (False, True)

    def lengths(self, *, shifted: bool) -> tuple[int, ...]:
        """Lengths of the segments of one half of the heads, in tokens."""
        lengths = self.shifted if shifted else self.unshifted
        assert lengths is not None  # `head_ranges` names no shifted heads then
        return lengths

    def longest(self, *, shifted: bool) -> int:
        """Length of the longest segment of one half of the heads, in tokens."""
        return self.once(("longest", shifted), lambda: max(self.lengths(shifted=shifted)))

    def starts(self, *, shifted: bool) -> tuple[int, ...]:
        """First tokens of the documents of the segments of one half of the heads, in the flattened batch.

        Without sink tokens nobody needs them, and every segment stands for a document of its own.
        """

        def make() -> tuple[int, ...]:
            firsts = [0, *accumulate(self.lengths(shifted=shifted))][:-1]
            if not self.sink_tokens:
                return tuple(firsts)
            ends = accumulate(self.documents)
            start, end = 0, next(ends)
            starts = []
            for first in firsts:
                while first >= end:
                    start, end = end, next(ends)
                starts.append(start)
            return tuple(starts)

        return self.once(("starts", shifted), make)

    def sinks(self, *, shifted: bool) -> tuple[int, ...]:
        """How many sink tokens each segment of one half of the heads sees before its own tokens."""

        def make() -> tuple[int, ...]:
            firsts = [0, *accumulate(self.lengths(shifted=shifted))][:-1]
            starts = self.starts(shifted=shifted)
            return tuple(min(self.sink_tokens, first - start) for first, start in zip(firsts, starts, strict=True))

        return self.once(("sinks", shifted), make)

    def runs(self, *, shifted: bool) -> tuple[Run, ...]:
        """Runs of neighbouring segments that are alike in their length and in the sink tokens before them."""

        def make() -> tuple[Run, ...]:
            segments = zip(self.lengths(shifted=shifted), self.sinks(shifted=shifted), strict=True)
            return tuple(Run(length, len(list(same)), sinks) for (length, sinks), same in groupby(segments))

        return self.once(("runs", shifted), make)

    def segments(self, device: torch.device, *, shifted: bool) -> "Segments":
        """The segments of one half of the heads on a device, as kernels for variable lengths take them."""

        def make() -> Segments:
            return Segments.of(self.lengths(shifted=shifted), self.sinks(shifted=shifted), device)

        return self.once(("segments", shifted, device), make)


@dataclass(frozen=True)
class Segments:
    """Neighbouring segments, each with the keys of its sink tokens before its own, as int32 boundaries from 0."""

    boundaries: Int[Tensor, " segments_plus_1"]
    key_boundaries: Int[Tensor, " segments_plus_1"]
    """The same tensor as `boundaries` where there are no sink tokens."""
    longest: int
    longest_keys: int

    @staticmethod
    def of(lengths: Sequence[int], sinks: Sequence[int], device: torch.device) -> "Segments":
        """Add the lengths up and send the boundaries to a device."""
        num_keys = [length + before for length, before in zip(lengths, sinks, strict=True)]
        boundaries = _boundaries(lengths, device)
        key_boundaries = _boundaries(num_keys, device) if any(sinks) else boundaries
        return Segments(boundaries, key_boundaries, longest=max(lengths), longest_keys=max(num_keys))


def _boundaries(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " segments_plus_1"]:
    return torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device, non_blocking=True)


def cut_points(
    batch_size: int,
    num_tokens: int,
    *,
    group_size: int | None,
    sink_tokens: int = 0,
    cu_seqlens: Int[Tensor, " documents_plus_1"] | None = None,
    padding_mask: Bool[Tensor, "B T"] | None = None,
    heads: HeadShard = ALL_HEADS,
) -> CutPoints:
    """Cut the documents of a batch into groups; `group_size=None` leaves them whole.

    Groups are counted from each document's first token: g, g, g, … for the unshifted heads and ⌊g/2⌋, g, g, … for the
    shifted ones. Each group also sees the first `sink_tokens` tokens of its document.

    Raises:
        ValueError: as `s2_attention`.
    """
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size must be at least 1 token, got {group_size}")
    if sink_tokens < 0:
        raise ValueError(f"sink_tokens must be 0 or more, got {sink_tokens}")
    documents = _document_lengths(batch_size, num_tokens, cu_seqlens, padding_mask)
    if group_size is None:
        return CutPoints(unshifted=tuple(documents), shifted=None)
    return CutPoints(
        unshifted=tuple(part for length in documents for part in _cut(length, group_size, first=group_size)),
        shifted=tuple(part for length in documents for part in _cut(length, group_size, first=group_size // 2)),
        sink_tokens=sink_tokens,
        documents=tuple(documents) if sink_tokens else (),
        group_size=group_size,
        heads=heads,
    )


def _document_lengths(
    batch_size: int,
    num_tokens: int,
    cu_seqlens: Int[Tensor, " documents_plus_1"] | None,
    padding_mask: Bool[Tensor, "B T"] | None,
) -> list[int]:
    total = batch_size * num_tokens
    boundaries = set(range(0, total + 1, num_tokens))
    if cu_seqlens is not None:
        given = cu_seqlens.tolist()
        if not given or given[0] != 0 or given[-1] != total or any(left > right for left, right in pairwise(given)):
            raise ValueError(
                f"cu_seqlens must rise from 0 to the {total} tokens of the batch ({batch_size} x {num_tokens}), "
                + (f"got {given[:3]} … {given[-3:]}" if given else "got none")
            )
        boundaries.update(given)
    if padding_mask is not None:
        changes = padding_mask[:, 1:] != padding_mask[:, :-1]  # (B, T-1)
        if (padding_mask[:, 0].int() + (padding_mask[:, 1:] & changes).sum(dim=1)).max() > 1:
            raise ValueError("padding_mask must be one stretch of real tokens in each row, found one with a hole")
        rows, columns = changes.nonzero(as_tuple=True)
        boundaries.update((rows * num_tokens + columns + 1).tolist())
    return [right - left for left, right in pairwise(sorted(boundaries))]


def _cut(length: int, group_size: int, *, first: int) -> list[int]:
    """Cut `length` tokens into a first segment, whole groups, and the rest; empty segments are left out."""
    head = min(first, length)
    num_groups, rest = divmod(length - head, group_size)
    return [part for part in (head, *[group_size] * num_groups, rest) if part > 0]


@dataclass(frozen=True)
class HeadRange:
    """Neighbouring query heads with the same cuts, and the key-value heads that they read.

    Either the key-value heads serve these query heads alone, each the same number of them, or it is one head that the
    range shares with its neighbour. In both cases kernels for grouped queries take the two slices as they are.
    """

    query: slice
    key_value: slice
    shifted: bool


def head_ranges(num_heads: int, num_kv_heads: int, cuts: CutPoints) -> tuple[HeadRange, ...]:
    """Divide the heads where the cuts change, and where a key-value head serves both halves, so that none is copied.

    The first ⌈H/2⌉ query heads of a layer are unshifted. A single head, or cuts without a second half, is one range.

    Raises:
        ValueError: the query heads are not a multiple of the key-value heads.
    """
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"the query heads must be a multiple of the key-value heads, got {num_heads} and {num_kv_heads}"
        )
    queries_per_kv = num_heads // num_kv_heads
    middle = cuts.num_unshifted(num_heads)
    shared = middle // queries_per_kv * queries_per_kv  # the first query head of the key-value head at the middle
    boundaries = {0, middle, num_heads}
    if shared != middle:
        boundaries |= {shared, shared + queries_per_kv}
    return tuple(
        HeadRange(
            query=slice(first, last),
            key_value=slice(first // queries_per_kv, (last - 1) // queries_per_kv + 1),
            shifted=first >= middle,
        )
        for first, last in pairwise(sorted(boundaries))
    )

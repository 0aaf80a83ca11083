"""Cut points: where rows are cut into segments, for which heads, and what kernels derive from them per forward pass.

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
    """Consecutive segments of the same length (in tokens), each preceded by the same number of sink tokens."""

    length: int
    num_segments: int
    sinks: int


@dataclass(frozen=True)
class HeadShard:
    """The heads of a layer that this process holds: all, or one of `count` equal shards.

    Under Ulysses sequence parallelism each process has whole rows of some heads (arXiv 2309.14509). A head's position
    among all heads decides which half it belongs to, so the result does not depend on the number of processes.
    """

    index: int = 0
    count: int = 1

    def num_unshifted(self, num_heads: int) -> int:
        """Return how many of the `num_heads` local query heads are among the first ⌈H/2⌉ of the layer."""
        return min(max((num_heads * self.count + 1) // 2 - num_heads * self.index, 0), num_heads)


ALL_HEADS = HeadShard()


@dataclass(frozen=True)
class CutPoints:
    """Where the flattened batch of N tokens is cut for each half of the heads, as segment lengths that sum to N.

    `shifted` is None when all heads share the cuts of `unshifted`: groups without a shift, or full causal attention
    within documents.

    Each segment also sees those of the first `sink_tokens` tokens of its document that precede it. This requires the
    document lengths, which are not kept without sink tokens.

    One object serves all layers of a forward pass, so it caches what kernels derive from it (`once`).
    """

    unshifted: tuple[int, ...]
    shifted: tuple[int, ...] | None
    sink_tokens: int = 0
    documents: tuple[int, ...] = ()
    group_size: int | None = field(default=None, compare=False)  # the segments alone determine the result
    heads: HeadShard = ALL_HEADS
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens in the flattened batch."""
        return self.once("tokens", lambda: sum(self.unshifted))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Call `make` on the first request for a key, and return its cached result from then on."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def num_unshifted(self, num_heads: int) -> int:
        """Return how many of the local query heads use the cuts of `unshifted`; they come first."""
        return num_heads if self.shifted is None else self.heads.num_unshifted(num_heads)

    @property
    def halves(self) -> tuple[bool, ...]:
        """The halves of the heads that have cuts, as values of `shifted`."""
        return (False,) if self.shifted is None else (False, True)

    def lengths(self, *, shifted: bool) -> tuple[int, ...]:
        """Return the segment lengths of one half of the heads, in tokens."""
        lengths = self.shifted if shifted else self.unshifted
        assert lengths is not None  # without `shifted`, `head_ranges` has no shifted heads
        return lengths

    def longest(self, *, shifted: bool) -> int:
        """Return the length of the longest segment of one half of the heads, in tokens."""
        return self.once(("longest", shifted), lambda: max(self.lengths(shifted=shifted)))

    def starts(self, *, shifted: bool) -> tuple[int, ...]:
        """Return for each segment of one half of the heads where its document starts in the flattened batch.

        Without sink tokens documents are unknown and not needed: each segment counts as its own document.
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
        """Return how many sink tokens precede each segment of one half of the heads."""

        def make() -> tuple[int, ...]:
            firsts = [0, *accumulate(self.lengths(shifted=shifted))][:-1]
            starts = self.starts(shifted=shifted)
            return tuple(min(self.sink_tokens, first - start) for first, start in zip(firsts, starts, strict=True))

        return self.once(("sinks", shifted), make)

    def runs(self, *, shifted: bool) -> tuple[Run, ...]:
        """Return the runs of consecutive segments with the same length and number of sink tokens."""

        def make() -> tuple[Run, ...]:
            segments = zip(self.lengths(shifted=shifted), self.sinks(shifted=shifted), strict=True)
            return tuple(Run(length, len(list(same)), sinks) for (length, sinks), same in groupby(segments))

        return self.once(("runs", shifted), make)

    def segments(self, device: torch.device, *, shifted: bool) -> "Segments":
        """Return the segments of one half of the heads, in the form that variable-length kernels take."""

        def make() -> Segments:
            return Segments.of(self.lengths(shifted=shifted), self.sinks(shifted=shifted), device)

        return self.once(("segments", shifted, device), make)


@dataclass(frozen=True)
class Segments:
    """Consecutive segments as int32 boundaries from 0; a segment's keys begin with those of its sink tokens."""

    boundaries: Int[Tensor, " segments_plus_1"]
    key_boundaries: Int[Tensor, " segments_plus_1"]
    """The same tensor as `boundaries` if there are no sink tokens."""
    longest: int
    longest_keys: int

    @staticmethod
    def of(lengths: Sequence[int], sinks: Sequence[int], device: torch.device) -> "Segments":
        """Accumulate lengths into boundaries on a device."""
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
    shift: bool = True,
    sink_tokens: int = 0,
    cu_seqlens: Int[Tensor, " documents_plus_1"] | None = None,
    padding_mask: Bool[Tensor, "B T"] | None = None,
    heads: HeadShard = ALL_HEADS,
) -> CutPoints:
    """Cut the documents of a batch into groups; `group_size=None` leaves them whole.

    Groups are counted from each document's first token: g, g, g, … for the unshifted heads and ⌊g/2⌋, g, g, … for the
    shifted ones; without `shift`, no heads are shifted. Each group also sees the first `sink_tokens` tokens of its
    document.

    Raises:
        ValueError: as for `s2_attention`.
    """
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size must be at least 1 token, got {group_size}")
    if sink_tokens < 0:
        raise ValueError(f"sink_tokens must be 0 or more, got {sink_tokens}")
    documents = _document_lengths(batch_size, num_tokens, cu_seqlens, padding_mask)
    if group_size is None:
        return CutPoints(unshifted=tuple(documents), shifted=None)

    def cut(first: int) -> tuple[int, ...]:
        return tuple(part for length in documents for part in _cut(length, group_size, first=first))

    return CutPoints(
        unshifted=cut(group_size),
        shifted=cut(group_size // 2) if shift else None,
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
    """Cut `length` tokens into a first segment, whole groups, and the remainder, without empty segments."""
    head = min(first, length)
    num_groups, rest = divmod(length - head, group_size)
    return [part for part in (head, *[group_size] * num_groups, rest) if part > 0]


@dataclass(frozen=True)
class HeadRange:
    """Consecutive query heads with the same cuts, and the key-value heads that they read.

    Either the key-value heads serve only these query heads, each the same number of them, or there is one key-value
    head, shared with the adjacent range. In both cases grouped-query kernels accept the two slices unchanged.
    """

    query: slice
    key_value: slice
    shifted: bool


def head_ranges(num_heads: int, num_kv_heads: int, cuts: CutPoints) -> tuple[HeadRange, ...]:
    """Divide the heads where the cuts change, and around a key-value head that serves both halves, to avoid copying it.

    The first ⌈H/2⌉ query heads of a layer are unshifted. A single head, or cuts without a second half, form one range.

    Raises:
        ValueError: the query heads are not a multiple of the key-value heads.
    """
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"the query heads must be a multiple of the key-value heads, got {num_heads} and {num_kv_heads}"
        )
    queries_per_kv = num_heads // num_kv_heads
    middle = cuts.num_unshifted(num_heads)
    shared = middle // queries_per_kv * queries_per_kv  # first query head of the key-value head in the middle
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

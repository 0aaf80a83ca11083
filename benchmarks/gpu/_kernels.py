"""The step `attention`: forward and backward pass of one layer's attention, full and S², with every kernel.

Each round makes new cut points (for packed rows, from documents of new lengths, as in training) and runs attention
twice with them: `first_ms` includes what kernels prepare once for new cuts, `ms` is any later layer of the same forward
pass. `cuts_ms` is the host's time for the cut points, once per forward pass. Full attention over plain rows needs no
cuts and runs once per round. All times are medians. `share_of_ideal` is the speedup of S² over the fastest full
attention of the same shape, divided by the ratio of their query-key pairs.
"""

import inspect
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any, get_args

import torch
from _session import DEVICE, GIB, OutOfTime, Row, Session
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from longlora.attention import Backend, CutPoints, attend_in_segments, cut_points

SDPA_KERNELS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa default": None,
}
MEAN_DOCUMENT = 2048  # tokens, in packed rows
# Kernels with N² scores, or with half a minute of compilation, are measured up to these lengths.
LONGEST = {"explicit": 8192, "flex": 65536}
BACKENDS = get_args(Backend)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attention over one row."""

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    tokens: int
    packed: bool = False
    group_size: int | None
    """None means full attention, within documents in packed rows."""
    sink_tokens: int = 0
    kernel: str
    """A backend of ours, or one of `SDPA_KERNELS`."""

    @property
    def name(self) -> str:
        """The case's unique name."""
        pattern = "full" if self.group_size is None else f"s2 g{self.group_size} sink{self.sink_tokens}"
        rows = "packed" if self.packed else "plain"
        return f"{rows} {self.heads}/{self.kv_heads}x{self.head_dim} {self.tokens} {pattern} {self.kernel}"

    @property
    def fulls(self) -> list["Case"]:
        """Full attention of the same shape, with every kernel that may be the fastest."""
        kernels = ["auto", *(name for name in BACKENDS if name in ("varlen", "sdpa", "flash"))]
        return [
            replace(self, group_size=None, sink_tokens=0, kernel=name)
            for name in (kernels if self.packed else SDPA_KERNELS)
        ]


def run_attention(session: Session) -> None:
    """Measure all cases, in the order of `cases`."""
    with_sinks = "sink_tokens" in inspect.signature(cut_points).parameters
    try:
        for case in cases(dry=session.dry, with_sinks=with_sinks):
            session.run(case.name, asdict(case), partial(measure, case, session))
    except OutOfTime:
        print("time is up")


def cases(*, dry: bool, with_sinks: bool) -> Iterator[Case]:
    """Yield the cases, most important first: grouped queries at common lengths, then packed rows, then sinks."""
    lengths = [256, 512] if dry else [8192, 32768, 65536, 16384, 131072, 4096]
    packed_lengths = [256] if dry else [32768, 65536, 8192, 131072]
    quick = ["auto", *(name for name in BACKENDS if name not in ("auto", *LONGEST, "flash"))]
    slow = [name for name in BACKENDS if name in ("flash", *LONGEST)]
    sinks = [0, 1] if with_sinks else [0]
    long_group = 64 if dry else 8192
    heads = [{"heads": 4, "kv_heads": 2, "head_dim": 16}, {"heads": 4, "kv_heads": 4, "head_dim": 16}]
    grouped, whole = heads if dry else ({"heads": 32, "kv_heads": 8}, {"heads": 32, "kv_heads": 32})

    def family(shape: dict[str, int], tokens: int, packed: bool, group: int, sink: int, kernels: list[str]) -> list:
        case = Case(**shape, tokens=tokens, packed=packed, group_size=group, sink_tokens=sink, kernel="auto")
        # With a sink, the full attentions already have rows, or there is no time for them.
        arms = [*(case.fulls if not sink else []), *(replace(case, kernel=name) for name in kernels)]
        return [arm for arm in arms if arm.tokens <= LONGEST.get(arm.kernel, arm.tokens)]

    for tokens in lengths[:3]:
        yield from family(grouped, tokens, False, tokens // 4, 0, quick)
    for sink, tokens in product(sinks[1:], lengths[:3]):
        yield from family(grouped, tokens, False, tokens // 4, sink, quick)
    for sink, tokens in product(sinks, packed_lengths[:2]):
        yield from family(grouped, tokens, True, tokens // 4, sink, quick)
    for tokens in lengths[:3]:
        yield from family(whole, tokens, False, tokens // 4, 0, quick)
    for tokens in lengths[3:]:
        yield from family(grouped, tokens, False, tokens // 4, 0, quick)
    for sink, tokens in product(sinks, [tokens for tokens in lengths if tokens > long_group]):
        yield from family(grouped, tokens, False, long_group, sink, ["auto"])
    for sink, tokens in product(sinks, [lengths[0], packed_lengths[0]]):
        yield from family(grouped, tokens, tokens != lengths[0], tokens // 4, sink, slow)
    for sink, tokens in product(sinks, packed_lengths[2:]):
        yield from family(grouped, tokens, True, tokens // 4, sink, quick)
    for tokens in lengths[3:]:
        yield from family(whole, tokens, False, tokens // 4, 0, quick)
    if not dry:
        for shape, sink in product((grouped, whole), sinks):
            yield from family(shape, 262144, False, 65536, sink, quick)
            yield from family(shape, 262144, False, long_group, sink, ["auto"])


def measure(case: Case, session: Session) -> Row:
    """Time a case; S² is compared with the full attentions of the same shape that have been timed."""
    tensors = [random_heads(case, heads) for heads in (case.heads, case.kv_heads, case.kv_heads)]
    gradient = random_heads(case, case.heads).detach()
    before = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0
    draws = random.Random(0)
    make_round = _sdpa_round if case.kernel in SDPA_KERNELS else _segments_round
    rounds: list[Row] = []
    began = time.monotonic()
    for number in range(2 if session.dry else 7):
        figures = make_round(case, tensors, gradient, draws)
        spent = time.monotonic() - began
        if number < (1 if session.dry or spent > 1 else 2):  # warm-up: kernels are chosen, built and loaded
            continue
        rounds.append(figures)
        if spent > 3 or session.seconds_left < spent:
            break
    row: Row = {key: round(statistics.median(each[key] for each in rounds), 4) for key in rounds[0]}
    row["rounds"] = len(rounds)
    if DEVICE.type == "cuda":
        row["extra_gib"] = round((torch.cuda.max_memory_allocated() - before) / GIB, 4)
    row["tflops"] = round(flops(case, row["pairs"]) / row["ms"] / 1e9, 1)
    return row | ({} if case.group_size is None else _compared(case, row, session))


def _compared(case: Case, row: Row, session: Session) -> Row:
    found = [session.rows.get(full.name, {}) for full in case.fulls]
    timed = [full for full in found if "ms" in full]
    if not timed:
        return {}
    fastest = min(timed, key=lambda full: full["ms"])
    ideal = fastest["pairs"] / row["pairs"]
    times_as_fast = fastest["ms"] / row["ms"]
    return {
        "fastest_full": fastest["kernel"],
        "fastest_full_ms": fastest["ms"],
        "times_as_fast": round(times_as_fast, 3),
        "ideal": round(ideal, 3),
        "share_of_ideal": round(times_as_fast / ideal, 3),
    }


def random_heads(case: Case, num_heads: int) -> Tensor:
    """Return random values laid out like a projection's output: memory (1, T, H, D), shape (1, H, T, D)."""
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    memory = torch.randn(1, case.tokens, num_heads, case.head_dim, device=DEVICE, dtype=dtype)
    return memory.transpose(1, 2).requires_grad_()


def _sdpa_round(case: Case, tensors: list[Tensor], gradient: Tensor, draws: random.Random) -> Row:
    kernel = SDPA_KERNELS[case.kernel]
    attend = partial(scaled_dot_product_attention, is_causal=True, enable_gqa=case.heads != case.kv_heads)
    if kernel is None:
        milliseconds = timed(partial(attend, *tensors), tensors, gradient)
    else:
        with sdpa_kernel(kernel):
            milliseconds = timed(partial(attend, *tensors), tensors, gradient)
    return {"ms": milliseconds, "pairs": _pairs(case.tokens)}


def _segments_round(case: Case, tensors: list[Tensor], gradient: Tensor, draws: random.Random) -> Row:
    documents = document_lengths(case.tokens, draws) if case.packed else [case.tokens]
    boundaries = torch.tensor([0, *documents]).cumsum(0).int()
    sinks: dict[str, Any] = {"sink_tokens": case.sink_tokens} if case.sink_tokens else {}
    began = time.perf_counter()
    cuts = cut_points(1, case.tokens, group_size=case.group_size, cu_seqlens=boundaries, **sinks)
    cuts_ms = 1e3 * (time.perf_counter() - began)
    attend = partial(attend_in_segments, *tensors, cuts, backend=case.kernel)
    first, again = (timed(attend, tensors, gradient) for _ in range(2))
    plain = cut_points(1, case.tokens, group_size=case.group_size, cu_seqlens=boundaries) if sinks else cuts
    return {"ms": again, "first_ms": first, "cuts_ms": cuts_ms, "pairs": pairs_in(plain), "documents": len(documents)}


def document_lengths(num_tokens: int, draws: random.Random) -> list[int]:
    """Draw document lengths that fill a row, exponentially distributed, roughly like those of real collections."""
    mean = min(MEAN_DOCUMENT, num_tokens // 4)
    lengths: list[int] = []
    while (room := num_tokens - sum(lengths)) > 0:
        lengths.append(min(room, 1 + int(draws.expovariate(1 / mean))))
    return lengths


def pairs_in(cuts: CutPoints) -> float:
    """Return the query-key pairs of one head, as the mean over both halves, without those of sinks."""
    halves = [sum(map(_pairs, cuts.lengths(shifted=shifted))) for shifted in cuts.halves]
    return sum(halves) / len(halves)


def _pairs(length: int) -> float:
    return math.comb(length + 1, 2)


def flops(case: Case, pairs: float) -> float:
    """Return the FLOPs of forward (2 products) and backward pass (5), counted as by FlashAttention's authors."""
    return 3.5 * 4 * pairs * case.heads * case.head_dim


def timed(call: Callable[[], Tensor], tensors: list[Tensor], gradient: Tensor) -> float:
    """Return the milliseconds of a forward and a backward pass, by CUDA events if there is CUDA."""
    for tensor in tensors:
        tensor.grad = None
    if DEVICE.type != "cuda":
        began = time.perf_counter()
        call().backward(gradient)
        return 1e3 * (time.perf_counter() - began)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call().backward(gradient)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)

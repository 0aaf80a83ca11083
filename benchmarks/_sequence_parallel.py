"""Print the tables of docs/strategies.md on sequence parallelism, and draw its picture; everything is calculated.

python benchmarks/_sequence_parallel.py        # prints the tables, draws docs/sequence-parallel.png
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "src")]

from _report import markdown_table  # noqa: E402

from longlora.planner.architecture import find_architecture  # noqa: E402
from longlora.planner.compute import GIB, LINKS, exchange_seconds, find_gpu, plan_duration, ulysses_bytes  # noqa: E402  # noqa: E402
from longlora.planner.job import PlannedRun  # noqa: E402
from longlora.planner.plan import longest_context  # noqa: E402
from longlora.planner.savings import KEEP_FREE  # noqa: E402
from longlora.support.figures import new_figure, save_figure  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODELS = {"8B": "meta-llama/Llama-3.1-8B", "13B": "meta-llama/Llama-2-13b-hf", "70B": "meta-llama/Llama-2-70b-hf"}
GPUS, TOKENS = 8, 2**20
NUM_PARTS, NUM_HEADS, ROW = 4, 8, 64  # of the picture
COLOURS = ("#1f5fa8", "#c2571a", "#4f8f3a", "#8a5aa8")


def ring_bytes(run: PlannedRun) -> int:
    """Return the bytes of the keys and values of all other GPUs, received in turn by ring attention."""
    return run.compute_bytes * run.tokens * 2 * run.architecture.kv_size * (run.sequence_parallel_size - 1)


def halo_bytes(run: PlannedRun) -> int:
    """Return the bytes of the keys and values that S²-Attn's groups need from before a GPU's part of the row.

    This is for the GPU that needs most. Sink tokens are negligible.
    """
    part = run.tokens
    reach = max(_reach(first, run.group_tokens) for first in range(0, part * run.sequence_parallel_size, part))
    return run.compute_bytes * reach * run.architecture.kv_size


def _reach(first: int, group: int) -> int:
    """Return how far a token's two groups reach back in total, each seen by half of the heads."""
    return first % group + ((first - group // 2) % group if first >= group // 2 else first)


WAYS = {"ring": ring_bytes, "ulysses": ulysses_bytes, "halo": halo_bytes}


def exchanged_seconds(run: PlannedRun, bytes_per_second: float, way: str) -> float:
    """Return the time of a row's exchanges as `exchange_seconds` does for Ulysses.

    Backward, the ring sends keys and values again, and their gradients; the others send as much as forward.
    """
    passes = 2 + run.gradient_checkpointing + (way == "ring")
    return passes * WAYS[way](run) * run.architecture.num_layers / bytes_per_second


def main() -> int:
    """Print and draw."""
    for title, table in (("Exchanges", exchanges()), ("Longest contexts", contexts()), ("Steps", steps())):
        print(f"### {title}\n\n{table}\n")
    draw(ROOT / "docs" / "sequence-parallel.png")
    return 0


def shared(model: str, tokens: int, gpus: int = GPUS, **changes: object) -> PlannedRun:
    """Plan a row of a model on `gpus` GPUs under FSDP2, with S²-Attn and a sink token."""
    run = PlannedRun(
        architecture=find_architecture(MODELS[model]),
        context_length=tokens,
        strategy="fsdp2",
        num_gpus=gpus,
        sequence_parallel_size=gpus,
        accumulation_steps=1,
        steps=1,
        sink_tokens=1,
        offload_checkpoints=True,
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def exchanges() -> str:
    """Return the table of communication for an 8B model: bytes into each GPU per layer, and time per row."""
    rows = []
    for tokens, gpus in ((2**17, 8), (TOKENS, 8), (TOKENS, 16)):
        run = shared("8B", tokens, gpus)
        alone = seconds(run) - exchange_seconds(run, find_gpu("h100").bytes_between)
        for way, count in WAYS.items():
            times = [f"{exchanged_seconds(run, speed, way):,.1f}" for speed in LINKS.values()]
            rows.append((f"{tokens:,}", str(gpus), way, f"{count(run) / 1e6:,.0f}", *times, f"{alone:,.0f}"))
    return markdown_table(("tokens", "GPUs", "way", "MB a layer", *LINKS, "all else"), rows)


def contexts() -> str:
    """Return the table of longest rows, with a tenth of the memory free."""
    rows = []
    for model in MODELS:
        for name, changes in (("", {}), (", `tiled_mlp: 4096`", {"tiled_mlp": 4096})):
            run = shared(model, TOKENS, **changes)
            longest = [longest_context(run, int((1 - KEEP_FREE) * gib * GIB)) for gib in (80, 140)]
            alone = replace(run, num_gpus=1, sequence_parallel_size=1, strategy="single")
            one = longest_context(alone, int((1 - KEEP_FREE) * 80 * GIB))
            rows.append((model + name, f"{one:,}" if one else "none", *(f"{count:,}" for count in longest)))
    return markdown_table(("model", "one GPU of 80 GB", "8 × 80 GB", "8 × 141 GB"), rows)


def steps() -> str:
    """Return the table of seconds for a step of one row of a million tokens on eight H100s."""
    rows = []
    for model in MODELS:
        run = shared(model, TOKENS)
        recommended = replace(run, shift=False, sink_tokens=0, full_attention_interval=6)
        kinds = (replace(run, attention="full"), run, recommended, replace(run, dense_finish=0.2))
        rows.append((model, *(f"{seconds(kind):,.0f}" for kind in kinds)))
    headings = ("model", "full", "S²", "no shift, one layer of six full", "S², the last fifth of the steps full")
    return markdown_table(headings, rows)


def seconds(run: PlannedRun) -> float:
    """Return the time of the run's one step on H100s."""
    return plan_duration(run, find_gpu("h100")).seconds


def draw(path: Path) -> None:
    """Draw how GPUs share a row outside of attention and within it."""
    figure, (outside, inside) = new_figure(9.5, 3.6, ncols=2, sharey=True)
    for axes, title in (
        (outside, "everywhere else: a part of the row"),
        (inside, "in attention: some heads, whole row"),
    ):
        axes.set(title=title, xlim=(0, ROW), ylim=(NUM_HEADS, 0), xticks=[], xlabel="tokens of a row")
        axes.set_yticks([head + 0.5 for head in range(NUM_HEADS)], [str(head) for head in range(NUM_HEADS)])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    outside.set_ylabel("heads")
    inside.set_xlabel("tokens of a row; white: groups, black: the end of a document")
    width, height = ROW / NUM_PARTS, NUM_HEADS / NUM_PARTS
    for part, colour in enumerate(COLOURS):
        outside.barh(NUM_HEADS / 2, width, NUM_HEADS, left=part * width, color=colour, alpha=0.75)
        outside.text((part + 0.5) * width, NUM_HEADS / 2, f"GPU {part}", color="white", ha="center", va="center")
        inside.barh((part + 0.5) * height, ROW, height, color=colour, alpha=0.75)
        inside.text(ROW - 1, (part + 0.5) * height, f"GPU {part}", color="white", ha="right", va="center")
    draw_cuts(inside, document=40, group=16)
    save_figure(figure, path)


def draw_cuts(axes: "Axes", *, document: int, group: int) -> None:
    """Draw where the groups of two documents are cut; half of the heads have shifted groups, on any GPU."""
    half = NUM_HEADS / 2
    for first, length in ((0, document), (document, ROW - document)):
        for shift, top in ((group, 0), (group // 2, half)):
            cuts = [first + place for place in range(shift, length, group)]
            axes.vlines(cuts, top, top + half, color="white", linewidth=1.5)
    axes.vlines([document], 0, NUM_HEADS, color="black", linewidth=2)


if __name__ == "__main__":
    sys.exit(main())

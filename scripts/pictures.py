"""Draw the pictures of README and docs from the code they describe.

    python scripts/pictures.py [FOLDER]     # docs/pictures/

Attention patterns are the mask that defines S²-Attn (`longlora.attention.reference`); memory is the planner's. Each
picture has its own background, so it is readable on a dark page too.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from longlora.attention.reference import s2_mask
from longlora.planner.architecture import find_architecture
from longlora.planner.compute import GIB, find_gpu
from longlora.planner.job import PlannedRun
from longlora.planner.memory import plan_memory
from longlora.support.figures import new_figure, plain, save_figure
from longlora.training.draft import CARDS

INK, FAINT, PAPER = "#22272e", "#6e7781", "#fbfbfa"
FULL, GROUP, SHIFTED, SINK = "#9aa5b1", "#3b6fb6", "#2a9d8f", "#e0803a"
NUM_TOKENS, GROUP_SIZE = 16, 4


def main() -> int:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (attention, pipeline, context):
        figure = draw()
        figure.set_facecolor(PAPER)
        save_figure(figure, folder / f"{draw.__name__}.png")
    return 0


def attention() -> Any:
    """Draw which tokens see which: full attention, both halves of S²-Attn, packed documents, a sink token."""
    figure, axes = new_figure(10, 7.4, nrows=2, ncols=3)
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.08)
    one, two = [NUM_TOKENS], [10, 6]
    _draw_mask(axes[0, 0], "full causal attention", one, FULL, group_size=NUM_TOKENS)
    _draw_mask(axes[0, 1], "S²-Attn, first half of the heads:\ngroups of 4", one, GROUP)
    _draw_mask(axes[0, 2], "S²-Attn, second half:\ngroups shifted by 2", one, SHIFTED, shifted=True)
    _draw_mask(axes[1, 0], "two packed documents,\nfirst half of the heads", two, GROUP)
    _draw_mask(axes[1, 1], "two packed documents,\nsecond half", two, SHIFTED, shifted=True)
    _draw_mask(axes[1, 2], "the same with sink_tokens: 1", two, SHIFTED, shifted=True, sink_tokens=1)
    return figure


def _draw_mask(
    axes: Any,
    title: str,
    documents: Sequence[int],
    color: str,
    *,
    group_size: int = GROUP_SIZE,
    shifted: bool = False,
    sink_tokens: int = 0,
) -> None:
    """Draw which keys (columns) each query (row) sees in one half of the heads, by the reference mask."""
    boundaries = torch.tensor([0, *accumulate(documents)])
    query = torch.empty(1, 2, sum(documents), 1)  # (B, H, T, D): one head of each half
    mask, without = (
        s2_mask(query, group_size=group_size, sink_tokens=sinks, cu_seqlens=boundaries)[0, int(shifted)]
        for sinks in (sink_tokens, 0)
    )  # (T, T)
    for row, column in mask.nonzero().tolist():
        fill = color if without[row, column] else SINK
        axes.add_patch(_rectangle((column, row), 1, 1, facecolor=fill, edgecolor=PAPER, linewidth=0.8))
    for boundary in boundaries[1:-1].tolist():
        axes.axhline(boundary, color=INK, linewidth=1, linestyle=":")
        axes.axvline(boundary, color=INK, linewidth=1, linestyle=":")
    axes.set(xlim=(0, len(mask)), ylim=(len(mask), 0), aspect="equal", xticks=[], yticks=[], facecolor="white")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel("sees →", fontsize=8, color=FAINT)
    axes.set_ylabel("← token", fontsize=8, color=FAINT)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _rectangle(corner: tuple[float, float], width: float, height: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, **style)


def pipeline() -> Any:
    """Draw the way from a model and texts to an extended model, with the command for each step."""
    figure, axes = new_figure(10, 3.3)
    axes.set(xlim=(0, 100), ylim=(0, 33), xticks=[], yticks=[], facecolor=PAPER)
    axes.axis("off")
    _draw_box(axes, (1, 19), "pretrained model", "reads 8k tokens", FULL)
    _draw_box(axes, (1, 3), "texts", "longlora corpus\nor any folder", FULL)
    _draw_box(axes, (27, 19), "positions", "rescaled to 32k\n(rope_type)", GROUP)
    _draw_box(axes, (27, 3), "rows of 32k", "packed, with\nboundaries", GROUP)
    _draw_box(axes, (53, 11), "longlora train", "five layers of six\nin groups, one dense", SHIFTED)
    _draw_box(axes, (79, 19), "adapter → merged/", "an ordinary model\ndirectory, 32k", SINK)
    _draw_box(axes, (79, 3), "eval · chat · serve", "the model's own\nattention", SINK)
    for start, end in (
        ((21, 24.5), (27, 24.5)),
        ((21, 8.5), (27, 8.5)),
        ((47, 24.5), (53, 18.5)),
        ((47, 8.5), (53, 14.5)),
        ((73, 18.5), (79, 24.5)),
        ((89, 19), (89, 14)),
    ):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.2})
    return figure


def _draw_box(axes: Any, corner: tuple[float, float], title: str, below: str, color: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = corner
    style = {"boxstyle": "round,pad=0,rounding_size=1.2", "facecolor": "white", "edgecolor": color, "linewidth": 2}
    axes.add_patch(FancyBboxPatch(corner, 20, 11, **style))
    axes.text(x + 10, y + 8.2, title, ha="center", va="center", fontsize=10, weight="bold", color=INK)
    axes.text(x + 10, y + 3.6, below, ha="center", va="center", fontsize=8.5, color=FAINT)


def context() -> Any:
    """Draw a run's memory on one GPU by context, with more and more optimizations, and the memory of four cards."""
    figure, axes = new_figure(10, 4.4, ncols=3, sharey=True)
    lengths = [2 ** (power / 4) * 1024 for power in range(12, 37)]  # 8k to 512k
    for panel, model in zip(axes, ("llama-3.2-3b", "qwen3-8b", "mistral-small-24b"), strict=True):
        for name, (changes, color) in _settings(model).items():
            run = PlannedRun(architecture=find_architecture(model), context_length=1, sink_tokens=1, **changes)
            totals = [plan_memory(replace(run, context_length=round(length))).total / GIB for length in lengths]
            panel.plot(lengths, totals, color=color, linewidth=2.2, label=name)
        for card in CARDS:
            memory = find_gpu(card).memory_gib
            panel.axhline(memory, color=FAINT, linewidth=0.9, linestyle="--")
            panel.annotate(f"{card}, {memory:g} GiB", (lengths[0], memory + 2), fontsize=7, color=FAINT)
        panel.set_xscale("log", base=2)
        panel.set(xlim=(lengths[0], lengths[-1]), ylim=(0, 160), facecolor=PAPER)
        panel.set_xticks([2**power * 1024 for power in range(3, 10, 2)], ["8k", "32k", "128k", "512k"], fontsize=8)
        panel.minorticks_off()
        panel.set_title(model, fontsize=10, color=INK)
        panel.set_xlabel("context, tokens", fontsize=8, color=FAINT)
        plain(panel, grid=False)
    axes[0].set_ylabel("planned GiB on one GPU", fontsize=9, color=INK)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _settings(model: str) -> dict[str, tuple[dict[str, Any], str]]:
    """Return the optimizations of each line, and its color."""
    optimized = {"tiled_mlp": find_architecture(model).hidden_size, "offload_checkpoints": True}
    packed = {**optimized, "four_bit": True, "train_embeddings": False}
    return {
        "LoRA+ as it comes": ({}, FULL),
        "with tiles and offloading": (optimized, GROUP),
        "in 4 bits as well, embeddings not trained": (packed, SHIFTED),
    }


if __name__ == "__main__":
    sys.exit(main())

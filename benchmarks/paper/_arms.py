"""The arms of the grid: which rows a run sees under which attention, what that costs, and how it is trained.

Every arm is a recipe followed by the product's own trainer. What a recipe cannot say is the order and the cut of the
rows, so they are laid out here: the long rows of a seed are the same, in the same order, under every arm.
"""

import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from transformers import PreTrainedModel, set_seed

from longlora.config import Recipe, parse_recipe
from longlora.data import pack_rows, read_documents, tokenize_documents
from longlora.demo.recall_text import write_recall_documents
from longlora.demo.walkthrough import SHARED_SETTINGS
from longlora.models.load import load_for_training, load_tokenizer, model_source
from longlora.planner.compute import Flops, row_flops
from longlora.tiny.stdlib import standard_library_files
from longlora.training.callbacks import Sigterm
from longlora.training.preflight import planned_run
from longlora.training.recipe_rows import Rows
from longlora.training.run_directory import RunDirectory
from longlora.training.trainer import build_trainer, training_arguments

CONTEXT_LENGTH = 1024
GROUP_SIZE = 256
ROWS_PER_STEP = 4

Layout = Literal["long", "cut", "pieces"]
"""`long`: rows of CONTEXT_LENGTH out of documents; `cut`: the same, whose groups do not see one another; `pieces`: as
many groups from as many places of the whole corpus."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to spend the steps of a run. The last `dense` of them see long rows under full attention."""

    layout: Layout = "long"
    s2: bool = False
    group_size: int = GROUP_SIZE
    sink_tokens: int = 0
    dense: float = 0.0
    recall_share: float = 0.0
    """Of the long rows, those of made-up documents with facts and questions."""
    tuning: Literal["lora+", "lora"] = "lora+"
    far_target_weight: float = 0.0
    """Extra weight of targets with more than a group of their document before them."""


ARMS = {
    "full": Arm(dense=1.0),
    "S²": Arm(s2=True),
    "S², 1 sink token": Arm(s2=True, sink_tokens=1),
    "S², groups of 512": Arm(s2=True, group_size=512),
    "S², groups of 128": Arm(s2=True, group_size=128),
    "no shift": Arm(layout="cut"),
    "rows of g": Arm(layout="pieces"),
    "S², last 20 % dense": Arm(s2=True, dense=0.2),
    "S², last 40 % dense": Arm(s2=True, dense=0.4),
    "S², 1 sink token, last 40 % dense": Arm(s2=True, sink_tokens=1, dense=0.4),
    "no shift, last 40 % dense": Arm(layout="cut", dense=0.4),
    "rows of g, last 20 % dense": Arm(layout="pieces", dense=0.2),
    "rows of g, last 40 % dense": Arm(layout="pieces", dense=0.4),
    "full, with recall text": Arm(dense=1.0, recall_share=0.25),
    "S², last 40 % dense, with recall text": Arm(s2=True, dense=0.4, recall_share=0.25),
    "rows of g, last 40 % dense, with recall text": Arm(layout="pieces", dense=0.4, recall_share=0.25),
    "full, far targets weighted": Arm(dense=1.0, far_target_weight=4.0),
    "full, LoRA alone": Arm(dense=1.0, tuning="lora"),
    "S², LoRA alone": Arm(s2=True, tuning="lora"),
}


def recipe_of(arm: Arm, base: str, *, positions: str, steps: int, learning_rate: float, seed: int) -> Recipe:
    """The recipe of a run; under a `cut` or `pieces` layout full attention is bounded by the rows themselves."""
    attention: dict[str, Any] = {"pattern": "full"}
    if arm.s2:
        attention = {"pattern": "s2", "group_size": arm.group_size, "sink_tokens": arm.sink_tokens}
        attention["dense_finish"] = arm.dense
    settings = {**SHARED_SETTINGS, "model_name_or_path": base, "context_length": CONTEXT_LENGTH, "max_steps": steps}
    settings |= {"per_device_train_batch_size": ROWS_PER_STEP, "attention": attention, "seed": seed}
    settings |= {"rope": {"rope_type": positions}, "learning_rate": learning_rate, "warmup_steps": max(1, steps // 10)}
    settings |= {"tuning": arm.tuning, "far_target_weight": arm.far_target_weight}
    settings |= {"save_steps": steps, "output_dir": tempfile.mkdtemp(), "data": {"source": "as laid out"}}
    return parse_recipe(settings)


def lay_out(arm: Arm, rows: Dataset, recall_rows: Dataset, *, steps: int, seed: int) -> Dataset:
    """Give the rows of a run in their order, ROWS_PER_STEP to a step."""
    draws = random.Random(seed)
    order = draws.sample(range(len(rows)), len(rows))
    chosen = [order[number % len(order)] for number in range(steps * ROWS_PER_STEP)]
    laid_out = rows.select(chosen).to_list()
    if arm.recall_share:
        every = round(1 / arm.recall_share)
        laid_out[::every] = [recall_rows[draws.randrange(len(recall_rows))] for _ in laid_out[::every]]
    num_first = (steps - round(steps * arm.dense)) * ROWS_PER_STEP
    if arm.layout == "cut":
        first = [{**row, "seq_lengths": cut_lengths(row["seq_lengths"])} for row in laid_out[:num_first]]
    elif arm.layout == "pieces":
        first = [_row_of_pieces(rows, draws) for _ in range(num_first)]
    else:
        first = laid_out[:num_first]
    return Dataset.from_list([*first, *laid_out[num_first:]], features=rows.features)


def _row_of_pieces(rows: Dataset, draws: random.Random) -> dict[str, list[int]]:
    ids, lengths = list[int](), list[int]()
    for _ in range(CONTEXT_LENGTH // GROUP_SIZE):
        row, start = rows[draws.randrange(len(rows))], GROUP_SIZE * draws.randrange(CONTEXT_LENGTH // GROUP_SIZE)
        ids += row["input_ids"][start : start + GROUP_SIZE]
        lengths += _lengths_within(row["seq_lengths"], start, start + GROUP_SIZE)
    return {"input_ids": ids, "seq_lengths": lengths}


def cut_lengths(lengths: list[int]) -> list[int]:
    """Cut the documents of a row at the groups' boundaries too."""
    starts = range(0, sum(lengths), GROUP_SIZE)
    return [piece for start in starts for piece in _lengths_within(lengths, start, start + GROUP_SIZE)]


def _lengths_within(lengths: list[int], start: int, end: int) -> list[int]:
    pieces, place = list[int](), 0
    for length in lengths:
        pieces.append(min(place + length, end) - max(place, start))
        place += length
    return [piece for piece in pieces if piece > 0]


def training_rows(base: str, cache_dir: Path) -> tuple[Dataset, Dataset]:
    """Read the rows of CONTEXT_LENGTH that training files give, and those of made-up documents."""

    tokenizer, files = load_tokenizer(model_source(base)), standard_library_files("train")

    def packed(paths: list[Path]) -> Dataset:
        documents = tokenize_documents(read_documents([str(path) for path in paths]), tokenizer, cache_dir=cache_dir)
        return pack_rows(documents, context_length=CONTEXT_LENGTH)

    made_up = write_recall_documents(cache_dir / "recall-rows.jsonl", files, tokenizer, CONTEXT_LENGTH, count=800)
    return packed(files), packed([made_up])


def train(recipe: Recipe, rows: Dataset) -> PreTrainedModel:
    """Train a recipe on rows in their order, by the product's trainer, and return the model."""
    arguments = training_arguments(recipe)
    arguments.train_sampling_strategy, arguments.save_strategy = "sequential", "no"
    set_seed(recipe.seed)
    prepared = load_for_training(recipe)
    run = RunDirectory(recipe)
    run.root.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(recipe, prepared, Rows(rows, None), run, arguments, Sigterm())
    trainer.train()
    trainer.progress_bar.close()
    return trainer.accelerator.unwrap_model(trainer.model).eval()


def cost(arm: Arm, recipe: Recipe) -> Flops:
    """Operations of a run, forward and backward, for rows of one document; those of attention apart.

    The planner counts; a `cut` or a `pieces` row costs as many rows of one group.
    """
    run = planned_run(recipe)
    first = dense = row_flops(replace(run, attention="full", group_size=None))
    if arm.layout != "long":
        group = row_flops(replace(run, attention="full", group_size=None, context_length=GROUP_SIZE))
        first = Flops(*(CONTEXT_LENGTH // GROUP_SIZE * part for part in group))
    elif arm.s2:
        first = row_flops(run)
    dense_rows = round(recipe.max_steps * arm.dense) * ROWS_PER_STEP
    first_rows = recipe.max_steps * ROWS_PER_STEP - dense_rows
    return Flops(*(first_rows * early + dense_rows * late for early, late in zip(first, dense, strict=True)))

"""The arms of the grid: their rows, attention, cost and training.

Every arm is a recipe for longlora's own trainer. Recipes cannot determine the order and the cutting of rows, so rows
are laid out here: for each seed, all arms have the same long rows in the same order.
"""

import random
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, set_seed
from trl import SFTConfig

from longlora.config import Recipe, parse_recipe
from longlora.data.document_rows import pack_rows, tokenize_documents
from longlora.data.sources import read_documents
from longlora.demo.recall_text import write_recall_documents
from longlora.demo.walkthrough import SHARED_SETTINGS
from longlora.models.grouping import Grouping, set_grouping
from longlora.models.load import compute_dtype, load_for_training, load_tokenizer, model_source
from longlora.planner.compute import Flops, row_flops
from longlora.tiny import TINY_MODEL
from longlora.tiny.stdlib import Split, standard_library_files
from longlora.training.callbacks import Sigterm
from longlora.training.preflight import planned_run
from longlora.training.recipe_rows import Rows
from longlora.training.run_directory import RunDirectory
from longlora.training.trainer import build_trainer, training_arguments

Layout = Literal["long", "cut", "pieces"]
"""`long`: rows of the context length from documents; `cut`: the same rows, but groups cannot see each other; `pieces`:
rows of as many groups, each from another place in the corpus."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Settings shared by all arms of a grid: the base, the texts, lengths in tokens, and the evaluation.

    The trainer chooses the device: the GPU if there is one.
    """

    base: str = TINY_MODEL
    base_context: int = 256
    context_length: int = 1024
    group_size: int = 256
    rows_per_step: int = 4
    dtype: str = "float32"
    texts: Path | None = None
    """A folder with `*/train/*` and `*/validation/*`, or one of Python files; None is the standard library."""
    joined: bool = False
    """Whether all texts form one document, in order: for contexts that few of them would fill."""
    stride: int = 64
    targets: int = 4096
    trials: int = 20
    """Of recall, at each distance."""

    @property
    def lengths(self) -> list[int]:
        """Lengths for the evaluation: the base context, doubled up to the new one."""
        found = [self.base_context]
        while found[-1] < self.context_length:
            found.append(min(2 * found[-1], self.context_length))
        return found

    def files(self, split: Split) -> list[Path]:
        """List the texts of a split; one in 16 Python files is held out, by the checksum of its path."""
        if self.texts is None:
            return standard_library_files(split)
        if divided := sorted(self.texts.glob(f"*/{split}/*")):
            return divided
        names = {path: path.relative_to(self.texts).as_posix().encode() for path in sorted(self.texts.rglob("*.py"))}
        held_out = {path: zlib.crc32(name) % 16 == 0 for path, name in names.items() if path.stat().st_size}
        return [path for path, is_held_out in held_out.items() if is_held_out == (split == "validation")]


TINY = Sizes()


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to spend the steps of a run. In the last `dense` of them, long rows are trained with full attention."""

    layout: Layout = "long"
    s2: bool = False
    shift: bool = True
    """Of half of the heads' groups, under S²."""
    times_group: float = 1.0
    """Ratio of its group size to the grid's."""
    sink_tokens: int = 0
    dense: float = 0.0
    recall_share: float = 0.0
    """Share of the long rows that are made-up documents with facts and questions."""
    tuning: Literal["lora+", "lora"] = "lora+"
    rank: int = 32
    """Of LoRA."""
    far_target_weight: float = 0.0
    """Extra weight of targets that are more than a group from the beginning of their document."""
    lr_scheduler_type: str = "linear"

    phases: tuple[float | None, ...] = ()
    """Group sizes of S²-Attn, over the grid's, in equal parts of the run; None is full attention."""
    is_interleaved: bool = False
    """Whether the phases alternate step by step."""
    full_attention_interval: int | None = None
    """One layer in so many has full attention in all steps."""

    def times_group_at(self, step: int, steps: int) -> float | None:
        """Return the group size of a step of the phases, from 0, over the grid's; None is full attention."""
        count = len(self.phases)
        return self.phases[step % count if self.is_interleaved else step * count // steps]


ARMS = {
    "full": Arm(dense=1.0),
    "S²": Arm(s2=True),
    "S², 1 sink token": Arm(s2=True, sink_tokens=1),
    "S², groups of 512": Arm(s2=True, times_group=2),
    "S², groups of 128": Arm(s2=True, times_group=0.5),
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
    "S², 4 sink tokens": Arm(s2=True, sink_tokens=4),
    "S², first 40 % dense": Arm(s2=True, phases=(None, None, 1, 1, 1)),
    "S², first 20 % dense": Arm(s2=True, phases=(None, 1, 1, 1, 1)),
    "S², 1 sink token, first 40 % dense": Arm(s2=True, sink_tokens=1, phases=(None, None, 1, 1, 1)),
    "S², two steps of five dense": Arm(s2=True, phases=(1, 1, None, 1, None), is_interleaved=True),
    "S², growing groups": Arm(s2=True, phases=(0.5, 1, 2, None)),
    "S², one layer of six dense": Arm(s2=True, full_attention_interval=6),
    "no shift, one layer of six dense": Arm(s2=True, shift=False, full_attention_interval=6),
    "S², every third layer dense": Arm(s2=True, full_attention_interval=3),
    "S², every other layer dense": Arm(s2=True, full_attention_interval=2),
    "S², every third layer dense, last 20 % dense": Arm(s2=True, full_attention_interval=3, dense=0.2),
    "S², 1 sink token, every third layer dense": Arm(s2=True, sink_tokens=1, full_attention_interval=3),
    "full, constant rate": Arm(dense=1.0, lr_scheduler_type="constant_with_warmup"),
    "S², last 40 % dense, constant rate": Arm(s2=True, dense=0.4, lr_scheduler_type="constant_with_warmup"),
    "full, cosine": Arm(dense=1.0, lr_scheduler_type="cosine"),
    "S², last 40 % dense, cosine": Arm(s2=True, dense=0.4, lr_scheduler_type="cosine"),
    "S², rank 8": Arm(s2=True, rank=8),
    "S², rank 128": Arm(s2=True, rank=128),
}


def recipe_of(arm: Arm, sizes: Sizes, *, positions: str, steps: int, learning_rate: float, seed: int) -> Recipe:
    """Return the recipe of a run; in the layouts `cut` and `pieces`, the rows themselves limit full attention."""
    attention: dict[str, Any] = {"pattern": "full"}
    if arm.s2:
        group_size = int(arm.times_group * sizes.group_size)
        attention = {"pattern": "s2", "group_size": group_size, "shift": arm.shift, "sink_tokens": arm.sink_tokens}
        attention |= {"dense_finish": arm.dense, "full_attention_interval": arm.full_attention_interval}
    settings = {**SHARED_SETTINGS, "model_name_or_path": sizes.base, "context_length": sizes.context_length}
    settings |= {"max_steps": steps, "per_device_train_batch_size": sizes.rows_per_step, "dtype": sizes.dtype}
    settings |= {"rope": {"rope_type": positions}, "learning_rate": learning_rate, "warmup_steps": max(1, steps // 10)}
    settings |= {"attention": attention, "tuning": arm.tuning, "far_target_weight": arm.far_target_weight}
    settings |= {"lr_scheduler_type": arm.lr_scheduler_type, "chunked_loss": True}
    settings["lora"] = {**settings["lora"], "r": arm.rank, "lora_alpha": 2 * arm.rank}
    settings |= {"seed": seed, "save_steps": steps, "output_dir": tempfile.mkdtemp(), "data": {"source": "as laid out"}}
    return parse_recipe(settings)


def lay_out(arm: Arm, rows: Dataset, recall_rows: Dataset | None, sizes: Sizes, *, steps: int, seed: int) -> Dataset:
    """Return the rows of a run in order, `rows_per_step` for each step."""
    draws = random.Random(seed)
    order = draws.sample(range(len(rows)), len(rows))
    laid_out = rows.select([order[number % len(order)] for number in range(steps * sizes.rows_per_step)])
    if arm.recall_share:
        assert recall_rows is not None
        listed = laid_out.to_list()
        every = round(1 / arm.recall_share)
        listed[::every] = [recall_rows[draws.randrange(len(recall_rows))] for _ in listed[::every]]
        laid_out = Dataset.from_list(listed, features=rows.features)
    if arm.layout == "long":
        return laid_out
    num_first = (steps - round(steps * arm.dense)) * sizes.rows_per_step
    if arm.layout == "cut":
        early = laid_out.select(range(num_first)).to_list()
        first = [{**row, "seq_lengths": cut_lengths(row["seq_lengths"], sizes.group_size)} for row in early]
    else:
        first = [_row_of_pieces(rows, sizes, draws) for _ in range(num_first)]
    last = laid_out.select(list(range(num_first, len(laid_out))))  # an empty range would raise an error
    return concatenate_datasets([Dataset.from_list(first, features=rows.features), last])


def _row_of_pieces(rows: Dataset, sizes: Sizes, draws: random.Random) -> dict[str, list[int]]:
    ids, lengths = list[int](), list[int]()
    num_groups = sizes.context_length // sizes.group_size
    for _ in range(num_groups):
        row, start = rows[draws.randrange(len(rows))], sizes.group_size * draws.randrange(num_groups)
        ids += row["input_ids"][start : start + sizes.group_size]
        lengths += _lengths_within(row["seq_lengths"], start, start + sizes.group_size)
    return {"input_ids": ids, "seq_lengths": lengths}


def cut_lengths(lengths: list[int], group_size: int) -> list[int]:
    """Cut the documents of a row at group boundaries as well."""
    starts = range(0, sum(lengths), group_size)
    return [piece for start in starts for piece in _lengths_within(lengths, start, start + group_size)]


def _lengths_within(lengths: list[int], start: int, end: int) -> list[int]:
    pieces, place = list[int](), 0
    for length in lengths:
        pieces.append(min(place + length, end) - max(place, start))
        place += length
    return [piece for piece in pieces if piece > 0]


def tokenized(sizes: Sizes, split: Split, cache_dir: Path) -> Dataset:
    """Tokenize the texts of a split, or load them from the cache."""
    documents = read_documents([str(path) for path in sizes.files(split)])
    return tokenize_documents(documents, load_tokenizer(model_source(sizes.base)), cache_dir=cache_dir)


def training_rows(sizes: Sizes, cache_dir: Path) -> Dataset:
    """Return rows of the context length from the training files."""
    documents = tokenized(sizes, "train", cache_dir)
    return pack_rows(documents, context_length=sizes.context_length, cross_document_attention=sizes.joined)


def recall_rows(sizes: Sizes, cache_dir: Path) -> Dataset:
    """Make rows of made-up documents with facts and questions."""
    tokenizer, length = load_tokenizer(model_source(sizes.base)), sizes.context_length
    name = cache_dir / "recall-rows.jsonl"
    made_up = write_recall_documents(name, sizes.files("train"), tokenizer, length, count=800)
    documents = tokenize_documents(read_documents([str(made_up)]), tokenizer, cache_dir=cache_dir)
    return pack_rows(documents, context_length=length)


class Phases(TrainerCallback):
    """Changes the groups from step to step, as recipes cannot."""

    def __init__(self, arm: Arm, sizes: Sizes) -> None:
        self._arm, self._sizes = arm, sizes

    def on_step_begin(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **kwargs: Any
    ) -> None:
        """Set the groups of the next step."""
        if self._arm.phases:
            times = self._arm.times_group_at(state.global_step, state.max_steps)
            group_size = None if times is None else int(times * self._sizes.group_size)
            set_grouping(model, Grouping(group_size=group_size, sink_tokens=self._arm.sink_tokens))


def train(arm: Arm, recipe: Recipe, rows: Dataset, sizes: Sizes) -> tuple[PreTrainedModel, float]:
    """Train on rows in order, with longlora's trainer; return the model and the seconds of the steps.

    Weights trained in float32 are then converted to the recipe's dtype, as after saving and loading.
    """
    arguments = training_arguments(recipe)
    arguments.train_sampling_strategy, arguments.save_strategy = "sequential", "no"
    set_seed(recipe.seed)
    prepared = load_for_training(recipe)
    run = RunDirectory(recipe)
    run.root.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(recipe, prepared, Rows(rows, None), run, arguments, Sigterm())
    trainer.add_callback(Phases(arm, sizes))  # after the trainer's own choice of the groups
    seconds = trainer.train().metrics["train_runtime"]
    trainer.progress_bar.close()
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(compute_dtype(recipe.dtype))
    return model, seconds


def cost(arm: Arm, recipe: Recipe, sizes: Sizes) -> Flops:
    """Return the FLOPs of a run, forward and backward, for rows of one document; those of attention are separate.

    They are the planner's; a `cut` or `pieces` row costs as much as separate rows of one group each.
    """
    first, dense = row_costs(arm, recipe, sizes)
    num_dense = round(recipe.max_steps * arm.dense)
    rows = [first] * (recipe.max_steps - num_dense) + [dense] * num_dense
    if arm.phases:
        run, steps = planned_run(recipe), recipe.max_steps
        sizes_in_tokens = {times: int(times * sizes.group_size) for times in arm.phases if times}
        grouped = {times: row_flops(replace(run, group_size=size)) for times, size in sizes_in_tokens.items()}
        rows = [grouped.get(arm.times_group_at(step, steps), dense) for step in range(steps)]
    return Flops(*(sizes.rows_per_step * sum(parts) for parts in zip(*rows, strict=True)))


def row_costs(arm: Arm, recipe: Recipe, sizes: Sizes) -> tuple[Flops, Flops]:
    """Return the FLOPs of a row in the first steps, and of one with full attention."""
    run = planned_run(recipe)
    first = dense = row_flops(replace(run, attention="full", group_size=None))
    if arm.layout != "long":
        group = row_flops(replace(run, attention="full", group_size=None, context_length=sizes.group_size))
        first = Flops(*(sizes.context_length // sizes.group_size * part for part in group))
    elif arm.s2:
        first = row_flops(run)
    return first, dense

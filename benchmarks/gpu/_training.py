"""The steps `steps` and `longest`: training steps of an 8B model through the library's own path, and their plan.

Weights are random and generated on the GPU, rows are random tokens; everything else is what `longlora train` does:
LoRA+, bfloat16, one row per step, gradient checkpointing, chunked loss. `stages` are the seconds from the recipe to
the first step, and after the last one; only one case writes the final checkpoint.
"""

import cProfile
import json
import pstats
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _session import DEVICE, GIB, OutOfTime, Row, Session, memory_held
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig, TrainerCallback, set_seed

import longlora.models.load
from longlora.config import Recipe, parse_recipe
from longlora.planner.compute import recognise_gpu
from longlora.planner.plan import make_plan
from longlora.tiny import tiny_model_directory
from longlora.training.callbacks import Sigterm
from longlora.training.preflight import planned_run
from longlora.training.recipe_rows import Rows
from longlora.training.run_directory import RunDirectory, open_run
from longlora.training.trainer import build_trainer, training_arguments

SAVERS = {"tiled_mlp": 4096, "activation_offloading": True}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
EIGHT_B = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A few training steps."""

    layers: int
    tokens: int
    attention: str = "s2"
    """`s2`; `full`, full attention under S²'s kernels; `sdpa`, the model's own attention."""
    keys: dict[str, Any] = field(default_factory=dict)
    """Recipe keys, in addition to the common ones."""
    documents: int | None = None
    """Tokens of a packed document; None means one document per row."""
    steps: int = 3
    saves: bool = False
    """Whether the run ends with its checkpoint, like a user's."""
    profiled: bool = False
    """Whether everything before the first step is profiled, which makes the stages slower."""

    @property
    def name(self) -> str:
        """The case's unique name."""
        extras = [f"{key}={value}" for key, value in self.keys.items()]
        extras += [f"documents of {self.documents}"] if self.documents else []
        extras += ["saves"] * self.saves + ["profiled"] * self.profiled
        return " ".join([f"{self.layers} layers", str(self.tokens), self.attention, *extras])

    @property
    def settings(self) -> Row:
        """The settings in the case's row."""
        return {"layers": self.layers, "tokens": self.tokens, "attention": self.attention, **self.keys} | (
            {"documents": self.documents} if self.documents else {}
        )


def step_cases(*, dry: bool) -> Iterator[Case]:
    """Yield the cases of `steps`, most important first."""
    deep, shallow = (2, 1) if dry else (32, 8)
    short, middle, long, longest = (256, 512, 768, 1024) if dry else (8192, 32768, 65536, 131072)
    tiles = {"tiled_mlp": 64 if dry else 4096}
    savers = tiles | {"activation_offloading": True}
    yield Case(layers=shallow, tokens=short, profiled=True)
    for attention in ("s2", "sdpa", "full"):
        yield Case(layers=shallow, tokens=short, attention=attention)
        yield Case(layers=shallow, tokens=middle, attention=attention)
    yield Case(layers=shallow, tokens=middle, documents=short // 4)
    for attention in ("s2", "sdpa"):
        yield Case(layers=deep, tokens=middle, attention=attention, steps=2)
    yield Case(layers=deep, tokens=long, keys=tiles, steps=2)
    yield Case(layers=shallow, tokens=long, steps=2)
    yield Case(layers=shallow, tokens=long, keys=tiles, steps=2)
    yield Case(layers=shallow, tokens=long, keys=savers, steps=2)
    yield Case(layers=shallow, tokens=short, saves=True)
    yield Case(layers=deep, tokens=longest, keys=savers, steps=2)
    for attention in ("sdpa", "full"):
        yield Case(layers=shallow, tokens=long, attention=attention, steps=2)
    yield Case(layers=shallow, tokens=longest, keys=tiles, steps=2)
    yield Case(layers=deep, tokens=short)
    yield Case(layers=shallow, tokens=short, keys={"gradient_checkpointing": False})
    yield Case(layers=shallow, tokens=short, keys={"chunked_loss": False})
    yield Case(layers=shallow, tokens=middle, keys={"optim": "adamw_8bit"})
    yield Case(layers=shallow, tokens=middle, keys={"lora": {"target_modules": "all-linear"}})
    yield Case(layers=shallow, tokens=short, keys={"tuning": "full", "learning_rate": 1e-5})


def run_steps(session: Session) -> None:
    """Measure all cases in order."""
    try:
        for case in step_cases(dry=session.dry):
            attempt(case, session)
    except OutOfTime:
        print("time is up")


def run_longest(session: Session, *, start: int) -> None:
    """Double the context of an 8B model, with all memory optimizations, until it does not fit; one step each."""
    tokens = 256 if session.dry else start
    keys = SAVERS | ({"tiled_mlp": 64} if session.dry else {})
    while tokens <= (512 if session.dry else 2**23):
        case = Case(layers=2 if session.dry else 32, tokens=tokens, keys=keys, steps=1)
        try:
            row = attempt(case, session)
        except OutOfTime:
            return print("time is up")
        if "error" in row:
            return None
        tokens *= 2
    return None


class Clock(TrainerCallback):
    """Records the time at which training begins, and the seconds of each step."""

    def __init__(self) -> None:
        self.first_step: float | None = None
        self.last_step = 0.0
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = now()
        if self.first_step is None:
            self.first_step = self._began

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.last_step = now()
        self.seconds.append(round(self.last_step - self._began, 4))


def now() -> float:
    """Return the time in seconds, once the GPU has finished its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def attempt(case: Case, session: Session) -> Row:
    """Measure a case unless it has a row; after a failure, the row also contains the plan and the stages reached."""
    if case.name in session.rows:
        return session.rows[case.name]
    with tempfile.TemporaryDirectory() as scratch:
        recipe = make_recipe(case, Path(scratch), dry=session.dry)
        stages: dict[str, float] = {}
        settings = case.settings | planned(recipe) | {"stages_s": stages}
        return session.run(case.name, settings, partial(measure, case, recipe, stages))


def measure(case: Case, recipe: Recipe, stages: dict[str, float]) -> Row:
    """Train; return time and memory, measured and planned."""
    profile = cProfile.Profile() if case.profiled else None
    clock = train(recipe, case, stages, profile)
    lines = (Path(recipe.output_dir) / "metrics.jsonl").read_text().splitlines()
    row: Row = {"step_s": clock.seconds, "losses": [json.loads(line)["loss"] for line in lines], **memory_held()}
    return row | ({"profile": slowest(profile)} if profile else {})


def train(recipe: Recipe, case: Case, stages: dict[str, float], profile: cProfile.Profile | None) -> Clock:
    """Train like `longlora.training.run.train`, up to the last step; `stages` receives the seconds of each part."""
    set_seed(recipe.seed)
    with open_run(recipe) as run:
        return _train_in(run, recipe, case, stages, profile)


def _train_in(
    run: RunDirectory, recipe: Recipe, case: Case, stages: dict[str, float], profile: cProfile.Profile | None
) -> Clock:
    began = now()
    if profile:
        profile.enable()
    with weights_on_device(stages, own_attention=case.attention == "sdpa"):
        prepared = longlora.models.load.load_for_training(recipe)
    stages["positions, vocabulary, adapter"] = round(now() - began - stages["weights"], 3)
    rows = Rows(random_rows(case, prepared.model.config.get_text_config().vocab_size), None)
    began = now()
    arguments = training_arguments(recipe)
    if not case.saves:
        arguments.save_strategy = type(arguments.save_strategy)("no")
    trainer = build_trainer(recipe, prepared, rows, run, arguments, Sigterm())
    clock = Clock()
    trainer.add_callback(clock)
    stages["trainer"] = round(now() - began, 3)
    began = now()
    if profile:
        trainer.add_callback(_EndOfProfile(profile))
    try:
        trainer.train()
    finally:
        if profile:
            profile.disable()
        trainer.progress_bar.close()
        if clock.first_step is not None:
            stages["to the first step"] = round(clock.first_step - began, 3)
    stages["first step"] = clock.seconds[0]
    stages["after the last step"] = round(now() - clock.last_step, 3)
    return clock


class _EndOfProfile(TrainerCallback):
    def __init__(self, profile: cProfile.Profile) -> None:
        self._profile = profile

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._profile.disable()


def make_recipe(case: Case, scratch: Path, *, dry: bool) -> Recipe:
    """Write the model's configuration and the tiny model's tokenizer; return a recipe that trains the model."""
    LlamaConfig(
        **(TINY if dry else EIGHT_B),
        num_hidden_layers=case.layers,
        vocab_size=2048 if dry else 128256,
        max_position_embeddings=64 if dry else 4096,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(scratch / "model")
    AutoTokenizer.from_pretrained(tiny_model_directory()).save_pretrained(scratch / "model")
    return parse_recipe(
        {
            "model_name_or_path": str(scratch / "model"),
            "output_dir": str(scratch / "run"),
            "context_length": case.tokens,
            "data": {"source": "made here"},
            "attention": {"pattern": "s2" if case.attention == "s2" else "full"},
            "max_steps": case.steps,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0,
            "save_steps": case.steps + 1,
            **case.keys,
        }
    )


@contextmanager
def weights_on_device(stages: dict[str, float], *, own_attention: bool) -> Iterator[None]:
    """Make the library generate random weights instead of reading them, and keep the model's own attention if asked."""

    def make(name: str, config: PreTrainedConfig, *, dtype: torch.dtype, attention: str | None, **_: Any) -> Any:
        began = now()
        with DEVICE:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        stages["weights"] = round(now() - began, 3)
        return model

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(longlora.models.load, "load_weights", make))
        if own_attention:
            stack.enter_context(mock.patch.object(longlora.models.load, "_training_attention", lambda *_: None))
        yield


def random_rows(case: Case, vocabulary: int) -> Dataset:
    """Make a row of random tokens for each step, with one document or several."""
    tokens = torch.randint(3, vocabulary, (case.steps, case.tokens), generator=torch.Generator().manual_seed(0))
    length = case.documents or case.tokens
    lengths = [min(length, case.tokens - start) for start in range(0, case.tokens, length)]
    table = InMemoryTable.from_pydict({"input_ids": tokens.tolist(), "seq_lengths": [lengths] * case.steps})
    # An explicit fingerprint, as datasets would pickle the table for one, with all of a pyarrow that is on PYTHONPATH.
    return Dataset(table, fingerprint=f"{len(lengths)}-of-{case.tokens}-{case.steps}")


def planned(recipe: Recipe) -> Row:
    """Return the plan of `longlora plan` for this run."""
    memory = torch.cuda.mem_get_info()[1] if DEVICE.type == "cuda" else 80 * GIB
    gpu = recognise_gpu(torch.cuda.get_device_name()) if DEVICE.type == "cuda" else None
    plan = make_plan(planned_run(recipe), memory_bytes=memory, gpu=gpu)
    return {
        "planned_gib": round(plan.memory.total / GIB, 3),
        "planned_host_gib": round(plan.memory.host_total / GIB, 3),
        "planned_items_gib": {item.name: round(item.bytes / GIB, 3) for item in plan.memory.items},
        "planned_step_s": round(plan.duration.seconds / recipe.max_steps, 3) if plan.duration else None,
        "planned_longest": plan.longest_context,
    }


def slowest(profile: cProfile.Profile, count: int = 40) -> list[str]:
    """Return the functions with the most cumulative time: seconds, calls, location."""
    found = []
    for (file, line, name), (_, calls, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        place = "/".join(Path(file).parts[-2:])
        found.append((cumulative, f"{cumulative:.2f} s, {calls} calls: {place}:{line} {name}"))
    return [text for _, text in sorted(found, reverse=True)[:count]]

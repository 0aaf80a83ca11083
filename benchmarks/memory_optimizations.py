"""How much memory does each training optimization save, and what does it cost?

    python benchmarks/memory_optimizations.py    # the tiny model at 16k tokens; on CUDA Llama-2-7B's shape at 32k
    python benchmarks/memory_optimizations.py --random 512 1376 2 2048    # a random Llama of that shape
    python benchmarks/memory_optimizations.py --quick    # a minute, to check that everything runs

A recipe is trained for a few steps of one row, with groups of a quarter of the row, first without optimizations, then
adding one at a time, through the library's own code path from loading the weights to the last step. Each run has its
own process. Tokens per second are those of the median step, excluding the first; on a CPU they are per second of
processor time, so that other work on the machine does not count. Losses are compared with those of the first run: the
optimizations above the optimizer must not change them, and if one does, there is no report.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _report
import torch
from _measure import peak_memory, synchronize
from _memory_optimizations_report import Row, write_report
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, TrainerCallback, set_seed

from longlora.config import Recipe, parse_recipe
from longlora.data.document_rows import pack_rows, tokenize_documents
from longlora.data.sources import read_documents
from longlora.models.load import load_for_training
from longlora.tiny import tiny_model_directory
from longlora.tiny.stdlib import standard_library_files
from longlora.training.callbacks import Sigterm
from longlora.training.recipe_rows import Rows
from longlora.training.run_directory import open_run
from longlora.training.trainer import build_trainer, training_arguments

NONE = {"chunked_loss": False, "gradient_checkpointing": False, "optim": "adamw_torch_fused"}
SAME_LOSSES = 1e-3  # relative, for all steps: float32 sums in another order; ten times that in bfloat16


def ladder(length: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Return the optimizations in the order in which they are added, with the recipe keys of each."""
    optimizations: dict[str, dict[str, Any]] = {
        "none": {},
        "loss in pieces": {"chunked_loss": True},
        "checkpointing": {"gradient_checkpointing": True},
        "tiled feed-forward": {"tiled_mlp": max(1, length // 16)},
    }
    if device.type == "cuda":
        optimizations["offloading"] = {"activation_offloading": True}
    if importlib.util.find_spec("bitsandbytes"):
        optimizations |= {"8-bit AdamW": {"optim": "adamw_8bit"}, "4-bit base": {"quantization": "nf4"}}
    return optimizations


NEW_NUMBERS = ("8-bit AdamW", "4-bit base")


def main() -> int:
    """Measure, compare losses and report; return the exit status."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments = parse_arguments(device)
    packages = ["torch", "transformers", "peft", "trl"]
    packages += ["bitsandbytes"] if importlib.util.find_spec("bitsandbytes") else []
    origin = _report.provenance(device, packages)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        model = arguments.model
        if arguments.random:
            model = random_model(Path(scratch) / "model", arguments.random, device)
        rows = list(measure(model, arguments, device, Path(scratch)))
    if wrong := changed_losses(rows, device):
        print("\n".join(["no report, these optimizations change the losses:", *wrong]), file=sys.stderr)
        return 1
    shape = "x".join(map(str, arguments.random or ()))
    name = f"a random Llama of shape {shape} (hidden, feed-forward, layers, vocabulary)" if shape else f"`{model}`"
    write_report(rows, arguments.output, device, origin, model=f"{name} at {arguments.length:,} tokens", shape=shape)
    return 0


def parse_arguments(device: torch.device) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="rows of 512 tokens")
    parser.add_argument("--length", type=int, metavar="T", help="tokens of a row (default: 16384, on CUDA 32768)")
    parser.add_argument("--steps", type=int, help="steps of each run, at least 2 (default: 4, quick: 2)")
    parser.add_argument("--model", help="directory or name of a model (default: tiny, on CUDA --random as below)")
    parser.add_argument(
        "--random",
        type=int,
        nargs=4,
        metavar=("HIDDEN", "FEED_FORWARD", "LAYERS", "VOCABULARY"),
        help="a Llama with random weights (default on CUDA: 4096 11008 32 32000, which is Llama-2-7B)",
    )
    parser.add_argument("--target-modules", default="attention", help="lora.target_modules (default: attention)")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="folder for temporary models and runs")
    parser.add_argument("--output", type=Path, default=_report.RESULTS, metavar="DIR", help="where the report goes")
    arguments = parser.parse_args()
    arguments.length = arguments.length or (512 if arguments.quick else 32768 if device.type == "cuda" else 16384)
    arguments.steps = arguments.steps or (2 if arguments.quick else 4)
    if not arguments.model and not arguments.random:
        arguments.model = "tiny" if device.type == "cpu" else None
        arguments.random = None if device.type == "cpu" else [4096, 11008, 32, 32000]
    if arguments.steps < 2:
        parser.error("--steps must be 2 or more: the first is not timed")
    return arguments


def random_model(directory: Path, shape: list[int], device: torch.device) -> str:
    """Write a Llama with random weights and head dimension 128 or 64, and the tiny model's tokenizer.

    In bfloat16 on CUDA: Llama-2-7B's shape takes 13.5 GB of disk.
    """
    hidden, feed_forward, num_layers, vocabulary = shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden // (128 if hidden >= 1024 else 64),
        vocab_size=vocabulary,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
        )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model_directory()).save_pretrained(directory)
    return str(directory)


def measure(model: str, arguments: argparse.Namespace, device: torch.device, scratch: Path) -> Iterator[Row]:
    """Train with more and more optimizations, each run in its own process."""
    source = enough_text(arguments.length * arguments.steps)
    keys = dict(NONE)
    for number, (optimization, changes) in enumerate(ladder(arguments.length, device).items()):
        keys |= changes
        run_directory = scratch / f"run-{number}"
        values = {
            "model_name_or_path": model,
            "output_dir": str(run_directory),
            "context_length": arguments.length,
            "data": {"source": source, "cache_dir": str(scratch / "texts")},
            "lora": {"target_modules": arguments.target_modules},
            "max_steps": arguments.steps,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0,
            "save_steps": arguments.steps + 1,
            **keys,
        }
        row = Row(optimization=optimization, keys=" ".join(f"{key}={value}" for key, value in changes.items()))
        try:
            row.peak_bytes = in_a_process(partial(make_run, values), device)
        except RuntimeError as error:  # such as torch's out-of-memory error, or a process that died
            row.note = str(error).splitlines()[0]
        else:
            seconds = json.loads((run_directory / "seconds.json").read_text())
            row.tokens_per_second = arguments.length / statistics.median(seconds[1:])
            lines = (run_directory / "metrics.jsonl").read_text().splitlines()
            row.losses = " ".join(f"{json.loads(line)['loss']:.6f}" for line in lines)
        print(f"{row.optimization}: {row.peak_bytes} bytes, {row.tokens_per_second} tokens/s {row.note}", flush=True)
        yield row


def in_a_process(make_run: Callable[[], Callable[[], None]], device: torch.device) -> int:
    """Measure the peak of one run in a separate process, so that a failed CUDA context is not used again."""
    if device.type == "cpu":
        return peak_memory(make_run, device)  # which starts a process anyway
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_memory, make_run, device).result()


def make_run(values: dict[str, Any]) -> Callable[[], None]:
    """Prepare the rows on disk, and return a run that loads the model and trains it."""
    recipe = parse_recipe(values)
    tokenizer = AutoTokenizer.from_pretrained(
        tiny_model_directory() if recipe.model_name_or_path == "tiny" else recipe.model_name_or_path
    )
    documents = tokenize_documents(read_documents(recipe.data.source), tokenizer, cache_dir=recipe.data.cache_dir)
    rows = pack_rows(documents, context_length=recipe.context_length)
    return partial(train, recipe, Rows(rows, None))


def train(recipe: Recipe, rows: Rows) -> None:
    """Train like `longlora.training.run.train`, up to the last step, with a clock."""
    set_seed(recipe.seed)
    with open_run(recipe) as run:
        arguments = training_arguments(recipe)
        trainer = build_trainer(recipe, load_for_training(recipe), rows, run, arguments, Sigterm())
        clock = StepClock()
        trainer.add_callback(clock)
        try:
            trainer.train()
        finally:
            trainer.progress_bar.close()
        (run.root / "seconds.json").write_text(json.dumps(clock.seconds))


class StepClock(TrainerCallback):
    """Records the seconds of each step: processor time on a CPU."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = self._now(args.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds.append(self._now(args.device) - self._began)

    @staticmethod
    def _now(device: torch.device) -> float:
        synchronize(device)
        return time.process_time() if device.type == "cpu" else time.perf_counter()


def enough_text(num_tokens: int) -> list[str]:
    """Return enough files of Python's standard library for the tokens of all steps, at 3 bytes or more per token."""
    files, num_bytes = [], 0
    for path in standard_library_files("train"):
        if num_bytes > 8 * num_tokens:
            break
        files.append(str(path))
        num_bytes += path.stat().st_size
    return files


def changed_losses(rows: list[Row], device: torch.device) -> list[str]:
    """Describe optimizations that should not change the loss, but differ from the first run by more than rounding."""
    allowed = SAME_LOSSES * (10 if device.type == "cuda" else 1)
    measured = [row for row in rows if row.losses]
    found = []
    for row in measured:
        pairs = zip(row.losses.split(), measured[0].losses.split(), strict=True)
        row.loss_difference = max(abs(float(loss) / float(first) - 1) for loss, first in pairs)
        if row.optimization not in NEW_NUMBERS and row.loss_difference > allowed:
            found.append(f"{row.optimization}: by up to {row.loss_difference:.1e}, {allowed:.0e} allowed")
    return found


if __name__ == "__main__":
    sys.exit(main())

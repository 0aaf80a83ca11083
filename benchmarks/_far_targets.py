"""What do weights for far targets cost? The same micro-steps of the tiny model with and without them, in pairs.

    python benchmarks/_far_targets.py                   # 20 pairs at 1,024 and at 4,096 tokens, packed rows

Each is a forward and a backward pass of longlora's trainer (LoRA+, S²-Attn, chunked loss, float32, one thread, in
processor time); the output is the median of the ratios, with quartiles.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are imported
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import _report  # noqa: E402
import torch  # noqa: E402
from _measure import interleaved  # noqa: E402

from longlora.config import parse_recipe  # noqa: E402
from longlora.models.load import load_for_training  # noqa: E402
from longlora.tiny import TINY_MODEL  # noqa: E402
from longlora.tiny.stdlib import standard_library_files  # noqa: E402
from longlora.training.callbacks import Sigterm  # noqa: E402
from longlora.training.recipe_rows import read_rows  # noqa: E402
from longlora.training.run_directory import RunDirectory  # noqa: E402
from longlora.training.trainer import build_trainer, training_arguments  # noqa: E402


def main(lengths: tuple[int, ...] = (1024, 4096), pairs: int = 20) -> None:
    """Measure each length and print a line."""
    torch.set_num_threads(1)
    print(f"{_report.device_name(torch.device('cpu'))}, one thread, torch {torch.__version__}")
    for tokens in lengths:
        with tempfile.TemporaryDirectory() as scratch:
            ratios = measure(tokens, pairs, Path(scratch))
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{tokens:6} tokens: {middle:.3f} times the time, quartiles {low:.3f} and {high:.3f}", flush=True)


def measure(tokens: int, pairs: int, scratch: Path) -> list[float]:
    """Return the ratio of weighted to unweighted time for each pair of micro-steps."""
    recipe = parse_recipe(
        {
            "model_name_or_path": TINY_MODEL,
            "output_dir": str(scratch / "run"),
            "context_length": tokens,
            "data": {"source": [str(path) for path in standard_library_files("train")[:60]], "cache_dir": str(scratch)},
            "gradient_accumulation_steps": 1,
            "max_steps": 1,
            "warmup_steps": 0,
            "dtype": "float32",
            "far_target_weight": 4.0,
        }
    )
    prepared = load_for_training(recipe)
    run = RunDirectory(recipe)
    run.root.mkdir(parents=True)
    rows = read_rows(recipe, prepared.tokenizer, show_progress=False)
    trainer = build_trainer(recipe, prepared, rows, run, training_arguments(recipe), Sigterm())
    trainer.first_grouping = None
    batch = next(iter(trainer.get_train_dataloader()))
    weights = trainer.target_weights
    trainer.model.train()

    def step(with_weights: bool) -> None:
        trainer.target_weights = weights if with_weights else None
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        trainer.model.zero_grad(set_to_none=True)

    runs = {"without": lambda: step(False), "with": lambda: step(True)}
    seconds = interleaved(runs, torch.device("cpu"), num_rounds=pairs, shortest=0.0)
    trainer.progress_bar.close()
    return [weighted / plain for plain, weighted in zip(seconds["without"], seconds["with"], strict=True)]


if __name__ == "__main__":
    main()

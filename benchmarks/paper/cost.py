"""Measure the cost of a step by length for full attention and S²-Attn, with and without a dense finish; and plan it.

    OMP_NUM_THREADS=1 python benchmarks/paper/cost.py
    OMP_NUM_THREADS=1 python benchmarks/paper/cost.py --shapes tiny --lengths 1024 4096

Forward and backward pass of one row through the layers of a shape with random weights, LoRA+ on attention, groups of a
quarter, float32. The output layer and the optimizer are left out. One thread is timed by processor time, which other
processes do not affect. Each row of results/cost.jsonl is a shape at a length, with the operations that the planner
counts for the same layers.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "src")]

import _report  # noqa: E402
import torch  # noqa: E402
from _measure import interleaved  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config  # noqa: E402

import longlora  # noqa: E402
from longlora.models.load import load_config, model_source  # noqa: E402
from longlora.models.lora import add_adapter  # noqa: E402
from longlora.planner.architecture import find_architecture  # noqa: E402
from longlora.planner.compute import row_flops  # noqa: E402
from longlora.planner.job import PlannedRun  # noqa: E402
from longlora.tiny import TINY_MODEL  # noqa: E402

PATTERNS: dict[str, dict[str, int]] = {"full": {}, "s2": {"sink_tokens": 0}, "s2, 1 sink token": {"sink_tokens": 1}}
"""Training attention by name, with the settings of S²-Attn."""
RANK = 8


def shape(name: str) -> PreTrainedConfig:
    """Return the configuration of a shape: the tiny model, or one layer of Qwen2.5-0.5B with a small vocabulary."""
    if name == "tiny":
        return load_config(model_source(TINY_MODEL))
    return Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_attention_heads=14,
        num_key_value_heads=2,
        num_hidden_layers=1,
        vocab_size=2048,
        tie_word_embeddings=True,
    )


LENGTHS = {"tiny": (1024, 2048, 4096), "layer of 0.5B": (2048, 4096)}


def main() -> int:
    """Measure each shape at each length, printing a line and writing a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens of a row (default: some for each shape)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cost.jsonl")
    arguments = parser.parse_args()
    for name in arguments.shapes:
        config = shape(name)
        for length in arguments.lengths or LENGTHS[name]:
            runs = {pattern: make_run(config, length, pattern) for pattern in PATTERNS}
            seconds = interleaved(runs, torch.device("cpu"), num_rounds=arguments.rounds, shortest=0.0)
            row = {
                "shape": name,
                "tokens": length,
                "seconds": {pattern: round(statistics.median(values), 4) for pattern, values in seconds.items()},
                "operations": {pattern: operations(config, length, pattern) for pattern in PATTERNS},
                "rounds": arguments.rounds,
                "device": _report.device_name(torch.device("cpu")),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "commit": _report.commit(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            print(json.dumps({key: row[key] for key in ("shape", "tokens", "seconds")}, ensure_ascii=False), flush=True)
    return 0


def make_run(config: PreTrainedConfig, length: int, pattern: str) -> Callable[[], None]:
    """Make a model and a row; return a function that runs both passes through the layers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="s2", dtype=torch.float32)
    group = None if pattern == "full" else length // 4
    longlora.set_group_size(model, group, **PATTERNS[pattern])
    model = add_adapter(
        model, trainable=("embed", "norm"), r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="attention"
    ).train()
    layers = model.get_base_model().model
    row = torch.randint(config.vocab_size, (1, length))

    def run() -> None:
        model.zero_grad(set_to_none=True)
        layers(input_ids=row, use_cache=False).last_hidden_state.sum().backward()

    return run


def operations(config: PreTrainedConfig, length: int, pattern: str) -> dict[str, float]:
    """Return the planner's FLOPs for such a row, for linear layers and attention, without the output layer."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        architecture = replace(find_architecture(folder), vocab_size=0)
    run = PlannedRun(
        architecture=architecture,
        context_length=length,
        lora_rank=RANK,
        dtype="float32",
        attention="full" if pattern == "full" else "s2",
        gradient_checkpointing=False,
        chunked_loss=False,
        **PATTERNS[pattern],
    )
    return row_flops(run)._asdict()


if __name__ == "__main__":
    sys.exit(main())

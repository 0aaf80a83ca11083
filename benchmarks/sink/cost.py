"""Measure the cost of a sink token: S²-Attn with and without, forward and backward pass, in interleaved pairs.

    python benchmarks/sink/cost.py                          # 4k to 32k tokens, 20 pairs each
    python benchmarks/sink/cost.py --lengths 32768 --threads 1 --heads 8

One row, groups of a quarter, 16 heads of 64 and a key-value head for every four, float32 on a CPU (bfloat16 and
heads of 128 on CUDA). Each pair runs both; the result is the median of the ratios, and rows go to results/. One thread
is timed by processor time, which other processes do not affect, several threads by wall-clock time.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "src")]

import _report  # noqa: E402
import torch  # noqa: E402
from _measure import interleaved  # noqa: E402

from longlora.attention import s2_attention  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> int:
    """Measure each length, printing a line and writing a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768], metavar="T")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--heads", type=int, default=32 if DEVICE.type == "cuda" else 16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cost.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for length in arguments.lengths:
        runs = {str(sinks): make_run(length, arguments.heads, sinks) for sinks in (0, 1)}
        seconds = interleaved(runs, DEVICE, num_rounds=arguments.pairs, shortest=0.0)
        ratios = [with_sink / without for without, with_sink in zip(seconds["0"], seconds["1"], strict=True)]
        row = {
            "tokens": length,
            "heads": arguments.heads,
            "pairs": len(ratios),
            "ratio": round(statistics.median(ratios), 4),
            "quartiles": [round(value, 4) for value in statistics.quantiles(ratios, n=4)],
            "seconds_without": round(statistics.median(seconds["0"]), 5),
            "device": _report.device_name(DEVICE),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "commit": _report.commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{length:6} tokens: {row['ratio']:.3f} times the time, quartiles {row['quartiles']}", flush=True)
    return 0


def make_run(length: int, heads: int, sink_tokens: int) -> Callable[[], None]:
    """Make inputs; return a function that runs both passes."""
    kv_heads, dim = heads // 4, 128 if DEVICE.type == "cuda" else 64
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    tensors = [
        torch.randn(1, length, number, dim, device=DEVICE, dtype=dtype).transpose(1, 2).requires_grad_()
        for number in (heads, kv_heads, kv_heads)
    ]
    upstream = torch.randn(1, heads, length, dim, device=DEVICE, dtype=dtype)

    def run() -> None:
        for tensor in tensors:
            tensor.grad = None
        s2_attention(*tensors, group_size=length // 4, sink_tokens=sink_tokens).backward(upstream)

    return run


if __name__ == "__main__":
    sys.exit(main())

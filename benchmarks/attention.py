"""How fast is S²-Attn, and how much memory does it need, compared with full attention and the paper's algorithm?

    python benchmarks/attention.py            # on CUDA if there is one, in bfloat16; else on the CPU, in float32
    python benchmarks/attention.py --quick    # a few seconds, to check that everything runs

One row of T tokens, groups of T/4, 8 heads of 64 numbers (on CUDA 32 of 128), with as many key-value heads and with an
eighth of them. First the outputs and gradients of all attentions are compared with their definitions; if one differs,
there is no report. Then they are timed in rounds that contain all of them, and ratios are medians over the rounds.
Cases that would exceed the limits on time or memory are left out, and the table says so.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import _report
import torch
from _attention_report import FORWARD, TRAINING, Row, as_ratio, write_report
from _attentions import FULL, ROLL, ROLL_UNFUSED, Shape, attentions, disagreements, make_run, unfused_bytes
from _measure import interleaved, peak_memory, times_as_fast

LENGTHS = [2048, 4096, 8192, 16384, 32768, 65536]
QUICK_LENGTHS = [256, 512]


def main() -> int:
    """Check, measure and report; return the exit status."""
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base = Shape(0, 32, 32, 128) if device.type == "cuda" else Shape(0)
    shapes = {"MHA": base, "GQA 8:1": replace(base, num_kv_heads=base.num_heads // 8)}
    origin = _report.provenance(device)
    if found := check(arguments, device, dtype, shapes):
        print("\n".join(["no report, these attentions are wrong:", *found]), file=sys.stderr)
        return 1
    rows: list[Row] = []
    for heads, shape in shapes.items():
        for passes in (FORWARD, TRAINING):
            rows += measure(heads, shape, passes, arguments, device, dtype)
    origin = _report.finished(origin)
    write_report(rows, arguments.output, device, dtype, origin, num_rounds=arguments.rounds)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short lengths, one round")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="T", help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=None, help="number of measurements (default: 5)")
    parser.add_argument("--most-seconds", type=float, default=15, help="longest single run (default: 15)")
    parser.add_argument("--most-gib", type=float, default=4, help="largest scores of the unfused form (default: 4)")
    parser.add_argument("--output", type=Path, default=_report.RESULTS, metavar="DIR", help="where the report goes")
    arguments = parser.parse_args()
    arguments.lengths = sorted(arguments.lengths or (QUICK_LENGTHS if arguments.quick else LENGTHS))
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    if min(arguments.lengths) < 4 or any(length % 4 for length in arguments.lengths) or arguments.rounds < 1:
        parser.error("lengths must be multiples of 4, since a group is a quarter of a row, and rounds at least 1")
    return arguments


def check(
    arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype, shapes: dict[str, Shape]
) -> list[str]:
    """Describe attentions that differ from their definitions, at an odd length and at the shortest measured one."""
    lengths = [117, min(*arguments.lengths, 2048)]
    return disagreements(
        device, dtype, [replace(shape, num_tokens=length) for shape in shapes.values() for length in lengths]
    )


def measure(
    heads: str, base: Shape, passes: str, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[Row]:
    """Measure all attentions at all lengths."""
    backward = passes == TRAINING
    names = list(attentions(device, dtype, head_dim=base.head_dim, backward=backward))
    seconds_per_pair: dict[str, float] = {}  # of a query and a key, at the last length measured
    for length in arguments.lengths:
        shape = replace(base, num_tokens=length)
        notes = {name: too_much(name, shape, seconds_per_pair.get(name, 0) * length**2, arguments) for name in names}
        runs = {name: make_run(name, shape, device, dtype, backward) for name in names if not notes[name]}
        seconds = interleaved(runs, device, num_rounds=arguments.rounds, shortest=0.001 if arguments.quick else 0.2)
        del runs
        for name in names:
            row = Row(heads=heads, num_tokens=length, passes=passes, attention=name, note=notes[name])
            if name in seconds:
                seconds_per_pair[name] = min(seconds[name]) / length**2
                row = replace(
                    row,
                    seconds=statistics.median(seconds[name]),
                    times_as_fast_as_full=times_as_fast(seconds, name, FULL),
                    times_as_fast_as_roll=times_as_fast(seconds, name, ROLL),
                )
                row = with_memory(row, shape, device, dtype) if backward else row
            print(one_line(row), flush=True)
            yield row


def too_much(name: str, shape: Shape, forecast: float, arguments: argparse.Namespace) -> str:
    """Return why a case is left out; empty if it is not."""
    if forecast > arguments.most_seconds:
        return f"left out: about {forecast:.0f} s, more than {arguments.most_seconds:g}"
    gib = unfused_bytes(shape) / 2**30
    if name == ROLL_UNFUSED and gib > arguments.most_gib:
        return f"left out: about {gib:.0f} GiB of scores, more than {arguments.most_gib:g}"
    return ""


def with_memory(row: Row, shape: Shape, device: torch.device, dtype: torch.dtype) -> Row:
    """Add the memory of a forward and a backward pass beyond what every attention needs: results and gradients."""
    every_tensor = shape.bytes_with_gradients(dtype)
    peak = peak_memory(partial(make_run, row.attention, shape, device, dtype, True), device)
    extra = peak - every_tensor // 2  # the output and three gradients are allocated in the run
    return replace(row, peak_bytes=extra, peak_share=extra / every_tensor)


def one_line(row: Row) -> str:
    """Return a measurement as a line of progress."""
    where = f"{row.heads:8} {row.passes:18} {row.num_tokens:6}  {row.attention:20}"
    if row.seconds is None:
        return f"{where} {row.note}"
    ratios = f"{as_ratio(row.times_as_fast_as_full)} of full, {as_ratio(row.times_as_fast_as_roll)} of roll"
    memory = "" if row.peak_share is None else f", {row.peak_share:+.0%} memory"
    return f"{where} {row.seconds:8.3f} s, {ratios}{memory}"


if __name__ == "__main__":
    sys.exit(main())

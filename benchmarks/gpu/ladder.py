"""Measure on one GPU: steps of a few minutes, in any order, each of which writes rows as it goes.

    python3 benchmarks/gpu/ladder.py tests --out DIR        # the tests with CUDA visible: which fail
    python3 benchmarks/gpu/ladder.py attention --out DIR    # S² against the fastest full attention
    python3 benchmarks/gpu/ladder.py steps --out DIR        # training steps of an 8B model, and their plan
    python3 benchmarks/gpu/ladder.py longest --out DIR      # the longest context for training an 8B model
    python3 benchmarks/gpu/ladder.py extend --out DIR --model MODEL --texts FOLDER    # double a real model's context
    python3 benchmarks/gpu/ladder.py schedules --out DIR    # S² and its rivals at equal cost, on a base made there

The effect of S² on a pretrained model within its context has a separate grid, benchmarks/sink/grid.py.

Rows go to DIR/STEP-CARD.jsonl, each with the card, the versions and the date. Started again with the same DIR, a step
resumes with the cases that have no row yet. `--dry` makes everything tiny, to check on a CPU that it runs.
longlora need not be installed: the repository's `src` is used.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are imported
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(path) for path in (HERE, HERE.parent, HERE.parent / "paper", ROOT / "scripts", ROOT / "src")]


def main() -> int:
    """Run one step; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["tests", "attention", "steps", "longest", "extend", "schedules"])
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="where rows go")
    parser.add_argument("--seconds", type=float, default=170, help="when the step ends (default: 170)")
    parser.add_argument("--dry", action="store_true", help="everything tiny")
    parser.add_argument("--tests", nargs="+", default=[], metavar="PATH", help="`tests`: files or folders (all)")
    parser.add_argument("--workers", type=int, default=14, help="`tests`: processes, with pytest-xdist (14)")
    parser.add_argument("--start", type=int, default=65536, metavar="T", help="`longest`: the first context (65536)")
    parser.add_argument("--model", type=Path, help="`extend`: a directory (the tiny model)")
    parser.add_argument(
        "--texts", type=Path, help="`extend`, `schedules`: a folder with */train/*, */validation/* (code)"
    )
    parser.add_argument("--budgets", type=int, nargs="+", metavar="N", help="`schedules`: dense steps (40 120 400)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="`schedules`: of each arm (3)")
    parser.add_argument("--rate", type=float, default=1e-3, help="`schedules`: peak of the learning rate (0.001)")
    parser.add_argument(
        "--count", choices=["attention", "all"], default="attention", help="`schedules`: operations that are equal"
    )
    parser.add_argument(
        "--pretraining", type=float, default=300, metavar="SECONDS", help="`schedules`: no round begins after (300)"
    )
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    if arguments.step == "tests":
        from _run_tests import run_tests

        return run_tests(arguments)

    from _session import Session

    session = Session(arguments.step, arguments.out, seconds=arguments.seconds, dry=arguments.dry)
    print(f"rows go to {session.path}", flush=True)
    if arguments.step == "attention":
        from _kernels import run_attention

        run_attention(session)
    elif arguments.step == "extend":
        from _extension import run_extension

        run_extension(session, arguments.model, arguments.texts)
    elif arguments.step == "schedules":
        from _schedules import BUDGETS, run_schedules

        run_schedules(
            session,
            arguments.texts,
            pretraining_seconds=arguments.pretraining,
            budgets=arguments.budgets or BUDGETS,
            seeds=arguments.seeds,
            learning_rate=arguments.rate,
            counted=arguments.count,
        )
    else:
        from _training import run_longest, run_steps

        if arguments.step == "steps":
            run_steps(session)
        else:
            run_longest(session, start=arguments.start)
    return 0


if __name__ == "__main__":
    sys.exit(main())

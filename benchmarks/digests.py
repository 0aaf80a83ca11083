"""Measure the cost of sealing a weights file, and of checking it: the first time, and once it is cached.

    python benchmarks/digests.py [--gib 1] [--files 1]

Seconds of one core for all files, which are in the page cache; the disk is not measured.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from longlora.support.digests import seal
from longlora.support.whole import check_whole


def seconds(run: Callable[[], None]) -> float:
    """Return the processor seconds of all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="size of each file")
    parser.add_argument("--files", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        model = Path(folder) / "model"
        model.mkdir()
        block = os.urandom(1 << 20)
        for number in range(arguments.files):
            with (model / f"model-{number}.safetensors").open("wb") as file:
                for _ in range(int(arguments.gib * 1024)):
                    file.write(block)
        sealed, first, known = (seconds(lambda run=run: run(model)) for run in (seal, check_whole, check_whole))
    print(f"{arguments.files} x {arguments.gib:g} GiB: sealing {sealed:.2f} s, first check {first:.2f} s, ", end="")
    print(f"later checks {known:.4f} s")
    print(f"{time.strftime('%Y-%m-%d', time.gmtime())}, {_processor()}, Python {platform.python_version()}")


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()

"""Bad inputs that coverage guides: `make fuzz` ends with them.

    python -m tests.faults.guided FOLDER [--seconds 60] [--kinds recipe,table]

libFuzzer (by atheris) changes the bytes of good inputs, and keeps in FOLDER/KIND those that reach new lines of
longlora; the next run begins with them. A finding is written beside them, and ends its kind with status 1.
"""

import argparse
import logging
import os
import random
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

KINDS = ("recipe", "table", "token_file", "markup", "body")
"""Those of `tests.faults.inputs` that take bytes and need no trained model."""


def main() -> int:
    """Fuzz each kind in a process of its own, which libFuzzer ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=60, help="for each kind")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=KINDS)
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # the kind that this process fuzzes
    arguments = parser.parse_args()
    if arguments.alone:
        fuzz(arguments.alone, arguments.folder / arguments.alone, arguments.seconds)
    command = [sys.executable, "-m", "tests.faults.guided", str(arguments.folder), "--seconds", str(arguments.seconds)]
    failed = [kind for kind in arguments.kinds if subprocess.run([*command, "--alone", kind], check=False).returncode]
    for kind in arguments.kinds:
        num_kept = sum(1 for _ in (arguments.folder / kind).glob("*"))
        print(f"{kind}: {num_kept:,} inputs kept{', FAILED' if kind in failed else ''}")
    return int(bool(failed))


def fuzz(kind: str, corpus: Path, seconds: int) -> None:
    """Fuzz a kind; does not return."""
    import atheris

    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["longlora"]):
        from tests.faults import inputs
        from tests.faults.campaign import BAD, attempt, watch
        from tests.faults.world import World

    folder = Path(tempfile.mkdtemp(prefix="longlora-fuzz-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "home")
    world, attack = World(folder / "world"), getattr(inputs.Inputs, kind)
    corpus.mkdir(parents=True, exist_ok=True)

    def keep(good: bytes, chance: random.Random) -> bytes:
        (corpus / f"good-{hash(good) % 10**8:08d}").write_bytes(good)
        return good

    inputs.damaged = keep
    for number in range(50):  # each begins with one of several good inputs
        attempt(partial(attack, inputs.Inputs(world, folder / "inputs", random.Random(number))))
    done = watch()

    def once(content: bytes) -> None:
        inputs.damaged = lambda good, chance: content
        outcome, details = attempt(partial(attack, inputs.Inputs(world, folder / "inputs", random.Random(content))))
        if done or outcome in BAD:
            raise RuntimeError(f"{outcome}: {details}\n" + "\n".join(done))

    options = [f"-max_total_time={seconds}", "-timeout=0", "-rss_limit_mb=4096", "-verbosity=0", "-max_len=20000"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={corpus}-finding-", str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())

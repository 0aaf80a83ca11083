"""Attack longlora with bad inputs and injected faults, count what comes of it, and write the counts.

    python -m tests.faults.campaign inputs [--share 1.0] [--seed 0] [--kinds recipe,table] [--counts FILE]
    python -m tests.faults.campaign faults [--share 1.0] [--seed 0] [--kinds …]

Counts are written as they come; a campaign that was cut short resumes where it stopped, given the same file and seed.
Inputs are made and read in batches, each in a process of its own that is forked from one with the libraries loaded: a
crash costs one input, and the memory of each batch is known. Everything that is not a message is kept, with what made
it, in `build/faults/`. Ends with status 1 if there was any.
"""

import argparse
import gc
import importlib
import json
import logging
import os
import pickle
import platform
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.world import World

from longlora.support.files import write_atomically

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = Path(__file__).with_name("counts.json")
REPORT = REPOSITORY / "build" / "faults"
BATCH = 25
HANG_SECONDS = 60  # of an input; a fault is a command or three, each of which has as long
OUTCOMES = ("accepted", "refused", "healed", "traceback", "silent", "lost", "executed", "hang", "crash")
BAD = ("traceback", "silent", "lost", "executed", "hang")
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "pty.spawn", "subprocess.Popen", "urllib.Request"}
SYSTEM = ("/proc", "/sys", "/usr", "/lib", "/etc", "/dev/null", "/dev/urandom", "/dev/shm")


class Hang(BaseException):
    """An attack took too long."""


def attempt(action: Callable[[], str | None], *, seconds: int = HANG_SECONDS) -> tuple[str, str]:
    """Do one attack; what came of it, and the traceback if there was one."""
    from tests.faults.forks import Lost
    from tests.faults.inputs import EXPECTED, SilentChange

    def ring(signum: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        return action() or "accepted", ""
    except (Hang, TimeoutError):  # the latter is an OSError
        return "hang", traceback.format_exc()
    except EXPECTED as error:
        message = str(error)
        return ("refused", "") if len(message) < 20_000 else ("traceback", f"a message of {len(message)} characters")
    except SilentChange as error:
        return "silent", str(error)
    except Lost as error:
        return "lost", str(error)
    except BaseException:
        return "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)


def watch() -> list[str]:
    """List from now on what no bad input may have done: processes started, and files opened that are not its own.

    Python tells by `sys.addaudithook`, which cannot be taken back.
    """
    from huggingface_hub.constants import HF_HOME  # where its token is

    done: list[str] = []
    own = (*SYSTEM, HF_HOME, sys.prefix, sys.base_prefix, str(REPOSITORY), os.path.realpath(tempfile.gettempdir()))
    platform.processor()  # asks `uname`, once
    with suppress(ImportError):
        import reportlab.rl_config  # noqa: F401 - reads files at home, once

    def note(event: str, values: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(values[0], str) and os.path.isabs(values[0]):
            opened = os.path.normpath(values[0])
            if not opened.startswith(own) or opened == "/etc/passwd":
                done.append(f"open {opened}")
        elif event in FORBIDDEN:
            done.append(f"{event} {values}")

    sys.addaudithook(note)
    return done


def forked(work: Callable[[Any], None], log: Path) -> tuple[list[Any], int, int]:
    """Do work in a forked process that sends values; give them, its status and the most memory it took, in bytes."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        with os.fdopen(writing, "wb", buffering=0) as stream:
            try:
                work(lambda value: stream.write(pickle.dumps(value)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os._exit(0)
    os.close(writing)
    values = []
    with os.fdopen(reading, "rb") as stream:
        while True:
            try:
                values.append(pickle.load(stream))
            except EOFError:
                break
    _, status, usage = os.wait4(process, 0)
    return values, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


class Counts:
    """Outcomes by kind under one seed, kept in a file with those of other seeds; and what was not a message.

    The attacks of a kind are made in the order of their numbers, so that the counts say where a campaign resumes.
    """

    def __init__(self, path: Path, section: str, seed: int) -> None:
        self._path, self._section, self._seed = path, section, str(seed)
        self.most_memory_bytes = 0
        self.by_kind: dict[str, Counter[str]] = {
            kind: Counter(there) for kind, there in self._read().get("counts", {}).get(self._seed, {}).items()
        }
        REPORT.mkdir(parents=True, exist_ok=True)

    def _read(self) -> dict[str, Any]:
        sections = json.loads(self._path.read_text()) if self._path.exists() else {}
        section: dict[str, Any] = sections.get(self._section, {})
        return section

    def done(self, kind: str) -> int:
        """How many of a kind have been made before."""
        return self.by_kind.get(kind, Counter()).total()

    def add(self, kind: str, outcome: str, details: str, made_by: str, *, memory_bytes: int = 0) -> None:
        """Count one."""
        self.most_memory_bytes = max(self.most_memory_bytes, memory_bytes)
        self.by_kind.setdefault(kind, Counter())[outcome] += 1
        if outcome in BAD or outcome == "crash":
            with (REPORT / "findings.txt").open("a", encoding="utf-8", errors="replace") as file:
                file.write(f"=== {kind} ({made_by}): {outcome}\n{details}\n")

    def forget(self, kind: str) -> None:
        """Take back one failure of a kind, whose attack is made again."""
        outcomes = self.by_kind.get(kind, Counter())
        for outcome in BAD:
            if outcomes[outcome]:
                outcomes[outcome] -= 1
                break
        self.by_kind[kind] = +outcomes

    def write(self) -> None:
        """Put the counts into the file."""
        from importlib.metadata import version

        section = self._read()
        counts = {kind: dict(sorted(counter.items())) for kind, counter in sorted(self.by_kind.items())}
        packages = ("torch", "transformers", "peft", "trl", "datasets", "pydantic")
        section = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "python": sys.version.split()[0],
            "packages": {name: version(name) for name in packages},
            "most_memory_gib": round(max(self.most_memory_bytes / 2**30, section.get("most_memory_gib", 0)), 2),
            "counts": section.get("counts", {}) | {self._seed: counts},
        }
        there = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(there | {self._section: section}, indent=1) + "\n")


def attack_with_inputs(world: World, counts: Counts, *, share: float, seed: int, kinds: list[str]) -> None:
    """Make bad inputs of every kind."""
    from tests.faults.inputs import SHARES, Inputs

    for attack, usual in SHARES.items():
        kind = attack.__name__
        if kinds and kind not in kinds:
            continue
        todo = list(range(counts.done(kind), max(1, round(usual * share))))
        while todo:
            batch = todo[:BATCH]

            def work(
                send: Callable[[Any], None], attack: Any = attack, kind: str = kind, batch: list[int] = batch
            ) -> None:
                done = watch()
                for number in batch:
                    inputs = Inputs(
                        world, world.root / f"inputs-{kind}-{os.getpid()}", random.Random(f"{seed} {kind} {number}")
                    )
                    outcome = attempt(partial(attack, inputs))
                    send((number, *(("executed", "\n".join(done)) if done else outcome)))
                    done.clear()

            values, status, memory = forked(work, REPORT / "inputs.log")
            for number, outcome, details in values:
                counts.add(kind, outcome, details, f"seed {seed}, number {number}", memory_bytes=memory)
            todo = todo[len(values) :]
            if status:  # the one after the last that answered ended its process
                counts.add(kind, "crash", f"status {status}", f"seed {seed}, number {todo.pop(0)}")
            counts.write()
        print(f"{kind}: {dict(counts.by_kind.get(kind, {}))}", flush=True)


def main() -> None:
    """Run a campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["inputs", "faults"])
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of attacks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=[])
    parser.add_argument(
        "--again", type=lambda text: text.split(","), default=[], help="kind:number of faults that failed, made again"
    )
    parser.add_argument("--counts", type=Path, default=COUNTS, help="file that the counts go into")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no more faults after so long")
    arguments = parser.parse_args()
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "Agg",
    }
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import torch

    torch.set_num_threads(1)
    counts = Counts(arguments.counts, arguments.what, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="longlora-faults-") as folder:
        os.environ["XDG_CACHE_HOME"] = os.environ["HF_HOME"] = f"{folder}/home"
        world = World(Path(folder) / "world")

        def prepare(send: Callable[[Any], None]) -> None:
            inputs.prepare(world.make())
            send(injected.prepare(world))
            send(sorted(sys.modules))

        from tests.faults import injected, inputs

        values, status, _ = forked(prepare, REPORT / "prepare.log")
        assert status == 0, f"see {REPORT / 'prepare.log'}"
        world.seconds = values[0]
        for name in values[1]:  # what the commands load, before anything else is forked
            if name not in sys.modules and not name.startswith("__"):
                with suppress(Exception):
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()  # else each fork copies what its collector looks at
        chosen = {"share": arguments.share, "seed": arguments.seed, "kinds": arguments.kinds}
        if arguments.what == "inputs":
            attack_with_inputs(world, counts, **chosen)
        else:
            injected.attack_with_faults(
                world,
                counts,
                **chosen,
                again=arguments.again,
                seconds=arguments.seconds,
                forked=forked,
                attempt=attempt,
            )
    total = sum((counter for counter in counts.by_kind.values()), Counter())
    print(f"{total.total()} {arguments.what}: {dict(total)}; at most {counts.most_memory_bytes / 2**30:.2f} GiB")
    sys.exit(any(total[outcome] for outcome in BAD))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()

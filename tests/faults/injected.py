"""Faults injected into commands while they run: what comes of them, and whether a second start makes it good.

Each attack runs a command of longlora in a forked process, does something to it, and judges what is left: no traceback
was printed, nothing is half-written, and after the fault has passed the same command arrives at the very bytes that an
undisturbed one leaves.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from safetensors.torch import load_file
from tests.faults.world import MAX_STEPS, World, damaged, epub, fresh_copy

from longlora.cli import main as cli

Prepare = Callable[[], None]
STATUSES = {0, 1, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
_PATIENCE = 60.0
NOBODY = 65534


@dataclass
class Ended:
    """How a command ended."""

    status: int
    said: str  # on stdout and stderr
    seconds: float


class Lost(Exception):
    """Something was lost, or is half there."""


class Fork:
    """A command in a forked process, which has the libraries loaded already."""

    def __init__(self, arguments: list[Any], prepare: Prepare = lambda: None) -> None:
        self._started, self._said = time.monotonic(), bytearray()
        self._reading, writing = os.pipe()  # no file: what it says is not to be cut by a limit on files
        self.process = os.fork()
        if not self.process:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            self._run([str(argument) for argument in arguments], prepare)
        os.close(writing)
        os.set_blocking(self._reading, False)

    def _run(self, arguments: list[str], prepare: Prepare) -> None:
        status = 70
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(0)
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
            import logging

            logging.disable(logging.NOTSET)
            sys.argv = ["longlora", *arguments]
            sys.modules["__main__"] = ModuleType("__main__")  # which processes that a command starts would load
            prepare()
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(status)

    def wait(self) -> Ended:
        """Wait until it ends."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            found, status = os.waitpid(self.process, os.WNOHANG)
            self._drain()
            if found:
                os.close(self._reading)
                said = self._said.decode(errors="replace")
                return Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - self._started)
            time.sleep(0.01)
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self._reading)
        raise TimeoutError("it did not end")

    def _drain(self) -> None:
        try:
            while part := os.read(self._reading, 1 << 16):
                self._said += part
        except BlockingIOError:
            pass

    def signal_after(self, seconds: float, number: int) -> Ended:
        """Send it a signal after some time, and wait until it ends."""
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(self.process, number)
        return self.wait()


def limited_files(num_bytes: int) -> Prepare:
    """No file may grow larger: as a full disk, it stops a write in its middle."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def limited_memory(num_bytes: int) -> Prepare:
    """So much more address space than there is in use."""

    def limit() -> None:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + num_bytes, resource.RLIM_INFINITY))

    return limit


def as_nobody() -> None:
    """Give up the right to write everywhere."""
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def closed_stdout() -> None:
    """Whoever reads has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def no_stdout() -> None:
    """As `>&-` does it."""
    os.close(1)
    sys.stdout = None  # type: ignore[assignment]


def without_home() -> None:
    """A container's user whom the system does not know."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    if os.geteuid() == 0:
        os.setuid(4242)


def clock_jump() -> None:
    """The clock stands a year before."""
    original = time.time
    time.time = lambda: original() - 365 * 86400


class Attacks:
    """Each method is one kind of fault; it returns what came of it, or raises what is wrong."""

    def __init__(self, world: World, number: int, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.folder = world.root / f"attack-{os.getpid()}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.output = self.folder / "out"

    # --- training ---

    def _recipe(self, **changes: Any) -> Path:
        path = self.folder / "recipe.yaml"
        values = self.world.values("disturbed", output_dir=str(self.output), **changes)
        path.write_text(yaml.safe_dump(values))
        return path

    def _train(self, prepare: Prepare = lambda: None, **changes: Any) -> Fork:
        return Fork(["train", self._recipe(**changes)], prepare)

    def _arrives(self, ended: Ended) -> str:
        """See that the same command goes on to what the undisturbed run left."""
        _judge(ended)
        if not (self.output / "adapter").exists():
            last = self._train().wait()
            _judge(last)
            if last.status != 0:
                raise Lost(f"the second start ended with {last.status}: {last.said[-2000:]}")
        _compare(self.world.root / "undisturbed", self.output)
        return "healed"

    def _signalled(self, number: int) -> str:
        fork = self._train()
        return self._arrives(fork.signal_after(self.chance.uniform(0, self.world.seconds), number))

    def train_sigkill(self) -> str:
        """SIGKILL at a random moment."""
        return self._signalled(signal.SIGKILL)

    def train_sigterm(self) -> str:
        """SIGTERM at a random moment."""
        return self._signalled(signal.SIGTERM)

    def train_sigint(self) -> str:
        """Ctrl-C at a random moment."""
        return self._signalled(signal.SIGINT)

    def train_full_disk(self) -> str:
        """No file may grow beyond a random size."""
        return self._arrives(self._train(limited_files(int(10 ** self.chance.uniform(0.5, 5.7)))).wait())

    def train_out_of_memory(self) -> str:
        """Little more memory than is in use."""
        return self._arrives(self._train(limited_memory(int(10 ** self.chance.uniform(4, 8)))).wait())

    def train_read_only(self) -> str:
        """The output directory belongs to another."""
        ended = self._train(
            as_nobody, data={"source": str(self.world.texts), "cache_dir": str(self.folder / "c")}
        ).wait()
        _judge(ended, refused=True)
        return self._arrives(ended)

    def train_strange_output(self) -> str:
        """The output directory cannot be."""
        strange = self.chance.choice(
            ["/dev/null/x", "/proc/x", str(self.folder / ("x" * 300)), str(self.folder / "recipe.yaml" / "x")]
        )
        ended = Fork(["train", self._recipe(), f"output_dir={strange}"]).wait()
        _judge(ended, refused=True)
        return "refused"

    def train_damaged_checkpoint(self) -> str:
        """Bytes of the newest checkpoint, or of what stands beside it, are others."""
        fresh_copy(self.world.root / "half", self.output)
        newest = self.output / "checkpoints" / "checkpoint-4"
        file = self.chance.choice(sorted(newest.iterdir()))
        match self.chance.randrange(4):
            case 0:
                file.unlink()
            case 1:
                file.write_bytes(b"")
            case 2:
                file.write_bytes(file.read_bytes()[:-1])
            case _:
                file.write_bytes(damaged(file.read_bytes(), self.chance))
        (self.output / "checkpoints" / "checkpoint-old").mkdir()
        (self.output / "checkpoints" / "checkpoint-999").mkdir()
        return self._arrives(self._train().wait())

    def train_changed_data(self) -> str:
        """The texts are others than those that the run began with."""
        texts = fresh_copy(self.world.texts, self.folder / "texts")
        fresh_copy(self.world.root / "half", self.output)
        data = {"source": str(texts), "cache_dir": str(self.folder / "cache")}
        recipe = yaml.safe_load((self.output / "recipe.yaml").read_text())
        recipe["data"] |= data
        (self.output / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        file = self.chance.choice(sorted(texts.iterdir()))
        file.write_text(file.read_text().replace("ship", "boat", self.chance.choice([1, 5, -1])))
        ended = self._train(data=data).wait()
        _judge(ended, refused=True)
        if "has been trained on" not in ended.said:
            raise Lost(ended.said[-2000:])
        fresh_copy(self.world.texts, texts)
        return self._arrives(self._train(data=data).wait())

    def train_vanished_data(self) -> str:
        """The texts, or the model, are gone when the run goes on."""
        fresh_copy(self.world.root / "half", self.output)
        gone = self.folder / "gone"
        change = self.chance.choice([{"data": {"source": str(gone)}}, {"model_name_or_path": str(gone)}])
        ended = self._train(**change).wait()
        _judge(ended, refused=True)
        return self._arrives(ended)

    def train_twice(self) -> str:
        """Two runs begin on one directory."""
        first = self._train()
        time.sleep(self.chance.uniform(0, self.world.seconds / 2))
        second = Fork(["train", self.folder / "recipe.yaml"]).wait()
        ended = first.wait()
        _judge(second)
        if {second.status, ended.status} not in ({0, 2}, {0}):
            raise Lost(f"{ended.status}, {second.status}: {ended.said[-500:]} {second.said[-500:]}")
        return self._arrives(ended)

    def train_streams(self) -> str:
        """Nobody reads stdout, there is none, there is no HOME, or the clock jumps."""
        fault = self.chance.choice([closed_stdout, no_stdout, clock_jump])
        return self._arrives(self._train(fault).wait())

    # --- other commands ---

    def _again(self, arguments: list[Any], ended: Ended, whole: Path) -> str:
        """See that a command that failed left nothing, and works once the fault has passed."""
        _judge(ended)
        if ended.status != 0 and whole.exists():
            raise Lost(f"{whole} exists, though the command ended with {ended.status}: {ended.said[-500:]}")
        if not whole.exists():
            last = Fork(arguments).wait()
            _judge(last)
            if last.status or not whole.exists():
                raise Lost(f"the second start ended with {last.status}: {last.said[-2000:]}")
        if leftover := list(self.folder.rglob("*.partial*")):
            raise Lost(f"left half-written: {leftover}")
        return "healed"

    def _disturbed(self, arguments: list[Any], whole: Path, seconds: float) -> str:
        match self.chance.randrange(5):
            case 0:
                ended = Fork(arguments, limited_files(int(10 ** self.chance.uniform(0.5, 5)))).wait()
            case 1:
                ended = Fork(arguments).signal_after(self.chance.uniform(0, seconds), signal.SIGINT)
            case 2:
                ended = Fork(arguments).signal_after(self.chance.uniform(0, seconds), signal.SIGKILL)
                for path in self.folder.rglob(".*.partial*"):  # what SIGKILL leaves is hidden, and nobody's
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            case 3:
                ended = Fork(arguments, as_nobody).wait()
            case _:
                ended = Fork(arguments, self.chance.choice([closed_stdout, no_stdout, without_home])).wait()
                if ended.status and whole.exists():  # all is done, only nobody could be told
                    shutil.rmtree(whole) if whole.is_dir() else whole.unlink()
        return self._again(arguments, ended, whole)

    def merge(self) -> str:
        """A merge is disturbed."""
        return self._disturbed(["merge", self.world.root / "finished" / "adapter", self.output], self.output, 1.0)

    def import_weights(self) -> str:
        """An import is disturbed."""
        base = ["--base", self.world.base, "--context", 128]
        return self._disturbed(["import", self.world.root / "published", self.output, *base], self.output, 0.5)

    def evaluate(self) -> str:
        """An evaluation is disturbed."""
        arguments = ["eval", "perplexity", self.world.root / "finished" / "adapter", "--data", self.world.texts]
        arguments += ["--lengths", 64, "--max-documents", 1, "--out", self.output]
        return self._disturbed(arguments, self.output / "perplexity.json", 1.0)

    def corpus(self) -> str:
        """Reading a shelf is disturbed."""
        shelf = self.folder / "shelf"
        shelf.mkdir()
        for number in range(3):
            (shelf / f"{number}.epub").write_bytes(epub([f"<p>{'the sea was calm ' * 50} {number}</p>"]))
        return self._disturbed(["corpus", "from-pdf", shelf, "--out", self.output], self.output / "skipped.json", 2.0)

    def report(self) -> str:
        """Writing a report is disturbed."""
        results = self.world.root / "evaluated"
        return self._disturbed(["report", results, "--out", self.output], self.output / "report.html", 0.5)

    def chat(self) -> str:
        """A question about a document is disturbed, whose reading is to be kept."""
        kept = self.folder / "kept"
        arguments = ["chat", self.world.root / "finished" / "adapter", "--document", self.world.texts / "one.txt"]
        arguments += ["--ask", "why", "--max-new-tokens", 4, "--cache-document", kept]
        match self.chance.randrange(3):
            case 0:
                ended = Fork(arguments, limited_files(int(10 ** self.chance.uniform(0.5, 4)))).wait()
            case 1:
                ended = Fork(arguments).signal_after(self.chance.uniform(0, 1), signal.SIGINT)
            case _:
                ended = Fork(arguments, self.chance.choice([closed_stdout, no_stdout])).wait()
        _judge(ended)
        last = Fork(arguments).wait()
        _judge(last)
        if last.status:
            raise Lost(f"the second start ended with {last.status}: {last.said[-2000:]}")
        return "healed"


SHARES = {
    Attacks.train_sigkill: 60,
    Attacks.train_sigterm: 30,
    Attacks.train_sigint: 30,
    Attacks.train_full_disk: 40,
    Attacks.train_out_of_memory: 15,
    Attacks.train_read_only: 10,
    Attacks.train_strange_output: 50,
    Attacks.train_damaged_checkpoint: 40,
    Attacks.train_changed_data: 15,
    Attacks.train_vanished_data: 15,
    Attacks.train_twice: 10,
    Attacks.train_streams: 15,
    Attacks.merge: 50,
    Attacks.import_weights: 60,
    Attacks.evaluate: 40,
    Attacks.corpus: 20,
    Attacks.report: 50,
    Attacks.chat: 20,
}
"""How many of each kind a whole campaign makes: 570."""


def _judge(ended: Ended, *, refused: bool = False) -> None:
    if "Traceback (most recent call last)" in ended.said or ended.status not in STATUSES:
        raise AssertionError(f"status {ended.status}: {ended.said[-4000:]}")
    if refused and ended.status != 2:
        raise AssertionError(f"status {ended.status} where 2 was due: {ended.said[-2000:]}")
    if ended.status == 2 and "longlora: " not in ended.said and "Usage" not in ended.said:
        raise AssertionError(f"status 2 without a message: {ended.said[-2000:]}")


def _compare(expected: Path, found: Path) -> None:
    weights = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (expected, found)]
    if weights[0].keys() != weights[1].keys() or any(
        (weights[0][name] != weights[1][name]).any() for name in weights[0]
    ):
        raise Lost("the adapter is another")
    curves = [
        [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (expected, found)
    ]
    if len(curves[0]) != MAX_STEPS or (curves[0] != curves[1] and not (found / "damaged-metrics.jsonl").exists()):
        raise Lost(f"the losses are others: {curves}")
    if leftover := list(found.rglob("*.partial*")):
        raise Lost(f"left half-written: {leftover}")


def prepare(world: World) -> float:
    """Make the runs that others are compared with; the seconds that an undisturbed one takes in a forked process."""
    attacks = Attacks(world, 0, random.Random(0))
    attacks.output = world.root / "undisturbed"
    ended = attacks._train().wait()
    if ended.status:
        raise AssertionError(ended.said)
    world.interrupted("half")
    evaluated = ["eval", "perplexity", world.root / "finished" / "adapter", "--data", world.texts, "--lengths", 64]
    ended_too = Fork([*evaluated, "--max-documents", 1, "--out", world.root / "evaluated"]).wait()
    if ended_too.status:
        raise AssertionError(ended_too.said)
    return ended.seconds


def attack_with_faults(
    world: World, counts: Any, *, share: float, seed: int, kinds: list[str], seconds: float, forked: Any, attempt: Any
) -> None:
    """Inject faults of every kind, in turn, so that a campaign that is cut short has some of each."""
    started = time.monotonic()
    left = {
        attack: max(1, round(usual * share))
        for attack, usual in SHARES.items()
        if not kinds or attack.__name__ in kinds
    }
    planned = dict(left)
    while any(left.values()) and time.monotonic() - started < seconds:
        attack = max(left, key=lambda each: left[each] / planned[each])
        left[attack] -= 1
        number = planned[attack] - left[attack]

        def work(send: Callable[[Any], None], attack: Any = attack, number: int = number) -> None:
            attacks = Attacks(world, number, random.Random(f"{seed} {attack.__name__} {number}"))
            try:
                send(attempt(lambda: attack(attacks), seconds=4 * int(_PATIENCE)))
            finally:
                shutil.rmtree(attacks.folder, ignore_errors=True)

        found, _, memory = forked(work, world.root / "attack.log")
        outcome, details = found[0] if found else ("crash", "")
        counts.most_memory_bytes = max(counts.most_memory_bytes, memory)
        counts.add(attack.__name__, outcome, details, f"seed {seed}, number {number}")
        counts.write("faults", seed)
        done = sum(planned.values()) - sum(left.values())
        print(f"{done}: {attack.__name__} {outcome}, {time.monotonic() - started:.0f} s", flush=True)

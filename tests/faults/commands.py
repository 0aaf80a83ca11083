"""Faults injected into what else the command line does: a second start arrives at what an undisturbed one leaves.

Each function is one kind of fault, as in `trainings.py`.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.corpus.qa.chat_server import ChatServer, scholar
from tests.faults.forks import (
    STREAMS,
    Ended,
    Fork,
    Lost,
    Place,
    as_nobody,
    clock_jump,
    closed_stdout,
    judge,
    limited_files,
    limited_memory,
    no_stdout,
)
from tests.faults.world import World, epub


@dataclass(frozen=True)
class Command:
    """A command that writes a result: `whole` is there once all of it is, `told` is what must always be the same."""

    arguments: list[Any]
    whole: Path
    told: Callable[[Path], Any]
    seconds: float  # that it may take
    lacks: Callable[[Path], list[str]] = lambda _: []  # what a whole result names as missing, for another start


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def _texts(skipped: Path) -> list[str]:
    lines = (skipped.with_name("corpus.jsonl")).read_text(encoding="utf-8").splitlines()
    return sorted(json.loads(line)["text"] for line in lines)  # a file that was skipped at first comes last


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _questions(path: Path) -> list[tuple[str, str]]:
    return sorted((row["instruction"], row["output"]) for row in map(json.loads, path.read_text().splitlines()))


def merging(world: World, output: Path) -> Command:
    """The finished adapter into its base."""
    return Command(["merge", world.root / "finished" / "adapter", output], output, _weights, 1.0)


def importing(world: World, output: Path) -> Command:
    """What the original publishes into an adapter."""
    base = ["--base", world.base, "--context", 128]
    return Command(["import", world.root / "published", output, *base], output, _weights, 0.5)


def evaluating(world: World, output: Path) -> Command:
    """Perplexity."""
    arguments = ["eval", "perplexity", world.root / "finished" / "adapter", "--data", world.texts]
    arguments += ["--lengths", 64, "--max-documents", 1, "--out", output]
    return Command(arguments, output / "perplexity.json", lambda path: json.loads(path.read_text())["perplexity"], 1.0)


def reading(world: World, output: Path) -> Command:
    """Three e-books."""
    shelf = world.root / "shelf"
    if not shelf.exists():
        shelf.mkdir()
        for number in range(3):
            words = " ".join(f"the sea was calm on day {number * 1000 + line}" for line in range(50))
            (shelf / f"{number}.epub").write_bytes(epub([f"<p>{words}</p>"]))
    arguments = ["corpus", "from-pdf", shelf, "--out", output, "--near-duplicates", "keep"]
    return Command(arguments, output / "skipped.json", _texts, 2.0, lacks=lambda skipped: list(_read(skipped)))


def reporting(world: World, output: Path) -> Command:
    """An evaluation as a page."""
    arguments = ["report", world.root / "evaluated", "--out", output]
    return Command(arguments, output / "report.html", lambda path: path.read_text().rstrip().endswith("</html>"), 0.5)


def asking(world: World, output: Path, *, base_url: str) -> Command:
    """Questions about a text."""
    arguments = ["corpus", "make-qa", world.texts / "one.txt", "--out", output / "qa.jsonl", "--model", "scholar"]
    arguments += ["--base-url", base_url, "--window", 3000, "--reply-tokens", 600, "--notes-tokens", 300, "--yes"]
    return Command(arguments, output / "qa.jsonl", _questions, 2.0)


def _again(place: Place, command: Command, ended: Ended, expected: Path) -> str:
    """See that a command that failed left nothing, and works once the fault has passed."""
    judge(ended)
    if ended.status != 0 and command.whole.exists():
        raise Lost(f"{command.whole} exists, though the command ended with {ended.status}: {ended.said[-500:]}")
    missing = command.lacks(command.whole) if command.whole.exists() else []
    if silent := [name for name in missing if Path(name).name not in ended.said]:
        raise Lost(f"{silent} are missing without a word: {ended.said[-500:]}")
    if missing or not command.whole.exists():
        last = Fork(command.arguments).wait()
        judge(last)
        if last.status or not command.whole.exists():
            raise Lost(f"the second start ended with {last.status}: {last.said[-2000:]}")
    if leftover := list(place.folder.rglob("*.partial*")):
        raise Lost(f"left half-written: {leftover}")
    if command.told(command.whole) != command.told(expected):
        raise Lost(f"{command.whole} is another than an undisturbed command leaves")
    return "healed"


def _disturbed(place: Place, command: Command, expected: Path) -> str:
    arguments, whole, chance = command.arguments, command.whole, place.chance
    match chance.randrange(9):
        case 0 | 1:
            ended = Fork(arguments, limited_files(place.power_of_ten(0.5, 5))).wait()
        case 2 | 3:
            number = chance.choice([signal.SIGINT, signal.SIGTERM])
            ended = Fork(arguments).signal_after(chance.uniform(0, command.seconds), number)
            if ended.status < 0:
                _clear(place)
        case 4:
            ended = Fork(arguments).signal_after(chance.uniform(0, command.seconds), signal.SIGKILL)
            _clear(place)
        case 5:
            ended = Fork(arguments, as_nobody).wait()
        case 6:
            first = Fork(arguments)
            time.sleep(chance.uniform(0, command.seconds / 2))
            ended = _both(Fork(arguments).wait(), first.wait())
        case 7:
            ended = Fork(arguments, limited_memory(place.power_of_ten(4, 8))).wait()
        case _:
            ended = Fork(arguments, chance.choice([*STREAMS, clock_jump])).wait()
            if ended.status and whole.exists():  # all is done, only nobody could be told
                shutil.rmtree(whole) if whole.is_dir() else whole.unlink()
    return _again(place, command, ended, expected)


def _clear(place: Place) -> None:
    """What a process that was killed leaves is hidden, and nobody's."""
    for path in place.folder.rglob(".*.partial*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _both(second: Ended, first: Ended) -> Ended:
    """One of two that began on one output has to come through; the other may, or is refused."""
    for ended in (first, second):
        judge(ended)
    if {first.status, second.status} not in ({0}, {0, 2}):
        raise Lost(f"{first.status}, {second.status}: {first.said[-500:]} {second.said[-500:]}")
    return first if first.status == 0 else second


def _attacked(place: Place, make: Callable[..., Command], **more: Any) -> str:
    expected = make(place.world, place.world.root / "expected" / make.__name__, **more).whole
    return _disturbed(place, make(place.world, place.output, **more), expected)


def merge(place: Place) -> str:
    """A merge is disturbed."""
    return _attacked(place, merging)


def import_weights(place: Place) -> str:
    """An import is disturbed."""
    return _attacked(place, importing)


def evaluate(place: Place) -> str:
    """An evaluation is disturbed."""
    return _attacked(place, evaluating)


def corpus(place: Place) -> str:
    """Reading a shelf is disturbed."""
    return _attacked(place, reading)


def report(place: Place) -> str:
    """Writing a report is disturbed."""
    return _attacked(place, reporting)


def make_qa(place: Place) -> str:
    """The making of questions is disturbed."""
    with ChatServer(scholar).running() as server:
        return _attacked(place, asking, base_url=server.base_url)


def vanished(place: Place) -> str:
    """What a command reads is not there any more."""
    gone, adapter = place.folder / "gone", place.world.root / "finished" / "adapter"
    arguments = place.chance.choice(
        [
            ["merge", gone, place.output],
            ["merge", adapter, place.output, "--base", gone],
            ["import", gone, place.output, "--base", place.world.base, "--context", 128],
            ["import", place.world.root / "published", place.output, "--base", gone, "--context", 128],
            ["eval", "perplexity", adapter, "--data", gone, "--lengths", 64, "--out", place.output],
            ["eval", "perplexity", gone, "--data", place.world.texts, "--lengths", 64, "--out", place.output],
            ["corpus", "from-pdf", gone, "--out", place.output],
            ["corpus", "make-qa", gone, "--out", place.output, "--model", "scholar", "--yes"],
            ["report", gone, "--out", place.output],
            ["chat", gone, "--ask", "why"],
            ["chat", adapter, "--document", gone, "--ask", "why"],
            ["web", gone],
            ["serve", gone],
        ]
    )
    ended = Fork(arguments).wait()
    judge(ended, refused=True)
    if place.output.exists() and any(path.is_file() for path in place.output.rglob("*")):
        raise Lost(f"left behind: {list(place.output.rglob('*'))}")
    return "refused"


def chat(place: Place) -> str:
    """A question about a document is disturbed, whose reading is to be kept."""
    kept = place.folder / "kept"
    arguments = ["chat", place.world.root / "finished" / "adapter", "--document", place.world.texts / "one.txt"]
    arguments += ["--ask", "why", "--max-new-tokens", 4, "--cache-document", kept]
    match place.chance.randrange(3):
        case 0:
            ended = Fork(arguments, limited_files(place.power_of_ten(0.5, 4))).wait()
        case 1:
            ended = Fork(arguments).signal_after(place.chance.uniform(0, 1), signal.SIGINT)
        case _:
            ended = Fork(arguments, place.chance.choice([closed_stdout, no_stdout])).wait()
    judge(ended)
    last = Fork(arguments).wait()
    judge(last)
    if last.status:
        raise Lost(f"the second start ended with {last.status}: {last.said[-2000:]}")
    return "healed"


def prepare(world: World) -> None:
    """Leave what undisturbed commands leave in `expected`, and an evaluation to report of."""
    for make in (merging, importing, evaluating, reading, reporting):
        _undisturbed(make(world, world.root / "expected" / make.__name__))
        if make is evaluating:
            shutil.copytree(world.root / "expected" / make.__name__, world.root / "evaluated")
    with ChatServer(scholar).running() as server:
        _undisturbed(asking(world, world.root / "expected" / asking.__name__, base_url=server.base_url))


def _undisturbed(command: Command) -> None:
    ended = Fork(command.arguments).wait()
    if ended.status or not command.told(command.whole):
        raise AssertionError(ended.said)

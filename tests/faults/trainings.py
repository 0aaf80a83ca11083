"""Faults injected into training: whatever happens, the same command resumes and leaves what an undisturbed run does.

Each function is one kind of fault; it returns what came of it, or raises what is wrong.
"""

import json
import signal
import time
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from tests.faults.forks import (
    Ended,
    Fork,
    Lost,
    Place,
    Prepare,
    as_nobody,
    clock_jump,
    closed_stdout,
    judge,
    limited_files,
    limited_memory,
    no_stdout,
)
from tests.faults.world import MAX_STEPS, damaged, fresh_copy


def _recipe(place: Place, **changes: Any) -> Path:
    path = place.folder / "recipe.yaml"
    values = place.world.values("disturbed", output_dir=str(place.output), **changes)
    path.write_text(yaml.safe_dump(values))
    return path


def train_once(place: Place, prepare: Prepare = lambda: None, **changes: Any) -> Fork:
    return Fork(["train", _recipe(place, **changes)], prepare)


def _arrives(place: Place, ended: Ended) -> str:
    """See that the same command resumes and arrives at what the undisturbed run left."""
    judge(ended)
    if not (place.output / "adapter").exists():
        last = train_once(place).wait()
        judge(last)
        if last.status != 0:
            raise Lost(f"the second start ended with {last.status}: {last.said[-2000:]}")
    _compare(place.world.root / "undisturbed", place.output)
    return "healed"


def _signalled(place: Place, number: int) -> str:
    fork = train_once(place)
    return _arrives(place, fork.signal_after(place.chance.uniform(0, place.world.seconds), number))


def train_sigkill(place: Place) -> str:
    """SIGKILL at a random moment."""
    return _signalled(place, signal.SIGKILL)


def train_sigterm(place: Place) -> str:
    """SIGTERM at a random moment."""
    return _signalled(place, signal.SIGTERM)


def train_sigint(place: Place) -> str:
    """Ctrl-C at a random moment."""
    return _signalled(place, signal.SIGINT)


def train_full_disk(place: Place) -> str:
    """No file may grow beyond a random size."""
    return _arrives(place, train_once(place, limited_files(place.power_of_ten(0.5, 5.7))).wait())


def train_out_of_memory(place: Place) -> str:
    """Little more memory than is in use."""
    return _arrives(place, train_once(place, limited_memory(place.power_of_ten(4, 8))).wait())


def train_read_only(place: Place) -> str:
    """The output directory belongs to another."""
    data = {"source": str(place.world.texts), "cache_dir": str(place.folder / "c")}
    ended = train_once(place, as_nobody, data=data).wait()
    judge(ended, refused=True)
    return _arrives(place, ended)


def train_strange_output(place: Place) -> str:
    """The output directory cannot be."""
    strange = place.chance.choice(
        ["/dev/null/x", "/proc/x", str(place.folder / ("x" * 300)), str(place.folder / "recipe.yaml" / "x")]
    )
    ended = Fork(["train", _recipe(place), f"output_dir={strange}"]).wait()
    judge(ended, refused=True)
    return "refused"


def train_damaged_checkpoint(place: Place) -> str:
    """Bytes of the newest checkpoint, or of what stands beside it, are others."""
    fresh_copy(place.world.root / "half", place.output)
    newest = place.output / "checkpoints" / "checkpoint-4"
    file = place.chance.choice(sorted(newest.iterdir()))
    match place.chance.randrange(4):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(b"")
        case 2:
            file.write_bytes(file.read_bytes()[:-1])
        case _:
            file.write_bytes(damaged(file.read_bytes(), place.chance))
    (place.output / "checkpoints" / "checkpoint-old").mkdir()
    (place.output / "checkpoints" / "checkpoint-999").mkdir()
    return _arrives(place, train_once(place).wait())


def train_changed_data(place: Place) -> str:
    """The texts are others than those that the run began with."""
    texts = fresh_copy(place.world.texts, place.folder / "texts")
    fresh_copy(place.world.root / "half", place.output)
    data = {"source": str(texts), "cache_dir": str(place.folder / "cache")}
    recipe = yaml.safe_load((place.output / "recipe.yaml").read_text())
    recipe["data"] |= data
    (place.output / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    file = place.chance.choice(sorted(texts.iterdir()))
    file.write_text(file.read_text().replace("ship", "boat", place.chance.choice([1, 5, -1])))
    ended = train_once(place, data=data).wait()
    judge(ended, refused=True)
    if "has been trained on" not in ended.said:
        raise Lost(ended.said[-2000:])
    fresh_copy(place.world.texts, texts)
    return _arrives(place, train_once(place, data=data).wait())


def train_vanished_data(place: Place) -> str:
    """The texts, or the model, are gone when the run resumes."""
    fresh_copy(place.world.root / "half", place.output)
    gone = place.folder / "gone"
    change = place.chance.choice([{"data": {"source": str(gone)}}, {"model_name_or_path": str(gone)}])
    ended = train_once(place, **change).wait()
    judge(ended, refused=True)
    return _arrives(place, ended)


def train_twice(place: Place) -> str:
    """Two runs begin on one directory."""
    first = train_once(place)
    time.sleep(place.chance.uniform(0, place.world.seconds / 2))
    second = Fork(["train", place.folder / "recipe.yaml"]).wait()
    ended = first.wait()
    judge(second)
    if {second.status, ended.status} not in ({0, 2}, {0}):
        raise Lost(f"{ended.status}, {second.status}: {ended.said[-500:]} {second.said[-500:]}")
    return _arrives(place, ended)


def train_streams(place: Place) -> str:
    """Nobody reads stdout, there is none, or the clock jumps."""
    fault = place.chance.choice([closed_stdout, no_stdout, clock_jump])
    return _arrives(place, train_once(place, fault).wait())


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

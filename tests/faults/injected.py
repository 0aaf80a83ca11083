"""Faults injected into commands while they run: what comes of them, and whether a second start makes it good.

Each attack runs a command of longlora in a forked process, does something to it, and judges what is left: no traceback
was printed, nothing is half-written, and after the fault has passed the same command arrives at the very bytes that an
undisturbed one leaves.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults import commands, servers, trainings
from tests.faults.forks import PATIENCE, Place
from tests.faults.world import World

Attack = Callable[[Place], str]

SHARES: dict[Attack, int] = {
    trainings.train_sigkill: 60,
    trainings.train_sigterm: 30,
    trainings.train_sigint: 30,
    trainings.train_full_disk: 40,
    trainings.train_out_of_memory: 15,
    trainings.train_read_only: 10,
    trainings.train_strange_output: 50,
    trainings.train_damaged_checkpoint: 40,
    trainings.train_changed_data: 15,
    trainings.train_vanished_data: 15,
    trainings.train_twice: 10,
    trainings.train_streams: 15,
    commands.merge: 50,
    commands.import_weights: 60,
    commands.evaluate: 40,
    commands.corpus: 20,
    commands.report: 50,
    commands.make_qa: 30,
    commands.vanished: 40,
    commands.chat: 20,
    servers.web: 20,
    servers.serve: 10,
}
"""How many of each kind a whole campaign makes: 670."""


def prepare(world: World) -> float:
    """Make the runs that others are compared with; the seconds that an undisturbed one takes in a forked process."""
    place = Place(world, random.Random(0))
    place.output = world.root / "undisturbed"
    ended = trainings.train_once(place).wait()
    if ended.status:
        raise AssertionError(ended.said)
    world.interrupted("half")
    commands.prepare(world)
    return ended.seconds


def _in_turn(planned: dict[Attack, int], counts: Any) -> Iterator[tuple[Attack, int]]:
    """The attacks that have not been made, kind by kind in turn."""
    left = {attack: max(0, number - counts.done(attack.__name__)) for attack, number in planned.items()}
    while any(left.values()):
        attack = max(left, key=lambda each: left[each] / planned[each])
        yield attack, planned[attack] - left[attack] + 1
        left[attack] -= 1


def _again(named: list[str]) -> Iterator[tuple[Attack, int]]:
    """The attacks that `kind:number` names."""
    for kind, number in (name.split(":") for name in named):
        yield next(attack for attack in SHARES if attack.__name__ == kind), int(number)


def attack_with_faults(
    world: World,
    counts: Any,
    *,
    share: float,
    seed: int,
    kinds: list[str],
    again: list[str],
    seconds: float,
    forked: Any,
    attempt: Any,
) -> None:
    """Inject faults of every kind, in turn, so that a campaign that is cut short has some of each."""
    started = time.monotonic()
    planned = {
        attack: max(1, round(usual * share))
        for attack, usual in SHARES.items()
        if not kinds or attack.__name__ in kinds
    }
    for done, (attack, number) in enumerate(_again(again) if again else _in_turn(planned, counts), 1):
        if time.monotonic() - started > seconds:
            break

        def work(send: Callable[[Any], None], attack: Any = attack, number: int = number) -> None:
            place = Place(world, random.Random(f"{seed} {attack.__name__} {number}"))
            try:
                send(attempt(lambda: attack(place), seconds=60 * int(PATIENCE)))  # each command has its own
            finally:
                shutil.rmtree(place.folder, ignore_errors=True)

        found, _, memory = forked(work, world.root / "attack.log")
        outcome, details = found[0] if found else ("crash", "")
        if again:
            counts.forget(attack.__name__)
        counts.add(attack.__name__, outcome, details, f"seed {seed}, number {number}", memory_bytes=memory)
        counts.write()
        print(f"{done}: {attack.__name__} {number} {outcome}, {time.monotonic() - started:.0f} s", flush=True)

"""A world with an interrupted run and a finished one, made once for all tests of this folder."""

import random
from pathlib import Path

import pytest
from tests.faults.world import World, fresh_copy

from longlora.config import Recipe
from longlora.training.run import train


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base, texts, a run that was interrupted after its second checkpoint, and one that finished."""
    world = World(tmp_path_factory.mktemp("faults") / "world").make()
    train(world.recipe("finished", max_steps=2))
    world.interrupted("interrupted")
    return world


@pytest.fixture
def chance(seed: int) -> random.Random:
    """Chance that comes back with the seed."""
    return random.Random(seed)


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    """A copy of the interrupted run."""
    return fresh_copy(world.root / "interrupted", tmp_path / "run")


@pytest.fixture
def recipe(world: World, run: Path) -> Recipe:
    """Its recipe."""
    return world.recipe("interrupted", output_dir=str(run))

"""What every test gets: no network, one thread, no display, a seed that comes back, real texts if there are any."""

import atexit
import os
import random
import secrets
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

SEED_VARIABLE = "LONGLORA_TEST_SEED"
REPOSITORY = Path(__file__).resolve().parent.parent

# Before anything imports torch, transformers or matplotlib. Processes that a test starts inherit all of it.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # else tokenizers complains in every process that is forked
}
# Under xdist the workers inherit both from the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ.setdefault(SEED_VARIABLE, str(secrets.randbelow(2**32)))
    # A cache of its own: what datasets remembers from an older version of the code must not decide a test.
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="longlora-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

# The first call of a torch function takes long enough to break hypothesis' default deadline.
settings.register_profile("longlora", deadline=None, print_blob=True)
settings.load_profile("longlora")


def pytest_report_header() -> str:
    return f"seed: {os.environ[SEED_VARIABLE]} (the same again with {SEED_VARIABLE}={os.environ[SEED_VARIABLE]})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needing_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing_gpu:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed that differs from run to run and from test to test, and comes back with LONGLORA_TEST_SEED."""
    return random.Random(f"{os.environ[SEED_VARIABLE]} {request.node.nodeid}").randrange(2**32)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("there are no texts in ../shared/data")
    return folder

"""Shared test setup: no network, one thread, no display, a reproducible seed, real texts if there are any."""

import atexit
import gc
import os
import random
import secrets
import shutil
import tempfile
from collections.abc import Generator, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import tests.shapes  # noqa: F401 - jaxtyping finds it by this name
from hypothesis import settings

SEED_VARIABLE = "LONGLORA_TEST_SEED"
KERNEL_VARIABLE = "LONGLORA_TEST_AVX512_BF16"
REPOSITORY = Path(__file__).resolve().parent.parent

# Distributions that test files or single tests need beyond the runtime packages. `dev` installs all of them
# (tests/structure/test_requirements.py checks this); without them, these tests are skipped.
NEEDED_PACKAGES = {
    "tests/benchmarks/test_document_questions.py": ("datasketch",),
    "tests/benchmarks/test_pdf_words.py": ("pypdfium2", "reportlab"),
    "tests/corpus/qa/test_budget.py": ("openai",),
    "tests/corpus/qa/test_commands.py": ("openai",),
    "tests/corpus/qa/test_faults.py": ("openai",),
    "tests/corpus/qa/test_journal.py": ("openai",),
    "tests/corpus/qa/test_make.py": ("openai",),
    "tests/corpus/test_layouts.py": ("pypdfium2", "reportlab"),
    "tests/corpus/test_markup.py": ("beautifulsoup4", "lxml", "trafilatura"),
    "tests/corpus/test_unreadable.py": (
        "beautifulsoup4",
        "datasketch",
        "lxml",
        "pypdfium2",
        "reportlab",
        "trafilatura",
    ),
    "tests/inference/test_web_guards.py": ("httpx", "starlette"),
    "tests/serving/test_front.py": ("httpx", "openai", "starlette"),
    "tests/serving/test_live.py": ("fastapi", "openai", "uvicorn"),
    "tests/serving/test_server.py": ("fastapi", "httpx", "openai", "starlette", "uvicorn"),
    "tests/structure/test_requirements.py::test_every_imported_package_is_asked_for": ("beautifulsoup4",),
    "tests/training/test_miniature.py::test_a_recipe_trains_in_miniature[llama-2-7b-qlora-32k]": ("bitsandbytes",),
}

# Set before anything imports torch, transformers or matplotlib. Processes that tests start inherit it.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",  # otherwise tokenizers warns in every forked process
}
# xdist workers inherit both from the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ.setdefault(SEED_VARIABLE, str(secrets.randbelow(2**32)))
    # A separate cache: what datasets cached under older code must not affect tests.
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="longlora-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

# The first call of a torch function takes longer than hypothesis' default deadline.
settings.register_profile("longlora", deadline=None, print_blob=True)
settings.load_profile("longlora")


def pytest_report_header() -> str:
    return f"seed: {os.environ[SEED_VARIABLE]} (the same again with {SEED_VARIABLE}={os.environ[SEED_VARIABLE]})"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, help="run only the tests that take the seed, each with this many seeds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if (seeds := metafunc.config.option.seeds) and "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(seeds), ids="seed {}".format, indirect=True)


def missing_packages(place: str) -> list[str]:
    """List the packages that a file or test needs and this environment lacks."""
    missing = []
    for package in NEEDED_PACKAGES.get(place, ()):
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    return missing


class SkippedModule(pytest.Module):
    """A test file that is not even imported, because it needs missing packages."""

    def collect(self) -> list[pytest.Item]:
        packages = ", ".join(missing_packages(_place(self.path)))
        raise pytest.skip.Exception(f"needs {packages}", allow_module_level=True)


def _place(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if missing_packages(_place(module_path)):
        return SkippedModule.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.seeds:
        items[:] = [item for item in items if "seed" in getattr(item, "fixturenames", ())]
    for item in items:
        if missing := missing_packages(item.nodeid):
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))
    needing_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needing_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing_gpu:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def pytest_collection_finish() -> None:
    """Keep the garbage collector off what was imported: accelerate runs it before every training."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hide CUDA from a test marked `cpu`, its fixtures and the processes that it starts."""
    if not item.get_closest_marker("cpu"):
        return (yield)
    import torch
    from transformers.utils import is_torch_cuda_available

    is_torch_cuda_available()  # caches its answer, as CUDA caches the number of visible devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def chosen_four_bit_kernel() -> Iterator[None]:
    """With LONGLORA_TEST_AVX512_BF16=0 or 1, compute in 4 bits as on a processor without or with that kernel."""
    chosen = os.environ.get(KERNEL_VARIABLE, "")
    if not chosen or find_spec("bitsandbytes") is None:
        yield
        return
    assert chosen in ("0", "1"), f"{KERNEL_VARIABLE} must be 0 or 1, found {chosen!r}"
    from tests.four_bit_kernel import choose_avx512_bf16

    with pytest.MonkeyPatch.context() as patch:
        choose_avx512_bf16(patch, chosen == "1")
        yield


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed that differs between runs and between tests; LONGLORA_TEST_SEED reproduces it."""
    return random.Random(f"{os.environ[SEED_VARIABLE]} {request.node.nodeid}").randrange(2**32)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("there are no texts in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three documents of random English words, about 4,000 bytes each, always the same."""
    folder = tmp_path_factory.mktemp("texts")
    words = random.Random(0)
    for name in ("one", "two", "three"):
        text = " ".join(words.choice("the sea was calm and a ship lay still upon it".split()) for _ in range(900))
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random Llama with a context of 64 tokens, tied embeddings, and a byte tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("base") / "model"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=64
    ).save_pretrained(directory)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    ).save_pretrained(directory)
    return directory

"""Articles and books whose text is known, and the PDFs that the benchmarks' printers make of them."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def printing() -> Iterator[SimpleNamespace]:
    """The modules that make articles up, print them, and compare what is read with what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("_articles", "_reportlab_pages", "_other_printers")
        modules = [importlib.import_module(name) for name in names]
        yield SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})

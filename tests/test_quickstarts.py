"""The quickstart pages run as they are written, with the tiny model in the place of theirs and few steps."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.corpus.qa.chat_server import ChatServer, scholar

from longlora.cli import main as cli
from longlora.tiny import tiny_model_directory

DOCS = Path(__file__).resolve().parents[1] / "docs"
PDF = Path(__file__).parent / "corpus" / "samples" / "libreoffice-two-columns.pdf"
QUICK = "max_steps=1 gradient_accumulation_steps=1 warmup_steps=0"
# What a page says, and what a test takes for it; the rest of each command stays.
SMALLER = {
    "meta-llama/Meta-Llama-3-8B": "tiny",
    "meta-llama-3-8b-32k": "tiny-512",
    "--context 32768": "--context 512",
    "--gpu-type rtx-4090": "--memory 4",
    "--suite quick": "--suite smoke",
    "init Qwen/Qwen3-4B --context 16384": "init tiny --context 256",
    "Qwen/Qwen3-4B": "tiny",
    "qwen3-4b-16k": "tiny-256",
    "--window 32768": "--window 2400 --reply-tokens 600 --notes-tokens 300",
    "train recipe.yaml": f"train recipe.yaml {QUICK}",
    "train answers.yaml": f"train answers.yaml {QUICK}",
    '"What is new here?"': '"What is new here?" --max-new-tokens 4',
}


def commands(page: str) -> Iterator[list[str]]:
    """The commands of longlora in the page's blocks of shell, in order, made smaller."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        for shown, used in SMALLER.items():
            block = block.replace(shown, used)
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "longlora":
                yield words[1:]


def follow(page: str, monkeypatch: pytest.MonkeyPatch, *, without: Sequence[str] = ()) -> list[str]:
    """Run a page's commands one after another, but those with a word that is left out; return their names."""
    done = []
    for words in commands(page):
        if set(without) & set(words):
            continue
        monkeypatch.setattr(sys, "argv", ["longlora", *words])
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, words
        done.append(words[0])
    return done


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the cache in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def books(here: Path) -> Path:
    """Two folders of texts, as the page has them."""
    for folder in ("books", "held-out"):
        (here / folder).mkdir()
        (here / folder / "one.txt").write_text("the sea was calm and a ship lay still upon it. " * 300)
    return here


def test_one_card(books: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert follow("quickstart-one-card.md", monkeypatch, without=("--miniature", "doctor", "eval")) == [
        "plan",
        "init",
        "train",
    ]
    assert "shift: false " in (books / "recipe.yaml").read_text(encoding="utf-8")
    assert (books / "runs" / "tiny-512" / "merged" / "config.json").exists()


@pytest.mark.slow
def test_one_card_with_the_verdict(books: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = follow("quickstart-one-card.md", monkeypatch)
    assert done == ["plan", "init", "doctor", "train", "train", "eval"]
    assert (books / "verdict" / "report.html").exists()


def test_from_documents_to_a_chat_about_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "papers").mkdir()
    shutil.copy(PDF, here / "papers" / "one.pdf")
    shutil.copy(PDF, here / "new-paper.pdf")
    with ChatServer(scholar).running() as server:
        monkeypatch.setitem(SMALLER, "http://localhost:8000/v1", server.base_url)
        done = follow("quickstart-documents.md", monkeypatch)
    assert done == ["corpus", "corpus", "corpus", "init", "train", "chat"]
    assert "kind: sft" in (here / "answers.yaml").read_text()
    assert capfd.readouterr().out.strip()


def test_eight_gpus(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What needs no GPU runs as it stands: the plan fits, and the recipe divides the weights."""
    (here / "books").mkdir()
    (here / "books" / "one.txt").write_text("the sea was calm. ")
    shown = [words for words in commands("quickstart-eight-gpus.md") if words[0] in ("plan", "init")]
    assert [words[0] for words in shown] == ["plan", "init"]
    for words in shown:
        monkeypatch.setattr(sys, "argv", ["longlora", *words])
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, words
    assert "It fits, with" in capfd.readouterr().out
    assert "strategy: fsdp2" in (here / "recipe.yaml").read_text()
    assert "output_dir: runs/qwen3-32b-128k" in (here / "recipe.yaml").read_text()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_in_a_script(here: Path) -> None:
    from datasets import Dataset

    text = (DOCS / "quickstart-scripts.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    smaller = {
        '"meta-llama/Llama-2-7b-hf"': repr(str(tiny_model_directory())),
        "16384": "512",
        "model, 4096": "model, 128",
        "max_steps=100": "max_steps=1, per_device_train_batch_size=1, bf16=False",
    }
    for shown, used in smaller.items():
        assert shown in code
        code = code.replace(shown, used)
    rows = [{"text": "the sea was calm and a ship lay still upon it. " * count} for count in (60, 20, 90)]
    names: dict[str, Any] = {"documents": Dataset.from_list(rows)}
    torch.manual_seed(0)
    exec(compile(code, "quickstart-scripts.md", "exec"), names)
    assert names["trainer"].state.global_step == 1

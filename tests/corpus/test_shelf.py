"""A shelf of files becomes one JSONL: in order, in several processes, again after a crash, and without repetitions."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from tests.corpus.crashing import die_of_b
from typer.testing import CliRunner

from longlora.cli.main import app
from longlora.corpus import shelf
from longlora.corpus.extract import ExtractSettings
from longlora.corpus.shelf import read_shelf
from longlora.data.sources import read_documents
from longlora.errors import ConfigError, DataError


def words(seed: int, count: int = 400) -> str:
    choose = random.Random(seed)
    return " ".join(f"word{choose.randrange(500)}" for _ in range(count))


@pytest.fixture
def files(tmp_path: Path, seed: int) -> list[Path]:
    """Three texts and an empty file; the third is the first but for one word in forty."""
    first = words(seed)
    changed = " ".join(word if index % 400 else "else" for index, word in enumerate(first.split()))
    texts = {"a.txt": first, "b.md": words(seed + 1), "c.txt": changed, "d.txt": ""}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in texts]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return [Path(record["file"]).name for record in records(folder)]


def test_a_shelf(files: list[Path], tmp_path: Path) -> None:
    result = read_shelf(files, tmp_path / "out", processes=2, write_texts=True)
    assert names(tmp_path / "out") == ["a.txt", "b.md"]
    assert (result.num_written, result.num_words) == (2, 800)
    assert "nearly the same text as" in result.skipped[str(files[2])]
    assert result.skipped[str(files[3])] == "empty: it has no bytes"
    assert json.loads((tmp_path / "out/skipped.json").read_text()) == result.skipped
    first = records(tmp_path / "out")[0]
    assert set(first) == {"text", "title", "file", "kind", "document_kind", "pages", "sha256", "tool", "notes"}
    assert first["tool"].startswith("longlora ")
    # Training reads it as it is, and people read the texts.
    documents = list(read_documents(str(tmp_path / "out/corpus.jsonl")))
    assert [text for _, text in documents] == [files[0].read_text(), files[1].read_text()]
    assert sorted(path.read_text() for path in (tmp_path / "out/texts").iterdir()) == sorted(
        f"{text}\n" for _, text in documents
    )


def test_many_files_at_once(tmp_path: Path, seed: int) -> None:
    files = [tmp_path / f"{number:02}.txt" for number in range(12)]
    for number, path in enumerate(files):
        path.write_text(words(seed + number, 50))
    result = read_shelf(files, tmp_path / "out", processes=2)
    assert result.num_written == len(files) and result.skipped == {}
    assert names(tmp_path / "out") == [path.name for path in files]


@pytest.mark.parametrize("rule", ["mark", "keep"])
def test_near_duplicates_may_stay(files: list[Path], tmp_path: Path, rule: Any) -> None:
    result = read_shelf(files[:3], tmp_path / "out", near_duplicates=rule)
    marks = [record.get("near_duplicate_of") for record in records(tmp_path / "out")]
    assert marks == [None, None, str(files[0]) if rule == "mark" else None]
    assert result.marked == ({str(files[2]): str(files[0])} if rule == "mark" else {})


def test_a_killed_run_goes_on(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    whole = read_shelf(files, tmp_path / "whole")
    read_shelf(files[:1], out)
    with (out / "corpus.jsonl").open("ab") as file:  # what a write that was cut off leaves
        file.write((tmp_path / "whole/corpus.jsonl").read_bytes().splitlines()[1][:300])
    read: list[Path] = []
    real = shelf._extracted
    monkeypatch.setattr(shelf, "_extracted", lambda waiting, *rest: (read.extend(waiting), real(waiting, *rest))[1])
    result = read_shelf(files, out)
    assert (out / "corpus.jsonl").read_bytes() == (tmp_path / "whole/corpus.jsonl").read_bytes()
    assert (result.num_done_before, result.num_written) == (1, 1)
    assert files[0] not in read
    assert result.skipped == whole.skipped


@pytest.mark.slow  # two starts of the command line
def test_a_run_that_is_killed_leaves_no_process_and_goes_on(tmp_path: Path, seed: int) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        (texts / f"{number:02}.txt").write_text(words(seed + number, 60_000))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "longlora.cli", "corpus", "from-pdf", str(texts), "--out", str(out)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "corpus.jsonl").exists():
        time.sleep(0.05)
        assert run.poll() is None
    helpers = psutil.Process(run.pid).children(recursive=True)
    assert helpers
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(helpers, timeout=10)
    assert alive == []
    before = len((out / "corpus.jsonl").read_bytes().splitlines())
    assert before < 12
    subprocess.run(command, check=True, capture_output=True)
    assert names(out) == [f"{number:02}.txt" for number in range(12)]


def test_a_copy_is_not_read_twice(files: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_text(files[0].read_text())
    result = read_shelf([files[0], copy], tmp_path / "out", near_duplicates="keep")
    assert result.skipped == {str(copy): f"the same file as {files[0]}"}
    assert read_shelf([copy], tmp_path / "out", near_duplicates="keep").skipped == result.skipped


def test_a_file_that_crashes_its_reader(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "_extract", die_of_b)
    result = read_shelf(files[:3], tmp_path / "out", near_duplicates="keep")
    assert names(tmp_path / "out") == ["a.txt", "c.txt"]
    assert "makes the reader crash" in result.skipped[str(files[1])]


def test_a_file_that_its_reader_does_not_expect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "_extract", die_of_b)
    book, text = tmp_path / "deep.epub", tmp_path / "unexpected.txt"
    book.write_bytes(b"PK")
    text.write_text("a text")
    assert read_shelf([book, text], tmp_path / "out").skipped == {
        str(book): "damaged: not a complete e-book (File is not a zip file)",
        str(text): "the reader failed (LookupError: of a glyph); convert it with another program",
    }


def test_a_text_to_read_is_written_before_its_record(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/texts").write_text("a file in the way, as a full disk is")
    with pytest.raises(OSError):
        read_shelf(files[:1], tmp_path / "out", write_texts=True)
    (tmp_path / "out/texts").unlink()
    assert read_shelf(files[:1], tmp_path / "out", write_texts=True).num_written == 1
    assert len(list((tmp_path / "out/texts").iterdir())) == 1


def test_the_kind_is_told_or_chosen(tmp_path: Path) -> None:
    paper = "Title\n\nAbstract\n\nWe show it.\n\n" + "Text of it [3]. " * 90 + "\n\nReferences\n\n[1] A. Name. 2020.\n"
    (tmp_path / "paper.txt").write_text(paper)
    (tmp_path / "novel.txt").write_text("Chapter 1\n\n" + "He went on to the mill. " * 90)
    files = [tmp_path / "paper.txt", tmp_path / "novel.txt"]
    result = read_shelf(files, tmp_path / "out")
    assert [record["document_kind"] for record in records(tmp_path / "out")] == ["paper", "book"]
    assert result.kinds == {"book": 1, "paper": 1}
    read_shelf(files, tmp_path / "books", settings=ExtractSettings(kind="book"))
    assert [record["document_kind"] for record in records(tmp_path / "books")] == ["book", "book"]


def test_other_settings_need_another_folder(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    read_shelf(files[:1], out)
    with pytest.raises(ConfigError, match="references 'drop' there and 'keep' now"):
        read_shelf(files, out, settings=ExtractSettings(references="keep"))
    (out / "settings.json").write_text("{")
    with pytest.raises(DataError, match=r"settings\.json cannot be read"):
        read_shelf(files, out)
    (out / "settings.json").unlink()
    with pytest.raises(DataError, match=r"contains corpus\.jsonl without settings\.json"):
        read_shelf(files, out)


def test_one_process_at_a_time(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ConfigError, match="another process is writing to"):
        read_shelf(files, tmp_path / "out")
    assert read_shelf(files, tmp_path / "out").num_written == 2


def test_a_corpus_that_something_else_wrote(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    read_shelf(files[:1], out)
    (out / "corpus.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl cannot be read in line 1 \(TypeError"):
        read_shelf(files, out)


def test_the_command(files: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["corpus", "from-pdf", *map(str, files[:2]), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "2 texts written (800 words; 2 books, 0 papers), 0 there before, 0 files skipped" in done.output
    assert "set data.source to" in done.output
    again = ["corpus", "from-pdf", str(files[0]), "--out", str(tmp_path / "out"), "--json"]
    assert json.loads(CliRunner().invoke(app, again).stdout)["done_before"] == 1


def test_the_command_when_nothing_worked(files: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["corpus", "from-pdf", str(files[3]), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "d.txt: empty" in done.output

"""Hostile input ends in a message of bounded length, within bounded time and memory; a full disk does too."""

import errno
import gzip
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reportlab.pdfgen.canvas import Canvas
from safetensors.torch import save_file
from tests.faults.world import World, epub, fresh_copy

from longlora.cli import main as cli
from longlora.config import load_recipe
from longlora.corpus import markup
from longlora.corpus.extract import ExtractSettings, extract
from longlora.corpus.pdf import columns, drawings, pdfium
from longlora.data import row_readers
from longlora.data.sources import read_conversations, read_documents
from longlora.errors import CheckpointError, ConfigError, DataError
from longlora.models import chat_template
from longlora.models.load import load_for_inference, load_tokenizer
from longlora.planner.compute import GIB
from longlora.planner.plan import make_plan
from longlora.released.importing import import_released
from longlora.support import machine
from longlora.support.apart import call_apart
from longlora.support.files import replaced_file, resource_error, whole_directory
from longlora.support.wording import without_credentials
from longlora.training.preflight import planned_run

# --- recipes ---

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "max_steps: 2024-13-45",
        "max_steps: !!int abc",
        "max_steps: !!timestamp x",
        "max_steps: !!bool maybe",
        "max_steps: " + "9" * 5000,
        "context_length: " + "9" * 400,
        "learning_rate: .inf",
        "seed: -1",
        "[" * 5000,
        'output_dir: "a\\0b"',
        'output_dir: "\\ud800"',
        BOMB,
        BOMB + "data: {source: *i}",
        "x" * 100_000 + ": 1",
        "max_steps: " + "x" * 100_000,
    ],
)
def test_a_recipe_is_refused_briefly(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load_recipe(path)
    assert len(str(refusal.value)) < 20_000


@settings(max_examples=60)
@given(
    st.sampled_from(
        "model_name_or_path output_dir context_length max_steps learning_rate seed lora.r data.source rope".split()
    ),
    st.one_of(
        st.text(max_size=60),
        st.integers().map(str),
        st.floats().map(str),
        st.sampled_from(["[1, 2]", "{a: b}", "!!int x"]),
    ),
)
def test_an_override_is_followed_or_refused(key: str, value: str) -> None:
    try:
        recipe = load_recipe("tiny-1k", [f"{key}={value}"])
        make_plan(planned_run(recipe), memory_bytes=80 * GIB)
    except (ConfigError, CheckpointError) as refusal:
        assert len(str(refusal)) < 20_000


# --- data ---


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("read", [read_documents, read_conversations])
def test_json_nested_deeply(tmp_path: Path, name: str, read: object) -> None:
    content = b'{"text": ' + b"[" * 100_000
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError):
        list(read(str(path)))  # type: ignore[operator]


def test_a_parquet_file_whose_texts_are_none(tmp_path: Path) -> None:
    column = pyarrow.array([b"good", b"\xee bad"]).cast(pyarrow.binary())
    texts = pyarrow.StringArray.from_buffers(2, *column.buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="not valid Parquet"):
        list(read_documents(str(tmp_path / "a.parquet")))


def test_a_line_that_unpacks_to_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_readers, "_MOST_LINE_BYTES", 1 << 16)
    path = tmp_path / "a.jsonl.gz"
    rows = [{"text": "short"}, {"text": "long" * (1 << 16)}, {"text": "last"}]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [text for _, text in read_documents(str(path))] == ["short", "last"]


@pytest.mark.parametrize("name", ["a.txt", "a.json"])
def test_a_text_too_long_to_tokenize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(row_readers, "_MOST_LINE_BYTES", 1 << 16)
    long = "long" * (1 << 16)
    (tmp_path / name).write_text(long if name == "a.txt" else json.dumps([{"text": long}]))
    (tmp_path / "b.txt").write_text("short")
    assert [text for _, text in read_documents(str(tmp_path))] == ["short"]


@settings(max_examples=60)
@given(st.binary(max_size=300), st.sampled_from(["a.jsonl", "a.json", "a.parquet", "a.json.gz", "a.txt"]))
def test_any_bytes_as_data(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any-{name}"
    path.write_bytes(content)
    for read in (read_documents, read_conversations):
        try:
            list(read(str(path)))
        except DataError:
            continue


# --- documents ---


@pytest.mark.parametrize("suffix", ["epub", "html", "txt"])
def test_a_document_that_unpacks_to_too_much(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MOST_PAGE_BYTES", "MOST_TEXT_BYTES", "MOST_BOOK_BYTES"):
        monkeypatch.setattr(markup, limit, 1 << 20)
    text = "the sea was calm " * (1 << 17)
    path = tmp_path / f"bomb.{suffix}"
    path.write_bytes(epub([text]) if suffix == "epub" else text.encode())
    with pytest.raises(DataError, match=r"^too large: .* more than 1 MiB"):
        extract(path, ExtractSettings())


def test_an_e_book_of_many_parts_that_unpack_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markup, "MOST_BOOK_BYTES", 1 << 16)
    path = tmp_path / "bomb.epub"
    path.write_bytes(epub(["the sea was calm " * 500] * 20))
    with pytest.raises(DataError, match="its parts have more than 0 MiB together"):
        extract(path, ExtractSettings())


@pytest.mark.parametrize("kind", ["far apart", "everywhere", "too many"])
def test_a_page_on_which_no_columns_are_looked_for(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(str(tmp_path / "a.pdf"))
    if kind == "far apart":
        canvas.drawString(72, 700, "the sea was calm")
        canvas.drawString(700_000, 700, "ship")
    elif kind == "everywhere":
        monkeypatch.setattr(pdfium, "_MOST_ROWS_OF_A_PAGE", 50)
        for index in range(100):
            canvas.drawString(index * 37 % 500, index * 101 % 800, f"ship{index}")
    else:
        monkeypatch.setattr(pdfium, "_MOST_WORDS_OF_A_PAGE", 3)
        canvas.drawString(72, 700, "the sea was calm")
    canvas.save()
    monkeypatch.setattr(columns, "_best_gutter", lambda words, known: pytest.fail("a gutter is looked for"))
    record = extract(tmp_path / "a.pdf", ExtractSettings())
    assert "ship" in record.text or "the sea was calm" in record.text
    assert "pages with pdfium's own lines, as rebuilding them would split words: 1" in record.notes


def test_drawings_are_looked_at_where_they_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(str(tmp_path / "a.pdf"), pagesize=(600, 800))
    canvas.drawString(72, 700, "the sea was calm and a ship lay still")
    canvas.rect(-1e6, 100, 2e6, 50)
    canvas.rect(5000, 5000, 10, 10)
    canvas.save()
    (page,), _ = pdfium.read_pages(tmp_path / "a.pdf")
    assert [(box.left, box.right) for box in page.drawings] == [(0.0, 600.0)]
    monkeypatch.setattr(drawings, "_MOST_CELLS", 100)
    monkeypatch.setattr(drawings, "_groups", lambda boxes: pytest.fail("figures are looked for"))
    assert drawings.without_labels(page) == (page, [])


def test_a_call_apart_is_bounded_and_ends_when_told() -> None:
    def call(function: Callable[..., object], *arguments: object, seconds: float = 60) -> object:
        return call_apart(function, *arguments, stop=stop, seconds=seconds, memory_bytes=1 << 30)

    stop = threading.Event()
    assert call(abs, -3) == 3
    with pytest.raises(DataError, match=r"takes more than 0\.5 s"):
        call(time.sleep, 50, seconds=0.5)
    with pytest.raises(DataError, match=r"more than 1 GiB of memory"):
        call(bytearray, 1 << 31)
    with pytest.raises(DataError, match="it takes all memory to read"):
        call_apart(bytearray, 1 << 62, stop=stop, seconds=60, memory_bytes=resource.RLIM_INFINITY)
    with pytest.raises(DataError, match="crash"):
        call(os.abort)
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(DataError, match="stopped"):
        call(time.sleep, 50)


# --- models ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"model_type": "llama", "dtype": "nope"}'),
        ("config.json", "[" * 5000),
        (
            "config.json",
            '{"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": NaN, "rope_theta": 1}}',
        ),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../other/model.safetensors"}}'),
        ("model.safetensors.index.json", '{"weight_map": []}'),
        ("tokenizer.json", "{"),
    ],
)
def test_a_model_that_makes_no_sense(world: World, tmp_path: Path, name: str, content: str) -> None:
    model = fresh_copy(world.base, tmp_path / "model")
    (model / name).write_text(content)
    with pytest.raises((CheckpointError, ConfigError)):
        load_for_inference(model, device="cpu")


def test_an_import_reads_no_file_outside_its_folder(world: World, tmp_path: Path) -> None:
    model = fresh_copy(world.base, tmp_path / "model")
    (model / "model.safetensors").rename(tmp_path / "model-elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../model-elsewhere.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="which is not a file of its folder"):
        import_released(str(model), tmp_path / "out", context_length=128)


def test_a_template_without_an_end(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_TEMPLATE_SECONDS", 0.3)
    model = fresh_copy(world.base, tmp_path / "model")
    loops = "".join(f"{{% for {name} in range(9999) %}}" for name in "abc") + 3 * "{% endfor %}"
    (model / "chat_template.jinja").write_text(loops)
    with pytest.raises(CheckpointError, match=r"does not end within 0\.3 s on three short messages"):
        load_tokenizer(str(model))
    (model / "chat_template.jinja").write_text("")
    assert chat_template.ensure_chat_template(load_tokenizer(str(model)))


# --- disks ---


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", ["text", "safetensors", "torch"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_disk_that_takes_no_more(tmp_path: Path, writer: str, kind: str) -> None:
    target = tmp_path / "result"
    tensor = torch.zeros(10_000)

    def write(path: Path) -> None:
        if writer == "text":
            path.write_text("x" * 40_000)
        elif writer == "torch":
            torch.save({"a": tensor}, path)
        else:
            save_file({"a": tensor}, path)

    with pytest.raises(OSError) as refusal, small_files(5000):
        if kind == "file":
            with replaced_file(target) as temporary:
                write(temporary)
        else:
            with whole_directory(target) as directory:
                write(directory / "a")
    assert refusal.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert str(resource_error(refusal.value)).startswith(f"{target}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_command_without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["longlora", "recipes"])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    for stream in (sys.stdout, sys.stderr):
        assert stream is not None
        stream.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "longlora: a/b: No space left on device; make room"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            "longlora: a/b: Permission denied; choose a location",
        ),
        (MemoryError(), "longlora: memory ran out (MemoryError); `longlora plan RECIPE` shows"),
        (RuntimeError("can't start new thread"), "longlora: memory ran out (can't start new thread); `longlora plan"),
        (ImportError("a.so: failed to map segment"), "longlora: memory ran out (a.so: failed to map segment); "),
    ],
)
def test_what_the_machine_refuses_is_said_in_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(said) and printed.count("\n") == 1


@pytest.mark.parametrize("is_left", [True, False])
def test_an_error_without_a_name_is_of_memory_where_none_is_left(
    is_left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise SystemError("error return without exception set")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(machine, "can_allocate", lambda num_bytes: is_left)
    with pytest.raises(SystemError if is_left else SystemExit) as end:
        cli.main()
    assert is_left or end.value.code == 2


# --- credentials ---


def test_credentials_that_a_server_repeats_are_not_kept() -> None:
    secrets = ["sk-abcd1234efgh5678", "dXNlcjpwYXNzd29yZA==", "hunter2hunter2", "my-own-key"]
    said = (
        "bad key sk-abcd1234efgh5678, header Authorization: Basic dXNlcjpwYXNzd29yZA== of "
        "http://user:hunter2hunter2@host/v1, api_key=my-own-key"
    )
    kept = without_credentials(said, known="my-own-key")
    assert not any(secret in kept for secret in secrets)
    plain = "model Meta-Llama-3-8B-Instruct not found in models/Qwen2.5-Coder-0.5B-Instruct; the password must be given"
    assert without_credentials(plain) == plain

"""Small models, texts and runs that the attacks of this folder start from; and how bytes are damaged."""

import json
import logging
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from longlora.config import Recipe, parse_recipe
from longlora.models.load import load_tokenizer, model_source
from longlora.training import trainer as trainer_module
from longlora.training.run import train

WORDS = "the sea was calm and a ship lay still upon it".split()
MAX_STEPS = 6
# What parsers have stumbled over elsewhere.
_TOKENS = [
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"-1",
        b"1e999",
        b"nan",
        b".inf",
        b"9" * 400,
        b"9" * 5000,
        b"2024-13-45",
    ),
    *(
        b"!!int abc",
        b"!!timestamp x",
        b"!!float 1_",
        b"!!bool maybe",
        b"!!python/object/apply:os.system [id]",
        b"&a [*a]",
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"<div>" * 3000, b"../../etc/passwd", b"/dev/zero", b"/dev/null/x", b"x" * 5000),
    *(
        b"{{",
        b"{% for i in range(9999999) %}",
        b"\xe2\x80\xae",
        b"<script>alert(1)</script>",
        b"\r\n",
        b"%PDF-1.7",
        b"PK\3\4",
    ),
]


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Change some bytes: flipped, cut, doubled, or with something strange among them."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 | 1 if data:
                data[place % len(data)] ^= 1 << chance.randrange(8)
            case 2:
                data[place:place] = chance.choice(_TOKENS)
            case 3:
                del data[place : place + chance.choice([1, 8, 100])]
            case 4:
                data[place:place] = data[place : place + chance.choice([8, 200])] * chance.choice([1, 20])
            case _:
                data[place : place + 8] = chance.choice(_TOKENS)
    if chance.random() < 0.1:
        del data[chance.randrange(len(data) + 1) :]
    return bytes(data)


def flip_a_byte(folder: Path, chance: random.Random, *, but: tuple[str, ...] = ("README.md",)) -> Path:
    """Change one byte of one of a folder's files, each file as likely as another."""
    file = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in but))
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    file.write_bytes(data)
    return file


class World:
    """A folder with a base model, texts, and what was made of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.base, self.texts = root, root / "base", root / "texts"
        self.seconds = 1.0  # that an undisturbed run takes

    def make(self) -> "World":
        """Write the base, with the tiny model's tokenizer, and texts of random words."""
        tokenizer = load_tokenizer(model_source("tiny"))
        tokenizer.save_pretrained(self.base)
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
        config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **heads)
        LlamaForCausalLM(config).save_pretrained(self.base)
        self.texts.mkdir()
        chance = random.Random(0)
        for name in ("one", "two"):
            (self.texts / f"{name}.txt").write_text(" ".join(chance.choice(WORDS) for _ in range(4000)))
        return self

    def values(self, name: str, **changes: Any) -> dict[str, Any]:
        """A recipe's values: six short steps, a checkpoint every other one, dropout, so that random states count."""
        return {
            "model_name_or_path": str(self.base),
            "output_dir": str(self.root / name),
            "context_length": 128,
            "max_steps": MAX_STEPS,
            "learning_rate": 1e-2,
            "gradient_accumulation_steps": 1,
            "save_steps": 2,
            "gradient_checkpointing": False,
            "merge": False,
            "lora": {"lora_dropout": 0.1},
            "data": {"source": str(self.texts), "cache_dir": str(self.root / "cache")},
            **changes,
        }

    def recipe(self, name: str, **changes: Any) -> Recipe:
        """Build a recipe of those values."""
        return parse_recipe(self.values(name, **changes))

    def interrupted(self, name: str) -> Path:
        """Leave a run with the checkpoints of its steps 2 and 4."""
        with interrupted_after(5):
            train(self.recipe(name))
        return self.root / name


@contextmanager
def interrupted_after(step: int) -> Iterator[None]:
    """End the training of a block after a step, as Ctrl-C does."""
    original = trainer_module.ProgressBar.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise KeyboardInterrupt

    trainer_module.ProgressBar.on_step_end = on_step_end
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        trainer_module.ProgressBar.on_step_end = original


def epub(parts: list[str], *, compress: bool = True) -> bytes:
    """An e-book of these parts."""
    import io

    buffer = io.BytesIO()
    manifest = "".join(f'<item id="p{i}" href="p{i}.xhtml" media-type="x"/>' for i in range(len(parts)))
    spine = "".join(f'<itemref idref="p{i}"/>' for i in range(len(parts)))
    package = (
        f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{manifest}</manifest><spine>{spine}</spine></package>'
    )
    container = '<container><rootfiles><rootfile full-path="book.opf"/></rootfiles></container>'
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("book.opf", package)
        for index, part in enumerate(parts):
            archive.writestr(f"p{index}.xhtml", f"<html><body>{part}</body></html>")
    return buffer.getvalue()


def pdf(num_pages: int = 2) -> bytes:
    """A PDF with a few lines on each page."""
    import io

    from reportlab.pdfgen.canvas import Canvas

    buffer = io.BytesIO()
    canvas = Canvas(buffer, pageCompression=0)
    for page in range(num_pages):
        for line in range(12):
            canvas.drawString(72, 720 - 14 * line, f"Page {page}: {' '.join(WORDS)}.")
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def conversations() -> list[dict[str, Any]]:
    """Rows in three of the forms that are read."""
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    return [
        {"messages": turns},
        {"messages": [{"role": "system", "content": "Be brief."}, *turns]},
        {"messages": turns * 2},
    ]


def parquet(folder: Path) -> bytes:
    """A table of texts."""
    path = folder / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [" ".join(WORDS)] * 50}), path)
    content = path.read_bytes()
    path.unlink()
    return content


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def fresh_copy(source: Path, target: Path) -> Path:
    """Copy a folder over what an earlier attack left."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def told_by(action: Callable[[], Any]) -> list[str]:
    """What is said in warnings by something that is done, though a campaign keeps them from the screen."""
    told: list[str] = []
    handler, logger, disabled = logging.Handler(), logging.getLogger("longlora"), logging.root.manager.disable
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.disable(logging.NOTSET)
    logger.addHandler(handler)
    try:
        action()
    finally:
        logger.removeHandler(handler)
        logging.disable(disabled)
    return told


def quietly(action: Callable[[], Any]) -> Any:
    """Do something with stdout and stderr closed off."""
    with open(os.devnull, "w") as nothing:
        from contextlib import redirect_stderr, redirect_stdout

        with redirect_stdout(nothing), redirect_stderr(nothing):
            return action()

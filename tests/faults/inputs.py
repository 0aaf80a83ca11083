"""Bad inputs by kind: each function makes one and gives it to the code that is to refuse it, or to make sense of it."""

import asyncio
import gzip
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml
from tests.faults.world import (
    World,
    conversations,
    damaged,
    epub,
    flip_a_byte,
    fresh_copy,
    json_lines,
    parquet,
    pdf,
    told_by,
)

from longlora.config import load_recipe
from longlora.corpus.extract import ExtractSettings, extract
from longlora.data.conversation_rows import tokenize_conversations
from longlora.data.document_rows import tokenize_documents
from longlora.data.sources import read_conversations, read_documents
from longlora.errors import CheckpointError, LongLoRAError
from longlora.evaluation.texts import read_token_file
from longlora.inference.hosts import Names
from longlora.models.chat_template import ensure_chat_template
from longlora.models.load import load_for_inference, load_tokenizer, model_source
from longlora.planner.compute import GIB
from longlora.planner.plan import make_plan
from longlora.recipes import find_recipe, recipe_names
from longlora.released.importing import import_released
from longlora.serving.front import build_front
from longlora.serving.openai_requests import Translator
from longlora.support.digests import DIGESTS_FILE
from longlora.support.whole import check_whole
from longlora.training.preflight import planned_run
from longlora.training.run import train
from longlora.training.run_directory import open_run, read_metrics

# The command line tells of an OSError in one place.
EXPECTED = (LongLoRAError, OSError)


class SilentChange(Exception):
    """What was damaged was used without a word."""


class Inputs:
    """Makes bad inputs in a folder of its own, from a world and a source of chance."""

    def __init__(self, world: World, folder: Path, chance: random.Random) -> None:
        self.world, self.folder, self.chance = world, folder, chance
        folder.mkdir(parents=True, exist_ok=True)

    def _file(self, name: str, content: bytes, *, whole: bool = False) -> Path:
        path = self.folder / name
        path.write_bytes(content if whole else damaged(content, self.chance))
        return path

    def _strange(self, value: Any) -> Any:
        """The same JSON with some of its values exchanged for others."""
        others: list[Any] = [
            None,
            True,
            0,
            -1,
            1e308,
            "",
            "x",
            "\x00",
            "\ud800",
            [],
            {},
            [[]],
            {"role": "user"},
            "user",
            "tool",
        ]
        if self.chance.random() < 0.1:
            return self.chance.choice(others)
        if isinstance(value, list):
            return [self._strange(item) for item in value]
        if isinstance(value, dict):
            return {name: self._strange(item) for name, item in value.items() if self.chance.random() < 0.95}
        return value

    # --- recipes ---

    def recipe(self) -> None:
        """A recipe with damaged bytes, planned where it can be read."""
        name = self.chance.choice(recipe_names())
        path = self._file("recipe.yaml", find_recipe(name).read_bytes())
        recipe = load_recipe(path)
        make_plan(planned_run(recipe), memory_bytes=80 * GIB)

    def override(self) -> None:
        """A value from the command line."""
        keys = list(yaml.safe_load(find_recipe("tiny-1k").read_text()))
        key = self.chance.choice([*keys, "data.source", "lora.r", "rope.factor", "a.b.c", "", "seed", "hardware.gpus"])
        value = damaged(self.chance.choice([b"1", b"[a, b]", b"{a: 1}", b"true", b"x", b"1e9"]), self.chance)
        recipe = load_recipe("tiny-1k", [f"{key}={value.decode('utf-8', 'surrogateescape')}"])
        make_plan(planned_run(recipe), memory_bytes=80 * GIB)

    # --- data ---

    def table(self) -> None:
        """JSON, JSON lines, compressed or not, or Parquet, read as texts and as conversations."""
        rows = json_lines([{"text": "the sea was calm", "n": 1}] * 5)
        kinds = {
            "rows.jsonl": rows,
            "rows.json": json.dumps(conversations()).encode(),
            "talk.jsonl": json_lines(conversations()),
            "rows.parquet": _parquet(),
            "plain.txt": b"the sea was calm " * 20,
        }
        name = self.chance.choice([*kinds])
        content = damaged(kinds[name], self.chance)
        if name.startswith("rows.json") and self.chance.random() < 0.3:
            name, content = (
                f"{name}.gz",
                damaged(gzip.compress(content), self.chance) if self.chance.random() < 0.5 else gzip.compress(content),
            )
        path = self._file(name, content, whole=True)
        try:
            if "talk" in name or name.startswith("rows.json."):
                for _, talk in read_conversations(str(path)):
                    assert talk.messages
            else:
                for _, text in read_documents(str(path)):
                    assert isinstance(text, str)
        finally:
            path.unlink()

    def conversation(self) -> None:
        """Rows of conversations with damaged JSON values, encoded by a chat template."""
        rows = [self._strange(row) for row in conversations()]
        path = self._file("talk.jsonl", json_lines(rows), whole=True)
        tokenizer = _tokenizer()
        self._encode(path, tokenizer)

    def _encode(self, path: Path, tokenizer: Any) -> None:
        cache = self.folder / "cache"
        tokenize_conversations(
            read_conversations(str(path)), tokenizer, context_length=64, cache_dir=cache, show_progress=False
        )

    def token_file(self) -> None:
        """A `.bin` of token ids."""
        size = self.chance.choice([0, 1, 2, 3, 64, 1000])
        content = self.chance.randbytes(size)
        read_token_file(self._file("tokens.bin", content), self.chance.choice([256, 1000, 65536, 70000]))

    # --- documents ---

    def markup(self) -> None:
        """A page, an e-book, Markdown or a plain text."""
        page = b"<html><head><title>T</title></head><body><h1>H</h1><p>the sea</p><table><tr><td>1</td></table></html>"
        kinds = {"a.html": page, "a.epub": _epub(), "a.md": b"---\na: b\n---\n# Title\n\ntext", "a.txt": b"text " * 50}
        name = self.chance.choice([*kinds])
        extract(self._file(name, kinds[name]), ExtractSettings())

    def pdf(self) -> None:
        """A PDF."""
        extract(self._file("a.pdf", _pdf()), ExtractSettings(references=self.chance.choice(["keep", "drop"])))

    # --- models ---

    def adapter(self) -> None:
        """An adapter with damaged files and no digests to tell of it: refused, or loaded as the adapter it now is."""
        adapter = fresh_copy(self.world.root / "finished" / "adapter", self.folder / "adapter")
        (adapter / DIGESTS_FILE).unlink()
        names = [
            "adapter_config.json",
            "longlora.json",
            "adapter_model.safetensors",
            "tokenizer_config.json",
            "tokenizer.json",
        ]
        file = adapter / self.chance.choice([name for name in names if (adapter / name).exists()])
        content = file.read_bytes()
        if file.suffix == ".safetensors":  # its header: what follows are numbers, as good as any
            file.write_bytes(damaged(content[:3000], self.chance) + content[3000:])
        else:
            file.write_bytes(damaged(content, self.chance))
        load_for_inference(adapter, device="cpu")

    def model(self) -> None:
        """A model with a damaged configuration, index or tokenizer."""
        base = fresh_copy(self.world.base, self.folder / "model")
        file = base / self.chance.choice(
            ["config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors.index.json"]
        )
        good = (
            b'{"weight_map": {"a": "model.safetensors"}}'
            if "index" in file.name
            else file.read_bytes()
            if file.exists()
            else b"{}"
        )
        file.write_bytes(damaged(good, self.chance))
        load_for_inference(base, device="cpu")

    def published(self) -> None:
        """What the original publishes, with damaged pickles."""
        folder = fresh_copy(self.world.root / "published", self.folder / "published")
        file = self.chance.choice(sorted(folder.iterdir()))
        file.write_bytes(damaged(file.read_bytes(), self.chance))
        output = self.folder / "imported"
        import shutil

        shutil.rmtree(output, ignore_errors=True)
        import_released(str(folder), output, base=str(self.world.base), context_length=128)

    def template(self) -> None:
        """A chat template: read with its tokenizer, and used."""
        good = (
            b"{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
            b"{% if add_generation_prompt %}<|assistant|>{% endif %}"
        )
        folder = fresh_copy(_only_tokenizer(self.world, self.folder), self.folder / "tokenizer")
        (folder / "chat_template.jinja").write_bytes(damaged(good, self.chance))
        tokenizer = load_tokenizer(str(folder))
        path = self._file("talk.jsonl", json_lines(conversations()), whole=True)
        self._encode(path, tokenizer)

    # --- servers ---

    def body(self) -> None:
        """The body of a request to the server."""
        good = {
            "model": "mine",
            "messages": [{"role": "user", "content": "why"}],
            "max_tokens": 5,
            "stop": ["a"],
            "seed": 1,
        }
        content = damaged(json.dumps(good).encode(), self.chance)
        path = self.chance.choice(["/v1/chat/completions", "/v1/completions"])
        if (status := asyncio.run(_post(path, content))) >= 500:
            raise AssertionError(f"status {status}")
        if status >= 400:
            raise CheckpointError(f"status {status}")

    # --- what a run keeps ---

    def record(self) -> None:
        """A damaged record of a run: it heals, or is named."""
        run = fresh_copy(self.world.root / "interrupted", self.folder / "run")
        file = run / self.chance.choice(["recipe.yaml", "environment.json", "metrics.jsonl"])
        file.write_bytes(damaged(file.read_bytes(), self.chance))
        with open_run(self.world.recipe("interrupted", output_dir=str(run))) as opened:
            read_metrics(opened.metrics)

    def checkpoint_byte(self) -> str:
        """One byte of the newest checkpoint is another: the one before is taken."""
        run = fresh_copy(self.world.root / "interrupted", self.folder / "run")
        flip_a_byte(run / "checkpoints" / "checkpoint-4", self.chance, but=("README.md",))
        with open_run(self.world.recipe("interrupted", output_dir=str(run))) as opened:
            if (
                opened.resumes_from
                and opened.resumes_from.name == "checkpoint-4"
                and not _same_digests(self.world, run)
            ):
                raise SilentChange("checkpoint-4 was taken")
        return "healed"

    def adapter_byte(self) -> None:
        """One byte of an adapter is another: refused, or, in a file that people may edit, followed with a warning."""
        adapter = fresh_copy(self.world.root / "finished" / "adapter", self.folder / "adapter")
        file = flip_a_byte(adapter, self.chance)
        if told_by(lambda: check_whole(adapter)):
            return  # one of the files that people may edit: it is used, and that is said
        if file.name != DIGESTS_FILE or json.loads(file.read_text()) != json.loads(
            (self.world.root / "finished" / "adapter" / DIGESTS_FILE).read_text()
        ):
            raise SilentChange(f"{file.name} was taken")

    def cache_byte(self) -> str:
        """One byte of a table of tokens is another: it is made anew."""
        tokenizer, cache = _tokenizer(), self.folder / "tokens"
        source = read_documents(str(self.world.texts))
        good = tokenize_documents(source, tokenizer, cache_dir=cache, show_progress=False)["input_ids"][:]
        (folder,) = (path for path in (cache / "tokenized").iterdir() if path.is_dir())
        flip_a_byte(folder, self.chance)
        if tokenize_documents(source, tokenizer, cache_dir=cache, show_progress=False)["input_ids"][:] != good:
            raise SilentChange("other tokens")
        return "healed"


SHARES = {
    Inputs.recipe: 2500,
    Inputs.override: 2000,
    Inputs.table: 2500,
    Inputs.conversation: 300,
    Inputs.token_file: 500,
    Inputs.markup: 600,
    Inputs.pdf: 150,
    Inputs.adapter: 100,
    Inputs.model: 100,
    Inputs.published: 80,
    Inputs.template: 80,
    Inputs.body: 600,
    Inputs.record: 150,
    Inputs.checkpoint_byte: 150,
    Inputs.adapter_byte: 300,
    Inputs.cache_byte: 60,
}
"""How many of each kind a whole campaign makes: 10,170."""


def _same_digests(world: World, run: Path) -> bool:
    """Whether the byte that was changed is one of digests.json that says nothing, such as a space."""
    files = [root / "checkpoints" / "checkpoint-4" / DIGESTS_FILE for root in (world.root / "interrupted", run)]
    return (
        json.loads(files[0].read_text()) == json.loads(files[1].read_text())
        and files[0].read_bytes() != files[1].read_bytes()
    )


@cache
def _tokenizer() -> Any:
    tokenizer = load_tokenizer(model_source("tiny"))
    ensure_chat_template(tokenizer)
    return tokenizer


@cache
def _parquet() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return parquet(Path(folder))


@cache
def _epub() -> bytes:
    return epub(["<h1>One</h1><p>the sea was calm</p>", "<p>a ship lay still</p>"], compress=False)


@cache
def _pdf() -> bytes:
    return pdf()


@cache
def _only_tokenizer(world: World, folder: Path) -> Path:
    target = folder / "good-tokenizer"
    target.mkdir()
    for path in world.base.iterdir():
        if "token" in path.name:
            (target / path.name).write_bytes(path.read_bytes())
    return target


@cache
def _application() -> Any:
    translator = Translator(name="mine", context_length=64, tokenizer=_tokenizer(), generation={"eos_token_id": 1})
    inner = httpx.MockTransport(lambda request: httpx.Response(200, json={"choices": []}))
    return build_front(
        translator, httpx.AsyncClient(transport=inner, base_url="http://inner"), api_key="", names=Names.of("localhost")
    )


async def _post(path: str, content: bytes) -> int:
    transport = httpx.ASGITransport(_application(), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
        return (await client.post(path, content=content)).status_code


def prepare(world: World) -> None:
    """Make what the attacks begin with: a finished run, an interrupted one, and weights in the original's form."""
    train(world.recipe("finished", max_steps=2))
    world.interrupted("interrupted")
    published = world.root / "published"
    published.mkdir()
    from safetensors.torch import load_file

    weights = load_file(world.root / "finished" / "adapter" / "adapter_model.safetensors")
    torch.save({name: weight for name, weight in weights.items() if "lora_" in name}, published / "adapter_model.bin")
    whole = {name.removeprefix("base_model.model."): weight for name, weight in weights.items() if "lora_" not in name}
    torch.save(whole, published / "trainable_params.bin")
    (published / "adapter_config.json").write_bytes(
        (world.root / "finished" / "adapter" / "adapter_config.json").read_bytes()
    )

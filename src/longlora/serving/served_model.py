"""A model directory ready for a server: merged, with a chat template, under the name that clients use."""

import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from longlora.errors import ConfigError
from longlora.merge import merge_adapter
from longlora.models.chat_template import ensure_chat_template
from longlora.models.directories import is_adapter
from longlora.models.generation import lasting_settings, names_every_end, saved_settings
from longlora.models.load import load_config, load_tokenizer, model_source
from longlora.models.positions import readable_context
from longlora.models.shards import local_folder
from longlora.support.digests import DIGESTS_FILE
from longlora.support.machine import user_cache
from longlora.support.whole import check_whole, damage_of

logger = logging.getLogger("longlora")

# Generic folder names; the parent folder's name says which model it is.
_UNTOLD = ("adapter", "merged", "model")


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A directory to serve; its name is the model's name for clients."""

    folder: Path
    context_length: int  # tokens it reads

    @property
    def name(self) -> str:
        """The model's name for clients."""
        return self.folder.name


@contextmanager
def servable(model: str, *, name: str = "") -> Iterator[ServedModel]:
    """Lay out a model for a server, within a block.

    An adapter is first merged, once: the merged model stays in the user's cache folder (`longlora/merged`), and is
    reused while the adapter is unchanged. Model files are linked, not copied; a tokenizer without a chat template gets
    the paper's prompt as its template, only in the temporary folder.

    Raises:
        CheckpointError: the model is missing, incomplete or damaged.
        ConfigError: an adapter's merged model cannot be stored.
    """
    source = model_source(model)
    folder = local_folder(source).resolve()
    name = name or _name(source)
    if is_adapter(folder):
        folder = merged_adapter(folder)
    check_whole(folder)
    with tempfile.TemporaryDirectory(prefix="longlora-serve-") as temporary:
        target = Path(temporary) / name
        _link(folder, target)
        yield ServedModel(folder=target, context_length=readable_context(load_config(str(folder))))


def merged_adapter(adapter: Path) -> Path:
    """Return the directory of an adapter's merged model, created if it is not in the cache.

    Raises:
        ConfigError: there is no cache, or it cannot be written.
        CheckpointError: the adapter or its base is missing, incomplete or damaged.
    """
    cache = user_cache() / "merged"
    target = cache / f"{_name(str(adapter))}-{_digest(adapter)}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the merged model cannot be stored in {cache} ({error.strerror}); set the environment variable "
            "XDG_CACHE_HOME to a writable folder"
        ) from error
    with FileLock(cache / f".{target.name}.lock"):  # servers that start concurrently merge only once
        if target.exists() and (damage := damage_of(target)):
            logger.warning("%s is damaged (%s) and will be rebuilt", target, damage)
            shutil.rmtree(target)
        if not target.exists():
            logger.info("merging %s into %s; delete it when you no longer serve it", adapter, target)
            merge_adapter(adapter, target)
    return target


def _digest(adapter: Path) -> str:
    """Return a digest of the sizes and times of an adapter's files."""
    stats = [(path.name, path.stat()) for path in sorted(adapter.iterdir()) if path.is_file()]
    facts = [str(adapter), *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _name(source: str) -> str:
    """Return a name without characters that are special to servers (`org/model@revision`, `repo:file`)."""
    path = Path(source)
    while path.name in _UNTOLD and path.parent.name:
        path = path.resolve().parent
    if source == model_source("tiny"):
        return "tiny"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).strip("-.") or "model"


def _link(folder: Path, target: Path) -> None:
    """Make a directory of links to a model's files, except files rewritten to add a chat template or an end of turn."""
    tokenizer = load_tokenizer(str(folder))
    settings = saved_settings(folder, load_config(str(folder)))
    target.mkdir()
    if ensure_chat_template(tokenizer):
        logger.warning("%s has no chat template: conversations are written with the paper's prompt", folder.name)
        tokenizer.save_pretrained(target)
    if not names_every_end(settings, tokenizer):
        lasting_settings(settings, tokenizer).save_pretrained(target)
    for file in folder.iterdir():
        if file.is_file() and file.name != DIGESTS_FILE and not (target / file.name).exists():
            (target / file.name).symlink_to(file.resolve())

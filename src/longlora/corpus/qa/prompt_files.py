"""Load prompts: text files with `{{placeholders}}`, included in the package and replaceable by the user's own.

A folder of prompts has three parts. `books/` and `papers/` contain a file for each kind of question, and two more:
`notes.txt` (for notes on one section of a long document) and `record.txt` (what the trained model will read). `shared/`
contains `reply_form.txt`, `judge.txt` and `condense.txt`. A file may begin with `over: section` and a line `---`: its
questions are then asked about single sections instead of the whole.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from longlora.errors import ConfigError

Over = Literal["whole", "section"]

SHIPPED = Path(__file__).parent / "prompts"
FOLDERS = {"book": "books", "paper": "papers"}

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_REPLY_FORM = re.compile(r"\{\{\s*reply_form\s*\}\}")
_HEAD = re.compile(r"over:[ \t]*(\w*)[ \t]*\n---[ \t]*\n")
_OF_QUESTIONS = ({"material", "count"}, {"what", "reply_form"})
# Placeholders that a file must contain, and those that it may contain.
_KNOWN: dict[str, tuple[set[str], set[str]]] = {
    "notes": ({"material"}, {"part"}),
    "record": ({"document", "question"}, set()),
    "reply_form": (set(), set()),
    "judge": ({"material", "pairs"}, {"what"}),
    "condense": ({"material"}, set()),
}


@dataclass(frozen=True, kw_only=True)
class Template:
    """One prompt."""

    name: str
    text: str
    over: Over = "whole"

    @property
    def sha256(self) -> str:
        """Digest of the prompt's own text, without the values of placeholders."""
        return hashlib.sha256(f"{self.over}\n{self.text}".encode()).hexdigest()

    def fill(self, **values: object) -> str:
        """Replace the placeholders with values; braces in values have no meaning."""
        return _PLACEHOLDER.sub(lambda match: str(values[match[1]]), self.text)


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """All prompts for one kind of document."""

    notes: Template
    record: Template
    judge: Template
    condense: Template
    questions: tuple[Template, ...]

    def __iter__(self) -> Iterator[Template]:
        yield from (self.notes, self.record, self.judge, self.condense, *self.questions)


def load_prompts(folder: Path | None = None) -> dict[str, PromptSet]:
    """Read the prompts for books and papers; files that the user's folder lacks come from the package.

    If the user's folder has questions for a kind of document, they replace all of the package's for that kind.

    Raises:
        ConfigError: the folder contains no prompts, or a file lacks a placeholder or has an unknown one.
    """
    if folder is not None and not any(any((folder / part).glob("*.txt")) for part in (*FOLDERS.values(), "shared")):
        raise ConfigError(
            f"--prompts {folder} must contain .txt files in books/, papers/ or shared/, found none; "
            "`longlora corpus qa-prompts DIR` writes the package's own as a starting point"
        )
    return {kind: _load_set(part, folder or SHIPPED) for kind, part in FOLDERS.items()}


def prompts_digest(prompts: Mapping[str, PromptSet]) -> str:
    """Return a digest of all prompts, for the journal's header."""
    parts = [f"{kind}/{prompt.name}:{prompt.sha256}" for kind, one in sorted(prompts.items()) for prompt in one]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def write_prompts(folder: Path) -> None:
    """Copy the package's prompts to a new folder, for editing.

    Raises:
        ConfigError: the path already exists.
    """
    if folder.exists():
        raise ConfigError(f"{folder} already exists; choose another folder for the prompts")
    shutil.copytree(SHIPPED, folder)


def _load_set(part: str, folder: Path) -> PromptSet:
    def find(name: str, part: str = part) -> Template:
        path = folder / part / f"{name}.txt"
        return _read(path if path.is_file() else SHIPPED / part / path.name)

    own, shipped = (
        sorted(path.stem for path in (place / part).glob("*.txt") if path.stem not in ("notes", "record"))
        for place in (folder, SHIPPED)
    )
    form = find("reply_form", "shared").text.strip()
    questions = [find(name) for name in own or shipped]
    return PromptSet(
        notes=find("notes"),
        record=find("record"),
        judge=find("judge", "shared"),
        condense=find("condense", "shared"),
        # The reply form is part of each prompt, and so of its digest.
        questions=tuple(replace(one, text=_REPLY_FORM.sub(lambda _: form, one.text)) for one in questions),
    )


def _read(path: Path) -> Template:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompt {path} cannot be read: {error}") from error
    over: Over = "whole"
    if head := _HEAD.match(text):
        if head[1] not in ("whole", "section"):
            raise ConfigError(f"`over:` in the prompt {path} must be `whole` or `section`, found {head[1]!r}")
        over = "section" if head[1] == "section" else "whole"
        text = text[head.end() :]
    required, allowed = _KNOWN.get(path.stem, _OF_QUESTIONS)
    found = set(_PLACEHOLDER.findall(text))
    if missing := required - found:
        raise ConfigError(
            f"the prompt {path} must contain {_names(missing)}, found {_names(found) or 'no placeholder'}"
        )
    if unknown := found - required - allowed:
        raise ConfigError(
            f"the prompt {path} contains unknown {_names(unknown)}; known there: {_names(required | allowed)}"
        )
    return Template(name=path.stem, text=text, over=over)


def _names(placeholders: set[str]) -> str:
    return ", ".join(f"{{{{{name}}}}}" for name in sorted(placeholders))

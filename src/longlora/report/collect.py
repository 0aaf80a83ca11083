"""Find results and runs below the paths that a user names, and put together what belongs to one model."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longlora.errors import ConfigError, DataError
from longlora.evaluation.results import (
    RESULT_FILES,
    Harness,
    PerplexityByLength,
    Positions,
    Result,
    Retrieval,
    ShortContext,
    SuiteRecord,
    read_result,
)
from longlora.report.runs import TrainingRun, is_run, read_run

logger = logging.getLogger("longlora")


@dataclass(kw_only=True)
class ModelResults:
    """All that was found about one model."""

    name: str
    label: str = ""
    """The name as short as it still tells the models apart."""

    context: int | None = None
    retrieval: dict[str, Retrieval] = field(default_factory=dict)
    perplexity: PerplexityByLength | None = None
    positions: Positions | None = None
    short_context: ShortContext | None = None
    harness: Harness | None = None
    left_out: SuiteRecord | None = None
    run: TrainingRun | None = None
    sources: list[Result] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Models in the order in which they were found, and runs that belong to none of them."""

    models: list[ModelResults]
    runs: list[TrainingRun]

    @property
    def all_runs(self) -> list[tuple[str, TrainingRun]]:
        """Every run with a name for it: its model's, or its folder's."""
        of_models = [(model.label, model.run) for model in self.models if model.run]
        return of_models + [("/".join(run.path.parts[-2:]).lstrip("/"), run) for run in self.runs]


_SLOTS: dict[type[Result], str] = {
    PerplexityByLength: "perplexity",
    Positions: "positions",
    ShortContext: "short_context",
    Harness: "harness",
    SuiteRecord: "left_out",
}


def collect(paths: Sequence[str]) -> Collection:
    """Read everything below the paths; `NAME=PATH` gives all that stands below PATH that name.

    Raises:
        ConfigError: a path does not exist, or nothing is found below it.
        DataError: a file is damaged, or two models of the same name are not the same.
    """
    models: dict[str, ModelResults] = {}
    runs: dict[Path, TrainingRun] = {}
    named_runs: dict[Path, str] = {}
    for text in paths:
        name, root = _name_and_path(text)
        found_files, found_runs = list(_result_files(root)), list(_run_folders(root))
        if not found_files and not found_runs:
            raise ConfigError(
                f"{root} holds neither results of `longlora eval` ({', '.join(RESULT_FILES)}) nor a training run "
                "(recipe.yaml with metrics.jsonl)"
            )
        for folder in found_runs:
            runs[folder.resolve()] = read_run(folder)
            if name:
                named_runs[folder.resolve()] = name
        for path in found_files:
            found = read_result(path)
            _add(models.setdefault(name or found.model, ModelResults(name=name or found.model)), found)
    for model in models.values():
        owner = _run_of(model, runs, named_runs)
        if owner is not None:
            model.run = runs[owner]
    _label(list(models.values()))
    owned = {id(model.run) for model in models.values()}
    return Collection(models=list(models.values()), runs=[run for run in runs.values() if id(run) not in owned])


def _name_and_path(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if sign and not Path(text).exists():
        return name, _existing(path)
    return "", _existing(text)


def _existing(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(f"{path} does not exist; name a folder of `longlora eval`, of a suite, or of a training run")
    return path


def _result_files(root: Path) -> Iterator[Path]:
    if root.is_file():
        if root.name in RESULT_FILES:
            yield root
        return
    for path in sorted(root.rglob("*.json")):
        if path.name in RESULT_FILES and not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path


def _run_folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (path.parent for path in sorted(root.rglob("recipe.yaml")) if is_run(path.parent))


def _add(model: ModelResults, found: Result) -> None:
    digests = {source.weights for source in model.sources if source.weights} | ({found.weights} - {None})
    if len(digests) > 1:
        raise DataError(
            f"{found.path} is about other weights than {model.sources[0].path}, though both are called {model.name}: "
            "the model was changed between the two; measure again, or give each a name of its own, as in NEW=PATH"
        )
    model.sources.append(found)
    model.context = model.context or found.context
    if isinstance(found, Retrieval):
        before: Result | None = model.retrieval.get(found.title)
        model.retrieval[found.title] = found
    else:
        slot = _SLOTS[type(found)]
        before = getattr(model, slot)
        if isinstance(found, Harness) and isinstance(before, Harness):  # further tasks, not the same ones again
            found, before = found.model_copy(update={"tasks": before.tasks | found.tasks}), None
        setattr(model, slot, found)
    if before is not None:
        logger.warning("%s: more than one result of a kind; the report shows that in %s", model.name, found.path)


def _run_of(model: ModelResults, runs: dict[Path, TrainingRun], named: dict[Path, str]) -> Path | None:
    """Find the run whose folder holds the model, or to which the user gave the model's name."""
    for folder, name in named.items():
        if name == model.name:
            return folder
    for source in model.sources:
        place = Path(source.model).expanduser().resolve()
        for folder in runs:
            if place.is_relative_to(folder):
                return folder
    return None


def _label(models: list[ModelResults]) -> None:
    """Leave out the leading folders that all models share."""
    parts = [Path(model.name).parts or (model.name,) for model in models]
    shared = 0
    while len(models) > 1 and all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    for model, own in zip(models, parts, strict=True):
        kept = own[shared:] if len(models) > 1 else own[-2:]
        model.label = "/".join(part.strip("/") for part in kept) or model.name

"""Find results and training runs below the user's paths, and group them by model."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from longlora.errors import ConfigError, DataError
from longlora.evaluation import results

logger = logging.getLogger("longlora")


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A training run as recorded in its folder: settings, losses and cost."""

    path: Path
    name: str  # of the model it belongs to, if given by the user
    recipe: dict[str, Any]
    steps: list[int]
    losses: list[float]  # nats per token, at each of the steps
    num_tokens: int | None
    hours: float | None  # from the first start to the last write of the log, including pauses before a resume
    starts: list[dict[str, Any]]

    @property
    def device(self) -> str:
        """The hardware of the last start, or an empty string if unknown."""
        if not self.starts:
            return ""
        device, processes = str(self.starts[-1].get("device", "")), int(self.starts[-1].get("processes", 1))
        return f"{processes} × {device}" if processes > 1 else device


@dataclass(kw_only=True)
class ModelResults:
    """All results found for one model: retrieval by test, and the others under the names of their files."""

    name: str
    label: str = ""  # the name without the leading folders that all models share
    style: int = 0  # of its lines in charts
    context: int | None = None
    retrieval: dict[str, results.Retrieval] = field(default_factory=dict)
    perplexity: results.PerplexityByLength | None = None
    longppl: results.LongPerplexity | None = None
    positions: results.LossByPosition | None = None
    short_context: results.ShortContext | None = None
    harness: results.Harness | None = None
    suite: results.SuiteRecord | None = None
    run: TrainingRun | None = None
    sources: list[results.Result] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Models in the order in which they were found, and training runs that belong to none of them."""

    models: list[ModelResults]
    runs: list[TrainingRun]

    @property
    def all_runs(self) -> list[tuple[str, TrainingRun]]:
        """All runs, each with a name: its model's, or its folder's."""
        of_models = [(model.label, model.run) for model in self.models if model.run]
        return of_models + [("/".join(run.path.parts[-2:]).lstrip("/"), run) for run in self.runs]


def collect(paths: Sequence[str]) -> Collection:
    """Read all results below the paths; `NAME=PATH` gives everything below PATH that name.

    Raises:
        ConfigError: a path does not exist, or nothing is found below it.
        DataError: a file is damaged, or two models of the same name differ in their weights.
    """
    models: dict[str, ModelResults] = {}
    runs: dict[Path, TrainingRun] = {}
    for text in paths:
        name, root = _name_and_path(text)
        paths_below = sorted(root.rglob("*.json")) if root.is_dir() else [root]
        files = {path: read for path in paths_below if (read := _reader(path, root))}
        folders = [path.parent for path in sorted(root.rglob("recipe.yaml")) if _is_run(path.parent)]
        if not files and not folders:
            raise ConfigError(
                f"{root} holds neither results of `longlora eval` ({', '.join(results.RESULT_FILES)}), nor of lm-eval "
                "(results_….json), nor a training run (recipe.yaml with metrics.jsonl)"
            )
        for folder in folders:
            runs[folder.resolve()] = read_run(folder, name)
        for path, read in files.items():
            found = read(path)
            _add(models.setdefault(name or found.model, ModelResults(name=name or found.model)), found)
    for model in models.values():
        for test in model.harness.by_length() if model.harness else ():
            model.retrieval.setdefault(test.title, test)
        model.run = _run_of(model, runs)
    _label(list(models.values()))
    owned = {id(model.run) for model in models.values()}
    return Collection(models=list(models.values()), runs=[run for run in runs.values() if id(run) not in owned])


def read_run(folder: Path, name: str = "") -> TrainingRun:
    """Read the folder of a training run, finished or not.

    Raises:
        DataError: a file in it is damaged.
    """
    try:
        recipe = dict(yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")))
        metrics, environment = folder / "metrics.jsonl", folder / "environment.json"
        lines = metrics.read_text(encoding="utf-8").split("\n")[:-1]
        logged = [values for line in lines if line and "loss" in (values := json.loads(line))]
        starts = list(json.loads(environment.read_text(encoding="utf-8"))) if environment.exists() else []
        return TrainingRun(
            path=folder,
            name=name,
            recipe=recipe,
            steps=[int(values["step"]) for values in logged],
            losses=[float(values["loss"]) for values in logged],
            num_tokens=_total([values["num_tokens"] for values in logged if "num_tokens" in values]),
            hours=_hours(starts, metrics.stat().st_mtime),
            starts=starts,
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, yaml.YAMLError) as error:
        raise DataError(f"{folder} holds no readable training run ({type(error).__name__}: {error})") from error


def _total(counts: list[float]) -> int | None:
    """Add up TRL's running count, which restarts at zero when a run is resumed."""
    grown = (
        count - before if count >= before else count for before, count in zip([0.0, *counts], counts, strict=False)
    )
    return round(sum(grown)) if counts else None


def _hours(starts: list[dict[str, Any]], last_write: float) -> float | None:
    if not starts or "time" not in starts[0]:
        return None
    hours = (last_write - datetime.fromisoformat(starts[0]["time"]).timestamp()) / 3600
    # A copied folder has the time of its copying, which may be anything; before the start it is certainly wrong.
    return hours if hours >= 0 else None


def _name_and_path(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if not sign or Path(text).exists():
        name, path = "", text
    root = Path(path).expanduser()
    if not root.exists():
        raise ConfigError(f"{root} does not exist; name a folder of `longlora eval`, of a suite, or of a training run")
    return name, root


def _reader(path: Path, root: Path) -> Callable[[Path], results.Result] | None:
    """Return the reader for a file: ours and lm-eval's by name, any file given by the user as lm-eval's; else None."""
    if any(part.startswith(".") for part in path.relative_to(root).parts):
        return None
    kind = results.RESULT_FILES.get(path.name)
    if kind is not None:
        return None if kind is results.KeyTokens else results.read_result
    return results.read_lm_eval if path == root or path.name.startswith("results_") else None


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file() and (folder / "metrics.jsonl").is_file()


def _add(model: ModelResults, found: results.Result) -> None:
    digests = {source.weights for source in (*model.sources, found) if source.weights}
    if len(digests) > 1:
        raise DataError(
            f"{found.path} has other weights than {model.sources[0].path}, though both are called {model.name}: the "
            "model changed between the two; measure again, or give each its own name, as in NEW=PATH"
        )
    model.sources.append(found)
    model.context = model.context or found.context
    if isinstance(found, results.Retrieval):
        before: results.Result | None = model.retrieval.get(found.title)
        model.retrieval[found.title] = found
    else:
        slot = Path(found.FILE).stem
        before = getattr(model, slot)
        if isinstance(found, results.Harness) and isinstance(before, results.Harness):  # merge their tasks
            found, before = found.model_copy(update={"tasks": before.tasks | found.tasks}), None
        setattr(model, slot, found)
    if before is not None:
        logger.warning("%s: more than one result of a kind; the report shows the one in %s", model.name, found.path)


def _run_of(model: ModelResults, runs: dict[Path, TrainingRun]) -> TrainingRun | None:
    """Find the run that the user gave the model's name, or whose folder contains the model.

    The folder that a model lies in (`runs/mine` for `runs/mine/adapter`) is read even if it was not given.
    """
    places = [Path(source.model).expanduser().resolve() for source in model.sources]
    named = (run for run in runs.values() if run.name == model.name)
    around = (run for place in places for folder, run in runs.items() if place.is_relative_to(folder))
    if given := next(chain(named, around), None):
        return given
    for folder in filter(_is_run, {place.parent for place in places}):
        try:
            return read_run(folder)
        except DataError as error:
            logger.warning("%s: left out: %s", model.name, error)
    return None


def _label(models: list[ModelResults]) -> None:
    """Set the labels: names without the leading folders that all models share."""
    parts = [Path(model.name).parts or (model.name,) for model in models]
    shared = 0
    while len(models) > 1 and all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    for style, (model, own) in enumerate(zip(models, parts, strict=True)):
        kept, model.style = own[shared:] if len(models) > 1 else own[-2:], style
        model.label = "/".join(part.strip("/") for part in kept) or model.name

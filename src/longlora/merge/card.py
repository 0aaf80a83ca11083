"""Model cards (`README.md`) of merged models and adapters: base, recipe and measurements."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData

from longlora import __version__
from longlora.models.directories import Extension
from longlora.rope.extend import describe_rope
from longlora.support.files import write_atomically
from longlora.support.wording import templates

_RECIPE = "recipe.yaml"
_OWN_PLACES = ("output_dir", "report_to", "run_name")  # describe the run, not the model


def write_card(directory: Path, *, adapter: Path, base: str, extension: Extension | None) -> None:
    """Write the card of the merged model in `directory`.

    The recipe is that of the run that contains `adapter`. The measurements are results of `longlora eval` for this
    adapter in the run's folder, at most two levels deep.
    """
    run, measured, recipe = adapter.resolve().parent, list[str](), ""
    if (run / _RECIPE).is_file():  # otherwise the files next to the adapter may belong to anything
        measured, recipe = _measured(run, adapter.resolve()), _recipe(run / _RECIPE)
    _write(directory, "merged", base, extension, measured=measured, recipe=recipe)


def write_adapter_card(directory: Path, extension: Extension) -> None:
    """Write the card of the adapter in `directory`, replacing PEFT's blank one, which shows the base's local path."""
    _write(directory, "adapter", extension.base_model, extension)


def _write(directory: Path, kind: str, base: str, extension: Extension | None, **values: object) -> None:
    is_on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()
    front_matter = ModelCardData(
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["longlora", "long-context"],
        base_model=base if is_on_hub else None,
    )
    template = templates("merge/templates").get_template(f"{kind}_card.md.j2")
    text = template.render(
        front_matter=front_matter.to_yaml(),
        base=base if is_on_hub else Path(base).name,
        is_on_hub=is_on_hub,
        extension=extension,
        positions=describe_rope(extension.rope_parameters) if extension else "",
        version=__version__,
        **values,
    )
    write_atomically(directory / "README.md", text)


def _measured(run: Path, adapter: Path) -> list[str]:
    lines = []
    for path in sorted([*run.glob("*/result.json"), *run.glob("*/*/result.json"), *run.glob("*/positions.json")]):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            model = Path(result.get("settings", result)["model"])
            # The path is as the user wrote it, perhaps relative to another folder: then compare the last two parts.
            if model.resolve() == adapter or model.parts[-2:] == adapter.parts[-2:]:
                name = result.get("test", "loss by position")
                lines.append(f"{name} ({result['provenance']['date'][:10]}): {result['verdict']}".replace("\n", "; "))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not a file of ours
            continue
    return lines


def _recipe(path: Path) -> str:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in _OWN_PLACES:
        values.pop(name, None)
    values.get("data", {}).pop("cache_dir", None)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

"""Model cards, `README.md`: what a merged model, or an adapter, was made of, how, and what was measured of it."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from longlora import __version__
from longlora.models.checkpoint import Extension
from longlora.rope import describe_rope

_RECIPE = "recipe.yaml"
# Where a run, and not a model, is described.
_OWN_PLACES = ("output_dir", "report_to", "run_name")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(directory: Path, *, adapter: Path, base: str, extension: Extension | None) -> None:
    """Describe the merged model in `directory`.

    The recipe is the one of the run that `adapter` lies in. What was measured are results of this adapter that
    `longlora eval` left in folders of that run, two deep at most.
    """
    run = adapter.resolve().parent
    parts = [_front_matter(base), f"# {_title(extension)}", _origin(base, extension)]
    if measured := _measured(run, adapter.resolve()):
        parts.append("## Measured\n\n" + "\n".join(measured))
    parts.append("## Use\n\n" + _USE)
    if recipe := _recipe(run):
        parts.append(f"## Recipe\n\n```yaml\n{recipe}```")
    (directory / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def write_adapter_card(directory: Path, extension: Extension) -> None:
    """Describe the adapter in `directory` in the place of PEFT's blank card, which names the base by its path."""
    base = extension.base_model
    kind = f"LoRA+ adapter (arXiv 2309.12307) that extends {_base_name(base)} to {extension.context_length:,} tokens"
    origin = [
        f"{_base_name(base)} reads {extension.base_context:,} tokens by itself. Positions: "
        f"{describe_rope(extension.rope_parameters)}; they are no part of an adapter, and whoever loads it has to set "
        f"them. Trained by longlora {__version__}.",
        "The base model's license applies.",
    ]
    if extension.quantization:
        origin.insert(1, f"It was trained on a base packed to {extension.quantization}.")
    grown = ""
    if extension.vocabulary_rows:
        grown = f"model.resize_token_embeddings({extension.vocabulary_rows}, mean_resizing=False)\n"
    use = _USE_ADAPTER.format(
        base=base if _is_hub_name(base) else "DIRECTORY OR HUB NAME OF THE BASE",
        rope_parameters=extension.rope_parameters,
        positions=extension.max_position_embeddings or extension.context_length,
        grown=grown,
    )
    parts = [_front_matter(base, library="peft"), f"# {kind}", "\n".join(origin), "## Use", use]
    (directory / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIRECTORY OR HUB NAME", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("DIRECTORY OR HUB NAME")
```

The configuration carries the extended positions; nothing has to be set to read the whole context."""

_USE_ADAPTER = """\
`longlora chat`, `longlora eval` and `longlora merge` take the adapter's directory and set everything. With PEFT alone:

```python
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

config = AutoConfig.from_pretrained("{base}")
config.get_text_config().rope_parameters = {rope_parameters}
config.get_text_config().max_position_embeddings = {positions}
model = AutoModelForCausalLM.from_pretrained("{base}", config=config, dtype="auto")
{grown}model = PeftModel.from_pretrained(model, "DIRECTORY OR HUB NAME")
tokenizer = AutoTokenizer.from_pretrained("DIRECTORY OR HUB NAME")
```"""


def _front_matter(base: str, *, library: str = "transformers") -> str:
    values: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["longlora", "long-context"],
    }
    if _is_hub_name(base):
        values["base_model"] = base
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _title(extension: Extension | None) -> str:
    if extension is None:
        return "Merged model"
    return f"{_base_name(extension.base_model)}, extended to {extension.context_length:,} tokens"


def _origin(base: str, extension: Extension | None) -> str:
    by = f"Merged by [longlora](https://arxiv.org/abs/2309.12307) {__version__}"
    if extension is None:
        return f"An adapter on {_base_name(base)}. {by}."
    lines = [
        f"{_base_name(extension.base_model)} reads {extension.base_context:,} tokens; this model was trained by "
        f"LongLoRA to read {extension.context_length:,} (positions: {describe_rope(extension.rope_parameters)}). {by}.",
        "The base model's license applies.",
    ]
    if extension.quantization:
        lines.insert(
            1, f"It was trained on a base packed to {extension.quantization}, and merged into the base itself."
        )
    return "\n".join(lines)


def _measured(run: Path, adapter: Path) -> list[str]:
    if not (run / _RECIPE).is_file():  # any folder, of which the neighbours say nothing about the adapter
        return []
    lines = []
    for path in sorted([*run.glob("*/result.json"), *run.glob("*/*/result.json"), *run.glob("*/positions.json")]):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            model = Path(result.get("settings", result)["model"])
            # As the user wrote it, perhaps from elsewhere: then the run's name has to do.
            if model.resolve() != adapter and model.parts[-2:] != adapter.parts[-2:]:
                continue
            name = result.get("test", "loss by position")
            lines.append(f"- {name} ({result['provenance']['date'][:10]}): {result['verdict']}".replace("\n", "; "))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a file of that name that is not ours
            continue
    return lines


def _recipe(run: Path) -> str:
    path = run / _RECIPE
    if not path.is_file():
        return ""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in _OWN_PLACES:
        values.pop(name, None)
    values.get("data", {}).pop("cache_dir", None)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _base_name(base: str) -> str:
    return base if _is_hub_name(base) else Path(base).name


def _is_hub_name(base: str) -> bool:
    return _HUB_NAME.fullmatch(base) is not None and not Path(base).exists()

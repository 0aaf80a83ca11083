"""A dry run: the recipe unchanged except for a random miniature of its model, short rows and few steps."""

import ast
import copy
import glob
import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from longlora.config import Recipe
from longlora.distributed import world_size
from longlora.models.load import load_config, model_source
from longlora.models.positions import readable_context
from longlora.planner.known_models import find_known_model
from longlora.support.files import whole_directory, write_atomically
from longlora.tiny import tiny_model_directory
from longlora.tiny.stdlib import standard_library_files

logger = logging.getLogger("longlora")

CONTEXT_LENGTH = 512  # tokens that every miniature is extended to
NUM_STEPS = 4
_HEAD_DIM = 16
_NUM_LAYERS = 2
_NUM_EXPERTS = 8
_NUM_DOCUMENTS = 40


def miniature_recipe(recipe: Recipe) -> Recipe:
    """Write a miniature of the recipe's model beside the output directory, and return the recipe that trains it.

    The miniature has its model's architecture, ratio of query heads to key-value heads and kind of positions, with two
    layers, at most eight experts, the tiny model's tokenizer and random weights. All token counts are divided by the
    same number, which keeps the extension factor; what is trained, how, and the strategy stay the same. A row is shared
    by no more processes than there are. If the recipe's data does not exist, source files of Python's standard library
    replace it, as texts or as documents with questions.

    Raises:
        CheckpointError: the model's configuration cannot be loaded.
    """
    if known := find_known_model(recipe.model_name_or_path):
        original = AutoConfig.for_model(**copy.deepcopy(known.config))
    else:
        name = model_source(recipe.model_name_or_path)
        original = load_config(name, trust_remote_code=recipe.trust_remote_code)
    base_context = recipe.rope.base_context or readable_context(original)
    group_size, interval = recipe.attention.group_size, recipe.attention.full_attention_interval
    is_windowed = "sliding_attention" in (getattr(original.get_text_config(), "layer_types", None) or ())
    shrink = recipe.context_length / CONTEXT_LENGTH
    output_dir = Path(f"{recipe.output_dir}-miniature")
    model_directory = output_dir / "model"
    output_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(output_dir / "model.lock"):  # several processes may get here at once
        if not model_directory.exists():
            with whole_directory(model_directory) as unfinished:
                config = _shrunk(original, shrink)
                _write_tokenizer(config, unfinished)
                torch.manual_seed(recipe.seed)
                AutoModelForCausalLM.from_config(config).save_pretrained(unfinished)
    changes = {
        "model_name_or_path": str(model_directory),
        "output_dir": str(output_dir / "run"),
        "context_length": CONTEXT_LENGTH,
        "max_steps": NUM_STEPS,
        "num_train_epochs": None,
        "save_steps": NUM_STEPS // 2,
        "warmup_steps": min(recipe.warmup_steps, 1),
        "gradient_accumulation_steps": min(recipe.gradient_accumulation_steps, 2),
        "sequence_parallel_size": math.gcd(recipe.sequence_parallel_size, world_size()),
    }
    sections: dict[str, dict[str, Any]] = {
        "rope": {"base_context": _divided(base_context, shrink)},
        "attention": {
            "group_size": group_size and _divided(group_size, shrink),
            "full_attention_interval": interval and (None if is_windowed else _NUM_LAYERS),
        },
        "data": _data(recipe, output_dir),
    }
    values = recipe.model_dump(exclude_unset=True)
    changed = {name: {**values.get(name, {}), **section} for name, section in sections.items()}
    return Recipe.model_validate({**values, **changes, **changed})


def _divided(count: int, shrink: float) -> int:
    return max(1, round(count / shrink))


def _data(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Return some of the recipe's own data if it is on this machine, otherwise files of the standard library."""
    data = recipe.data
    values: dict[str, Any] = {"max_documents": min(data.max_documents or _NUM_DOCUMENTS, _NUM_DOCUMENTS)}
    if not _is_here(data.source):
        logger.info("%s does not exist: the miniature uses Python's standard library", data.source)
        files = standard_library_files("train")[:_NUM_DOCUMENTS]
        source = str(_conversations(files, folder)) if data.kind == "sft" else [str(file) for file in files]
        values = {"source": source, "max_documents": None}
    if data.validation_source is not None and not _is_here(data.validation_source):
        values["validation_source"] = None
    return values


def _is_here(source: str | tuple[str, ...]) -> bool:
    return all(glob.glob(os.path.expanduser(name)) for name in ([source] if isinstance(source, str) else source))


def _conversations(files: list[Path], folder: Path) -> Path:
    """Write questions about modules of the standard library, answered by the first paragraph of their docstrings."""
    rows = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        about = ast.get_docstring(ast.parse(text))
        if about:
            question = f"Below is a Python module.\n{text}\nNow the module ends. What is it for?"
            rows.append({"instruction": question, "output": about.partition("\n\n")[0]})
    path = folder / "conversations.json"
    write_atomically(path, json.dumps(rows))
    return path


def _shrunk(original: PreTrainedConfig, shrink: float) -> PreTrainedConfig:
    text = copy.deepcopy(original.get_text_config())  # without the vision part, if there is one
    queries_per_kv = text.num_attention_heads // (text.num_key_value_heads or text.num_attention_heads)
    text.num_key_value_heads = 1 if queries_per_kv > 4 else 2
    text.num_attention_heads = queries_per_kv * text.num_key_value_heads
    text.hidden_size = text.num_attention_heads * _HEAD_DIM
    text.intermediate_size = 2 * text.hidden_size
    text.num_hidden_layers = _NUM_LAYERS
    values = text.to_dict()
    if values.get("moe_intermediate_size"):
        text.moe_intermediate_size = 2 * text.hidden_size
    for name in ("num_experts", "num_local_experts"):
        if values.get(name):
            setattr(text, name, min(values[name], _NUM_EXPERTS))
            text.num_experts_per_tok = min(text.num_experts_per_tok, _NUM_EXPERTS)
    if values.get("head_dim"):
        text.head_dim = _HEAD_DIM
    if kinds := values.get("layer_types"):
        last = len(kinds) - _NUM_LAYERS
        mixed = (first for first in range(last, -1, -1) if len(set(kinds[first : first + _NUM_LAYERS])) > 1)
        first = next(mixed, last)
        text.layer_types = kinds[first : first + _NUM_LAYERS]  # both kinds if there are two
    text.max_position_embeddings = _divided(text.max_position_embeddings, shrink)
    rope_parameters = copy.deepcopy(text.rope_parameters)
    for parameters in (rope_parameters, *rope_parameters.values()):  # for all layers, or by layer type
        if isinstance(parameters, dict) and "original_max_position_embeddings" in parameters:
            original_context = parameters["original_max_position_embeddings"]
            parameters["original_max_position_embeddings"] = _divided(original_context, shrink)
    text.rope_parameters = rope_parameters
    return text


def _write_tokenizer(config: PreTrainedConfig, directory: Path) -> None:
    """Write the tiny model's tokenizer, and fit the configuration to the tokenizer that loads beside it.

    Some model types (Qwen 2) have their own tokenizer class, which adds tokens.
    """
    AutoTokenizer.from_pretrained(tiny_model_directory()).save_pretrained(directory)
    config.save_pretrained(directory)
    tokenizer, text = AutoTokenizer.from_pretrained(directory), config.get_text_config()
    text.vocab_size = len(tokenizer)
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    text.pad_token_id = tokenizer.pad_token_id

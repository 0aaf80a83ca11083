"""What is wrong with a recipe's key, in one line that names the remedy."""

import difflib
from typing import Any

# What other tools call the same thing; used only for the hint.
ALIASES = {
    "base_model": ["model_name_or_path"],
    "model": ["model_name_or_path"],
    "sequence_len": ["context_length"],
    "max_seq_length": ["context_length"],
    "model_max_length": ["context_length"],
    "max_length": ["context_length"],
    "cutoff_len": ["context_length"],
    "shift_attn": ["attention.pattern"],
    "s2_attention": ["attention.pattern"],
    "use_full_attn": ["attention.pattern"],
    "low_rank_training": ["tuning"],
    "trainable_params": ["lora.trainable"],
    "modules_to_save": ["lora.trainable"],
    "lora_modules_to_save": ["lora.trainable"],
    "additional_target": ["lora.trainable"],
    "lora_r": ["lora.r"],
    "lora_rank": ["lora.r"],
    "lora_alpha": ["lora.lora_alpha"],
    "lora_dropout": ["lora.lora_dropout"],
    "lora_target": ["lora.target_modules"],
    "lora_target_modules": ["lora.target_modules"],
    "embedding_lr": ["embedding_learning_rate"],
    "loraplus_lr_embedding": ["embedding_learning_rate"],
    "tokens": ["new_tokens"],
    "add_tokens": ["new_tokens"],
    "resize_vocab": ["new_tokens"],
    "dataset": ["data.source"],
    "data_path": ["data.source"],
    "rope_scaling": ["rope.rope_type"],
    "rope_theta": ["rope.rope_theta"],
    "scaling_type": ["rope_type"],
    "scaling_factor": ["factor"],
    "bf16": ["dtype"],
    "fp16": ["dtype"],
    "load_in_4bit": ["quantization"],
    "quantization_bit": ["quantization"],
    "optimizer": ["optim"],
    "activation_checkpointing": ["gradient_checkpointing"],
    "offload_activations": ["activation_offloading"],
    "use_liger_kernel": ["chunked_loss"],
    "micro_batch_size": ["per_device_train_batch_size"],
    "num_epochs": ["num_train_epochs"],
    "epochs": ["num_train_epochs"],
    "val_dataset": ["data.validation_source"],
    "eval_dataset": ["data.validation_source"],
    "stage": ["data.kind"],
}


def explain(problem: Any, schema: Any) -> str:
    """Turn one of pydantic's error records, about a value of the model `schema`, into a line with key and remedy."""
    # pydantic names the kinds of value that it tried among the keys
    parts = [str(part) for part in problem["loc"]]
    location = [part for part in parts if part != "str" and not part.startswith(("tuple[", "function-"))]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(schema, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1) or ALIASES.get(location[-1], [])
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{key!r} is required"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{key}={problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _known_keys(schema: Any, sections: list[str]) -> list[str]:
    for section in sections:
        schema = schema.model_fields[section].annotation
    return list(schema.model_fields)

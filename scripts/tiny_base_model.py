"""Pretrain the tiny base model that is included in the package.

    torchrun --nproc-per-node 2 scripts/tiny_base_model.py OUTPUT_DIRECTORY
    torchrun --nproc-per-node 1 scripts/tiny_base_model.py OUTPUT_DIRECTORY --code-model MODEL   # the second phase only

A Llama of 1.8 million parameters and 256 tokens of context, trained in two phases: on the source code of Python's
standard library (`longlora/tiny/stdlib.py` is the data rule), then on the same code and on made-up documents with
questions (`longlora/demo/recall_text.py`), until it answers from what it reads (see `_pretraining.py`). Its tokenizer
is byte-level BPE.

An interrupted run resumes from its last checkpoint when started again. `pretraining.json` (settings, versions, losses)
and `loss.png` are written next to the model.
"""

import argparse
import json
import math
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from _pretraining import SEED, Phase, State, Texts, token_stream, train_phase
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longlora.tiny.stdlib import standard_library_files

CONTEXT_LENGTH = 256
VOCABULARY_SIZE = 2048
TOKENS_PER_STEP = 4096
PHASES = [Phase("code", 3000, 3e-3, 100, 0.2), Phase("recall", 1200, 2e-3, 20, 0.5, first_rows=128)]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: it can encode any text, splits digits, and starts documents with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = ["<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE,
            special_tokens=special_tokens,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_model() -> LlamaForCausalLM:
    """Build the model with random weights: 6 layers of width 160, 4 heads on 2 key-value heads, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=160,
            intermediate_size=352,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            attn_implementation="sdpa",
        )
    )


def pretrain(output: Path, code_model: Path | None) -> None:
    """Train from scratch, or from the checkpoint in `output`, and write the finished model into it."""
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    texts = {
        split: [path.read_text(encoding="utf-8", errors="replace") for path in standard_library_files(split)]
        for split in ("train", "validation")
    }
    phases = PHASES
    if code_model:
        phases = PHASES[1:]
        tokenizer = PreTrainedTokenizerFast.from_pretrained(code_model)
        model = LlamaForCausalLM.from_pretrained(code_model, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(texts["train"])
        model = build_model()
    source = Texts(
        tokenizer,
        texts["train"],
        context_length=CONTEXT_LENGTH,
        tokens_per_step=TOKENS_PER_STEP,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
    )
    validation = token_stream(texts["validation"], tokenizer)
    state = State(output / "checkpoint.pt")
    if code_model and (record := code_model.parent / "pretraining.json").exists():
        state.history = [entry for entry in json.loads(record.read_text())["history"] if entry["phase"] == "code"]
    if state.file.exists():
        state.load()
        model.load_state_dict(state.model)
    for phase in phases:
        train_phase(phase, model, source, validation, state)
    if dist.get_rank() == 0:
        model.save_pretrained(output / "model")
        tokenizer.save_pretrained(output / "model")
        write_record(output, state.history, source.num_tokens, sum(p.numel() for p in model.parameters()))


def write_record(output: Path, history: list[dict[str, Any]], num_train_tokens: int, num_parameters: int) -> None:
    """Write the training record next to the model, and plot its loss curve."""
    record = {
        "seed": SEED,
        "phases": [asdict(phase) for phase in PHASES],
        "tokens_per_step": TOKENS_PER_STEP,
        "tokens_of_code_available": num_train_tokens,
        "parameters": num_parameters,
        "validation_perplexity": math.exp(history[-1]["validation_loss"]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "history": history,
    }
    (output / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PHASES), figsize=(10, 4), layout="constrained")
    for axis, phase in zip(axes, PHASES, strict=True):
        entries = [entry for entry in history if entry["phase"] == phase.name]
        axis.plot([e["step"] for e in entries], [e["loss"] for e in entries], label="training", linewidth=1)
        measured = [entry for entry in entries if "validation_loss" in entry]
        axis.plot([e["step"] for e in measured], [e["validation_loss"] for e in measured], "o-", label="held-out files")
        axis.set(xlabel="step", ylabel="loss (nats)", title=f"Pretraining: {phase.name}")
    axes[0].legend()
    figure.savefig(output / "loss.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the tiny base model that ships with longlora.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--code-model", type=Path, help="start with the second phase, from this model of the first")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    pretrain(arguments.output, arguments.code_model)
    dist.destroy_process_group()

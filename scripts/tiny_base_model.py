"""Make the tiny base model that ships with the package.

    torchrun --nproc-per-node 2 scripts/tiny_base_model.py OUTPUT_DIRECTORY

A Llama of 1.8 million parameters and 256 tokens of context, trained on the source code of Python's standard library
(`longlora/tiny/stdlib.py` is the data rule). Byte-level BPE tokenizer; AdamW; constant learning rate with a linear
decay over the last fifth of the steps.

A run that was interrupted resumes from its last checkpoint when it is started again. Beside the model stand
`pretraining.json` (settings, versions, losses) and `loss.png`.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longlora.tiny.stdlib import standard_library_files

SEED = 0
CONTEXT_LENGTH = 256
VOCABULARY_SIZE = 2048
BATCH_SIZE = 16  # rows of CONTEXT_LENGTH tokens
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
DECAY_FRACTION = 0.2
WEIGHT_DECAY = 0.1  # on matrices; norms have none
STEPS_PER_REPORT = 50
STEPS_PER_CHECKPOINT = 500


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any text can be written, digits stand alone, BOS opens a document."""
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


def token_stream(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Tokenise documents and join them, each between BOS and EOS, to one row of token ids, shape (tokens,)."""
    ids = [[*document, tokenizer.eos_token_id] for document in tokenizer(texts)["input_ids"]]
    return torch.tensor([token for document in ids for token in document])


def training_batches(stream: Tensor, first_step: int) -> Iterator[Tensor]:
    """Yield batches (BATCH_SIZE, CONTEXT_LENGTH) for ever: each pass cuts the stream at a new offset and shuffles."""
    step, epoch = 0, 0
    while True:
        generator = torch.Generator().manual_seed(SEED + epoch)
        offset = int(torch.randint(CONTEXT_LENGTH, (1,), generator=generator))
        rows = stream[offset:].unfold(0, CONTEXT_LENGTH, CONTEXT_LENGTH)  # (rows, CONTEXT_LENGTH)
        order = torch.randperm(len(rows), generator=generator)
        for batch in order.split(BATCH_SIZE)[: len(rows) // BATCH_SIZE]:
            if step >= first_step:
                yield rows[batch]
            step += 1
        epoch += 1


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Warm up, stay, and decay linearly to zero over the last DECAY_FRACTION of the steps."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (num_steps - step) / (DECAY_FRACTION * num_steps))


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, stream: Tensor) -> float:
    """Mean loss in nats per token over the stream in rows of the context length."""
    rows = stream.unfold(0, CONTEXT_LENGTH, CONTEXT_LENGTH)  # (rows, CONTEXT_LENGTH)
    losses = [model(input_ids=batch, labels=batch).loss * len(batch) for batch in rows.split(32)]
    return float(torch.stack(losses).sum()) / len(rows)


def pretrain(output: Path, num_steps: int) -> None:
    """Train from scratch, or from the checkpoint in `output`, and write the finished model into it."""
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    texts = {
        split: [path.read_text(encoding="utf-8", errors="replace") for path in standard_library_files(split)]
        for split in ("train", "validation")
    }
    tokenizer = train_tokenizer(texts["train"])
    train, validation = (token_stream(texts[split], tokenizer) for split in ("train", "validation"))
    model = build_model()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        print(f"{num_parameters:,} parameters, {len(train):,} training and {len(validation):,} validation tokens")

    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, num_steps))

    checkpoint_file = output / "checkpoint.pt"
    history: list[dict[str, float]] = []
    first_step = 0
    if checkpoint_file.exists():
        checkpoint = torch.load(checkpoint_file, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        first_step, history = checkpoint["step"], checkpoint["history"]
        schedule.last_epoch = first_step - 1
        schedule.step()

    replica = DistributedDataParallel(model)
    losses: list[float] = []
    started = time.monotonic()
    for step, batch in enumerate(training_batches(train, first_step), start=first_step):
        if step == num_steps:
            break
        share = batch[rank::world_size]  # (BATCH_SIZE / world_size, CONTEXT_LENGTH)
        loss = replica(input_ids=share, labels=share, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        done = step + 1
        if rank > 0:
            continue
        losses.append(loss.item())
        if done % STEPS_PER_REPORT == 0 or done == num_steps:
            entry = {"step": done, "loss": sum(losses) / len(losses)}
            if done % STEPS_PER_CHECKPOINT == 0 or done == num_steps:
                entry["validation_loss"] = validation_loss(model, validation)
            history.append(entry)
            losses.clear()
            speed = (done - first_step) * BATCH_SIZE * CONTEXT_LENGTH / (time.monotonic() - started)
            print(json.dumps(entry), f"{speed:,.0f} tokens/s", flush=True)
        if done % STEPS_PER_CHECKPOINT == 0:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
                "history": history,
            }
            torch.save(state, checkpoint_file.with_suffix(".tmp"))
            os.replace(checkpoint_file.with_suffix(".tmp"), checkpoint_file)

    if rank > 0:
        return
    model.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    write_record(output, history, num_steps, num_parameters, len(train))


def write_record(
    output: Path, history: list[dict[str, float]], num_steps: int, num_parameters: int, num_train_tokens: int
) -> None:
    """Write what was trained and how beside the model, and draw its loss curve."""
    record = {
        "seed": SEED,
        "steps": num_steps,
        "tokens_per_step": BATCH_SIZE * CONTEXT_LENGTH,
        "training_tokens_available": num_train_tokens,
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

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([e["step"] for e in history], [e["loss"] for e in history], label="training", linewidth=1)
    measured = [e for e in history if "validation_loss" in e]
    axes.plot([e["step"] for e in measured], [e["validation_loss"] for e in measured], "o-", label="held-out files")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Pretraining of the tiny base model")
    axes.legend()
    figure.savefig(output / "loss.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the tiny base model that ships with longlora.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    pretrain(arguments.output, arguments.steps)
    dist.destroy_process_group()

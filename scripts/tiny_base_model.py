"""Pretrain the tiny base model that ships with the package.

    torchrun --nproc-per-node 2 scripts/tiny_base_model.py OUTPUT_DIRECTORY
    torchrun --nproc-per-node 1 scripts/tiny_base_model.py OUTPUT_DIRECTORY --code-model MODEL   # the second phase only

A Llama of 1.8 million parameters and 256 tokens of context, trained in two phases: on the source code of Python's
standard library (`longlora/tiny/stdlib.py` defines the data set), then on the same code and on synthetic documents with
questions (`longlora/demo/recall_text.py`), until it answers from what it reads. Byte-level BPE tokenizer; AdamW; in
each phase the learning rate warms up, stays constant, and decays linearly to zero.

An interrupted run resumes from its last checkpoint when started again. `pretraining.json` (settings, versions, losses)
and `loss.png` are written beside the model.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longlora.demo.recall_text import RecallText, vocabulary
from longlora.tiny.stdlib import standard_library_files

SEED = 0
CONTEXT_LENGTH = 256
VOCABULARY_SIZE = 2048
TOKENS_PER_STEP = 4096
WEIGHT_DECAY = 0.1  # on matrices; norms have none
RECALL_SHARE = 0.6  # of the rows of the second phase, and of its loss
OTHER_TEXT_WEIGHT = 0.1  # of text other than answers in synthetic documents, relative to answers
SHORT_ROWS_UNTIL = 0.5  # of the second phase: rows of half the context first, because nearby pairs are learned sooner
STEPS_PER_REPORT = 25
STEPS_PER_CHECKPOINT = 100


@dataclass(frozen=True)
class Phase:
    """A phase of pretraining, with its own optimizer."""

    name: str
    steps: int
    learning_rate: float
    warmup_steps: int
    decay_share: float
    """Share of the steps, at the end, over which the rate decays to zero."""

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        return min(1.0, (step + 1) / self.warmup_steps, (self.steps - step) / (self.decay_share * self.steps))


PHASES = [Phase("code", 3000, 3e-3, 100, 0.2), Phase("recall", 1200, 2e-3, 20, 0.5)]

Batch = tuple[Tensor, Tensor]
"""Token ids (rows, tokens), and loss weights of the same shape, which sum to one."""


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


def token_stream(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Tokenize documents, and join them, each between BOS and EOS, into one tensor of ids, shape (tokens,)."""
    ids = [[*document, tokenizer.eos_token_id] for document in tokenizer(texts)["input_ids"]]
    return torch.tensor([token for document in ids for token in document])


class Texts:
    """The batches of both phases; each depends only on its step and this process."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: list[str], rank: int, world_size: int) -> None:
        self._tokenizer = tokenizer
        self._stream = token_stream(texts, tokenizer)
        self._words = vocabulary(texts)
        self._rank, self._world_size = rank, world_size

    @property
    def num_tokens(self) -> int:
        """Number of tokens of code."""
        return len(self._stream)

    def code(self, step: int) -> Batch:
        """Return rows of code: each pass cuts the stream at a new offset and shuffles the rows."""
        batch_size = TOKENS_PER_STEP // CONTEXT_LENGTH
        steps_per_pass = (len(self._stream) - CONTEXT_LENGTH) // CONTEXT_LENGTH // batch_size
        epoch, place = divmod(step, steps_per_pass)
        generator = torch.Generator().manual_seed(SEED + epoch)
        offset = int(torch.randint(CONTEXT_LENGTH, (1,), generator=generator))
        rows = self._stream[offset:].unfold(0, CONTEXT_LENGTH, CONTEXT_LENGTH)  # (rows, CONTEXT_LENGTH)
        chosen = torch.randperm(len(rows), generator=generator)[place * batch_size : (place + 1) * batch_size]
        ids = rows[chosen[self._rank :: self._world_size]]
        return ids, torch.full(ids.shape, 1 / ids[:, 1:].numel())

    def recall(self, step: int) -> Batch:
        """Return rows of synthetic documents, plus rows of code to prevent forgetting."""
        short = step < SHORT_ROWS_UNTIL * PHASES[1].steps
        tokens = CONTEXT_LENGTH // 2 if short else CONTEXT_LENGTH
        num_rows = TOKENS_PER_STEP // tokens // self._world_size
        num_made_up = round(num_rows * RECALL_SHARE)
        generator = torch.Generator().manual_seed((SEED + step) * self._world_size + self._rank)
        starts = torch.randint(len(self._stream) - tokens, (num_rows - num_made_up,), generator=generator)
        code = torch.stack([self._stream[start : start + tokens] for start in starts.tolist()])
        made_up, kinds = self._made_up_rows(num_made_up, tokens, seed=step * self._world_size + self._rank)
        weights = [
            RECALL_SHARE * (_mean_weights(kinds == 1) + OTHER_TEXT_WEIGHT * _mean_weights(kinds == 0)),
            (1 - RECALL_SHARE) * _mean_weights(torch.ones_like(code, dtype=torch.bool)),
        ]
        return torch.cat([made_up, code]), torch.cat(weights)

    def _made_up_rows(self, count: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return rows of two documents, and for each token 1 (part of an answer), 0 (other text) or -1 (padding)."""
        source, tokenizer = RecallText(self._words, seed), self._tokenizer
        documents = [source.document(tokens) for _ in range(2 * count)]
        encoded = tokenizer(
            [document.text for document in documents], return_offsets_mapping=True, add_special_tokens=False
        )
        ids = torch.full((count, tokens), tokenizer.pad_token_id)
        kinds = torch.full((count, tokens), -1)
        places = [0] * count
        for number, document in enumerate(documents):
            row = number % count
            own = [tokenizer.bos_token_id, *encoded["input_ids"][number], tokenizer.eos_token_id]
            answers = [
                int(any(begin <= start and end <= stop for begin, stop in document.answers))
                for start, end in encoded["offset_mapping"][number]
            ]
            begin, end = places[row], min(places[row] + len(own), tokens)
            ids[row, begin:end] = torch.tensor(own[: end - begin])
            kinds[row, begin:end] = torch.tensor([0, *answers, 0][: end - begin])
            places[row] = end
        return ids, kinds


def _mean_weights(chosen: Tensor) -> Tensor:
    """Return weights that average over the chosen targets; a row's first token is not a target."""
    chosen = chosen.clone()
    chosen[:, 0] = False
    return chosen / chosen.sum().clamp(min=1)


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, stream: Tensor) -> float:
    """Return the mean loss in nats per token over the stream, in rows of the context length."""
    rows = stream.unfold(0, CONTEXT_LENGTH, CONTEXT_LENGTH)  # (rows, CONTEXT_LENGTH)
    losses = [model(input_ids=batch, labels=batch).loss * len(batch) for batch in rows.split(32)]
    return float(torch.stack(losses).sum()) / len(rows)


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
    source = Texts(tokenizer, texts["train"], dist.get_rank(), dist.get_world_size())
    validation = token_stream(texts["validation"], tokenizer)
    state = _State(output / "checkpoint.pt")
    if code_model and (record := code_model.parent / "pretraining.json").exists():
        state.history = [entry for entry in json.loads(record.read_text())["history"] if entry["phase"] == "code"]
    if state.file.exists():
        state.load()
        model.load_state_dict(state.model)
    for phase in phases:
        train_phase(phase, model, getattr(source, phase.name), validation, state)
    if dist.get_rank() == 0:
        model.save_pretrained(output / "model")
        tokenizer.save_pretrained(output / "model")
        write_record(output, state.history, source.num_tokens, sum(p.numel() for p in model.parameters()))


class _State:
    """The state of training, in memory and on disk."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.done: dict[str, int] = {}
        self.history: list[dict[str, Any]] = []
        self.model: dict[str, Tensor] = {}
        self.optimizer: dict[str, Any] = {}

    def load(self) -> None:
        for name, value in torch.load(self.file, weights_only=True).items():
            setattr(self, name, value)

    def save(self) -> None:
        values = {name: value for name, value in vars(self).items() if name != "file"}
        torch.save(values, self.file.with_suffix(".tmp"))
        os.replace(self.file.with_suffix(".tmp"), self.file)


def train_phase(
    phase: Phase, model: LlamaForCausalLM, batch_of: Callable[[int], Batch], validation: Tensor, state: _State
) -> None:
    """Train the remaining steps of a phase."""
    first_step = state.done.get(phase.name, 0)
    if first_step == phase.steps:
        return
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, 0.95))
    if first_step:
        optimizer.load_state_dict(state.optimizer)
    replica = DistributedDataParallel(model)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(first_step, phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * phase.rate_factor(step)
        ids, weights = batch_of(step)
        logits = replica(input_ids=ids, use_cache=False).logits[:, :-1]
        nats = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (nats * weights[:, 1:].flatten()).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        done = step + 1
        if dist.get_rank() > 0:
            continue
        if done % STEPS_PER_REPORT == 0 or done == phase.steps:
            entry: dict[str, Any] = {"phase": phase.name, "step": done, "loss": sum(losses) / len(losses)}
            if done == phase.steps or done % (5 * STEPS_PER_CHECKPOINT) == 0:
                entry["validation_loss"] = validation_loss(model, validation)
            state.history.append(entry)
            losses.clear()
            speed = (done - first_step) * TOKENS_PER_STEP / (time.monotonic() - started)
            print(json.dumps(entry), f"{speed:,.0f} tokens/s", flush=True)
        if done % STEPS_PER_CHECKPOINT == 0 or done == phase.steps:
            state.done[phase.name] = done
            state.model, state.optimizer = model.state_dict(), optimizer.state_dict()
            state.save()


def write_record(output: Path, history: list[dict[str, Any]], num_train_tokens: int, num_parameters: int) -> None:
    """Write the training record beside the model, and plot its loss curve."""
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

"""Resumable pretraining in phases: first on texts, then also on made-up documents with questions.

`tiny_base_model.py` makes the model included in the package in this way, `benchmarks/gpu/_base.py` a larger one. The
optimizer is AdamW; in each phase the learning rate warms up, stays constant, and decays linearly to zero.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from longlora.demo.recall_text import RecallText, vocabulary

SEED = 0
WEIGHT_DECAY = 0.1  # on matrices; norms have none
RECALL_SHARE = 0.6  # share of made-up documents in the rows of the second phase, and in its loss
OTHER_TEXT_WEIGHT = 0.1  # of text in made-up documents outside of answers, relative to answers
STEPS_PER_REPORT = 25
STEPS_PER_CHECKPOINT = 100

Batch = tuple[Tensor, Tensor]
"""Token ids (rows, tokens), and the weights of their losses, of the same shape; they add up to one."""


@dataclass(frozen=True)
class Phase:
    """A part of the pretraining, with its own optimizer."""

    name: str
    steps: int
    learning_rate: float
    warmup_steps: int
    decay_share: float
    """Share of the steps, at the end, over which the learning rate decays to zero."""
    first_rows: int = 0
    """Tokens of its first rows of made-up documents; they double up to the context in equal parts of the steps, as near
    pairs are learned sooner. 0 means a phase of code only."""

    def rate_factor(self, step: int) -> float:
        """Return the learning rate at a step, relative to its peak."""
        return min(1.0, (step + 1) / self.warmup_steps, (self.steps - step) / (self.decay_share * self.steps))

    def row_tokens(self, step: int, context_length: int) -> int:
        """Return the tokens of the rows at a step."""
        lengths = [context_length]
        while lengths[0] > self.first_rows > 0:
            lengths.insert(0, lengths[0] // 2)
        return lengths[step * len(lengths) // self.steps]


def token_stream(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Tokenize documents and join them, each between BOS and EOS, into one row of token ids, shape (tokens,)."""
    ids = [[*document, tokenizer.eos_token_id] for document in tokenizer(texts)["input_ids"]]
    return torch.tensor([token for document in ids for token in document])


class Texts:
    """The batches of all phases; each depends only on its step and on this process."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        texts: list[str],
        *,
        context_length: int,
        tokens_per_step: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.context_length, self.tokens_per_step = context_length, tokens_per_step
        self._tokenizer = tokenizer
        self._stream = token_stream(texts, tokenizer)
        self._words = vocabulary(texts)
        self._rank, self._world_size = rank, world_size

    @property
    def num_tokens(self) -> int:
        """Number of tokens of code."""
        return len(self._stream)

    def batch(self, phase: Phase, step: int) -> Batch:
        """Return the rows of a step of a phase."""
        return self._recall(step, phase.row_tokens(step, self.context_length)) if phase.first_rows else self._code(step)

    def _code(self, step: int) -> Batch:
        """Return rows of code; each pass cuts the stream at a new offset and shuffles."""
        tokens, batch_size = self.context_length, self.tokens_per_step // self.context_length
        steps_per_pass = (len(self._stream) - tokens) // tokens // batch_size
        epoch, place = divmod(step, steps_per_pass)
        generator = torch.Generator().manual_seed(SEED + epoch)
        offset = int(torch.randint(tokens, (1,), generator=generator))
        rows = self._stream[offset:].unfold(0, tokens, tokens)  # (rows, tokens)
        chosen = torch.randperm(len(rows), generator=generator)[place * batch_size : (place + 1) * batch_size]
        ids = rows[chosen[self._rank :: self._world_size]]
        return ids, torch.full(ids.shape, 1 / ids[:, 1:].numel())

    def _recall(self, step: int, tokens: int) -> Batch:
        """Return rows of made-up documents, and rows of code to prevent forgetting."""
        num_rows = self.tokens_per_step // tokens // self._world_size
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
def validation_loss(model: LlamaForCausalLM, stream: Tensor, context_length: int) -> float:
    """Return the mean loss in nats per token over the stream, in rows of the context length."""
    rows = stream.to(model.device).unfold(0, context_length, context_length)  # (rows, context_length)
    with computing_on(model.device):
        losses = [model(input_ids=batch, labels=batch).loss * len(batch) for batch in rows.split(32)]
    return float(torch.stack(losses).sum()) / len(rows)


def computing_on(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 on a GPU, in float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class State:
    """The state of the training, on disk and in memory."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.done: dict[str, int] = {}
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.model: dict[str, Tensor] = {}
        self.optimizer: dict[str, Any] = {}

    def load(self) -> None:
        """Read the checkpoint."""
        for name, value in torch.load(self.file, map_location="cpu", weights_only=True).items():
            setattr(self, name, value)

    def save(self) -> None:
        """Write the checkpoint."""
        values = {name: value for name, value in vars(self).items() if name != "file"}
        torch.save(values, self.file.with_suffix(".tmp"))
        os.replace(self.file.with_suffix(".tmp"), self.file)


@dataclass
class _Batches(Dataset):
    phase: Phase
    source: Texts

    def __getitem__(self, step: int) -> Batch:
        return self.source.batch(self.phase, step)


def train_phase(
    phase: Phase,
    model: LlamaForCausalLM,
    source: Texts,
    validation: Tensor,
    state: State,
    *,
    workers: int = 0,
    has_time: Callable[[], bool] = lambda: True,
) -> bool:
    """Train the remaining steps of a phase, as long as there is time; return whether all are done."""
    first_step = state.done.get(phase.name, 0)
    if first_step == phase.steps:
        return True
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, 0.95))
    if first_step:
        optimizer.load_state_dict(state.optimizer)
    replica = DistributedDataParallel(model) if dist.is_initialized() else model
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    losses: list[float] = []
    saved = time.monotonic()
    steps = range(first_step, phase.steps)
    batches = DataLoader(_Batches(phase, source), batch_size=None, sampler=steps, num_workers=workers)
    for done, (ids, weights) in enumerate(batches, first_step + 1):
        losses.append(_step(phase, done - 1, replica, optimizer, ids.to(model.device), weights.to(model.device)))
        if not is_main:
            continue
        is_last = done == phase.steps or not has_time()
        if done % STEPS_PER_REPORT == 0 or is_last:
            entry: dict[str, Any] = {"phase": phase.name, "step": done, "loss": sum(losses) / len(losses)}
            if done == phase.steps or done % (5 * STEPS_PER_CHECKPOINT) == 0:
                entry["validation_loss"] = validation_loss(model, validation, source.context_length)
            state.history.append(entry)
            losses.clear()
            print(json.dumps(entry), f"{state.seconds + time.monotonic() - saved:,.0f} s", flush=True)
        if done % STEPS_PER_CHECKPOINT == 0 or is_last:
            state.done[phase.name] = done
            state.seconds += time.monotonic() - saved
            saved = time.monotonic()
            state.model, state.optimizer = model.state_dict(), optimizer.state_dict()
            state.save()
        if is_last:
            return done == phase.steps
    return True


def _step(
    phase: Phase, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, weights: Tensor
) -> float:
    """Train one step; return its loss."""
    for group in optimizer.param_groups:
        group["lr"] = phase.learning_rate * phase.rate_factor(step)
    with computing_on(ids.device):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        nats = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    loss = (nats * weights[:, 1:].flatten()).sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()

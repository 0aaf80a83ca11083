"""Pretrain the base of the step `schedules`: a Llama that answers questions from what it reads in its own context.

The phases and the tokenizer are those of the tiny model (`scripts/_pretraining.py`): first texts only, then rounds in
which made-up documents with questions account for most of the loss. Their rows are short at first and double up to the
context, as a model learns to find near facts before far ones. Each round ends with questions to the model.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from _pretraining import SEED, Phase, State, Texts, token_stream, train_phase
from _session import DEVICE, Session, release_memory
from grid import ask_recall
from transformers import LlamaConfig, LlamaForCausalLM

from longlora.models.load import load_tokenizer, model_source
from longlora.tiny import TINY_MODEL

SOLVED = 0.9
"""Share of the questions that the base must answer."""
MARGIN_SECONDS = 15.0  # reserved in each call for the last step and the checkpoint
WORKERS = 8  # make rows, which takes one worker longer than a GPU needs for a step


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A base and its phases."""

    shape: dict[str, int]
    """Keys of its configuration."""
    context_length: int
    tokens_per_step: int
    texts: Phase
    recall: Phase
    """The first round; later ones begin with rows of the whole context."""
    trials: int = 20
    """Questions after each round."""

    def phases(self) -> Iterator[Phase]:
        """Yield the phases, endlessly."""
        yield self.texts
        yield self.recall
        for number in count(2):
            yield replace(self.recall, name=f"{self.recall.name} {number}", first_rows=self.context_length)


def pretrain(
    plan: Pretraining, files: dict[str, list[Path]], folder: Path, session: Session, *, seconds: float
) -> Path | None:
    """Train until the base answers, or until a round ends after `seconds` of all calls; return its directory.

    Return None if the time of this call ends first; another call resumes.
    """
    state = State(folder / "checkpoint.pt")
    if state.file.exists():
        state.load()
    finished = folder / "model"
    if _is_enough(state, seconds) and finished.exists():
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(finished, ignore_errors=True)  # of fewer rounds
    torch.manual_seed(SEED)
    tokenizer = load_tokenizer(model_source(TINY_MODEL))
    tokenizer.model_max_length = plan.context_length
    own = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=plan.context_length, **own, **plan.shape)
    model = LlamaForCausalLM(config).to(DEVICE)
    if state.model:
        model.load_state_dict(state.model)
    texts = {
        split: [path.read_text(encoding="utf-8", errors="replace") for path in paths] for split, paths in files.items()
    }
    lengths = {"context_length": plan.context_length, "tokens_per_step": plan.tokens_per_step}
    source = Texts(tokenizer, texts["train"], **lengths)
    validation = token_stream(texts["validation"], tokenizer)
    workers, num_tokens = WORKERS if DEVICE.type == "cuda" else 0, 0
    for phase in plan.phases():
        if _is_enough(state, seconds):
            break
        done = train_phase(
            *(phase, model, source, validation, state),
            workers=workers,
            has_time=lambda: session.seconds_left > MARGIN_SECONDS,
        )
        if not done:
            return None
        num_tokens += phase.steps * plan.tokens_per_step
        last = state.history[-1]
        if phase.first_rows and last["phase"] == phase.name and "recall" not in last:
            found = ask_recall(model.eval(), tokenizer, plan.context_length, 0.5, plan.trials)
            model.train()
            last["recall"] = found["generated"]
            state.save()
            numbers = {"parameters": model.num_parameters(), "tokens": num_tokens, "texts_tokens": source.num_tokens}
            session.write(f"pretraining: {phase.name}", **numbers, seconds=round(state.seconds, 1), **last)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "unfinished")
    (folder / "unfinished").rename(finished)
    del model, state
    release_memory()
    return finished


def _is_enough(state: State, seconds: float) -> bool:
    asked = [entry["recall"] for entry in state.history if "recall" in entry]
    return bool(asked) and (asked[-1] >= SOLVED or state.seconds >= seconds)

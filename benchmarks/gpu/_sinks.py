"""The step `real`: what S² does to a pretrained model before any training, with and without sink tokens.

Losses in nats a token over whole texts, no positions rescaled, so that only the pattern is tested; and the norm of the
gradient of what LoRA+ trains, for the first text, in bfloat16 (autocast, as in training) and in float32. Groups are a
quarter of the length. "rows of g" cuts all heads alike.
"""

import inspect
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _session import DEVICE, OutOfTime, Row, Session
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from longlora.attention import CutPoints, attend_in_segments, cut_points
from longlora.lora import add_adapter
from longlora.memory import keep_hidden_states_in
from longlora.model import load_config, load_tokenizer, load_weights

PATTERN = "ladder"
_cuts: list[CutPoints] = []
"""Of the forward pass at work."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pattern at one length."""

    dtype: str
    tokens: int
    pattern: str
    """`full`, `s2` or `rows of g`."""
    sink_tokens: int = 0

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.dtype} {self.tokens} {self.pattern} sink{self.sink_tokens}"


def cases(*, dry: bool) -> Iterator[Case]:
    """Give the cases; float32 last, for its gradients alone."""
    with_sinks = "sink_tokens" in inspect.signature(cut_points).parameters
    patterns = [("full", 0), ("s2", 0), *([("s2", 1), ("s2", 4)] if with_sinks else []), ("rows of g", 0)]
    lengths = (64, 128) if dry else (1024, 4096, 8192, 16384)
    for dtype in ("bfloat16", "float32"):
        for tokens in lengths if dtype == "bfloat16" else lengths[:2]:
            for pattern, sinks in patterns:
                yield Case(dtype=dtype, tokens=tokens, pattern=pattern, sink_tokens=sinks)


def run_real(session: Session, *, model: Path, texts: list[Path]) -> None:
    """Measure all cases; a model is loaded once for each dtype."""
    loaded: dict[str, PreTrainedModel] = {}
    ids = token_ids(model, texts)
    try:
        for case in cases(dry=session.dry):
            settings = {"model": model.name, "dtype": case.dtype, "tokens": case.tokens, "pattern": case.pattern}
            settings |= {"sink_tokens": case.sink_tokens}
            session.run(f"{model.name} {case.name}", settings, partial(measure, case, model, ids, loaded))
    except OutOfTime:
        print("time is up")


def token_ids(model: Path, texts: list[Path]) -> list[list[int]]:
    """Tokenise every .txt and .py file of the given files and folders, in the order of their names."""
    files = [file for text in texts for file in (sorted(text.rglob("*.txt")) if text.is_dir() else [text])]
    tokenizer = load_tokenizer(str(model))
    return [
        tokenizer(file.read_text(encoding="utf-8", errors="replace")[:200_000], verbose=False)["input_ids"]
        for file in files
    ]


def measure(case: Case, path: Path, ids: list[list[int]], loaded: dict[str, PreTrainedModel]) -> Row:
    """Average the loss over the texts that are long enough, and take the gradient's norm of the first."""
    if case.dtype not in loaded:
        loaded.clear()
        loaded[case.dtype] = _load(path, getattr(torch, case.dtype))
    model = loaded[case.dtype]
    rows = [row[: case.tokens] for row in ids if len(row) >= case.tokens][: 2 if case.tokens > 4096 else 4]
    if not rows:
        return {"error": "no text is long enough"}
    group = case.tokens // 4
    _cuts[:] = [_cut_points(case, group)]
    losses, late = [], []
    for number, row in enumerate(rows):
        tokens = torch.tensor([row], device=DEVICE)
        model.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(number == 0), torch.autocast(DEVICE.type, torch.bfloat16, case.dtype == "bfloat16"):
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
            each = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")  # (T - 1,)
        losses.append(float(each.mean()))
        late.append(float(each[group:].mean()))
        if number == 0:
            each.mean().backward()
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        del logits, each
    return {
        "texts": len(rows),
        "loss": round(statistics.mean(losses), 4),
        "loss_after_first_group": round(statistics.mean(late), 4),
        "losses": [round(loss, 4) for loss in losses],
        "gradient_norm": round(norm, 3),
    }


def _load(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    AttentionInterface.register(PATTERN, _attend)
    AttentionMaskInterface.register(PATTERN, lambda **_: None)
    config = load_config(str(path), trust_remote_code=False)
    model: Any = load_weights(str(path), config, dtype=dtype, attention=PATTERN).to(DEVICE)
    model = add_adapter(
        model, trainable=("embed", "norm"), r=8, lora_alpha=16, lora_dropout=0.0, target_modules="attention"
    )
    keep_hidden_states_in(model, dtype)
    return model.train()


def _cut_points(case: Case, group: int) -> CutPoints:
    if case.pattern == "rows of g":
        borders = torch.arange(0, case.tokens + 1, group).int()
        return cut_points(1, case.tokens, group_size=None, cu_seqlens=borders)
    sinks: dict[str, Any] = {"sink_tokens": case.sink_tokens} if case.sink_tokens else {}
    return cut_points(1, case.tokens, group_size=None if case.pattern == "full" else group, **sinks)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    output = attend_in_segments(query, key, value, _cuts[0], scale=scaling)  # (1, H, T, D)
    return output.transpose(1, 2).contiguous(), None  # (1, T, H, D)

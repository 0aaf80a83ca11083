"""Measure the effect of sink tokens on a pretrained model: its loss before training, and the benefit of training.

    python benchmarks/sink/grid.py MODEL --texts FOLDER                      # 1,024 tokens, groups of 256
    python benchmarks/sink/grid.py MODEL --texts FOLDER --tokens 8192        # groups are a quarter of the row
    python benchmarks/sink/grid.py MODEL --texts FOLDER --only before        # no training

FOLDER has …/train/ and …/validation/ with text files. Positions are not scaled and rows are within the model's context,
so that only the pattern is tested. Losses are in nats per token. "before" rows are the loss of held-out texts under
each pattern; "train" rows train LoRA or LoRA+ on the same rows in the same order under each pattern, and evaluate with
full attention. Rows go to results/ as JSON lines, each as soon as it is measured; started again, the grid resumes.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are imported
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "src")]

import _patterns  # noqa: E402
import _report  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import PreTrainedTokenizerBase  # noqa: E402

from longlora.evaluation.questions import TrialId  # noqa: E402
from longlora.evaluation.retrieval_tests import passkey as passkey_test  # noqa: E402
from longlora.models.load import load_tokenizer  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BEFORE = ["full", "rows", "rows sink4", "s2", "s2 sink1", "s2 sink4", "s2 sink16", "no shift sink1"]
BEFORE += ["s2 full3", "s2 sink1 full3", "s2 sink1 full6"]
TRAINED = ["full", "s2", "s2 sink1", "s2 sink4", "rows", "no shift sink1", "s2 sink1 full3", "s2 sink1 full6"]
TRAINED += ["s2 sink1 finish20", "rows full6"]
TUNINGS = ["lora", "lora+"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement of the grid."""

    kind: str
    """`before` or `train`."""
    tokens: int
    group_size: int
    pattern: str
    dtype: str = "bfloat16"
    """Of the weights; trained weights are float32, with autocast to this."""
    tuning: str = ""
    steps: int = 0
    learning_rate: float = 0.0
    seed: int = 0


def main() -> int:
    """Run the cells that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of most cells")
    parser.add_argument("--patterns", nargs="+", metavar="PATTERN", help="only these")
    parser.add_argument("--only", choices=["before", "train"])
    parser.add_argument("--tuning", choices=TUNINGS, help="train only this way")
    parser.add_argument("--no-gradient", action="store_true", help="only losses before training, of two texts")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no cell after so long")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    card = _report.device_name(DEVICE) if DEVICE.type == "cuda" else "cpu"
    file = arguments.out / f"{'-'.join(card.lower().split())}.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    origin = {"model": arguments.model.name, "card": card, "torch": torch.__version__, "commit": _report.commit()}
    texts = Texts(arguments.texts, load_tokenizer(str(arguments.model)))
    began = time.monotonic()
    for cell in cells(arguments):
        if cell.pattern not in (arguments.patterns or [cell.pattern]):
            continue
        values = {"model": arguments.model.name, **asdict(cell)}
        if any(row.items() >= values.items() for row in done):
            continue
        if time.monotonic() - began > arguments.seconds:
            print("time is up")
            break
        start = time.monotonic()
        if cell.kind == "before":
            numbers = before(cell, arguments.model, texts, with_gradient=not arguments.no_gradient)
        else:
            numbers = train(cell, arguments.model, texts)
        row = {**values, **numbers, "seconds": round(time.monotonic() - start, 1), **origin}
        row["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        print(json.dumps(values | numbers), flush=True)
    return 0


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells: first those without training, then all arms, seed by seed."""
    sizes = {"tokens": arguments.tokens, "group_size": arguments.tokens // 4}
    if arguments.only != "train":
        for pattern in BEFORE:
            yield Cell(kind="before", **sizes, pattern=pattern, dtype=arguments.dtype)
        for pattern in ("full", "s2", "s2 sink1") if arguments.dtype == "bfloat16" else ():
            yield Cell(kind="before", **sizes, pattern=pattern, dtype="float32")
    if arguments.only != "before":
        run = {"steps": arguments.steps, "learning_rate": arguments.learning_rate, "dtype": arguments.dtype}
        for seed in arguments.seeds:
            for tuning in [arguments.tuning] if arguments.tuning else TUNINGS:
                for pattern in TRAINED:
                    yield Cell(kind="train", **sizes, pattern=pattern, tuning=tuning, seed=seed, **run)


class Texts:
    """Rows of tokens from the texts of a folder."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._folder = folder
        self.tokenizer = tokenizer

    def rows(self, count: int, tokens: int, split: str, seed: int) -> Tensor:
        """Return `count` rows from the files of a split in turn, each from between an eighth and a half of the file."""
        files = sorted(file for file in self._folder.glob(f"*/{split}/*") if file.is_file())
        draws = random.Random(seed)
        rows = []
        for number in range(count):
            text = files[number % len(files)].read_text(encoding="utf-8")
            start = draws.randrange(len(text) // 8, len(text) // 2)
            row = self.tokenizer(text[start : start + 8 * tokens], verbose=False)["input_ids"][:tokens]
            assert len(row) == tokens, f"{files[number % len(files)]} is too short for {tokens} tokens"
            rows.append(row)
        return torch.tensor(rows, device=DEVICE)  # (count, tokens)


def before(cell: Cell, path: Path, texts: Texts, *, with_gradient: bool) -> dict[str, Any]:
    """Measure the loss under a pattern, and the gradient norm of LoRA+'s trained weights for the first text."""
    model = _patterns.load(path, getattr(torch, cell.dtype), DEVICE, tuning="lora+")
    rows = texts.rows(4, cell.tokens, "validation", seed=0)
    if cell.tokens > 1024 or not with_gradient:
        rows = rows[::2]  # two texts only, to save time: a book and a paper
    losses = judge(model, rows, cell, cell.pattern)
    measured = {
        "loss": _mean(losses),
        "loss_after_first_group": _mean(losses[:, cell.group_size :]),
        "losses": [_mean(row) for row in losses],
    }
    if not with_gradient or (DEVICE.type == "cpu" and cell.tokens > 1024):
        return measured  # there the gradient takes 20 GB of memory
    _patterns.follow(cell.pattern, cell.tokens, cell.group_size)
    _patterns.token_losses(model, rows[:1], _autocast(cell)).mean().backward()
    return measured | {"gradient_norm": round(_patterns.gradient_norm(model), 3)}


def train(cell: Cell, path: Path, texts: Texts) -> dict[str, Any]:
    """Train with one row per step, 5 warm-up steps and cosine decay; embeddings and norms at a tenth of the rate."""
    torch.manual_seed(cell.seed)
    model = _patterns.load(path, getattr(torch, cell.dtype), DEVICE, tuning=cell.tuning)
    held_out = texts.rows(6, cell.tokens, "validation", seed=0)
    rows = texts.rows(64, cell.tokens, "train", seed=1 + cell.seed)
    optimizer = _optimizer(model, cell.learning_rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    own = [_mean(judge(model, held_out, cell, cell.pattern))]
    order = random.Random(3 + cell.seed)
    norms, losses = [], []
    for step in range(cell.steps):
        factor = min(1, (step + 1) / 5) * (0.5 + 0.5 * math.cos(math.pi * step / cell.steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        _patterns.follow(cell.pattern, cell.tokens, cell.group_size, progress=step / cell.steps)
        row = rows[[order.randrange(len(rows))]]
        loss = _patterns.token_losses(model, row, _autocast(cell)).mean()
        loss.backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norms.append(round(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)), 3))
        losses.append(round(loss.item(), 4))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = judge(model, held_out, cell, "full")
    own.append(_mean(judge(model, held_out, cell, cell.pattern)))
    return {
        "loss_full_attention": _mean(after),
        "loss_full_attention_after_first_group": _mean(after[:, cell.group_size :]),
        "losses_full_attention": [_mean(row) for row in after],
        "loss_own_pattern": own,
        "gradient_norms": norms,
        "training_losses": losses,
        "passkey": passkey(model, texts.tokenizer, cell),
    }


def _optimizer(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [{"params": [parameter for name, parameter in trained if "lora_" in name], "lr": rate}]
    if whole := [parameter for name, parameter in trained if "lora_" not in name]:
        groups.append({"params": whole, "lr": rate / 10})
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)


@torch.no_grad()
def judge(model: torch.nn.Module, rows: Tensor, cell: Cell, pattern: str) -> Tensor:
    """Return the loss of each token of each row under a pattern: (rows, tokens - 1)."""
    _patterns.follow(pattern, cell.tokens, cell.group_size)
    return torch.cat([_patterns.token_losses(model, row[None], _autocast(cell)) for row in rows])


@torch.no_grad()
def passkey(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, cell: Cell, trials: int = 10) -> float:
    """Return the share of passkeys of which every token is the likeliest after the prompt and the preceding tokens."""
    test, right = passkey_test(chat=False), 0
    for number in range(trials):
        trial = TrialId("passkey", cell.tokens, depth=number / (trials - 1), number=number, seed=number)
        question = test.ask(tokenizer, trial)
        answer = tokenizer(f" {question.expected[0]}", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*question.input_ids, *answer]], device=DEVICE)
        _patterns.follow("full", ids.shape[1], cell.group_size)
        likeliest = _patterns.likeliest_tokens(model, ids, _autocast(cell), count=len(answer))
        right += likeliest == answer
    return right / trials


def _autocast(cell: Cell) -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=cell.dtype == "bfloat16")


def _mean(losses: Tensor) -> float:
    return round(float(losses.mean()), 4)


if __name__ == "__main__":
    sys.exit(main())

"""Which tokens a model reads at once, and what the scored ones cost it, in nats, given those before them.

sliding_windows      every token is scored once (Press et al. 2021; the paper, section 4.1)
full_windows         every window is scored whole, most tokens many times (what the original's eval.py does)
windows_at_length    the same targets at every length, so that context is all that differs
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longlora.errors import CheckpointError, DataError
from longlora.evaluation.logits import Model, logits_in_pieces, vocabulary_size
from longlora.support.progress import progress_bar

T = TypeVar("T")


class Window(NamedTuple):
    """Tokens [start, end) of a document, the last `num_targets` of which are scored."""

    document: int
    start: int
    end: int
    num_targets: int


def sliding_windows(document_lengths: Sequence[int], *, window: int, stride: int) -> list[Window]:
    """Cut each document into windows that score every token but its first exactly once.

    The first window scores all it can, later ones the `stride` tokens that are new; the last is moved back to be full.
    A window cannot score its own first token, so `stride == window` moves by `window - 1`: neighbours share a token.
    """
    windows = []
    for document, length in enumerate(document_lengths):
        end, scored = min(window, length), 1
        while scored < length:
            windows.append(Window(document, max(0, end - window), end, end - scored))
            end, scored = min(end + min(stride, window - 1), length), end
    return windows


def full_windows(document_lengths: Sequence[int], *, window: int, stride: int) -> list[Window]:
    """Cut each document into windows that start every `stride` tokens, are full, and score all they can."""
    return [
        Window(document, start, start + window, window - 1)
        for document, length in enumerate(document_lengths)
        for start in range(0, length - window + 1, stride)
    ]


def windows_at_length(document_lengths: Sequence[int], *, length: int, longest: int, stride: int) -> list[Window]:
    """Cut windows of `length` tokens that end at `longest`, `longest + stride`, … and score their last `stride`."""
    return [
        Window(document, end - length, end, stride)
        for document, document_length in enumerate(document_lengths)
        for end in range(longest, document_length + 1, stride)
    ]


def usual_stride(shortest: int) -> int:
    """256 tokens as in the paper, or half of the shortest length where that is less."""
    return max(1, min(256, shortest // 2))


def evenly_spread(windows: Sequence[Window], count: int) -> list[Window]:
    """Choose `count` windows (all, if there are fewer): the middle ones of `count` equal parts of the list."""
    count = min(count, len(windows))
    return [windows[(2 * part + 1) * len(windows) // (2 * count)] for part in range(count)]


def batches(windows: Iterable[Window], batch_size: int) -> Iterator[list[Window]]:
    """Yield batches of one shape each: none needs padding. The largest come first: memory runs out early or never."""
    of_shape: dict[tuple[int, int], list[Window]] = {}
    for window in windows:
        of_shape.setdefault((window.end - window.start, window.num_targets), []).append(window)
    for _, group in sorted(of_shape.items(), reverse=True):
        yield from (group[first : first + batch_size] for first in range(0, len(group), batch_size))


Document: TypeAlias = Sequence[int] | Tensor | np.ndarray


def token_arrays(model: Model, documents: Iterable[Document]) -> list[np.ndarray]:
    """Check that documents are rows of this model's token ids; an array stays what it is, memory-mapped or not.

    Raises:
        DataError: a document is empty or not made of the model's token ids, or there is none.
    """
    tokens = []
    for index, document in enumerate(documents):
        ids = np.asarray(document.cpu() if isinstance(document, Tensor) else document)
        if ids.shape == (0,):
            raise DataError(f"Document {index} has no tokens; leave it out.")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataError(
                f"Document {index} must be a row of token ids, not a {type(document).__name__} of shape {ids.shape} "
                f'and {ids.dtype}: tokenise text first, pass data_set["input_ids"] for a data set, [ids] for one '
                "document."
            )
        check_ids(ids, vocabulary_size(model), f"Document {index}")
        tokens.append(ids)
    if not tokens:
        raise DataError("Nothing to score: there are no documents.")
    return tokens


def check_ids(ids: np.ndarray, vocabulary_size: int, what: str) -> None:
    """Refuse token ids that a vocabulary does not have; `what` names their owner.

    Raises:
        DataError: there is one.
    """
    for first in range(0, len(ids), 1 << 20):  # of a file of billions no more is in memory
        part = ids[first : first + (1 << 20)]
        foreign = np.flatnonzero((part < 0) | (part >= vocabulary_size))
        if foreign.size:
            raise DataError(
                f"{what} has token id {part[foreign[0]]} at position {first + foreign[0]}, the model knows 0 to "
                f"{vocabulary_size - 1}: tokenise with the model's own tokenizer."
            )


def joined(documents: Sequence[Document]) -> list[np.ndarray]:
    """Put documents one after another into one stream."""
    if len(documents) == 1:
        return [np.asarray(documents[0])]
    return [np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])]


def token_digest(documents: Iterable[Document]) -> str:
    """Digest of documents and their boundaries, to see whether two models read the same tokens."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(np.asarray(document, dtype=np.int64).tobytes() + b"|")
    return digest.hexdigest()[:16]


def check_longest(tokens: Sequence[np.ndarray], name: str, needed: int) -> None:
    """Refuse documents of which none has `needed` tokens; `name` is what asks for so many.

    Raises:
        DataError: all are shorter.
    """
    longest = max(map(len, tokens))
    if longest < needed:
        raise DataError(
            f"At least one document must have {name} = {needed} tokens, the longest has {longest}: give longer "
            f"documents or set {name} to {longest} or less."
        )


def score_windows(
    model: Model,
    tokens: Sequence[np.ndarray],
    windows: Sequence[Window],
    per_batch: Callable[[Tensor], T],
    *,
    batch_size: int,
    description: str,
    progress: bool,
) -> list[T]:
    """Read windows in batches of one shape, and return what `per_batch` makes of each batch's losses.

    Those are in nats, (B, num_targets) in float64 on the CPU.

    Raises:
        CheckpointError: the model produces NaN.
    """
    results, total, count = list[T](), 0.0, 0
    with evaluation_mode(model), progress_bar(description, total=len(windows), progress=progress) as advance:
        for batch in batches(windows, batch_size):
            nats = _nats_of_targets(model, tokens, batch)
            results.append(per_batch(nats))
            total, count = total + nats.sum().item(), count + nats.numel()
            advance(len(batch), f"windows, perplexity {exp(total / count):.2f}")
    return results


def exp(loss: float) -> float:
    """Turn a loss into a perplexity, infinite where `math.exp` would raise."""
    return math.exp(loss) if loss < 709 else math.inf


def _nats_of_targets(model: Model, tokens: Sequence[np.ndarray], batch: Sequence[Window]) -> Tensor:
    rows = [tokens[window.document][window.start : window.end].astype(np.int64) for window in batch]
    input_ids, num_targets = torch.from_numpy(np.stack(rows)), batch[0].num_targets  # (B, T)
    rows_of = logits_in_pieces(model, input_ids, num_rows=num_targets)
    nats = []
    for index, (window, targets) in enumerate(zip(batch, input_ids[:, -num_targets:], strict=True)):
        losses, done = list[Tensor](), 0
        for logits in rows_of(index):  # (piece, V)
            part = targets[done : done + len(logits)].to(logits.device)
            losses.append(F.cross_entropy(logits.float(), part, reduction="none"))
            done += len(logits)
        assert done == num_targets
        nats.append(torch.cat(losses).cpu().double())  # (num_targets,), on the CPU, because MPS has no float64
        if math.isnan(nats[-1].sum().item()):
            where = f"tokens {window.start} to {window.end - 1} of document {window.document}"
            raise CheckpointError(f"The model produced NaN on {where}: load it in bfloat16 or float32, or mend it.")
    return torch.stack(nats)


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Evaluate without gradients and without dropout, and give every module its mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: a tensor the model keeps from here, such as a RoPE buffer, could not serve training then.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True  # and not model.train(), which would switch modules that were in eval mode

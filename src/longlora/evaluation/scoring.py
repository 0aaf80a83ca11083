"""Cut documents into windows, and compute the loss in nats of the scored tokens given the tokens before them.

sliding_windows      score every token once (Press et al. 2021; the paper, section 4.1)
full_windows         score whole windows, and most tokens many times (as the original's eval.py)
windows_at_length    score the same targets at every length, so that only the context differs
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
    A window cannot score its own first token, so `stride == window` moves by `window - 1`: adjacent windows share one
    token.
    """
    windows = []
    for document, length in enumerate(document_lengths):
        end, scored = min(window, length), 1
        while scored < length:
            windows.append(Window(document, max(0, end - window), end, end - scored))
            end, scored = min(end + min(stride, window - 1), length), end
    return windows


def full_windows(document_lengths: Sequence[int], *, window: int, stride: int) -> list[Window]:
    """Cut each document into full windows that start every `stride` tokens and score all they can."""
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


def usual_lengths(context: int) -> list[int]:
    """Return an eighth, a quarter, a half and the whole of a context length."""
    return [context // 8, context // 4, context // 2, context]


def usual_stride(shortest: int) -> int:
    """Return 256 tokens as in the paper, or half of the shortest length if that is less."""
    return max(1, min(256, shortest // 2))


def evenly_spread(windows: Sequence[Window], count: int) -> list[Window]:
    """Choose `count` windows (all if there are fewer): the middle window of each of `count` equal parts of the list."""
    count = min(count, len(windows))
    return [windows[(2 * part + 1) * len(windows) // (2 * count)] for part in range(count)]


def batches(windows: Iterable[Window], batch_size: int) -> Iterator[list[Window]]:
    """Yield batches of equal shape, which need no padding, the largest first: memory runs out early or never."""
    of_shape: dict[tuple[int, int], list[Window]] = {}
    for window in windows:
        of_shape.setdefault((window.end - window.start, window.num_targets), []).append(window)
    for _, group in sorted(of_shape.items(), reverse=True):
        yield from (group[first : first + batch_size] for first in range(0, len(group), batch_size))


TokenIds: TypeAlias = Sequence[int] | Tensor | np.ndarray


def token_arrays(model: Model, documents: Iterable[TokenIds]) -> list[np.ndarray]:
    """Convert documents to arrays (memory-mapped ones stay so), checking that they hold this model's token ids.

    Raises:
        DataError: a document is empty or has ids outside the vocabulary, or there is none.
    """
    tokens = []
    for index, document in enumerate(documents):
        ids = np.asarray(document.cpu() if isinstance(document, Tensor) else document)
        if ids.shape == (0,):
            raise DataError(f"Document {index} has no tokens; leave it out.")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataError(
                f"Document {index} must be a row of token ids, not a {type(document).__name__} of shape {ids.shape} "
                f'and {ids.dtype}: tokenize text first, pass data_set["input_ids"] for a data set, [ids] for one '
                "document."
            )
        check_ids(ids, vocabulary_size(model), f"Document {index}")
        tokens.append(ids)
    if not tokens:
        raise DataError("Nothing to score: there are no documents.")
    return tokens


def check_ids(ids: np.ndarray, vocabulary_size: int, what: str) -> None:
    """Check that token ids are in the vocabulary; `what` names their owner in the error.

    Raises:
        DataError: an id is not.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= vocabulary_size):  # no copy: a file may have billions of ids
        place = np.argmax((ids < 0) | (ids >= vocabulary_size))
        raise DataError(
            f"{what} has token id {ids[place]} at position {place}, but the model knows 0 to {vocabulary_size - 1}: "
            "tokenize with the model's own tokenizer."
        )


def joined(documents: Sequence[TokenIds]) -> list[np.ndarray]:
    """Concatenate documents into one stream."""
    if len(documents) == 1:
        return [np.asarray(documents[0])]
    return [np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])]


def token_digest(documents: Iterable[TokenIds]) -> str:
    """Return a digest of documents and their boundaries, to check whether two models read the same tokens."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(np.asarray(document, dtype=np.int64).tobytes() + b"|")
    return digest.hexdigest()[:16]


def check_longest(tokens: Sequence[np.ndarray], name: str, needed: int) -> None:
    """Check that a document has at least `needed` tokens; `name` is the argument that requires them.

    Raises:
        DataError: all are shorter.
    """
    longest = max(map(len, tokens))
    if longest < needed:
        raise DataError(
            f"At least one document must have {name} = {needed} tokens, but the longest has {longest}: give longer "
            f"documents or set {name} to {longest} or less."
        )


def target_losses(
    model: Model,
    tokens: Sequence[np.ndarray],
    *,
    length: int,
    longest: int,
    stride: int,
    max_targets: int | None = None,
    batch_size_tokens: int = 8192,
    description: str = "",
    show_progress: bool = True,
) -> Tensor:
    """Return the loss of each target in nats given `length - stride` to `length - 1` tokens: (windows, stride).

    The targets are the same at every length (`windows_at_length`), and one document at least must have `longest`
    tokens. `max_targets` limits their number; the windows are then spread evenly. A forward pass reads
    `batch_size_tokens`, at least one window.

    Raises:
        CheckpointError: the model produces NaN.
    """
    windows = windows_at_length([len(document) for document in tokens], length=length, longest=longest, stride=stride)
    if max_targets is not None:
        windows = evenly_spread(windows, max(1, max_targets // stride))
    batches = score_windows(
        model,
        tokens,
        windows,
        lambda nats: nats,
        batch_size=max(1, batch_size_tokens // length),
        description=f"{description} {length} tokens".lstrip(),
        show_progress=show_progress,
    )
    return torch.cat(batches)


def score_windows(
    model: Model,
    tokens: Sequence[np.ndarray],
    windows: Sequence[Window],
    per_batch: Callable[[Tensor], T],
    *,
    batch_size: int,
    description: str,
    show_progress: bool,
) -> list[T]:
    """Score windows in batches of equal shape, and return `per_batch` of each batch's losses.

    The losses are in nats, (B, num_targets) in float64 on the CPU.

    Raises:
        CheckpointError: the model produces NaN.
    """
    results, total, count = list[T](), 0.0, 0
    with evaluation_mode(model), progress_bar(description, total=len(windows), show_progress=show_progress) as advance:
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
            raise CheckpointError(
                f"The model produced NaN on {where}: load it in bfloat16 or float32, or repair its weights."
            )
    return torch.stack(nats)


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Evaluate without gradients and dropout, and restore the mode of every module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: a tensor that the model keeps, such as a RoPE buffer, could not be used in training later.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True  # not model.train(), which would also switch modules that were in eval mode

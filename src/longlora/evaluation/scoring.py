"""Which tokens a model reads at once, and what the scored ones cost it, in nats, given those before them.

sliding_windows      every token is scored once (Press et al. 2021; the paper, section 4.1)
full_windows         every window is scored whole, most tokens many times (what the original's eval.py does)
windows_at_length    the same targets at every length, so that context is all that differs
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longlora.errors import CheckpointError, DataError
from longlora.evaluation.logits import Model, base_model, logits_in_pieces


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
    vocabulary_size = base_model(model).config.get_text_config().vocab_size
    tokens = [_token_array(index, document, vocabulary_size) for index, document in enumerate(documents)]
    if not tokens:
        raise DataError("Nothing to score: there are no documents.")
    return tokens


def _token_array(index: int, document: Document, vocabulary_size: int) -> np.ndarray:
    ids = np.asarray(document.cpu() if isinstance(document, Tensor) else document)
    if ids.shape == (0,):
        raise DataError(f"Document {index} has no tokens; leave it out.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(
            f"Document {index} must be a row of token ids, not a {type(document).__name__} of shape {ids.shape} and "
            f'{ids.dtype}: tokenise text first, pass data_set["input_ids"] for a data set, [ids] for one document.'
        )
    foreign = np.flatnonzero((ids < 0) | (ids >= vocabulary_size))
    if foreign.size:
        raise DataError(
            f"Document {index} has token id {ids[foreign[0]]} at position {foreign[0]}, the model knows 0 to "
            f"{vocabulary_size - 1}: tokenise with the model's own tokenizer."
        )
    return ids


def window_tokens(tokens: Sequence[np.ndarray], batch: Sequence[Window]) -> Tensor:
    """Read the windows of a batch, all of one length T, into int64 of shape (B, T)."""
    rows = [tokens[window.document][window.start : window.end].astype(np.int64) for window in batch]
    return torch.from_numpy(np.stack(rows))


def nats_of_targets(model: Model, tokens: Sequence[np.ndarray], batch: Sequence[Window]) -> Tensor:
    """Return the negative log-likelihood of each target, (B, num_targets) in float64 on the CPU.

    The windows have one shape. Logits are made and used 1,024 rows at a time, where `logits_in_pieces` can do so.

    Raises:
        CheckpointError: the model produces NaN.
    """
    num_targets = batch[0].num_targets
    input_ids = window_tokens(tokens, batch)  # (B, T)
    rows_of = logits_in_pieces(model, input_ids, num_rows=num_targets)
    nats = []
    for index, (window, targets) in enumerate(zip(batch, input_ids[:, -num_targets:], strict=True)):
        losses, done = list[Tensor](), 0
        for rows in rows_of(index):  # (piece, V)
            part = targets[done : done + len(rows)].to(rows.device)
            losses.append(F.cross_entropy(rows.float(), part, reduction="none"))
            done += len(rows)
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

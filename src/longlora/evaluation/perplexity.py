"""Perplexity of a causal language model at a context length, on documents that are already tokenised.

A window is a run of tokens that the model reads from scratch; its last tokens are scored, each given the ones before it
in the window. The protocols differ in nothing but the list of windows, which is plain arithmetic:

    sliding_windows      every token is scored once (Press et al. 2021; the paper, section 4.1)
    full_windows         every window is scored whole, most tokens many times (what the original's eval.py does)
    windows_at_length    the same targets at every length, so that context is all that differs
"""

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedModel

from longlora.errors import CheckpointError, ConfigError, DataError

Model: TypeAlias = PreTrainedModel | PeftModel
Document: TypeAlias = Sequence[int] | Tensor | np.ndarray

# Rows of logits in float32 at a time: 1024 of a 128k vocabulary are 0.5 GB; a whole window of 100k tokens, 50 GB.
LOGIT_ROWS_PER_CHUNK = 1024


class Window(NamedTuple):
    """Tokens [start, end) of a document, the last `num_targets` of which are scored."""

    document: int
    start: int
    end: int
    num_targets: int


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """`exp(loss)`, the loss a mean over scored tokens of equal weight.

    `standard_error` is that of `loss` over windows, weighted by their tokens (ratio estimator): with S_i nats on n_i
    tokens in window i of k, `sqrt(sum((S_i - loss * n_i)**2) * k / (k - 1)) / sum(n_i)`. Windows are taken as
    independent: it is somewhat too small for neighbours, and far too small where windows score the same tokens
    (`score="all"`). NaN for one window.
    """

    perplexity: float
    loss: float  # nats per token
    num_tokens: int  # scored; twice if in two windows
    num_windows: int
    standard_error: float  # nats per token

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the fields for JSON, which has no NaN and no infinity: they become None."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


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


def perplexity(
    model: Model,
    documents: Iterable[Document],
    *,
    window: int,
    stride: int,
    score: Literal["new", "all"] = "new",
    across_documents: bool = False,
    batch_size: int = 1,
    max_windows: int | None = None,
    progress: bool = True,
) -> Perplexity:
    """Measure the perplexity of documents read through a window of `window` tokens that moves by `stride`.

    `score="new"` scores a token once, with `window - stride` to `window - 1` tokens before it (fewer at a document's
    start). `score="all"`, with `stride=256` and `across_documents=True` (one joined stream), is the original's
    protocol: half a window before a token on average. But its eval.py takes the mean of batch means, however short the
    last batch, and drops the last one or two windows that fit; here tokens weigh the same and all windows count.

    At most `max_windows` are read, spread evenly. A window with n targets needs n + 1 rows of logits in memory.

    Raises:
        ConfigError: an argument is out of its range.
        DataError: a document is empty or not made of this model's token ids, or no document gives a window.
        CheckpointError: the model produces NaN.
    """
    _check_at_least(1, stride=stride, batch_size=batch_size, max_windows=1 if max_windows is None else max_windows)
    tokens = _token_tensors(model, documents)
    if across_documents:
        tokens = [torch.cat(tokens)]
    windows = _windows_of_protocol([len(document) for document in tokens], window=window, stride=stride, score=score)
    windows = evenly_spread(windows, max_windows or len(windows))
    return _score(model, tokens, windows, batch_size=batch_size, progress=progress, description="perplexity")


def perplexity_by_length(
    model: Model,
    documents: Iterable[Document],
    *,
    lengths: Sequence[int],
    stride: int,
    batch_size_tokens: int = 8192,
    max_targets: int | None = None,
    progress: bool = True,
    description: str = "",
) -> dict[int, Perplexity]:
    """Measure the perplexity of the same targets at several context lengths, the shortest length first.

    At length L a target has L - stride to L - 1 tokens before it. Documents below `max(lengths)` tokens are left out.
    A forward pass reads `batch_size_tokens`, at least a window. `max_targets` is kept by taking windows evenly.

    Raises:
        ConfigError, DataError, CheckpointError: as `perplexity`; DataError if no document is long enough.
    """
    _check_at_least(1, stride=stride, batch_size_tokens=batch_size_tokens)
    if not lengths:
        raise ConfigError("lengths must name at least one context length.")
    if stride >= min(lengths):
        raise ConfigError(f"stride must be smaller than the shortest length ({min(lengths)}), not {stride}.")
    if max_targets is not None and max_targets < stride:
        raise ConfigError(f"max_targets must be at least stride ({stride}, one window's targets), not {max_targets}.")
    tokens = _token_tensors(model, documents)
    sizes = [len(document) for document in tokens]
    _check_longest(sizes, "max(lengths)", max(lengths))
    results = {}
    for length in sorted(set(lengths)):
        windows = windows_at_length(sizes, length=length, longest=max(lengths), stride=stride)
        windows = evenly_spread(windows, max_targets // stride if max_targets else len(windows))
        batch_size, label = max(1, batch_size_tokens // length), f"{description} {length} tokens".lstrip()
        results[length] = _score(model, tokens, windows, batch_size=batch_size, progress=progress, description=label)
    return results


def _check_at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ConfigError(f"{name} must be at least {minimum}, not {value}.")


def _check_longest(document_lengths: Sequence[int], name: str, needed: int) -> None:
    longest = max(document_lengths)
    if longest < needed:
        raise DataError(
            f"At least one document must have {name} = {needed} tokens, the longest has {longest}: give longer "
            f"documents or set {name} to {longest} or less."
        )


def _windows_of_protocol(document_lengths: Sequence[int], *, window: int, stride: int, score: str) -> list[Window]:
    _check_at_least(2, window=window)
    if score == "all":
        _check_longest(document_lengths, "window", window)
        return full_windows(document_lengths, window=window, stride=stride)
    if score != "new":
        raise ConfigError(f"score must be 'new' or 'all', not {score!r}.")
    if stride > window:
        raise ConfigError(f"stride must be at most window ({window}), not {stride}, or tokens would go unscored.")
    if max(document_lengths) < 2:
        raise DataError("Nothing to score: every document has a single token. Join them with across_documents=True.")
    return sliding_windows(document_lengths, window=window, stride=stride)


def _base_model(model: Model) -> PreTrainedModel:
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def _token_tensors(model: Model, documents: Iterable[Document]) -> list[Tensor]:
    vocabulary_size = _base_model(model).config.get_text_config().vocab_size
    tokens = [_token_tensor(index, document, vocabulary_size) for index, document in enumerate(documents)]
    if not tokens:
        raise DataError("Nothing to score: there are no documents.")
    return tokens


def _token_tensor(index: int, document: Document, vocabulary_size: int) -> Tensor:
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
    return torch.from_numpy(ids.astype(np.int64))


def _score(
    model: Model, tokens: list[Tensor], windows: list[Window], *, batch_size: int, progress: bool, description: str
) -> Perplexity:
    nats, counts = list[float](), list[int]()
    numbers = "{task.completed}/{task.total} windows, perplexity {task.fields[perplexity]:.2f}"
    columns = "{task.description}", BarColumn(), numbers, TimeRemainingColumn()
    with _evaluation_mode(model), Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(description, total=len(windows), perplexity=math.nan)
        for batch in batches(windows, batch_size):
            nats += _nats_per_window(model, tokens, batch)
            counts += [window.num_targets for window in batch]
            bar.update(task, advance=len(batch), perplexity=_exp(sum(nats) / sum(counts)))
    num_windows, num_tokens, loss = len(windows), sum(counts), math.fsum(nats) / sum(counts)
    squares = sum((value - loss * count) ** 2 for value, count in zip(nats, counts, strict=True))
    standard_error = math.sqrt(squares * num_windows / (num_windows - 1)) / num_tokens if num_windows > 1 else math.nan
    return Perplexity(
        perplexity=_exp(loss), loss=loss, num_tokens=num_tokens, num_windows=num_windows, standard_error=standard_error
    )


def _nats_per_window(model: Model, tokens: list[Tensor], batch: list[Window]) -> list[float]:
    """Return the summed negative log-likelihood of each window's targets; the windows have one shape."""
    base, num_targets = _base_model(model), batch[0].num_targets
    input_ids = torch.stack([tokens[window.document][window.start : window.end] for window in batch])  # (B, T)
    # The row that predicts a token stands one before it: one more row is asked for, and the last not used.
    has_option = "logits_to_keep" in inspect.signature(base.forward).parameters
    option = {"logits_to_keep": num_targets + 1} if has_option else {}
    logits = model(input_ids=input_ids.to(base.device), use_cache=False, **option).logits
    logits = logits[:, -num_targets - 1 : -1]  # (B, num_targets, V)
    nats = []
    for window, rows, targets in zip(batch, logits, input_ids[:, -num_targets:].to(logits.device), strict=True):
        chunks = zip(rows.split(LOGIT_ROWS_PER_CHUNK), targets.split(LOGIT_ROWS_PER_CHUNK), strict=True)
        losses = torch.cat([F.cross_entropy(x.float(), y, reduction="none") for x, y in chunks])  # (num_targets,)
        nats.append(losses.cpu().double().sum().item())  # on the CPU, because MPS has no float64
        if math.isnan(nats[-1]):
            where = f"tokens {window.start} to {window.end - 1} of document {window.document}"
            raise CheckpointError(f"The model produced NaN on {where}: load it in bfloat16 or float32, or mend it.")
    return nats


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 709 else math.inf  # math.exp raises above


@contextmanager
def _evaluation_mode(model: Model) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: a tensor the model keeps from here, such as a RoPE buffer, could not serve training then.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True  # and not model.train(), which would switch modules that were in eval mode

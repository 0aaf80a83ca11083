"""Which tokens a model reads at once and which of them are scored: plain arithmetic, no model.

sliding_windows      every token is scored once (Press et al. 2021; the paper, section 4.1)
full_windows         every window is scored whole, most tokens many times (what the original's eval.py does)
windows_at_length    the same targets at every length, so that context is all that differs
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


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

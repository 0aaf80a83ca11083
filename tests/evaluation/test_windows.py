"""Windows, compared with literal numbers."""

from tests.evaluation.llama import (
    scored_tokens,
)

from longlora.evaluation.scoring import (
    Window,
    batches,
    evenly_spread,
    full_windows,
    sliding_windows,
    windows_at_length,
)


def test_sliding_windows_by_hand() -> None:
    assert sliding_windows([10], window=4, stride=3) == [(0, 0, 4, 3), (0, 3, 7, 3), (0, 6, 10, 3)]
    assert sliding_windows([9], window=4, stride=3) == [(0, 0, 4, 3), (0, 3, 7, 3), (0, 5, 9, 2)]
    assert sliding_windows([6], window=4, stride=1) == [(0, 0, 4, 3), (0, 1, 5, 1), (0, 2, 6, 1)]
    assert sliding_windows([0, 1, 2, 3, 4], window=4, stride=2) == [(2, 0, 2, 1), (3, 0, 3, 2), (4, 0, 4, 3)]


def test_stride_of_a_whole_window_shares_one_token() -> None:
    assert sliding_windows([10], window=4, stride=4) == sliding_windows([10], window=4, stride=3)
    assert sliding_windows([4], window=2, stride=2) == [(0, 0, 2, 1), (0, 1, 3, 1), (0, 2, 4, 1)]


def test_sliding_windows_score_every_token_but_the_first_once() -> None:
    for length in range(14):
        for window in range(2, 8):
            for stride in range(1, window + 1):
                windows = sliding_windows([length, 3], window=window, stride=stride)
                expected = [(0, token) for token in range(1, length)] + [(1, 1), (1, 2)]
                assert scored_tokens(windows) == expected, (length, window, stride)
                assert all(w.num_targets < w.end - w.start <= window for w in windows)
                assert all(w.end - w.start == window for w in windows if w.document == 0 and length >= window)


def test_full_windows_by_hand() -> None:
    assert full_windows([10, 3, 4], window=4, stride=3) == [(0, 0, 4, 3), (0, 3, 7, 3), (0, 6, 10, 3), (2, 0, 4, 3)]
    assert full_windows([9], window=4, stride=3) == [(0, 0, 4, 3), (0, 3, 7, 3)]
    assert full_windows([9], window=2, stride=5) == [(0, 0, 2, 1), (0, 5, 7, 1)]


def test_windows_at_length_by_hand() -> None:
    assert windows_at_length([7, 11], length=3, longest=8, stride=2) == [(1, 5, 8, 2), (1, 7, 10, 2)]
    assert windows_at_length([7, 11], length=8, longest=8, stride=2) == [(1, 0, 8, 2), (1, 2, 10, 2)]


def test_evenly_spread_by_hand() -> None:
    windows = [Window(0, start, start + 2, 1) for start in range(10)]
    assert [w.start for w in evenly_spread(windows, 1)] == [5]
    assert [w.start for w in evenly_spread(windows, 3)] == [1, 5, 8]
    assert evenly_spread(windows, 10) == windows
    assert evenly_spread(windows, 99) == windows
    assert len({w.start for w in evenly_spread(windows, 7)}) == 7


def test_batches_have_one_shape_and_the_largest_comes_first() -> None:
    first, short, a, b, c = (
        Window(0, 0, 4, 3),
        Window(1, 0, 2, 1),
        Window(0, 3, 7, 2),
        Window(0, 5, 9, 2),
        Window(2, 1, 5, 2),
    )
    assert list(batches([short, a, b, first, c], 2)) == [[first], [a, b], [c], [short]]

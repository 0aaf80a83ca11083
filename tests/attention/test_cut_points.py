"""Where rows are cut and heads divided: by hand, against the definition's mask, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longlora.attention import CutPoints, cut_points
from longlora.attention.cuts import HeadRange, head_ranges
from longlora.attention.reference import s2_mask


@pytest.mark.parametrize(
    ("num_tokens", "group_size", "unshifted", "shifted"),
    [
        (8, 4, (4, 4), (2, 4, 2)),
        (10, 4, (4, 4, 2), (2, 4, 4)),
        (8, 5, (5, 3), (2, 5, 1)),
        (3, 4, (3,), (2, 1)),
        (2, 4, (2,), (2,)),
        (1, 4, (1,), (1,)),
        (3, 1, (1, 1, 1), (1, 1, 1)),
        (4, 100, (4,), (4,)),
    ],
)
def test_one_row(num_tokens, group_size, unshifted, shifted):
    assert cut_points(1, num_tokens, group_size=group_size) == CutPoints(unshifted=unshifted, shifted=shifted)


def test_without_a_shift_all_heads_have_the_same_groups():
    cuts = cut_points(2, 5, group_size=4, shift=False, sink_tokens=1)
    assert cuts == CutPoints(unshifted=(4, 1, 4, 1), shifted=None, sink_tokens=1, documents=(5, 5))
    assert [heads.shifted for heads in head_ranges(4, 2, cuts)] == [False]


def test_rows_are_boundaries():
    assert cut_points(2, 5, group_size=4) == CutPoints(unshifted=(4, 1, 4, 1), shifted=(2, 3, 2, 3))


def test_documents_are_boundaries_and_so_are_rows_that_a_document_crosses():
    cuts = cut_points(2, 5, group_size=4, cu_seqlens=torch.tensor([0, 3, 8, 10]))
    assert cuts.unshifted == (3, 2, 3, 2)


def test_empty_documents_are_left_out():
    cuts = cut_points(1, 5, group_size=4, cu_seqlens=torch.tensor([0, 0, 3, 3, 5, 5]))
    assert cuts == cut_points(1, 5, group_size=4, cu_seqlens=torch.tensor([0, 3, 5]))


def test_without_a_group_size_documents_stay_whole_for_all_heads():
    padding_mask = torch.tensor([[True] * 5, [False, False, True, True, True]])
    cuts = cut_points(2, 5, group_size=None, cu_seqlens=torch.tensor([0, 3, 10]), padding_mask=padding_mask)
    assert cuts == CutPoints(unshifted=(3, 2, 2, 3), shifted=None)


def test_a_row_of_nothing_but_padding_is_allowed():
    padding_mask = torch.tensor([[True] * 4, [False] * 4])
    assert cut_points(2, 4, group_size=4, padding_mask=padding_mask).unshifted == (4, 4)


@st.composite
def batches(draw):
    batch_size, num_tokens = draw(st.integers(1, 3)), draw(st.integers(1, 30))
    total = batch_size * num_tokens
    boundaries = draw(st.none() | st.lists(st.integers(0, total), max_size=6))
    padding_mask = None
    if draw(st.booleans()):
        stretches = [
            sorted((draw(st.integers(0, num_tokens)), draw(st.integers(0, num_tokens)))) for _ in range(batch_size)
        ]
        time = torch.arange(num_tokens)
        padding_mask = torch.stack([(time >= first) & (time < last) for first, last in stretches])  # (B, T)
    return {
        "batch_size": batch_size,
        "num_tokens": num_tokens,
        "group_size": draw(st.integers(1, 40)),
        "cu_seqlens": None if boundaries is None else torch.tensor(sorted([0, *boundaries, total])),
        "padding_mask": padding_mask,
    }


@given(batches())
def test_cuts_are_where_the_definition_hides_the_previous_token(batch):
    batch_size, num_tokens = batch.pop("batch_size"), batch.pop("num_tokens")
    cuts = cut_points(batch_size, num_tokens, **batch)
    mask = s2_mask(torch.empty(batch_size, 2, num_tokens, 1), **batch)  # (B, 2, T, T)
    for head, lengths in enumerate((cuts.unshifted, cuts.shifted)):
        is_first = torch.ones(batch_size, num_tokens, dtype=torch.bool)
        is_first[:, 1:] = ~mask[:, head].diagonal(offset=-1, dim1=1, dim2=2)
        starts = torch.tensor([0, *lengths]).cumsum(0)
        assert starts[:-1].tolist() == is_first.flatten().nonzero().flatten().tolist()
        assert starts[-1] == batch_size * num_tokens


def test_what_kernels_need_is_made_once():
    cuts = cut_points(2, 10, group_size=4)
    cpu = torch.device("cpu")
    assert cuts.num_tokens == 20
    unshifted, shifted = (cuts.segments(cpu, shifted=shifted) for shifted in (False, True))
    assert unshifted.boundaries.tolist() == [0, 4, 8, 10, 14, 18, 20]
    assert shifted.boundaries.tolist() == [0, 2, 6, 10, 12, 16, 20]
    assert shifted.boundaries.dtype == torch.int32
    assert shifted is cuts.segments(cpu, shifted=True)
    assert shifted.key_boundaries is shifted.boundaries
    assert cuts.segments(torch.device("meta"), shifted=True).boundaries.is_meta
    assert unshifted.longest == unshifted.longest_keys == cuts.longest(shifted=False) == 4
    assert cuts.runs(shifted=False) == ((4, 2, 0), (2, 1, 0), (4, 2, 0), (2, 1, 0))
    assert cuts.runs(shifted=True) == ((2, 1, 0), (4, 2, 0), (2, 1, 0), (4, 2, 0))
    assert cuts.runs(shifted=True) is cuts.runs(shifted=True)


def test_a_segment_has_the_sink_tokens_that_lie_before_it_in_its_document():
    cuts = cut_points(2, 10, group_size=4, sink_tokens=3, cu_seqlens=torch.tensor([0, 3, 10, 20]))
    assert cuts.documents == (3, 7, 10)
    assert cuts.unshifted == (3, 4, 3, 4, 4, 2) and cuts.shifted == (2, 1, 2, 4, 1, 2, 4, 4)
    assert cuts.sinks(shifted=False) == (0, 0, 3, 0, 3, 3)
    assert cuts.sinks(shifted=True) == (0, 2, 0, 2, 3, 0, 2, 3)
    assert cuts.starts(shifted=True) == (0, 0, 3, 3, 3, 10, 10, 10)
    segments = cuts.segments(torch.device("cpu"), shifted=False)
    assert segments.boundaries.tolist() == [0, 3, 7, 10, 14, 18, 20]
    assert segments.key_boundaries.tolist() == [0, 3, 7, 13, 17, 24, 29]
    assert (segments.longest, segments.longest_keys) == (4, 7)
    assert cuts.runs(shifted=False)[3:] == ((4, 1, 0), (4, 1, 3), (2, 1, 3))


def test_refuses_less_than_no_sink_tokens():
    with pytest.raises(ValueError, match="sink_tokens must be 0 or more, got -1"):
        cut_points(1, 8, group_size=4, sink_tokens=-1)


def test_what_was_made_is_no_part_of_the_cut_points():
    used, fresh = cut_points(1, 10, group_size=4), cut_points(1, 10, group_size=4)
    used.segments(torch.device("cpu"), shifted=False)
    assert used == fresh and hash(used) == hash(fresh) and repr(used) == repr(fresh)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "ranges"),
    [
        (1, 1, [(0, 1, 0, 1, False)]),
        (4, 4, [(0, 2, 0, 2, False), (2, 4, 2, 4, True)]),
        (5, 5, [(0, 3, 0, 3, False), (3, 5, 3, 5, True)]),
        (8, 2, [(0, 4, 0, 1, False), (4, 8, 1, 2, True)]),
        (4, 1, [(0, 2, 0, 1, False), (2, 4, 0, 1, True)]),
        (6, 3, [(0, 2, 0, 1, False), (2, 3, 1, 2, False), (3, 4, 1, 2, True), (4, 6, 2, 3, True)]),
        (9, 3, [(0, 3, 0, 1, False), (3, 5, 1, 2, False), (5, 6, 1, 2, True), (6, 9, 2, 3, True)]),
    ],
)
def test_heads_are_divided_where_the_cuts_change_and_where_a_key_value_head_is_shared(num_heads, num_kv_heads, ranges):
    expected = tuple(HeadRange(slice(a, b), slice(c, d), shifted) for a, b, c, d, shifted in ranges)
    assert head_ranges(num_heads, num_kv_heads, cut_points(1, 8, group_size=4)) == expected


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (5, 5), (8, 2), (9, 3)])
def test_without_a_shifted_half_the_heads_are_one_range(num_heads, num_kv_heads):
    (heads,) = head_ranges(num_heads, num_kv_heads, cut_points(1, 8, group_size=None))
    assert heads == HeadRange(slice(0, num_heads), slice(0, num_kv_heads), shifted=False)


@pytest.mark.parametrize("group_size", [0, -1])
def test_refuses_a_group_without_tokens(group_size):
    with pytest.raises(ValueError, match=f"at least 1 token, got {group_size}"):
        cut_points(1, 8, group_size=group_size)


@pytest.mark.parametrize("boundaries", [[0], [1, 8], [0, 7], [0, 9], [0, 5, 3, 8]])
def test_refuses_documents_that_do_not_rise_from_the_first_token_to_the_last(boundaries):
    with pytest.raises(ValueError, match="must rise from 0 to the 8 tokens"):
        cut_points(2, 4, group_size=4, cu_seqlens=torch.tensor(boundaries))


@pytest.mark.parametrize("row", [[1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1]])
def test_refuses_padding_between_real_tokens(row):
    padding_mask = torch.tensor([[1, 1, 1, 1], row]).bool()
    with pytest.raises(ValueError, match="one stretch of real tokens"):
        cut_points(2, 4, group_size=4, padding_mask=padding_mask)


def test_refuses_boundaries_of_no_documents():
    with pytest.raises(ValueError, match="must rise from 0 to the 8 tokens of the batch \\(2 x 4\\), got none"):
        cut_points(2, 4, group_size=4, cu_seqlens=torch.tensor([], dtype=torch.int32))

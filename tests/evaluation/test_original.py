"""The original's `.bin` files and its way to average, re-derived from its description on small files."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.llama import TOLERANCE, VOCABULARY_SIZE
from transformers import LlamaForCausalLM

from longlora.errors import ConfigError, DataError
from longlora.evaluation.perplexity import original_perplexity, original_windows, perplexity
from longlora.evaluation.texts import read_token_file, token_dtype, write_token_file


def eval_py(model: LlamaForCausalLM, path: Path, *, seq_length: int, batch_size: int, sliding_window: int) -> float:
    """What `eval.py` prints, step by step as it is described: memory map, starts, labels = inputs, mean of means."""
    data = np.memmap(path, dtype=np.uint16, mode="r")
    starts = list(range(0, len(data) - seq_length, sliding_window))
    del starts[-1]
    losses = []
    for first in range(0, len(starts), batch_size):
        rows = [data[start : start + seq_length].astype(np.int64) for start in starts[first : first + batch_size]]
        x = torch.from_numpy(np.stack(rows))
        with torch.no_grad():
            losses.append(model(input_ids=x, labels=x).loss.item())
    return 2.71828 ** torch.as_tensor(losses).mean().item()


@pytest.mark.parametrize("num_tokens", [61, 62, 64])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_original_protocol_is_the_original_s(
    model: LlamaForCausalLM, tmp_path: Path, num_tokens: int, batch_size: int, seed: int
) -> None:
    stream = np.random.default_rng(seed).integers(0, VOCABULARY_SIZE, num_tokens)
    path = tmp_path / "test.bin"
    write_token_file(path, [stream[:40], stream[40:]], VOCABULARY_SIZE)
    tokens = read_token_file(path, VOCABULARY_SIZE)
    result = original_perplexity(model, [tokens], window=10, stride=3, batch_size=batch_size, show_progress=False)
    expected = eval_py(model, path, seq_length=10, batch_size=batch_size, sliding_window=3)
    assert result.perplexity == pytest.approx(expected, rel=TOLERANCE)
    assert result.num_windows == len(range(0, num_tokens - 10, 3)) - 1
    assert math.isnan(result.standard_error)
    # Documents that are apart are one stream to it.
    apart = original_perplexity(
        model, [stream[:7], stream[7:]], window=10, stride=3, batch_size=batch_size, show_progress=False
    )
    assert apart.loss == pytest.approx(result.loss, rel=1e-6)


def test_how_it_differs_from_ours(model: LlamaForCausalLM, seed: int) -> None:
    stream = np.random.default_rng(seed).integers(0, VOCABULARY_SIZE, 64)
    whole_batches = original_perplexity(model, [stream], window=10, stride=3, batch_size=1, show_progress=False)
    short_last = original_perplexity(model, [stream], window=10, stride=3, batch_size=4, show_progress=False)
    ours = perplexity(model, [stream], window=10, stride=3, score="all", show_progress=False)
    assert ours.num_windows == whole_batches.num_windows + 2  # 64 - 10 is a multiple of the stride
    same = perplexity(model, [stream[: 48 + 10]], window=10, stride=3, score="all", show_progress=False)
    assert same.loss == pytest.approx(whole_batches.loss, rel=TOLERANCE)
    assert same.perplexity == pytest.approx(whole_batches.perplexity, rel=1e-5)
    assert same.perplexity != whole_batches.perplexity  # 2.71828 is not e
    assert abs(short_last.loss - whole_batches.loss) > 10 * TOLERANCE  # 17 windows: one batch of one


def test_windows_by_hand() -> None:
    assert original_windows(21, window=10, stride=5) == [(0, 0, 10, 9), (0, 5, 15, 9)]
    assert original_windows(20, window=10, stride=5) == [(0, 0, 10, 9)]
    assert original_windows(15, window=10, stride=5) == []
    assert original_windows(5, window=10, stride=5) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"window": 1}, ConfigError, "window must be at least 2, not 1"),
        ({"stride": 0}, ConfigError, "stride must be at least 1, not 0"),
        ({"batch_size": 0}, ConfigError, "batch_size must be at least 1, not 0"),
        ({"window": 20}, DataError, r"more than window \+ stride = 23 tokens, .* together have 23"),
    ],
)
def test_mistakes(model: LlamaForCausalLM, arguments: dict[str, int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        original_perplexity(model, [[1] * 23], show_progress=False, **{"window": 8, "stride": 3} | arguments)


# Token files


@pytest.mark.parametrize(("vocabulary_size", "width"), [(300, 2), (65_535, 2), (65_536, 2), (65_537, 4), (128_256, 4)])
def test_two_bytes_while_the_vocabulary_fits(tmp_path: Path, vocabulary_size: int, width: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    documents = [generator.integers(0, vocabulary_size, size) for size in (5, 1, 0, 30)]
    documents[0][0] = vocabulary_size - 1
    path = tmp_path / "deep" / "tokens.bin"
    assert write_token_file(path, documents, vocabulary_size) == 36
    assert path.stat().st_size == 36 * width
    assert path.read_bytes()[:width] == (vocabulary_size - 1).to_bytes(width, "little")
    back = read_token_file(path, vocabulary_size)
    assert isinstance(back, np.memmap) and back.dtype == token_dtype(vocabulary_size)
    assert back.tolist() == [token for document in documents for token in document]
    assert [item.name for item in path.parent.iterdir()] == ["tokens.bin"]


def test_files_of_another_width_or_vocabulary_are_refused(tmp_path: Path) -> None:
    narrow, wide = tmp_path / "narrow.bin", tmp_path / "wide.bin"
    tokens = np.arange(100, 140)
    write_token_file(narrow, [tokens], 300)
    write_token_file(wide, [tokens], 70_000)
    with pytest.raises(DataError, match=r"wide.bin looks like tokens of 4 bytes .* vocabulary of 300"):
        read_token_file(wide, 300)
    with pytest.raises(DataError, match=r"narrow.bin has token id \d+ at position 0, but the model knows 0 to 69999"):
        read_token_file(narrow, 70_000)
    with pytest.raises(DataError, match="has token id 139 at position 39, but the model knows 0 to 138"):
        read_token_file(narrow, 139)
    narrow.write_bytes(narrow.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"whole tokens of 2 bytes, .* but has 79 bytes"):
        read_token_file(narrow, 300)
    narrow.write_bytes(b"")
    with pytest.raises(DataError, match="but has 0 bytes"):
        read_token_file(narrow, 300)
    with pytest.raises(DataError, match="there is no token file"):
        read_token_file(tmp_path / "none.bin", 300)


def test_a_foreign_id_is_placed_in_a_file_that_is_read_in_parts(tmp_path: Path) -> None:
    tokens = np.ones((1 << 20) + 9, dtype=np.uint16)
    tokens[(1 << 20) + 3] = 300
    (tmp_path / "long.bin").write_bytes(tokens.tobytes())
    with pytest.raises(DataError, match="has token id 300 at position 1048579, but the model knows 0 to 299"):
        read_token_file(tmp_path / "long.bin", 300)


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Document 1 has token id 300 at position 1, but the model knows 0 to 299"):
        write_token_file(tmp_path / "a.bin", [[1, 2], [0, 300]], 300)
    with pytest.raises(DataError, match="no tokens to write"):
        write_token_file(tmp_path / "a.bin", [[]], 300)
    assert list(tmp_path.iterdir()) == []

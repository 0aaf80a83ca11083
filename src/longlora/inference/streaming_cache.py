"""Endless text in constant memory: a key-value cache that keeps the first tokens and the latest ones.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (StreamingLLM, arXiv 2309.17453), section 3.2:
the first few tokens, which heads attend to whenever nothing else matters (the sinks), stay beside a window of recent
tokens, and positions are those *within the cache*, so that none is larger than the window.

Rotary positions enter attention as differences alone. It is therefore the same whether the recent keys move down next
to the sinks, as in the paper, or the few sinks move up next to the recent keys: the sinks' keys are rotated on by as
many positions as tokens have been dropped behind them. That is what is done here. Recent keys are never touched, no
rounding adds up, positions go on counting as `generate` counts them, and no model is patched:

    cache = StreamingCache(key_rotations(model), window=1024)
    model.generate(**tokenizer(text, return_tensors="pt"), past_key_values=cache, prefill_chunk_size=256)

B batch rows, H_kv key-value heads, T tokens of one forward pass, L tokens in the cache, D dimensions of a head, R of
them rotated.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from longlora.errors import ConfigError

NUM_SINKS = 4  # section 3.2 and table 2 of the paper: more gain nothing, one or two are too few
# Past this many positions the angles in float32, position × frequency, are coarser than bfloat16's 8 bits.
REBASE_AFTER = 2**16

_PROBE_TOKENS, _PROBE_SHIFT = 3, 100_003  # so far that the slowest frequencies turn, and position-dependent scales show
_FITS = 0.1  # relative; low precision leaves some hundredths, another way to rotate at least some tenths
_CHANGING_ROPE = {"dynamic", "longrope"}


class KeyRotation:
    """How a layer's keys turn from one position to another.

    Args:
        inverse_frequencies: angle for each position, in radians, (R / 2,); none for a layer without positions.
        interleaved: whether neighbouring dimensions turn together, not those of the two halves. The first R turn.
    """

    def __init__(self, inverse_frequencies: Tensor, *, interleaved: bool = False) -> None:
        self._inverse_frequencies = inverse_frequencies.detach().to("cpu", torch.float64)
        # Where the two dimensions that turn together stand in (…, R).
        self._shape, self._pair = ((-1, 2), -1) if interleaved else ((2, -1), -2)
        self.num_turning = 2 * len(inverse_frequencies)  # R

    def __call__(self, keys: Tensor, shifts: Tensor) -> Tensor:
        """Turn keys (B, H_kv, L, D) on by so many positions in each row, (B,); the result is new, in the same dtype."""
        if self.num_turning == 0 or not shifts.any():
            return keys
        dtype = torch.promote_types(keys.dtype, torch.float32)
        cosine, sine = _cosine_and_sine(self._inverse_frequencies, tuple(shifts.tolist()), dtype, keys.device)
        turning, resting = keys[..., : self.num_turning], keys[..., self.num_turning :]
        one, two = turning.to(dtype).unflatten(-1, self._shape).unbind(self._pair)  # each (B, H_kv, L, R / 2)
        turned = torch.stack((one * cosine - two * sine, two * cosine + one * sine), dim=self._pair)
        return torch.cat([turned.flatten(-2).to(keys.dtype), resting], dim=-1)


@lru_cache(maxsize=8)  # all layers of a forward pass ask for the same
def _cosine_and_sine(
    inverse_frequencies: Tensor, shifts: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Each (B, 1, 1, R / 2)."""
    angles = torch.tensor(shifts, dtype=torch.float64)[:, None, None, None] * inverse_frequencies
    return [angles.cos().to(device, dtype), angles.sin().to(device, dtype)]


def key_rotations(model: PreTrainedModel) -> list[KeyRotation]:
    """Find out how each layer's keys turn with the position, by asking the model: two passes over three tokens.

    The same tokens are read near position 0 and far from it. If nothing but differences of positions counts, each
    layer's keys must be the same but for a rotation by the model's own frequencies (those of its context extension
    included), of all dimensions or of some.

    Args:
        model: in eval mode; an adapter around it is welcome.

    Raises:
        ConfigError: the model has no rotary positions, or such as change with the length; it has layers with windows
            or states of their own; or its keys do not turn as they should.
    """
    config = model.config.get_text_config()
    _check_layers(config)
    no_rotary_positions = ConfigError(
        f"{config.model_type} has no rotary positions that a streaming window could count anew; use it without"
    )
    named = {name: buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq") and buffer.ndim == 1}
    if not named:
        raise no_rotary_positions
    frequencies = {tuple(buffer.tolist()): buffer for buffer in named.values()}.values()
    resting = KeyRotation(torch.empty(0))
    turning = [KeyRotation(each, interleaved=interleaved) for each in frequencies for interleaved in (False, True)]
    near, far = (_cache_at(model, start) for start in (0, _PROBE_SHIFT))
    rotations = []
    for index, (layer, moved) in enumerate(zip(near.layers, far.layers, strict=True)):
        where = f"layer {index} of {config.model_type}"
        rotations.append(_fitting([resting, *turning], layer.keys, moved.keys, f"the keys of {where} do not turn"))
        _fitting([resting], layer.values, moved.values, f"the values of {where} do not stay as they are")
    if all(rotation is resting for rotation in rotations):
        raise no_rotary_positions
    return rotations


def _check_layers(config: PreTrainedConfig) -> None:
    kinds = {type(layer) for layer in DynamicCache(config=config).layers} - {DynamicLayer}
    if kinds:
        raise ConfigError(
            f"{config.model_type} has layers that keep something else than the keys of all tokens "
            f"({', '.join(sorted(kind.__name__ for kind in kinds))}), where attention sinks have no place; use it "
            "without a streaming window"
        )
    parameters = config.to_dict().get("rope_parameters") or {}
    by_kind_of_layer = [each for each in parameters.values() if isinstance(each, dict)]
    changing = _CHANGING_ROPE.intersection(each.get("rope_type") for each in (parameters, *by_kind_of_layer))
    if changing:
        raise ConfigError(
            f"rotary positions of type {', '.join(sorted(changing))} change with the length of the text, and keys in a "
            "cache cannot follow; a streaming window needs one of the other types (default, linear, yarn, llama3)"
        )


@torch.no_grad()
def _cache_at(model: PreTrainedModel, start: int) -> DynamicCache:
    """Each layer's keys and values (1, H_kv, 3, D) of three tokens that begin at a position."""
    tokens = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    cache = DynamicCache()
    model(input_ids=tokens, position_ids=tokens + start, past_key_values=cache, use_cache=True)
    return cache


def _fitting(candidates: Sequence[KeyRotation], states: Tensor, moved: Tensor, complaint: str) -> KeyRotation:
    def error(rotate: KeyRotation) -> float:
        return float((rotate(states, torch.tensor([_PROBE_SHIFT])).float() - moved.float()).norm())

    # One that turns more dimensions than there are is that of an encoder.
    best = min((rotate for rotate in candidates if rotate.num_turning <= states.shape[-1]), key=error)
    relative = error(best) / float(moved.float().norm().clamp_min(1e-30))
    if not relative < _FITS:  # a NaN does not fit either
        raise ConfigError(
            f"{complaint} with the position as rotary positions do (off by {relative:.2g} of their size); use the "
            "model without a streaming window"
        )
    return best


class _StreamingLayer(DynamicLayer):
    """One layer's keys and values: the sinks, and the latest tokens beside them."""

    keys: Tensor  # (B, H_kv, L, D), each turned to the position at which it came in
    values: Tensor
    is_croppable = False

    def __init__(self, rotation: KeyRotation, *, window: int, num_sinks: int, left_padding: Sequence[int]) -> None:
        super().__init__()
        self._rotate, self._window, self._num_sinks = rotation, window, num_sinks
        self._given_padding = torch.tensor(left_padding, dtype=torch.long)
        self.reset()

    def reset(self) -> None:
        self.is_initialized = False  # transformers 5.17 would keep as many keys, of zeros
        super().reset()
        self._padding = self._given_padding  # of each row before anything was dropped, (B,)
        self._num_dropped = 0  # in each row: its padding first, then what follows the sinks

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        num_rows = key_states.shape[0]
        if not len(self._padding):
            self._padding = torch.zeros(num_rows, dtype=torch.long)
        if len(self._padding) != num_rows:
            raise ConfigError(
                f"left_padding names {len(self._padding)} rows, and the batch has {num_rows}: one for each"
            )
        super().lazy_initialization(key_states, value_states)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Drop what no longer fits, add (B, H_kv, T, D), and return the keys and values to attend to."""
        if surplus := self._num_kept - self._num_staying(key_states.shape[2]):
            self.keys, self.values = self._without(self.keys, surplus), self._without(self.values, surplus)
            self._num_dropped += surplus
        keys, values = super().update(key_states, value_states)
        shifts = self._shifts
        if shifts.any():
            keys = torch.cat(
                [self._rotate(keys[:, :, : self._num_sinks], shifts), keys[:, :, self._num_sinks :]], dim=2
            )
        return keys, values

    def rebase(self) -> None:
        """Count positions anew, from the first token in the cache: the recent keys move down to the sinks instead."""
        if not self._num_kept:
            return
        sinks, recent = self.keys[:, :, : self._num_sinks], self.keys[:, :, self._num_sinks :]
        self.keys = torch.cat([sinks, self._rotate(recent, -self._shifts)], dim=2)
        self._padding, self._num_dropped = (self._padding - self._num_dropped).clamp_min(0), 0

    def get_seq_length(self) -> int:
        """Positions counted so far, padding and what was dropped included: the next token's."""
        return self._num_dropped + self._num_kept

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys the next `query_length` tokens will see, and the position that the first of them counts as."""
        num_staying = self._num_staying(query_length)
        return num_staying + query_length, self.get_seq_length() - num_staying

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.is_initialized:
            self._padding = self._padding[beam_idx.to("cpu")]

    @property
    def _num_kept(self) -> int:
        return super().get_seq_length()

    @property
    def _shifts(self) -> Tensor:
        """Positions that each row's sinks have to move up, (B,)."""
        return (self._num_dropped - self._padding).clamp_min(0)

    def _num_staying(self, num_tokens: int) -> int:
        """How many of the kept tokens find room beside `num_tokens` new ones."""
        room = self._window - num_tokens
        if self._num_kept > room and room <= self._num_sinks:
            raise ConfigError(
                f"{num_tokens} tokens at once do not fit into a streaming window of {self._window} with "
                f"{self._num_sinks} sinks; read the text in pieces (generate's prefill_chunk_size) of at most "
                f"{self._window - self._num_sinks - 1}"
            )
        return min(self._num_kept, room)

    def _without(self, states: Tensor, surplus: int) -> Tensor:
        """Drop `surplus` of (B, H_kv, L, D): in each row padding first, then what follows the sinks."""
        padding = (self._padding - self._num_dropped).clamp(0, surplus)  # that goes now, (B,)
        if not padding.any():
            return torch.cat([states[:, :, : self._num_sinks], states[:, :, self._num_sinks + surplus :]], dim=2)
        columns = torch.arange(states.shape[2] - surplus)  # (L',)
        sources = columns + torch.where(columns < self._num_sinks, padding[:, None], surplus)  # (B, L')
        sources = sources.to(states.device)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
        return states.gather(2, sources)


class StreamingCache(Cache):
    """Attention sinks and a recent window for every layer, to be given to a model or to `generate`.

    As long as the text fits into the window it is transformers' ordinary cache. Several tokens at once push out as many
    as they need, so that none ever sees more than `window`: the first of a piece of T tokens sees T - 1 fewer.

    Args:
        rotations: what `key_rotations` found out about the model.
        window: tokens that a query sees at most, sinks and itself included; at most what the model reads.
        num_sinks: how many of the first tokens stay.
        left_padding: padding tokens before each row's first, where there are any.

    Raises:
        ConfigError: the window does not leave room for a token beside the sinks.
    """

    def __init__(
        self,
        rotations: Sequence[KeyRotation],
        *,
        window: int,
        num_sinks: int = NUM_SINKS,
        left_padding: Sequence[int] = (),
    ) -> None:
        if num_sinks < 0 or window < num_sinks + 2:
            raise ConfigError(
                f"a streaming window must hold its sinks and at least two tokens more; got window={window} with "
                f"{num_sinks} sinks"
            )
        layers = [
            _StreamingLayer(rotation, window=window, num_sinks=num_sinks, left_padding=left_padding)
            for rotation in rotations
        ]
        super().__init__(layers=list(layers))
        self._streaming_layers = layers

    def rebase(self) -> None:
        """Count positions anew from the first token in the cache, if they have grown large; else do nothing.

        Call it between two texts, never within a `generate`, which counts by itself. A key is rounded once more each
        time, which is why it is not done at every token.
        """
        if self.get_seq_length() > REBASE_AFTER:
            for layer in self._streaming_layers:
                layer.rebase()

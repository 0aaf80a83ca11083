"""Endless text in constant memory: a key-value cache of the first tokens and the latest ones.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (StreamingLLM, arXiv 2309.17453), section 3.2:
the first few tokens, which heads attend to when nothing else matters (the sinks), stay beside a window of recent
tokens, and positions are those *within the cache*, so none is larger than the window.

Rotary positions enter attention only as differences. So the recent keys may move down next to the sinks, as in the
paper, or the few sinks may move up next to the recent keys: their keys are rotated by as many positions as tokens were
dropped after them. This file does the latter. Recent keys are never touched, rounding errors do not add up, positions
continue as `generate` counts them, and no model is patched:

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
from longlora.rope.methods import LENGTH_DEPENDENT

NUM_SINKS = 4  # section 3.2 and table 2 of the paper: more do not help, one or two are too few
# Beyond this position, angles in float32 (position × frequency) are coarser than bfloat16's 8 bits.
REBASE_AFTER = 2**16

_PROBE_TOKENS, _PROBE_SHIFT = 3, 100_003  # far enough for the slowest frequencies and position-dependent scales to show
_FITS = 0.1  # relative error; low precision gives a few hundredths, a different rotation at least a few tenths


class KeyRotation:
    """How a layer's keys rotate from one position to another.

    Args:
        inverse_frequencies: angle per position, in radians, (R / 2,); empty for a layer without positions.
        interleaved: whether neighbouring dimensions form pairs, not those of the two halves. The first R rotate.
    """

    def __init__(self, inverse_frequencies: Tensor, *, interleaved: bool = False) -> None:
        self._inverse_frequencies = inverse_frequencies.detach().to("cpu", torch.float64)
        # How to split (…, R) into pairs, and the axis of a pair.
        self._shape, self._pair = ((-1, 2), -1) if interleaved else ((2, -1), -2)
        self.num_turning = 2 * len(inverse_frequencies)  # R

    def __call__(self, keys: Tensor, shift: int) -> Tensor:
        """Rotate keys (B, H_kv, L, D) by `shift` positions; returns a new tensor of the same dtype."""
        if self.num_turning == 0 or shift == 0:
            return keys
        dtype = torch.promote_types(keys.dtype, torch.float32)
        cosine, sine = _cosine_and_sine(self._inverse_frequencies, shift, dtype, keys.device)
        turning, resting = keys[..., : self.num_turning], keys[..., self.num_turning :]
        one, two = turning.to(dtype).unflatten(-1, self._shape).unbind(self._pair)  # each (B, H_kv, L, R / 2)
        turned = torch.stack((one * cosine - two * sine, two * cosine + one * sine), dim=self._pair)
        return torch.cat([turned.flatten(-2).to(keys.dtype), resting], dim=-1)


@lru_cache(maxsize=8)  # all layers of a forward pass ask for the same
def _cosine_and_sine(inverse_frequencies: Tensor, shift: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return cosine and sine, each (R / 2,)."""
    angles = shift * inverse_frequencies
    return [angles.cos().to(device, dtype), angles.sin().to(device, dtype)]


def key_rotations(model: PreTrainedModel) -> list[KeyRotation]:
    """Measure how each layer's keys rotate with the position, in two passes of the model over three tokens.

    The same tokens are read near position 0 and far from it. If only differences of positions matter, each layer's keys
    must differ by a rotation with the model's own frequencies (including those of a context extension), of all
    dimensions or some.

    Args:
        model: in eval mode, with or without an adapter.

    Raises:
        ConfigError: the model has no rotary positions, or they change with the length; it has layers with their own
            windows or states; or its keys do not rotate as expected.
    """
    config = model.config.get_text_config()
    _check_layers(config)
    no_rotary_positions = ConfigError(
        f"{config.model_type} has no rotary positions, which a streaming window needs; use it without one"
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
            f"{config.model_type} has layers that cache something other than the keys of all tokens "
            f"({', '.join(sorted(kind.__name__ for kind in kinds))}), which leaves no place for attention sinks; use "
            "it without a streaming window"
        )
    parameters = config.to_dict().get("rope_parameters") or {}
    by_kind_of_layer = [each for each in parameters.values() if isinstance(each, dict)]
    changing = LENGTH_DEPENDENT.intersection(each.get("rope_type") for each in (parameters, *by_kind_of_layer))
    if changing:
        raise ConfigError(
            f"rotary positions of type {', '.join(sorted(changing))} change with the length of the text, and keys in a "
            "cache cannot follow; a streaming window needs one of the other types (default, linear, yarn, llama3)"
        )


@torch.no_grad()
def _cache_at(model: PreTrainedModel, start: int) -> DynamicCache:
    """Return each layer's keys and values (1, H_kv, 3, D) for three tokens from a position on."""
    tokens = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    cache = DynamicCache()
    model(input_ids=tokens, position_ids=tokens + start, past_key_values=cache, use_cache=True)
    return cache


def _fitting(candidates: Sequence[KeyRotation], states: Tensor, moved: Tensor, complaint: str) -> KeyRotation:
    def error(rotate: KeyRotation) -> float:
        return float((rotate(states, _PROBE_SHIFT).float() - moved.float()).norm())

    # A rotation of more dimensions than there are belongs to an encoder.
    best = min((rotate for rotate in candidates if rotate.num_turning <= states.shape[-1]), key=error)
    relative = error(best) / float(moved.float().norm().clamp_min(1e-30))
    if not relative < _FITS:  # a NaN does not fit either
        raise ConfigError(
            f"{complaint} with the position as rotary positions do (off by {relative:.2g} of their size); use the "
            "model without a streaming window"
        )
    return best


class _StreamingLayer(DynamicLayer):
    """One layer's keys and values: the sinks, followed by the latest tokens."""

    keys: Tensor  # (B, H_kv, L, D), each rotated to the position at which it arrived
    values: Tensor
    is_croppable = False

    def __init__(self, rotation: KeyRotation, *, window: int, num_sinks: int) -> None:
        super().__init__()
        self._rotate, self._window, self._num_sinks = rotation, window, num_sinks
        self._num_dropped = 0  # after the sinks

    def reset(self) -> None:
        self.is_initialized = False  # transformers 5.17 would keep equally many keys, all zeros
        super().reset()
        self._num_dropped = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Drop what no longer fits, append (B, H_kv, T, D), and return the keys and values to attend to."""
        if surplus := self._num_kept - self._num_staying(key_states.shape[2]):
            parts = (self._split(states) for states in (self.keys, self.values))
            self.keys, self.values = (torch.cat([sinks, recent[:, :, surplus:]], dim=2) for sinks, recent in parts)
            self._num_dropped += surplus
        keys, values = super().update(key_states, value_states)
        if self._num_dropped:
            sinks, recent = self._split(keys)
            keys = torch.cat([self._rotate(sinks, self._num_dropped), recent], dim=2)
        return keys, values

    def rebase(self) -> None:
        """Restart positions at the first token in the cache: here, the recent keys move down to the sinks."""
        if self._num_dropped:
            sinks, recent = self._split(self.keys)
            self.keys, self._num_dropped = torch.cat([sinks, self._rotate(recent, -self._num_dropped)], dim=2), 0

    def get_seq_length(self) -> int:
        """Return the next token's position, which counts dropped tokens."""
        return self._num_dropped + self._num_kept

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next `query_length` tokens will see, and the position of the first of these keys."""
        num_staying = self._num_staying(query_length)
        return num_staying + query_length, self.get_seq_length() - num_staying

    @property
    def _num_kept(self) -> int:
        return super().get_seq_length()

    def _num_staying(self, num_tokens: int) -> int:
        """Return how many of the kept tokens fit beside `num_tokens` new ones."""
        room = self._window - num_tokens
        if self._num_kept > room and room <= self._num_sinks:
            raise ConfigError(
                f"{num_tokens} tokens at once do not fit into a streaming window of {self._window} with "
                f"{self._num_sinks} sinks; read the text in pieces (generate's prefill_chunk_size) of at most "
                f"{self._window - self._num_sinks - 1}"
            )
        return min(self._num_kept, room)

    def _split(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sinks' part of (B, H_kv, L, D), and the recent tokens' part."""
        return states[:, :, : self._num_sinks], states[:, :, self._num_sinks :]


class StreamingCache(Cache):
    """A cache with attention sinks and a recent window in every layer, for a model's forward pass or `generate`.

    While the text fits into the window, it works like transformers' ordinary cache. A piece of several tokens pushes
    out as many as it needs, so no token ever sees more than `window`: the first of T tokens sees T - 1 fewer. Rows of a
    batch have equally many tokens: padding before a text would stay in the place of its first tokens.

    Args:
        rotations: the model's `key_rotations`.
        window: maximum number of tokens that a query sees, including sinks and itself; at most the model's context.
        num_sinks: how many of the first tokens stay.

    Raises:
        ConfigError: the window does not leave room for two tokens beside the sinks.
    """

    def __init__(self, rotations: Sequence[KeyRotation], *, window: int, num_sinks: int = NUM_SINKS) -> None:
        if num_sinks < 0 or window < num_sinks + 2:
            raise ConfigError(
                f"a streaming window must hold its sinks and at least two tokens more; got window={window} with "
                f"{num_sinks} sinks"
            )
        super().__init__(layers=[_StreamingLayer(each, window=window, num_sinks=num_sinks) for each in rotations])

    def rebase(self) -> None:
        """Restart positions at the first token in the cache if they have grown large.

        Call it between two texts, never within `generate`, which counts by itself. Each call rounds keys once more,
        which is why it is not done at every token.
        """
        if self.get_seq_length() > REBASE_AFTER:
            for layer in self.layers:
                layer.rebase()

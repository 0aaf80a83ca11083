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

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from longlora.errors import ConfigError

NUM_SINKS = 4  # section 3.2 and table 2 of the paper: more gain nothing, one or two are too few
# Past this many positions the angles in float32, position × frequency, are coarser than bfloat16's 8 bits.
REBASE_AFTER = 2**16

_PROBE_TOKENS, _PROBE_SHIFT = 3, 100_003  # so far that the slowest frequencies turn, and position-dependent scales show
_FITS = 0.1  # relative; low precision leaves some hundredths, another way to rotate at least some tenths
_CHANGING_ROPE = ("dynamic", "longrope")


class KeyRotation:
    """How a layer's keys turn from one position to another.

    Args:
        inverse_frequencies: angle for each position, in radians, (R / 2,); none for a layer without positions.
        interleaved: whether neighbouring dimensions turn together, not those of the two halves. The first R turn.
    """

    def __init__(self, inverse_frequencies: Tensor, *, interleaved: bool = False) -> None:
        self._inverse_frequencies = inverse_frequencies.detach().to("cpu", torch.float64)
        self._interleaved = interleaved
        self.num_turning = 2 * len(inverse_frequencies)  # R
        self._last: tuple[object, Tensor, Tensor] | None = None

    def __call__(self, keys: Tensor, shifts: Sequence[int]) -> Tensor:
        """Turn keys (B, H_kv, L, D) on by so many positions in each row, (B,); the result is new, in the same dtype."""
        if self.num_turning == 0 or not any(shifts):
            return keys
        cosine, sine = self._angles(shifts, keys)  # each (B, 1, 1, R / 2)
        part = keys[..., : self.num_turning].to(cosine.dtype)  # (B, H_kv, L, R)
        if self._interleaved:
            one, two = part.unflatten(-1, (-1, 2)).unbind(-1)  # each (B, H_kv, L, R / 2)
        else:
            one, two = part.chunk(2, dim=-1)
        turned = (one * cosine - two * sine, two * cosine + one * sine)
        result = keys.clone()
        result[..., : self.num_turning] = (
            torch.stack(turned, dim=-1).flatten(-2) if self._interleaved else torch.cat(turned, dim=-1)
        ).to(keys.dtype)
        return result

    def _angles(self, shifts: Sequence[int], keys: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, kept for the next layer, which asks for the same."""
        dtype = torch.promote_types(keys.dtype, torch.float32)
        question = (tuple(shifts), dtype, keys.device)
        if self._last is None or self._last[0] != question:
            angles = torch.tensor(shifts, dtype=torch.float64)[:, None] * self._inverse_frequencies  # (B, R / 2)
            cosine, sine = (part[:, None, None].to(keys.device, dtype) for part in (angles.cos(), angles.sin()))
            self._last = (question, cosine, sine)
        return self._last[1], self._last[2]


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
    frequencies = _inverse_frequencies(model)
    if not frequencies:
        raise _no_rotary_positions(config)
    near, far = (_cache_at(model, start) for start in (0, _PROBE_SHIFT))
    candidates = [KeyRotation(torch.empty(0))]
    candidates += [KeyRotation(each, interleaved=interleaved) for each in frequencies for interleaved in (False, True)]
    rotations = []
    for index, (layer, moved) in enumerate(zip(near.layers, far.layers, strict=True)):
        where = f"layer {index} of {config.model_type}"
        rotations.append(_fitting(candidates, layer.keys, moved.keys, f"the keys of {where} do not turn"))
        _fitting(candidates[:1], layer.values, moved.values, f"the values of {where} do not stay as they are")
    if not any(rotation.num_turning for rotation in rotations):
        raise _no_rotary_positions(config)
    return rotations


def _no_rotary_positions(config: PreTrainedConfig) -> ConfigError:
    return ConfigError(
        f"{config.model_type} has no rotary positions that a streaming window could count anew; use it without"
    )


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
    types = [each.get("rope_type") for each in (parameters, *by_kind_of_layer)]
    if changing := [each for each in _CHANGING_ROPE if each in types]:
        raise ConfigError(
            f"rotary positions of type {', '.join(changing)} change with the length of the text, and keys in a cache "
            "cannot follow; a streaming window needs one of the other types (default, linear, yarn, llama3)"
        )


def _inverse_frequencies(model: PreTrainedModel) -> list[Tensor]:
    """The model's own frequencies, one tensor for each different set."""
    found: list[Tensor] = []
    for name, buffer in model.named_buffers():
        is_new = name.endswith("inv_freq") and not any(torch.equal(buffer.cpu(), each.cpu()) for each in found)
        if is_new and buffer.ndim == 1:
            found.append(buffer)
    return found


@torch.no_grad()
def _cache_at(model: PreTrainedModel, start: int) -> DynamicCache:
    """Each layer's keys and values (1, H_kv, 3, D) of three tokens that begin at a position."""
    tokens = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    cache = DynamicCache()
    model(input_ids=tokens, position_ids=tokens + start, past_key_values=cache, use_cache=True)
    return cache


def _fitting(candidates: Sequence[KeyRotation], states: Tensor, moved: Tensor, complaint: str) -> KeyRotation:
    candidates = [rotate for rotate in candidates if rotate.num_turning <= states.shape[-1]]  # others are of an encoder
    errors = [float((rotate(states, [_PROBE_SHIFT]).float() - moved.float()).norm()) for rotate in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    error = errors[best] / float(moved.float().norm().clamp_min(1e-30))
    if not error < _FITS:  # a NaN does not fit either
        raise ConfigError(
            f"{complaint} with the position as rotary positions do (off by {error:.2g} of their size); use the model "
            "without a streaming window"
        )
    return candidates[best]


class StreamingLayer(CacheLayerMixin):
    """One layer's keys and values: the sinks, and the latest tokens beside them.

    Args:
        rotation: how its keys turn.
        window: tokens that a query sees at most, sinks and itself included.
        num_sinks: how many of the first tokens stay.
        left_padding: padding tokens before each row's first, (B,); they are the first to be dropped.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, rotation: KeyRotation, *, window: int, num_sinks: int, left_padding: Sequence[int]) -> None:
        super().__init__()
        self._rotate = rotation
        self.window = window
        self.num_sinks = num_sinks
        self._given_padding = list(left_padding)
        self._start()

    def _start(self) -> None:
        self._num_seen = 0  # positions counted so far, padding and what was dropped included
        self._padding = list(self._given_padding)  # padding tokens that are still here, in each row
        self._shifts = [0] * len(self._padding)  # positions that each row's sinks have to move up

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the empty tensors, whose shapes the first keys and values tell."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states[:, :, :0]  # (B, H_kv, L, D), each turned to the position at which it came in
        self.values = value_states[:, :, :0]
        if not self._given_padding:
            self._given_padding = [0] * key_states.shape[0]
            self._start()
        if len(self._padding) != key_states.shape[0]:
            raise ConfigError(
                f"left_padding names {len(self._padding)} rows, and the batch has {key_states.shape[0]}: one for each"
            )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, ...]:
        """Drop what no longer fits, add (B, H_kv, T, D), and return the keys and values to attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        num_tokens = key_states.shape[2]
        surplus = self._num_kept - self._num_staying(num_tokens)
        if surplus:
            self.keys, self.values = self._without(self.keys, surplus), self._without(self.values, surplus)
            for row, padding in enumerate(self._padding):
                self._padding[row] = max(0, padding - surplus)
                self._shifts[row] += max(0, surplus - padding)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        self._num_seen += num_tokens
        if not any(self._shifts):
            return self.keys, self.values
        sinks = self._rotate(self.keys[:, :, : self.num_sinks], self._shifts)
        return torch.cat([sinks, self.keys[:, :, self.num_sinks :]], dim=2), self.values

    def rebase(self) -> None:
        """Count positions anew, from the first token in the cache: the recent keys move down to the sinks instead."""
        if not self.is_initialized:
            return
        assert self.keys is not None
        recent = self._rotate(self.keys[:, :, self.num_sinks :], [-shift for shift in self._shifts])
        self.keys = torch.cat([self.keys[:, :, : self.num_sinks], recent], dim=2)
        self._num_seen = self._num_kept
        self._shifts = [0] * len(self._shifts)

    def get_seq_length(self) -> int:
        """Positions counted so far: the next token's."""
        return self._num_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys the next `query_length` tokens will see, and the position that the first of them counts as."""
        num_staying = self._num_staying(query_length)
        return num_staying + query_length, self._num_seen - num_staying

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None  # type: ignore[assignment]  # as transformers' own layers do
        self.is_initialized = False
        self._start()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows of the beams that go on."""
        super().reorder_cache(beam_idx)
        rows = beam_idx.tolist()
        if self.is_initialized:
            self._padding, self._shifts = [self._padding[row] for row in rows], [self._shifts[row] for row in rows]

    @property
    def _num_kept(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def _num_staying(self, num_tokens: int) -> int:
        """How many of the kept tokens find room beside `num_tokens` new ones."""
        room = self.window - num_tokens
        if self._num_kept > room and room <= self.num_sinks:
            raise ConfigError(
                f"{num_tokens} tokens at once do not fit into a streaming window of {self.window} with "
                f"{self.num_sinks} sinks; read the text in pieces (generate's prefill_chunk_size) of at most "
                f"{self.window - self.num_sinks - 1}"
            )
        return min(self._num_kept, room)

    def _without(self, states: Tensor, surplus: int) -> Tensor:
        """Drop `surplus` of (B, H_kv, L, D): in each row padding first, then what follows the sinks."""
        if not any(self._padding):
            return torch.cat([states[:, :, : self.num_sinks], states[:, :, self.num_sinks + surplus :]], dim=2)
        columns = torch.arange(states.shape[2] - surplus)  # (L',)
        padding = torch.tensor(self._padding).clamp_max(surplus)[:, None]  # (B, 1)
        sources = columns + torch.where(columns < self.num_sinks, padding, surplus)  # (B, L')
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
        self._streaming_layers = [
            StreamingLayer(rotation, window=window, num_sinks=num_sinks, left_padding=left_padding)
            for rotation in rotations
        ]
        super().__init__(layers=list(self._streaming_layers))
        self.window = window

    def rebase(self) -> None:
        """Count positions anew from the first token in the cache, if they have grown large; else do nothing.

        Call it between two texts, never within a `generate`, which counts by itself. A key is rounded once more each
        time, which is why it is not done at every token.
        """
        if self.get_seq_length() > REBASE_AFTER:
            for layer in self._streaming_layers:
                layer.rebase()

"""A deferred attention mask: the arguments for a batch's mask, until a layer asks for cut points or a dense mask.

transformers creates the mask once, before the first layer, when it is still unknown whether the layers train. S²-Attn
needs only cut points; ordinary attention needs the (B, 1, T, T) mask. Each is computed at most once per forward pass,
and only on demand.

B batch rows, T tokens of a row.
"""

from functools import cached_property, lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import causal_mask_function, sdpa_mask

from longlora.attention import CutPoints, HeadShard, cut_points
from longlora.errors import ConfigError
from longlora.models.grouping import USE_FULL_ATTENTION, Grouping, default_grouping


class OwnAttentionError(ConfigError, AttributeError):
    """A model used the mask as a tensor, because its attention bypasses transformers' interface."""


class DeferredMask:
    """The arguments of a mask that transformers would create, and what attention derives from them.

    Raises:
        OwnAttentionError: it is used as a tensor.
    """

    ndim = 4
    """Dimensions of the dense mask; transformers below 5.18 reads them in `generate` (see `_s2_mask`)."""

    def __init__(self, arguments: dict[str, Any], heads: HeadShard | None = None) -> None:
        self._arguments = arguments
        self._heads = heads
        self._cuts: dict[Grouping, CutPoints] = {}
        self.has_gradients = torch.is_grad_enabled()
        """Whether gradients were enabled when the mask was created: checkpointing disables them within layers."""

    @classmethod
    def of_gathered_row(
        cls, config: PreTrainedConfig, query: Tensor, *, heads: HeadShard, window: int | None
    ) -> "DeferredMask":
        """Replace the mask that sequence parallelism drops because it covers only this process's part of the row.

        Document boundaries follow from the positions of the whole row; `query` is (B, H, T, D), with some of the heads.
        """
        mask = cls(
            {
                "config": config,
                "attention_mask": None,
                "mask_function": causal_mask_function,
                "batch_size": query.shape[0],
                "q_length": query.shape[2],
                "device": query.device,
                "local_size": window,
            },
            heads,
        )
        mask.has_gradients = True
        return mask

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse every tensor attribute; as an `AttributeError`, so that `hasattr` is False."""
        raise OwnAttentionError(
            f"{self._arguments['config'].model_type} computes some or all of its attention itself (it uses the mask "
            f"as a tensor: {name}), so S²-Attn cannot be applied; {USE_FULL_ATTENTION}"
        )

    def __getitem__(self, key: Any) -> NoReturn:
        """Refuse as `__getattr__` does."""
        self.__getattr__("indexing")

    def __rsub__(self, other: Any) -> NoReturn:
        """Refuse as `__getattr__` does."""
        self.__getattr__("subtraction")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> NoReturn:
        """Refuse as `__getattr__` does, for every torch function that gets the mask as an argument."""
        mask = next(argument for argument in (*arguments, *(named or {}).values()) if isinstance(argument, cls))
        mask.__getattr__(function.__name__)

    @cached_property
    def dense(self) -> Tensor | None:
        """The mask for "sdpa": (B, 1, T, T) booleans, or None for plain causal attention."""
        return sdpa_mask(**self._arguments)

    def contiguous(self) -> Tensor | None:
        """Return the dense mask: with a static cache, `generate` creates masks itself and calls this on each."""
        return self.dense

    @property
    def window(self) -> int | None:
        """The layer's own limit (sliding window, chunks) on how many tokens each token sees, itself included."""
        return self._arguments.get("local_size")

    @cached_property
    def is_cut(self) -> bool:
        """Whether this mask is equivalent to causal attention between cuts, and within the window.

        True for packed documents and chunks; False if tokens see later ones, as within an image, or if the model adds
        a mask function of its own.
        """
        mask_function = self._arguments["mask_function"]
        if mask_function is causal_mask_function:
            return True
        return not self._arguments["use_vmap"] and (self.is_meta or not self._sees(1).any())

    @cached_property
    def default_grouping(self) -> Grouping:
        """The S²-Attn settings for layers without their own."""
        return default_grouping(self._arguments["config"])

    def cuts(
        self, num_tokens: int, *, grouping: Grouping, position_ids: Tensor | None, cu_seqlens: Tensor | None
    ) -> CutPoints:
        """Return the cut points of S²-Attn, or of documents alone if the group size is None.

        A document begins where a token does not see the previous one, where `position_ids` do not increase by one, or
        at `cu_seqlens`: some architectures do not pass packed documents to the mask, others not to the layers.

        Raises:
            ConfigError: the mask cannot be expressed by cuts.
        """
        if grouping not in self._cuts:
            if not self.is_cut:
                raise ConfigError(
                    "this model masks tokens from one another with its own mask, which S²-Attn cannot follow; "
                    + USE_FULL_ATTENTION
                )
            boundaries, batch_size = self._boundaries(position_ids, cu_seqlens), self._arguments["batch_size"]
            if self._heads is not None:
                assert boundaries is not None
                self._cuts[grouping] = _cuts_of_gathered_row(
                    batch_size, num_tokens, grouping, tuple(boundaries.tolist()), self._heads
                )
                return self._cuts[grouping]
            try:
                self._cuts[grouping] = cut_points(
                    batch_size,
                    num_tokens,
                    group_size=grouping.group_size,
                    shift=grouping.shift,
                    sink_tokens=grouping.sink_tokens,
                    cu_seqlens=boundaries,
                    padding_mask=self._padding_mask,
                )
            except ValueError as error:  # padding with a hole: boundaries and settings are valid here
                raise ConfigError(
                    f"S²-Attn cannot follow this attention_mask: {error}; pad rows at one end only, and exclude "
                    "tokens from the loss with labels of -100"
                ) from error
        return self._cuts[grouping]

    def longest_document(self, cuts: CutPoints) -> int:
        """Return the length of the longest unshifted segment that is not padding: a document, or a group of one."""
        if self._padding_mask is None:
            return cuts.longest(shifted=False)
        lengths = torch.tensor(cuts.lengths(shifted=False))  # (segments,)
        is_real = self._padding_mask.flatten().cpu()[lengths.cumsum(0) - lengths]  # (segments,)
        return int((lengths * is_real).max())

    @property
    def is_meta(self) -> bool:
        """Whether there are only shapes and no values."""
        return torch.device(self._arguments["device"]).type == "meta"

    @cached_property
    def _padding_mask(self) -> Tensor | None:
        mask = self._arguments["attention_mask"]
        return None if mask is None or mask.all() else mask

    def _sees(self, later: int) -> Tensor:
        """Return which tokens see the next one (`later` = 1), or the previous one (-1): (B, T - 1) booleans."""
        device = self._arguments["device"]
        rows = torch.arange(self._arguments["batch_size"], device=device)[:, None]  # (B, 1)
        time = torch.arange(self._arguments["q_length"] - 1, device=device)  # (T - 1,)
        first, second = (time, time + 1) if later == 1 else (time + 1, time)
        return self._arguments["mask_function"](rows, 0, first, second).expand(len(rows), -1)

    def _boundaries(self, position_ids: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
        """Return document boundaries in the flattened batch, from 0 to B·T, ignoring positions within padding."""
        batch_size, num_tokens = self._arguments["batch_size"], self._arguments["q_length"]
        device = self._arguments["device"]
        if self.is_meta:
            return None
        is_first = torch.zeros(batch_size, num_tokens, dtype=torch.bool, device=device)  # (B, T)
        is_first[:, 0] = True
        if self._arguments["mask_function"] is not causal_mask_function:
            is_first[:, 1:] |= ~self._sees(-1)
        if cu_seqlens is not None:
            starts = cu_seqlens.to(device).long()
            is_first.view(-1)[starts[starts < is_first.numel()]] = True
        elif position_ids is not None:
            jumps = position_ids.to(device).expand(batch_size, -1).diff(dim=1) != 1  # (B, T - 1)
            is_first[:, 1:] |= jumps if self._padding_mask is None else jumps & self._padding_mask[:, 1:]
        starts = is_first.flatten().nonzero().flatten()  # (documents,)
        return torch.cat([starts, starts.new_tensor([is_first.numel()])])


@lru_cache(maxsize=4)  # each layer gathers the row's positions again; compute the cuts once per forward pass
def _cuts_of_gathered_row(
    batch_size: int, num_tokens: int, grouping: Grouping, boundaries: tuple[int, ...], heads: HeadShard
) -> CutPoints:
    return cut_points(
        batch_size,
        num_tokens,
        group_size=grouping.group_size,
        shift=grouping.shift,
        sink_tokens=grouping.sink_tokens,
        cu_seqlens=torch.tensor(boundaries),
        heads=heads,
    )

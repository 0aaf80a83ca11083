"""What a batch's attention mask is made of, kept until it is known which kind of attention asks for it.

transformers makes the mask once, before the first layer, when it is not known yet whether the layers train. S²-Attn
needs only the places to cut; ordinary attention needs the (B, 1, T, T) mask. Each is computed at most once a forward
pass, and only if asked for.

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
    """A model takes the mask for a tensor, since its attention does not go through transformers' interface."""


class DeferredMask:
    """The arguments of a mask that transformers would make, and what attention needs of it.

    Raises:
        OwnAttentionError: it is used as the tensor that it is not.
    """

    ndim = 4
    """Of the dense mask: transformers below 5.18 asks for it where `generate` made the mask (see `_s2_mask`)."""

    def __init__(self, arguments: dict[str, Any], heads: HeadShard | None = None) -> None:
        self._arguments = arguments
        self._heads = heads
        self._cuts: dict[Grouping, CutPoints] = {}
        self.has_gradients = torch.is_grad_enabled()
        """Whether gradients were on where the mask was made: checkpointing turns them off within layers."""

    @classmethod
    def of_gathered_row(
        cls, config: PreTrainedConfig, query: Tensor, *, heads: HeadShard, window: int | None
    ) -> "DeferredMask":
        """Stand in for the mask that sequence parallelism drops, as it was made for a part of the row that is here.

        Documents begin where the positions of the whole row say so; `query` is (B, H, T, D), of some heads.
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
        """Refuse what a tensor would have; `hasattr` says no."""
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
        """Refuse as `__getattr__` does, whichever function of torch gets the mask beside tensors."""
        mask = next(argument for argument in (*arguments, *(named or {}).values()) if isinstance(argument, cls))
        mask.__getattr__(function.__name__)

    @cached_property
    def dense(self) -> Tensor | None:
        """The mask that "sdpa" would get: (B, 1, T, T) booleans, or None for plain causal attention."""
        return sdpa_mask(**self._arguments)

    def contiguous(self) -> Tensor | None:
        """Return the dense mask: `generate` makes masks by itself for a static cache, and asks this of each."""
        return self.dense

    @property
    def window(self) -> int | None:
        """How many tokens the layer sees at most, its own included, where it has a limit (sliding window, chunks)."""
        return self._arguments.get("local_size")

    @cached_property
    def is_cut(self) -> bool:
        """Whether causal attention between cuts, and within the window, sees all that this mask lets it see.

        So it is for packed documents and for chunks; not where tokens see later ones, as they do within an image, nor
        where the model combines the mask with a function of its own.
        """
        mask_function = self._arguments["mask_function"]
        if mask_function is causal_mask_function:
            return True
        return not self._arguments["use_vmap"] and (self.is_meta or not self._sees(1).any())

    @cached_property
    def default_grouping(self) -> Grouping:
        """The settings of S²-Attn for layers that got none."""
        return default_grouping(self._arguments["config"])

    def cuts(
        self, num_tokens: int, *, grouping: Grouping, position_ids: Tensor | None, cu_seqlens: Tensor | None
    ) -> CutPoints:
        """The cut points of S²-Attn, or of documents alone for a group size of None.

        Documents begin where a token does not see the one before it, where `position_ids` do not go on by one, or at
        `cu_seqlens`. Not every architecture tells its mask of packed documents, nor every one its layers.

        Raises:
            ConfigError: the mask hides tokens otherwise.
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
                    sink_tokens=grouping.sink_tokens,
                    cu_seqlens=boundaries,
                    padding_mask=self._padding_mask,
                )
            except ValueError as error:  # padding with a hole: boundaries are ours, and the settings are checked
                raise ConfigError(
                    f"S²-Attn cannot follow this attention_mask: {error}; pad rows at one end, and keep tokens out of "
                    "the loss by labels of -100"
                ) from error
        return self._cuts[grouping]

    def longest_document(self, cuts: CutPoints) -> int:
        """Length of the longest unshifted segment that is no padding: of a document, or of a group of one."""
        if self._padding_mask is None:
            return cuts.longest(shifted=False)
        lengths = torch.tensor(cuts.lengths(shifted=False))  # (segments,)
        is_real = self._padding_mask.flatten().cpu()[lengths.cumsum(0) - lengths]  # (segments,)
        return int((lengths * is_real).max())

    @property
    def is_meta(self) -> bool:
        """Whether there are no values to look at, but shapes alone."""
        return torch.device(self._arguments["device"]).type == "meta"

    @cached_property
    def _padding_mask(self) -> Tensor | None:
        mask = self._arguments["attention_mask"]
        return None if mask is None or mask.all() else mask

    def _sees(self, later: int) -> Tensor:
        """Which tokens see the next one (`later` = 1), or the one before them (-1): (B, T - 1) booleans."""
        device = self._arguments["device"]
        rows = torch.arange(self._arguments["batch_size"], device=device)[:, None]  # (B, 1)
        time = torch.arange(self._arguments["q_length"] - 1, device=device)  # (T - 1,)
        first, second = (time, time + 1) if later == 1 else (time + 1, time)
        return self._arguments["mask_function"](rows, 0, first, second).expand(len(rows), -1)

    def _boundaries(self, position_ids: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
        """Boundaries of documents in the flattened batch, from 0 to B·T; positions within padding mean nothing."""
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


@lru_cache(maxsize=4)  # each layer gathers the row's positions anew, and one forward pass is to be cut once
def _cuts_of_gathered_row(
    batch_size: int, num_tokens: int, grouping: Grouping, boundaries: tuple[int, ...], heads: HeadShard
) -> CutPoints:
    return cut_points(
        batch_size,
        num_tokens,
        group_size=grouping.group_size,
        sink_tokens=grouping.sink_tokens,
        cu_seqlens=torch.tensor(boundaries),
        heads=heads,
    )

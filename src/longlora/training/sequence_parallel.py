"""Ulysses sequence parallelism: a part of each row in every process and, in attention, whole rows of some heads.

Jacobs et al., arXiv 2309.14509. Around each attention call, one exchange gathers the row and divides the heads, and a
second undoes this. Everything else in a model sees one token at a time. To whatever divides the model (DDP, FSDP2,
ZeRO), each process has a batch of its own, so gradients add up over the tokens of all processes as usual.

accelerate's development version does the same (`sp_backend="torch"`), by wrapping the registered attention. Remove this
file when the oldest supported version has it.

B batch rows, T tokens of a row, H query heads, H_kv key-value heads, D head dimension, N processes that share a row.
"""

from typing import Any

import torch
import torch.distributed as dist
from accelerate.data_loader import BatchSamplerShard
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longlora.data.encode import IGNORED
from longlora.errors import ConfigError
from longlora.planner.job import check_head_split, check_position_split


class SequenceParallel:
    """The processes that share rows with this one: neighbouring ranks; every process must create one, of equal size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._group, _ = dist.new_subgroups(size)
        self._index = dist.get_rank(self._group)
        self._positions: Tensor | None = None  # (B, T), of the row in the model; shows where documents begin

    def attach(self, model: PreTrainedModel) -> None:
        """Divide the heads of a model with "s2" attention among the processes, in place.

        Raises:
            ConfigError: its heads cannot be divided evenly, or something other than attention mixes tokens.
        """
        check_divisible(model, self.size)
        modules, attention = set(model.modules()), ALL_ATTENTION_FUNCTIONS["s2"]

        def attend(module: nn.Module, *arguments: Any, **named: Any) -> tuple[Tensor, None]:
            if module not in modules:
                return attention(module, *arguments, **named)
            return self._attend(attention, module, *arguments, **named)

        AttentionInterface.register("s2", attend)
        model.register_forward_pre_hook(self._gather_positions, with_kwargs=True)

    def _gather_positions(self, model: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
        here = named["position_ids"].contiguous()  # (B, T/N)
        parts = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(parts, here, group=self._group)
        self._positions = torch.cat(parts, dim=1)  # (B, T)

    def _attend(
        self,
        attention: Any,
        module: nn.Module,
        query: Float[Tensor, "B H part D"],
        key: Float[Tensor, "B H_kv part D"],
        value: Float[Tensor, "B H_kv part D_v"],
        attention_mask: Any,
        s_aux: Float[Tensor, " H"] | None = None,
        **named: Any,
    ) -> tuple[Float[Tensor, "B part H D_v"], None]:
        """Attend from the local tokens to the whole row; the mask was made for a part of it, and is dropped."""
        if key.shape[1] < self.size:  # several processes need the same head
            key, value = (tensor.repeat_interleave(self.size // key.shape[1], dim=1) for tensor in (key, value))
        query, key, value = (self._gather_row(tensor) for tensor in (query, key, value))
        if s_aux is not None:
            named["s_aux"] = s_aux.chunk(self.size)[self._index]
        output, _ = attention(module, query, key, value, None, **{**named, "position_ids": self._positions})
        return self._gather_heads(output), None

    def _gather_row(self, tensor: Float[Tensor, "B H part D"]) -> Float[Tensor, "B heads T D"]:
        parts = tensor.permute(2, 0, 1, 3).unflatten(2, (self.size, -1)).movedim(2, 0)  # (N, T/N, B, H/N, D)
        return _Exchange.apply(parts, self._group).flatten(0, 1).permute(1, 2, 0, 3)  # (B, H/N, T, D)

    def _gather_heads(self, tensor: Float[Tensor, "B T heads D"]) -> Float[Tensor, "B part H D"]:
        parts = tensor.transpose(0, 1).unflatten(0, (self.size, -1))  # (N, T/N, B, H/N, D)
        return _Exchange.apply(parts, self._group).movedim(0, 2).flatten(2, 3).transpose(0, 1)  # (B, T/N, H, D)

    def part_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return this process's part of a batch of whole rows, with labels already shifted to the next token.

        Document boundaries of the whole row are left out, because attention takes them from the positions.
        """
        labels = nn.functional.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]  # (B, T)
        whole = {name: batch[name] for name in ("input_ids", "position_ids")}
        whole |= {"labels": labels, "shift_labels": labels}
        return {name: tensor.chunk(self.size, dim=1)[self._index].contiguous() for name, tensor in whole.items()}

    def share_rows(self, loader: DataLoader, *, everywhere: bool = False) -> DataLoader:
        """Let a loader prepared by accelerate read the same rows in the processes that share them, or `everywhere`."""
        sampler = loader.batch_sampler
        assert isinstance(sampler, BatchSamplerShard)
        count = sampler.num_processes if everywhere else self.size
        sampler.num_processes, sampler.process_index = sampler.num_processes // count, sampler.process_index // count
        sampler.even_batches = sampler.num_processes > 1  # else a short last batch would repeat rows
        return loader

    def total(self, number: Tensor) -> Tensor:
        """Sum a number over the processes that share a row, in place."""
        dist.all_reduce(number, group=self._group)
        return number


class _Exchange(torch.autograd.Function):
    """Send the nth part to the nth process, and receive a part from each; gradients go back the same way."""

    @staticmethod
    def forward(ctx: Any, parts: Float[Tensor, "N ..."], group: Any) -> Float[Tensor, "N ..."]:
        ctx.group = group
        received = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, parts.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, gradients: Float[Tensor, "N ..."]) -> tuple[Float[Tensor, "N ..."], None]:
        return _Exchange.apply(gradients, ctx.group), None


def check_divisible(model: PreTrainedModel, size: int) -> None:
    """Check that the rows of a model can be divided among `size` processes.

    Raises:
        ConfigError: they cannot.
    """
    config = model.config.get_text_config()
    asked, remedy = f"sequence_parallel_size={size}", "train it with each row in one process"
    if config._attn_implementation != "s2":
        raise ConfigError(f"{asked}: the attention of {config.model_type} cannot be divided; {remedy}")
    if mixing := next((name for name, module in model.named_modules() if isinstance(module, nn.Conv1d)), None):
        raise ConfigError(f"{asked}: {mixing} of {config.model_type} mixes tokens outside attention; {remedy}")
    check_position_split(size, config.rope_parameters)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    check_head_split(size, heads, kv_heads)

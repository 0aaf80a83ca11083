"""Which kernel runs the segments: what each can do, and which one "auto" takes.

| backend    | runs on                         | softcap | sinks | memory beside inputs and output              |
|------------|---------------------------------|---------|-------|----------------------------------------------|
| `cpu`      | CPU                             |         | yes   | N·H log-sum-exps, one segment                |
| `varlen`   | CUDA, bfloat16 or float16       |         |       | N·H log-sum-exps                             |
| `flash`    | CUDA, the same, with flash-attn | yes     |       | N·H log-sum-exps                             |
| `flex`     | CUDA; CPU without gradients     | yes     | yes   | a mask of blocks (on the CPU all N² scores)  |
| `sdpa`     | everywhere                      |         |       | the outputs of the segments                  |
| `explicit` | everywhere                      | yes     | yes   | scores of some queries, each computed twice  |

"auto" takes `varlen` on CUDA and `cpu` on the CPU where they can do what is asked, then `flex` on CUDA and else
`sdpa`, or `explicit` for softcap and sinks. It never takes `flash`, whose advantage over `varlen` (the same algorithm)
we have not measured.
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from longlora.attention import cpu, varlen
from longlora.errors import ConfigError

Backend = Literal["auto", "cpu", "varlen", "flash", "flex", "sdpa", "explicit"]

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Wish:
    """What a backend would have to run: the (N, H or H_kv, D) tensors and what changes their attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    softcap: float | None
    sinks: Tensor | None

    @property
    def needs_gradients(self) -> bool:
        """Whether a backward pass may follow."""
        tensors = (self.query, self.key, self.value, self.sinks)
        return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def choose_backend(backend: Backend, wish: Wish) -> Backend:
    """Return the backend that runs: the one that is asked for, or the first that "auto" finds able.

    Raises:
        ConfigError: no backend of that name, or one that cannot run this here.
    """
    if backend == "auto":
        return next(name for name in ("varlen", "cpu", "flex", "sdpa", "explicit") if _suits(name, wish))
    if backend not in get_args(Backend):
        raise ConfigError(f"there is no attention backend {backend!r}; there are {', '.join(get_args(Backend))}")
    if reason := refusal(backend, wish):
        raise ConfigError(f'the attention backend {backend!r} {reason}; choose another, or "auto"')
    return backend


def _suits(backend: Backend, wish: Wish) -> bool:
    # FlexAttention is only for what `varlen` cannot do, and the CPU's is only for checking.
    if backend == "flex" and not (wish.query.is_cuda and (wish.softcap is not None or wish.sinks is not None)):
        return False
    return refusal(backend, wish) is None


def refusal(backend: Backend, wish: Wish) -> str | None:
    """Say why a backend cannot run this here, as the rest of a sentence, or None if it can."""
    device, dtype = wish.query.device.type, wish.query.dtype
    if wish.softcap is not None and backend in ("cpu", "varlen", "sdpa"):
        return "knows no softcap"
    if wish.sinks is not None and backend in ("varlen", "flash", "sdpa"):
        return "knows no sinks"
    if backend == "cpu":
        return _refusal_of_cpu(wish)
    if backend in ("varlen", "flash"):
        if device != "cuda":
            return f"runs on CUDA only, not on {device}"
        if backend == "flash" and varlen.flash_function() is None:
            return "needs the package flash-attn (2 or 3), which is not installed or does not load"
        return _refusal_of_flash_kernels(wish)
    if backend == "flex":
        if device == "cpu":
            return "has no backward pass on the CPU" if wish.needs_gradients else None
        return _refusal_of_compiled_flex(device, dtype, wish.query.shape[2])
    return None


def _refusal_of_cpu(wish: Wish) -> str | None:
    if wish.query.device.type != "cpu":
        return f"runs on the CPU only, not on {wish.query.device.type}"
    if not cpu.is_available():
        return f"needs a kernel that torch {torch.__version__} does not have"
    if wish.value.shape[2] != wish.query.shape[2]:
        return f"needs values of the keys' head dimension, got {wish.value.shape[2]} and {wish.query.shape[2]}"
    return None


def _refusal_of_flash_kernels(wish: Wish) -> str | None:
    """Give the limits of FlashAttention, which `varlen_attn` inherits."""
    head_dim = wish.query.shape[2]
    if wish.query.dtype not in _HALF:
        return f"runs in bfloat16 or float16, not in {str(wish.query.dtype).removeprefix('torch.')}"
    if wish.value.shape[2] != head_dim or head_dim % 8 or head_dim > 256:
        return (
            "needs a head dimension of keys and values alike that is a multiple of 8 up to 256, "
            f"got {head_dim} and {wish.value.shape[2]}"
        )
    return None


def _refusal_of_compiled_flex(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    if device != "cuda":
        return f"runs on CUDA, and for checking on the CPU, not on {device}"
    if importlib.util.find_spec("triton") is None:
        return "is compiled by triton, which is not installed"
    if dtype == torch.float64 or head_dim < 16:
        return f"needs a head dimension from 16 and at most float32, got {head_dim} and {dtype}"
    return None


def in_autocast_dtype(*tensors: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
    """Cast as autocast casts the inputs of attention; it does not know our kernels. float64 stays, as it does there."""
    device = tensors[0].device.type
    # Asked for by name where autocast exists: it is an error to ask for "meta".
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)

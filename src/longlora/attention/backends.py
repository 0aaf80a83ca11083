"""Which kernel runs the segments: what each can do, and which one "auto" takes.

| backend    | runs on                     | softcap | sinks | window | memory beside inputs and output             |
|------------|-----------------------------|---------|-------|--------|---------------------------------------------|
| `cpu`      | CPU                         |         | yes   |        | N·H log-sum-exps, one segment               |
| `varlen`   | CUDA, bfloat16 or float16   |         |       | yes    | N·H log-sum-exps                            |
| `flash`    | the same, with flash-attn   | yes     |       | yes    | N·H log-sum-exps                            |
| `flex`     | CUDA; CPU without gradients | yes     | yes   | yes    | a mask of blocks (on the CPU all N² scores) |
| `sdpa`     | everywhere                  |         |       |        | the outputs of the segments                 |
| `explicit` | everywhere                  | yes     | yes   | yes    | scores of some queries, each computed twice |

"auto" takes `varlen` on CUDA and `cpu` on the CPU where they can do what is asked, then `flex` on CUDA and else
`sdpa`, or `explicit` for softcap, sinks and windows. It never takes `flash`, whose advantage over `varlen` (the same
algorithm) we have not measured.
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


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a backend would have to run, as far as any of them minds."""

    device: str
    """The kind of device, as "cuda"."""
    dtype: torch.dtype
    head_dim: int
    value_dim: int
    needs_gradients: bool = False
    has_softcap: bool = False
    has_sinks: bool = False
    has_window: bool = False

    @staticmethod
    def of(
        query: Float[Tensor, "N H D"],
        key: Float[Tensor, "N H_kv D"],
        value: Float[Tensor, "N H_kv D_v"],
        *,
        softcap: float | None,
        sinks: Float[Tensor, " H"] | None,
        window: int | None,
    ) -> "Wish":
        """Read it off the tensors."""
        tensors = (query, key, value, sinks)
        return Wish(
            device=query.device.type,
            dtype=query.dtype,
            head_dim=query.shape[2],
            value_dim=value.shape[2],
            needs_gradients=torch.is_grad_enabled()
            and any(tensor is not None and tensor.requires_grad for tensor in tensors),
            has_softcap=softcap is not None,
            has_sinks=sinks is not None,
            has_window=window is not None,
        )


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
    if backend == "flex" and not (wish.device == "cuda" and (wish.has_softcap or wish.has_sinks or wish.has_window)):
        return False
    return refusal(backend, wish) is None


def refusal(backend: Backend, wish: Wish) -> str | None:
    """Say why a backend cannot run this here, as the rest of a sentence, or None if it can."""
    if wish.has_softcap and backend in ("cpu", "varlen", "sdpa"):
        return "knows no softcap"
    if wish.has_sinks and backend in ("varlen", "flash", "sdpa"):
        return "knows no sinks"
    if wish.has_window and backend in ("cpu", "sdpa"):
        return "knows no window"
    if backend == "cpu":
        return _refusal_of_cpu(wish)
    if backend in ("varlen", "flash"):
        return _refusal_of_flash_kernels(backend, wish)
    return _refusal_of_flex(wish) if backend == "flex" else None


def _refusal_of_cpu(wish: Wish) -> str | None:
    if wish.device != "cpu":
        return f"runs on the CPU only, not on {wish.device}"
    if not cpu.is_available():
        return f"needs a kernel that torch {torch.__version__} does not have"
    if wish.value_dim != wish.head_dim:
        return f"needs values of the keys' head dimension, got {wish.value_dim} and {wish.head_dim}"
    return None


def _refusal_of_flash_kernels(backend: Backend, wish: Wish) -> str | None:
    """Give the limits of FlashAttention, which `varlen_attn` inherits."""
    if wish.device != "cuda":
        return f"runs on CUDA only, not on {wish.device}"
    if backend == "flash" and varlen.flash_function() is None:
        return "needs the package flash-attn (2 or 3), which is not installed or does not load"
    if wish.dtype not in (torch.bfloat16, torch.float16):
        return f"runs in bfloat16 or float16, not in {wish.dtype}"
    if wish.value_dim != wish.head_dim or wish.head_dim % 8 or wish.head_dim > 256:
        return (
            "needs a head dimension of keys and values alike that is a multiple of 8 up to 256, "
            f"got {wish.head_dim} and {wish.value_dim}"
        )
    return None


def _refusal_of_flex(wish: Wish) -> str | None:
    if wish.device == "cpu":
        return "has no backward pass on the CPU" if wish.needs_gradients else None
    if wish.device != "cuda":
        return f"runs on CUDA, and for checking on the CPU, not on {wish.device}"
    if importlib.util.find_spec("triton") is None:
        return "is compiled by triton, which is not installed"
    if wish.dtype == torch.float64 or min(wish.head_dim, wish.value_dim) < 16:
        return f"needs head dimensions from 16 and at most float32, got {wish.head_dim} and {wish.dtype}"
    return None


def in_autocast_dtype(*tensors: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
    """Cast as autocast casts the inputs of attention; it does not know our kernels. float64 stays, as it does there."""
    device = tensors[0].device.type
    # Asked for by name where autocast exists: it is an error to ask for "meta".
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)

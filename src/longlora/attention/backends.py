"""Attention backends: what each kernel supports, and which one "auto" selects.

| backend     | runs on                     | softcap | sinks | window | sink tokens | memory beyond inputs and output |
|-------------|-----------------------------|---------|-------|--------|-------------|---------------------------------|
| `varlen`    | CUDA, bfloat16 or float16   |         |       | yes    | yes         | N·H log-sum-exps                |
| `by_length` | the same                    |         |       |        | yes         | segment outputs                 |
| `flash`     | the same, with flash-attn   | yes     |       | yes    | yes         | N·H log-sum-exps                |
| `flex`      | CUDA; CPU without gradients | yes     | yes   | yes    | yes         | a block mask; on the CPU N²     |
| `sdpa`      | everywhere                  |         |       |        | yes         | segment outputs                 |
| `explicit`  | everywhere                  | yes     | yes   | yes    | yes         | one block of scores, twice      |

With sink tokens, every backend except `flex` also copies keys and values for each half of the heads; `sdpa` and
`by_length` copy the queries too. A window cannot be combined with sink tokens.

On CUDA, "auto" depends on the card (`_fastest_on_cuda`): `by_length` where SDPA's kernel is faster than `varlen_attn`,
`flash` on such a card if FlashAttention 3 is installed, otherwise `varlen`. Elsewhere, and for requests that these do
not support, it falls back to `flex` (CUDA only), then to `sdpa`, or to `explicit` for softcap, sinks and windows. It
never selects flash-attn 2, which is the same algorithm as `varlen`.
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from longlora.attention import varlen
from longlora.errors import ConfigError

Backend = Literal["auto", "varlen", "by_length", "flash", "flex", "sdpa", "explicit"]


# Cards on which SDPA uses cuDNN's kernel, by compute capability, and the shortest segments, in tokens, for which it is
# faster than `varlen_attn`. FlashAttention 2 is fastest on Ampere (8.x) and Ada (8.9), and the choice on unknown cards.
_SHORTEST_FOR_SDPA = {
    (9, 0): 1024,  # Hopper
    (10, 0): 1024,  # data-centre Blackwell: not measured, assumed to behave like Hopper
}


@dataclass(frozen=True, kw_only=True)
class AttentionRequest:
    """The properties of an attention call that decide which backends can run it."""

    device: str
    """Device type, such as "cuda"."""
    dtype: torch.dtype
    head_dim: int
    value_dim: int
    needs_gradients: bool = False
    has_softcap: bool = False
    has_sinks: bool = False
    has_window: bool = False
    capability: tuple[int, int] | None = None
    """Compute capability of a CUDA card, such as (9, 0)."""

    @staticmethod
    def of(
        query: Float[Tensor, "N H D"],
        key: Float[Tensor, "N H_kv D"],
        value: Float[Tensor, "N H_kv D_v"],
        *,
        softcap: float | None,
        sinks: Float[Tensor, " H"] | None,
        window: int | None,
    ) -> "AttentionRequest":
        """Create the request for a call's tensors and options."""
        tensors = (query, key, value, sinks)
        return AttentionRequest(
            device=query.device.type,
            dtype=query.dtype,
            head_dim=query.shape[2],
            value_dim=value.shape[2],
            needs_gradients=torch.is_grad_enabled()
            and any(tensor is not None and tensor.requires_grad for tensor in tensors),
            has_softcap=softcap is not None,
            has_sinks=sinks is not None,
            has_window=window is not None,
            capability=torch.cuda.get_device_capability(query.device) if query.is_cuda else None,
        )


def choose_backend(backend: Backend, request: AttentionRequest) -> Backend:
    """Return the backend to run: the requested one, or for "auto" the first that supports the request.

    Raises:
        ConfigError: the backend does not exist, or cannot run this request here.
    """
    if backend == "auto":
        candidates: tuple[Backend, ...] = (_fastest_on_cuda(request), "varlen", "flex", "sdpa", "explicit")
        return next(name for name in candidates if _suits(name, request))
    if backend not in get_args(Backend):
        raise ConfigError(f"there is no attention backend {backend!r}; choose one of {', '.join(get_args(Backend))}")
    if reason := refusal(backend, request):
        raise ConfigError(f'the attention backend {backend!r} {reason}; choose another, or "auto"')
    return backend


def shortest_for_sdpa(capability: tuple[int, int] | None) -> int | None:
    """Return the segment length in tokens from which SDPA beats `varlen_attn` on this card; None if it never does."""
    return _SHORTEST_FOR_SDPA.get(capability) if capability is not None else None


def _fastest_on_cuda(request: AttentionRequest) -> Backend:
    """Return the fastest backend on a card for tensors that every kernel supports."""
    if shortest_for_sdpa(request.capability) is None or varlen.newer_flash_is_active():
        return "varlen"
    return "flash" if varlen.has_flash_3() else "by_length"


def _suits(backend: Backend, request: AttentionRequest) -> bool:
    # FlexAttention is only for what `varlen` does not support; on the CPU it is only for testing.
    if backend == "flex" and not (
        request.device == "cuda" and (request.has_softcap or request.has_sinks or request.has_window)
    ):
        return False
    return refusal(backend, request) is None


def refusal(backend: Backend, request: AttentionRequest) -> str | None:
    """Return why a backend cannot run a request here, as the predicate of a sentence; None if it can."""
    if request.has_softcap and backend in ("varlen", "by_length", "sdpa"):
        return "does not support softcap"
    if request.has_sinks and backend in ("varlen", "by_length", "flash", "sdpa"):
        return "does not support sinks"
    if request.has_window and backend in ("by_length", "sdpa"):
        return "does not support a window"
    if backend in ("varlen", "by_length", "flash"):
        return _refusal_of_flash_kernels(backend, request)
    return _refusal_of_flex(request) if backend == "flex" else None


def _refusal_of_flash_kernels(backend: Backend, request: AttentionRequest) -> str | None:
    """Check the limits of FlashAttention, which `varlen_attn` inherits."""
    if request.device != "cuda":
        return f"runs on CUDA only, not on {request.device}"
    if backend == "flash" and varlen.flash_function() is None:
        return "needs the package flash-attn (2 or 3), which is not installed or does not load"
    if request.dtype not in (torch.bfloat16, torch.float16):
        return f"runs in bfloat16 or float16, not in {request.dtype}"
    if request.value_dim != request.head_dim or request.head_dim % 8 or request.head_dim > 256:
        return (
            "needs the same head dimension for keys and values, a multiple of 8 up to 256, "
            f"got {request.head_dim} and {request.value_dim}"
        )
    return None


def _refusal_of_flex(request: AttentionRequest) -> str | None:
    if request.device == "cpu":
        return "has no backward pass on the CPU" if request.needs_gradients else None
    if request.device != "cuda":
        return f"runs on CUDA, or for testing on the CPU, not on {request.device}"
    if importlib.util.find_spec("triton") is None:
        return "is compiled by triton, which is not installed"
    if request.dtype == torch.float64 or min(request.head_dim, request.value_dim) < 16:
        return f"needs head dimensions of at least 16 and at most float32, got {request.head_dim} and {request.dtype}"
    return None


def in_autocast_dtype(*tensors: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
    """Cast as autocast casts attention inputs, since it does not cover our kernels; it leaves float64 unchanged."""
    device = tensors[0].device.type
    # Check availability first: querying autocast for "meta" is an error.
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)

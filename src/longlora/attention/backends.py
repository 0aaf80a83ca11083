"""Which kernel runs the segments: what each can do, and which one "auto" takes.

| backend     | runs on                     | softcap | sinks | window | sink tokens | memory beside inputs and output |
|-------------|-----------------------------|---------|-------|--------|-------------|---------------------------------|
| `varlen`    | CUDA, bfloat16 or float16   |         |       | yes    | yes         | N·H log-sum-exps                |
| `by_length` | the same                    |         |       |        | yes         | the outputs of the segments     |
| `flash`     | the same, with flash-attn   | yes     |       | yes    | yes         | N·H log-sum-exps                |
| `flex`      | CUDA; CPU without gradients | yes     | yes   | yes    | yes         | a mask of blocks; on the CPU N² |
| `sdpa`      | everywhere                  |         |       |        | yes         | the outputs of the segments     |
| `explicit`  | everywhere                  | yes     | yes   | yes    | yes         | scores of some queries, twice   |

With sink tokens all but `flex` also make a copy of keys and values for each half of the heads; `sdpa` and `by_length`
one of the queries too. A window and sink tokens exclude one another.

"auto" goes by the card (`_fastest_on_cuda`): `by_length` where SDPA's kernel is faster than `varlen_attn`'s, `flash`
where the user has installed FlashAttention 3 for such a card, else `varlen`. Elsewhere, and where those cannot do what
is asked, it takes `flex` (CUDA only), then `sdpa`, or `explicit` for softcap, sinks and windows. It never takes
flash-attn 2, which is the algorithm of `varlen`.
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from longlora.attention import varlen
from longlora.attention.cuts import CutPoints
from longlora.errors import ConfigError

Backend = Literal["auto", "varlen", "by_length", "flash", "flex", "sdpa", "explicit"]


# Cards on which SDPA takes cuDNN's kernel, by compute capability, and the shortest segments, in tokens, for which that
# is faster than `varlen_attn`. FlashAttention 2 is the fastest there is on Ampere (8.x), Ada (8.9) and cards unknown.
_SHORTEST_FOR_SDPA = {
    (9, 0): 1024,  # Hopper
    (10, 0): 1024,  # Blackwell for data centres: not measured, taken to be like Hopper
}


@dataclass(frozen=True, kw_only=True)
class AttentionRequest:
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
    has_sink_tokens: bool = False
    capability: tuple[int, int] | None = None
    """Of a CUDA card, as (9, 0)."""

    @staticmethod
    def of(
        query: Float[Tensor, "N H D"],
        key: Float[Tensor, "N H_kv D"],
        value: Float[Tensor, "N H_kv D_v"],
        cuts: CutPoints,
        *,
        softcap: float | None,
        sinks: Float[Tensor, " H"] | None,
        window: int | None,
    ) -> "AttentionRequest":
        """Read it off the tensors and the cuts."""
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
            has_sink_tokens=cuts.sink_tokens > 0,
            capability=torch.cuda.get_device_capability(query.device) if query.is_cuda else None,
        )


def choose_backend(backend: Backend, request: AttentionRequest) -> Backend:
    """Return the backend that runs: the one that is asked for, or the first that "auto" finds able.

    Raises:
        ConfigError: no backend of that name, or one that cannot run this here.
    """
    if backend == "auto":
        candidates: tuple[Backend, ...] = (_fastest_on_cuda(request), "varlen", "flex", "sdpa", "explicit")
        return next(name for name in candidates if _suits(name, request))
    if backend not in get_args(Backend):
        raise ConfigError(f"there is no attention backend {backend!r}; there are {', '.join(get_args(Backend))}")
    if reason := refusal(backend, request):
        raise ConfigError(f'the attention backend {backend!r} {reason}; choose another, or "auto"')
    return backend


def shortest_for_sdpa(capability: tuple[int, int] | None) -> int | None:
    """From how many tokens on SDPA is faster on segments than `varlen_attn` on this card; None: it never is."""
    return _SHORTEST_FOR_SDPA.get(capability) if capability is not None else None


def _fastest_on_cuda(request: AttentionRequest) -> Backend:
    """Name the fastest kernel of a card, for tensors that each of them can run."""
    if shortest_for_sdpa(request.capability) is None or varlen.newer_flash_is_active():
        return "varlen"
    return "flash" if varlen.has_flash_3() else "by_length"


def _suits(backend: Backend, request: AttentionRequest) -> bool:
    # FlexAttention is only for what `varlen` cannot do, and the CPU's is only for checking.
    if backend == "flex" and not (
        request.device == "cuda" and (request.has_softcap or request.has_sinks or request.has_window)
    ):
        return False
    return refusal(backend, request) is None


def refusal(backend: Backend, request: AttentionRequest) -> str | None:
    """Say why a backend cannot run this here, as the rest of a sentence, or None if it can."""
    if request.has_softcap and backend in ("varlen", "by_length", "sdpa"):
        return "knows no softcap"
    if request.has_sinks and backend in ("varlen", "by_length", "flash", "sdpa"):
        return "knows no sinks"
    if request.has_window and backend in ("by_length", "sdpa"):
        return "knows no window"
    if backend in ("varlen", "by_length", "flash"):
        return _refusal_of_flash_kernels(backend, request)
    return _refusal_of_flex(request) if backend == "flex" else None


def _refusal_of_flash_kernels(backend: Backend, request: AttentionRequest) -> str | None:
    """Give the limits of FlashAttention, which `varlen_attn` inherits."""
    if request.device != "cuda":
        return f"runs on CUDA only, not on {request.device}"
    if backend == "flash" and varlen.flash_function() is None:
        return "needs the package flash-attn (2 or 3), which is not installed or does not load"
    if request.dtype not in (torch.bfloat16, torch.float16):
        return f"runs in bfloat16 or float16, not in {request.dtype}"
    if request.value_dim != request.head_dim or request.head_dim % 8 or request.head_dim > 256:
        return (
            "needs a head dimension of keys and values alike that is a multiple of 8 up to 256, "
            f"got {request.head_dim} and {request.value_dim}"
        )
    return None


def _refusal_of_flex(request: AttentionRequest) -> str | None:
    if request.device == "cpu":
        return "has no backward pass on the CPU" if request.needs_gradients else None
    if request.device != "cuda":
        return f"runs on CUDA, and for checking on the CPU, not on {request.device}"
    if importlib.util.find_spec("triton") is None:
        return "is compiled by triton, which is not installed"
    if request.dtype == torch.float64 or min(request.head_dim, request.value_dim) < 16:
        return f"needs head dimensions from 16 and at most float32, got {request.head_dim} and {request.dtype}"
    return None


def in_autocast_dtype(*tensors: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
    """Cast as autocast casts the inputs of attention; it does not know our kernels. float64 stays, as it does there."""
    device = tensors[0].device.type
    # Asked for by name where autocast exists: it is an error to ask for "meta".
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)

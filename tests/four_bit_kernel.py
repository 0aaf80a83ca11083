"""The processor kernel with which bitsandbytes multiplies 4-bit weights, chosen or replaced."""

import copy
import sys
from typing import Any

import pytest
from torch import Tensor


def multiply_by_formula(states: Tensor, weight: Tensor, out: Tensor | None = None, *, state: Any) -> Tensor:
    """Compute what the kernel for AVX512-BF16 does, from the weights that bitsandbytes packs for it."""
    from bitsandbytes import functional

    plain, unpacked = functional._convert_weight_packed_for_cpu_inverse(weight.data, copy.deepcopy(state))
    return states @ functional.dequantize_4bit(plain.view(-1, 1), unpacked).to(states.dtype).T


def choose_avx512_bf16(patch: pytest.MonkeyPatch, has_kernel: bool) -> None:
    """Let bitsandbytes find the kernel or not; where the processor lacks it, its formula computes."""
    from bitsandbytes import functional

    if has_kernel and not functional.has_avx512bf16():
        patch.setattr(functional, "gemv_4bit", multiply_by_formula)
    for name, module in [*sys.modules.items()]:
        if name.startswith("bitsandbytes") and "has_avx512bf16" in vars(module):
            patch.setattr(module, "has_avx512bf16", lambda: has_kernel)

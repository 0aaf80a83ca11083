"""GPUs: their memory, their peak, and the part of it that training reaches."""

import re
from dataclasses import dataclass

from longlora.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its vendor describes it (dense bfloat16, float32 accumulation), and what training reaches of its peak.

    The two efficiencies are fitted where `measured` says to what; communication, the optimizer and the data loader are
    inside them. Elsewhere they are assumed.
    """

    memory_gib: float
    peak_flops: float
    linear_efficiency: float = 0.40
    attention_efficiency: float = 0.50
    measured: str | None = None


_PAPER = "the paper's table 12 (8 GPUs, 7B)"
_HICI = "LongLoRA's hours in HiCI (arXiv 2603.20843; 8 GPUs, 7B), 64 rows a step assumed"

GPUS = {
    "a100-40gb": Gpu(
        memory_gib=40, peak_flops=312e12, linear_efficiency=0.45, attention_efficiency=0.67, measured=_PAPER
    ),
    "a100-80gb": Gpu(
        memory_gib=80, peak_flops=312e12, linear_efficiency=0.45, attention_efficiency=0.67, measured=_PAPER
    ),
    "h100-80gb": Gpu(
        memory_gib=80, peak_flops=989e12, linear_efficiency=0.31, attention_efficiency=0.36, measured=_HICI
    ),
    "h200": Gpu(memory_gib=140, peak_flops=989e12, linear_efficiency=0.31, attention_efficiency=0.36),
    "l40s": Gpu(memory_gib=45, peak_flops=362e12),
    "l4": Gpu(memory_gib=22.5, peak_flops=121e12),
    "rtx-4090": Gpu(memory_gib=24, peak_flops=165e12),
    "rtx-3090": Gpu(memory_gib=24, peak_flops=71e12),
}
"""Memory is what the driver reports in GiB, rounded down; peaks are the vendor's figures without sparsity."""


def find_gpu(name: str) -> Gpu:
    """Look a GPU up by its name here.

    Raises:
        ConfigError: it is not known.
    """
    if name not in GPUS:
        raise ConfigError(f"unknown GPU {name!r}; known are {', '.join(GPUS)}; or give --memory alone")
    return GPUS[name]


def recognise_gpu(device_name: str) -> Gpu | None:
    """Find a GPU by what its driver calls it, such as "NVIDIA A100-SXM4-80GB"; None if it is not known here."""
    words = set(re.split(r"[\s-]+", device_name.lower()))
    return next((gpu for name, gpu in GPUS.items() if words.issuperset(name.split("-"))), None)

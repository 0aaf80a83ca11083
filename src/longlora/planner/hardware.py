"""GPUs: their memory, their peaks, and the part of the arithmetic one that training reaches."""

import re
from dataclasses import dataclass, replace

from longlora.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The part of its peak that a GPU reaches in products; assumed where `measured` does not say from what."""

    linear: float = 0.60
    attention: float = 0.50
    measured: str | None = None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its vendor describes it (dense bfloat16, float32 accumulation), and what products reach of its peak.

    Among several, communication, the optimizer and the data loader are inside the efficiency.
    """

    memory_gib: float
    peak_flops: float
    bytes_per_second: float
    """To and from its memory."""
    among_several: Efficiency = Efficiency()
    by_itself: Efficiency | None = None
    """As among several where it is not known."""

    def efficiency(self, num_gpus: int) -> Efficiency:
        """What training reaches on so many of them."""
        return self.by_itself if num_gpus == 1 and self.by_itself else self.among_several


_A100 = Efficiency(linear=0.61, attention=0.66, measured="the paper's table 12 (8 GPUs, 7B)")
_H100 = Efficiency(
    linear=0.49,
    attention=0.36,
    measured="LongLoRA's hours in HiCI (arXiv 2603.20843; 8 GPUs, 7B), 64 rows a step assumed",
)
_ONE_HOPPER = Efficiency(
    linear=0.63, attention=0.57, measured="steps of longlora on one H100 and one H200 (8B, 8k to 64k tokens)"
)

GPUS = {
    "a100-40gb": Gpu(memory_gib=40, peak_flops=312e12, bytes_per_second=1.555e12, among_several=_A100),
    "a100-80gb": Gpu(memory_gib=80, peak_flops=312e12, bytes_per_second=2.039e12, among_several=_A100),
    "h100-80gb": Gpu(
        memory_gib=80, peak_flops=989e12, bytes_per_second=3.35e12, among_several=_H100, by_itself=_ONE_HOPPER
    ),
    "h200": Gpu(
        memory_gib=140,
        peak_flops=989e12,
        bytes_per_second=4.8e12,
        among_several=replace(_H100, measured=None),
        by_itself=_ONE_HOPPER,
    ),
    "b200": Gpu(memory_gib=178, peak_flops=2250e12, bytes_per_second=7.7e12),
    "l40s": Gpu(memory_gib=45, peak_flops=362e12, bytes_per_second=0.864e12),
    "l4": Gpu(memory_gib=22.5, peak_flops=121e12, bytes_per_second=0.3e12),
    "t4": Gpu(memory_gib=15, peak_flops=65e12, bytes_per_second=0.32e12),
    "rtx-a6000": Gpu(memory_gib=48, peak_flops=155e12, bytes_per_second=0.768e12),
    "rtx-5090": Gpu(memory_gib=31.5, peak_flops=210e12, bytes_per_second=1.792e12),
    "rtx-4090": Gpu(memory_gib=24, peak_flops=165e12, bytes_per_second=1.008e12),
    "rtx-3090": Gpu(memory_gib=24, peak_flops=71e12, bytes_per_second=0.936e12),
}
"""Memory is what the driver reports in GiB, rounded; peaks are the vendor's figures without sparsity (T4, which has no
bfloat16: float16)."""

_MAKERS = {"nvidia", "geforce", "tesla"}


def find_gpu(name: str) -> Gpu:
    """Look a GPU up by its name here, by a part of it that fits no other ("4090"), or by what its driver calls it.

    Raises:
        ConfigError: it is not known, or several are called so.
    """
    words = _words(name)
    found = [known for known in GPUS if words and words <= _words(known)]
    if len(found) == 1:
        return GPUS[found[0]]
    if len(found) > 1:
        raise ConfigError(f"GPU {name!r} may be {' or '.join(found)}; name one")
    if gpu := recognise_gpu(name):
        return gpu
    raise ConfigError(f"unknown GPU {name!r}; known are {', '.join(GPUS)}; or give --memory alone")


def _words(name: str) -> set[str]:
    return set(re.split(r"[\s_-]+", re.sub(r"rtx(?=\w)", "rtx-", name.lower().strip()))) - _MAKERS - {""}


def recognise_gpu(device_name: str) -> Gpu | None:
    """Find a GPU by what its driver calls it, such as "NVIDIA A100-SXM4-80GB"; None if it is not known here."""
    words = _words(device_name)
    return next((gpu for name, gpu in GPUS.items() if words >= _words(name)), None)

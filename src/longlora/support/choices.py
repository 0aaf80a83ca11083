"""Types of options that occur in several places: on the command line, in recipes and in functions."""

from typing import Literal

Strategy = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
"""How a run is divided among GPUs: not at all, or by DDP, FSDP2, DeepSpeed ZeRO-2 or ZeRO-3."""

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
"""Type of weights; "auto" is bfloat16 if the device supports it, else float32."""

Quantization = Literal["nf4"]
"""How linear layers are quantized: 4-bit NF4 (QLoRA, arXiv 2305.14314)."""

"""Values that a user chooses among in more than one place: on the command line, in recipes, in functions."""

from typing import Literal

Strategy = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
"""What divides a run among GPUs: nothing, DDP, FSDP2, DeepSpeed's ZeRO-2 or ZeRO-3."""

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
"""Of weights; "auto" is bfloat16 where the device computes in it, else float32."""

Quantization = Literal["nf4"]
"""How linear layers are packed: NF4, 4 bits (QLoRA, arXiv 2305.14314)."""

"""Rescale rotary positions to a longer context, by changing a model's `rope_parameters`.

`methods.py` has one function for each kind of scaling; `extend.py` determines the present context and applies one of
them; `other_readers.py` writes the result in transformers 4's keys and lists the readers that misread it. Plain
dictionaries in and out: nothing here needs a model or torch.
"""

from longlora.rope.extend import (
    FULL_ATTENTION,
    RopeExtension,
    describe_rope,
    extend_rope,
    extended_parameters,
    present_context,
)
from longlora.rope.methods import OPTIONS, RopeType
from longlora.rope.other_readers import TRANSFORMERS_4, misread, v4_rope

__all__ = [
    "FULL_ATTENTION",
    "OPTIONS",
    "TRANSFORMERS_4",
    "RopeExtension",
    "RopeType",
    "describe_rope",
    "extend_rope",
    "extended_parameters",
    "misread",
    "present_context",
    "v4_rope",
]

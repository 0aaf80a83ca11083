"""Rescale rotary positions to a longer context, as a change of a model's `rope_parameters`.

`methods.py` has one function for each kind of scaling; `extend.py` tells what a model reads now and chooses;
`other_readers.py` writes the result in the keys of transformers 4 and tells who reads it otherwise. Plain dictionaries
in, plain dictionaries out: nothing here knows a model, or loads torch.
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

"""Shifted sparse attention: the reference definition (`reference.py`), the fast paths (`s2.py`) and their kernels."""

from longlora.attention.backends import Backend
from longlora.attention.cuts import CutPoints, HeadShard, cut_points
from longlora.attention.reference import s2_attention_reference
from longlora.attention.s2 import attend_in_segments, s2_attention

__all__ = [
    "Backend",
    "CutPoints",
    "HeadShard",
    "attend_in_segments",
    "cut_points",
    "s2_attention",
    "s2_attention_reference",
]

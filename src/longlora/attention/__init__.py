"""Shifted sparse attention: the definition (`reference.py`) and the fast paths (`s2.py`)."""

from longlora.attention.reference import s2_attention_reference
from longlora.attention.s2 import CutPoints, attend_in_segments, cut_points, s2_attention

__all__ = ["CutPoints", "attend_in_segments", "cut_points", "s2_attention", "s2_attention_reference"]

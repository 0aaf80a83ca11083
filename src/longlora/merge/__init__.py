"""Merge an adapter into its base, as an ordinary model directory that needs neither PEFT nor longlora.

`merging.py` has all steps, including the comparison with the adapter and the upload; `changes.py` determines how the
adapter changes each weight; `streaming.py` writes the result file by file; `card.py` writes the model card of a merged
model or an adapter.
"""

from longlora.merge.card import write_adapter_card
from longlora.merge.merging import MergeReport, check_login, merge_adapter, push_to_hub

__all__ = ["MergeReport", "check_login", "merge_adapter", "push_to_hub", "write_adapter_card"]

"""Fold an adapter into its base: an ordinary model directory that needs neither PEFT nor longlora.

`changes.py` says what an adapter makes of each weight of its base; `streaming.py` writes the result file by file;
`merging.py` tells the story, checks the result against the adapter and uploads it; `card.py` describes it, or an
adapter, in a `README.md`.
"""

from longlora.merge.card import write_adapter_card
from longlora.merge.merging import MergedDtype, MergeReport, check_login, merge_adapter, push_to_hub

__all__ = ["MergeReport", "MergedDtype", "check_login", "merge_adapter", "push_to_hub", "write_adapter_card"]

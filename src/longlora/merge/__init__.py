"""Fold an adapter into its base: an ordinary model directory that needs neither PEFT nor longlora.

`changes.py` says what an adapter makes of each weight of its base; `streaming.py` writes the result file by file;
`run.py` puts both together, shard by shard, and checks the result against the adapter; `card.py` describes it, or an
adapter, in a `README.md`; `hub.py` uploads it.
"""

from longlora.merge.card import write_adapter_card
from longlora.merge.hub import check_login, push_to_hub
from longlora.merge.merging import MergedDtype, MergeReport, merge_adapter

__all__ = ["MergeReport", "MergedDtype", "check_login", "merge_adapter", "push_to_hub", "write_adapter_card"]

"""Loss weights for far targets: those with many tokens of their own document before them.

In packed rows most targets have a short effective context, however long the row, so a run at 32k mostly learns what
one at 2k would. EXACT (Zhu et al. 2026, arXiv 2605.10544) counts targets by effective context in powers of two, and
gives each bucket of the long tail the same extra weight: the rarest lengths get the most per target.
"""

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset

_MOST = 8.0  # cap on the extra weight of a rare bucket, as a multiple of the mean


def count_targets(rows: Dataset) -> np.ndarray:
    """Count, for each b, the targets with 2^b to 2^(b+1) - 1 tokens of their document before them.

    Rows have a column `seq_lengths`; every token of a document except its first counts as a target.
    """
    counts = np.zeros(32, dtype=np.int64)
    least = 2 ** np.arange(32, dtype=np.int64)
    for table in rows.select_columns(["seq_lengths"]).with_format("arrow").iter(batch_size=1000):
        most = pyarrow.compute.list_flatten(table["seq_lengths"]).to_numpy().astype(np.int64) - 1
        counts += np.clip(most[:, None] - least + 1, 0, least).sum(axis=0)
    return counts


def bucket_weights(counts: np.ndarray, *, extra: float, beyond: int) -> np.ndarray:
    """Return weights by bucket of effective context (`count_targets`), with mean 1 over all targets.

    Buckets from `beyond` tokens on share an extra weight. Its mean over their targets is `extra`, or less if a rare
    bucket reaches the cap of 8 times that.
    """
    is_far = (2 ** np.arange(len(counts)) >= beyond) & (counts > 0)
    share = counts[is_far].sum() / max(1, is_far.sum())  # targets per bucket if all had equally many
    weights = np.ones(len(counts))
    weights[is_far] += extra * np.minimum(share / counts[is_far], _MOST)
    return weights / (weights @ counts / max(1, counts.sum()))


def extra_loss(log_probs: torch.Tensor, position_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return what the weights add to a plain sum of losses, in nats; 0 if all weights are 1.

    Args:
        log_probs: of the targets, 0 where a token is not learned, (B, targets).
        position_ids: of the tokens before them, counted from the start of their document, (B, targets).
        weights: by bucket, from `bucket_weights`.
    """
    edges = 2 ** torch.arange(1, len(weights), device=position_ids.device)
    buckets = torch.bucketize(position_ids + 1, edges, right=True)  # (B, targets)
    return -((weights.to(log_probs.device)[buckets] - 1) * log_probs).sum()

"""Weights for the loss of far targets: those that have many tokens of their own document before them.

In packed rows most targets have a short effective context, however long the row, so that a run at 32k mostly learns
what one at 2k would. EXACT (Zhu et al. 2026, arXiv 2605.10544) counts targets by effective context in powers of two,
and gives those of the long tail an extra weight, the same to each bucket: the rarest lengths get the most a target.
"""

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset

_MOST = 8.0  # a bucket of few targets gets at most so many times the mean extra weight


def count_targets(rows: Dataset) -> np.ndarray:
    """Count the targets with 2^b to 2^(b+1) - 1 tokens of their document before them, for each b.

    Rows have a column `seq_lengths`; all tokens of a document but its first are taken for targets.
    """
    counts = np.zeros(32, dtype=np.int64)
    least = 2 ** np.arange(32, dtype=np.int64)
    for table in rows.select_columns(["seq_lengths"]).with_format("arrow").iter(batch_size=1000):
        most = pyarrow.compute.list_flatten(table["seq_lengths"]).to_numpy().astype(np.int64) - 1
        counts += np.clip(most[:, None] - least + 1, 0, least).sum(axis=0)
    return counts


def bucket_weights(counts: np.ndarray, *, extra: float, beyond: int) -> np.ndarray:
    """Weights by bucket of effective context (`count_targets`); their mean over all targets is 1.

    Buckets from `beyond` tokens on share an extra weight whose mean over their targets is `extra`, or less where a
    bucket is so rare that it would get more than 8 times that.
    """
    is_far = (2 ** np.arange(len(counts)) >= beyond) & (counts > 0)
    share = counts[is_far].sum() / max(1, is_far.sum())  # targets that each bucket would have if all had as many
    weights = np.ones(len(counts))
    weights[is_far] += extra * np.minimum(share / counts[is_far], _MOST)
    return weights / (weights @ counts / max(1, counts.sum()))


def extra_loss(log_probs: torch.Tensor, position_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What weights add to a plain sum of losses, in nats; 0 where all are 1.

    Args:
        log_probs: of the targets, 0 where a token is not learned, (B, targets).
        position_ids: of the tokens before them, counted from the beginning of their document, (B, targets).
        weights: by bucket, as `bucket_weights` has them.
    """
    edges = 2 ** torch.arange(1, len(weights), device=position_ids.device)
    buckets = torch.bucketize(position_ids + 1, edges, right=True)  # (B, targets)
    return -((weights.to(log_probs.device)[buckets] - 1) * log_probs).sum()

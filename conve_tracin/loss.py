"""Binary cross-entropy against labels that are never built.

With scores s and labels y_k = (1 − ε)·1[k is a target] + ε/K over the K entities,

    Σ_k BCE(s_k, y_k) = Σ_k softplus(s_k) − (1 − ε)·Σ_{k is a target} s_k − (ε/K)·Σ_k s_k,

so the targets' scores and two sums over the scores are all that the labels contribute.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_loss_efficient(scores: Tensor, tail: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """1vsAll binary cross-entropy: the mean over the batch and the entities, one target a row.

    Args:
        scores: logits of every entity as tail, shape (B, K).
        tail: the target of each row, ids of shape (B,).
        label_smoothing: ε in the module's formula, at least 0 and below 1.

    Returns:
        A scalar equal to `F.binary_cross_entropy_with_logits` on the dense labels.
    """
    rows = torch.arange(len(scores), device=scores.device)
    return sparse_bce_with_logits(scores, rows, tail, label_smoothing=label_smoothing)


def sparse_bce_with_logits(scores: Tensor, rows: Tensor, tails: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """KvsAll binary cross-entropy: the mean over the batch and the entities, any number of targets a row.

    Args:
        scores: logits of every entity as tail, shape (B, K); lower precisions are summed in float32.
        rows: the row of each target, shape (M,).
        tails: the entity of each target, shape (M,); a target occurs once in its row.
        label_smoothing: ε in the module's formula, at least 0 and below 1.
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    num_entities = scores.shape[1]
    total = F.softplus(scores).sum() - (1 - label_smoothing) * scores[rows, tails].sum()
    if label_smoothing:
        total = total - label_smoothing / num_entities * scores.sum()
    return total / scores.numel()

"""The loss of a triple's own score, TracIn's documented ℓ, and its slope."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

# Takes a score and its label, elementwise.
LossFunction = Callable[[Tensor, Tensor], Tensor]


def binary_cross_entropy(score: Tensor, label: Tensor) -> Tensor:
    """Compute binary cross-entropy with logits, elementwise."""
    # torch's own function computes its slope as σ(s) − 1, which is exactly 0 from s = 17 on in float32. Predictions
    # that a model is sure of have such scores, and would get influences of 0.
    return -label * F.logsigmoid(score) - (1 - label) * F.logsigmoid(-score)


def loss_slopes(scores: Tensor, loss_fn: LossFunction, *, label: float = 1.0) -> Tensor:
    """Compute dℓ/ds at each score (N,), also for a `loss_fn` that averages over its input."""
    if loss_fn is binary_cross_entropy:
        return (1 - label) * torch.sigmoid(scores) - label * torch.sigmoid(-scores)

    def loss_of(score: Tensor) -> Tensor:
        return loss_fn(score[None], torch.full_like(score[None], label)).sum()

    return vmap(grad(loss_of))(scores)

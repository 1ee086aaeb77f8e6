"""Influence by forward-mode differentiation, for any scoring model.

∇ℓ(w; z) · T is the directional derivative of ℓ(w; z) along T. One Jacobian-vector product gives it for a whole
batch of training triples z; no training gradient is built and nothing is approximated. T is the test triple's
gradient for TracIn, and may be any other direction in parameter space.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from conve_tracin.influence.functional import FunctionalScorer
from conve_tracin.influence.reference import LossFunction, binary_cross_entropy
from conve_tracin.memory import compute_in_batches


def directional_derivatives(
    scorer: nn.Module,
    tangent: dict[str, Tensor],
    triples: Tensor,
    *,
    batch_size: int = 256,
    progress: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the scores of triples (N, 3) and their derivatives along `tangent`.

    Args:
        scorer: module in eval mode, triples (B, 3) to scores (B,).
        tangent: for each parameter that moves, by the scored model's names, a tensor of its shape.
        triples: ids, shape (N, 3).
        batch_size: at most so many triples in one pass; changes memory and speed, not results.
        progress: what to call the work on a progress bar; none is shown without.

    Returns:
        Scores (N,) and derivatives (N,).
    """
    score = FunctionalScorer(scorer)
    primal = {name: score.parameters[name] for name in tangent}

    def differentiate(batch: slice) -> tuple[Tensor, Tensor]:
        return jvp(partial(score, triples=triples[batch]), (primal,), (tangent,))

    nothing = next(scorer.parameters()).new_zeros(0)
    with torch.no_grad():
        results = compute_in_batches(differentiate, len(triples), batch_size=batch_size, progress=progress)
        scores, derivatives = zip((nothing, nothing), *results, strict=True)
    return torch.cat(scores), torch.cat(derivatives)


def loss_slopes(scores: Tensor, loss_fn: LossFunction, *, label: float = 1.0) -> Tensor:
    """Compute dℓ/ds at each score (N,), also for a `loss_fn` that averages over its input."""
    if loss_fn is binary_cross_entropy:
        return (1 - label) * torch.sigmoid(scores) - label * torch.sigmoid(-scores)

    def loss_of(score: Tensor) -> Tensor:
        return loss_fn(score[None], torch.full_like(score[None], label)).sum()

    return vmap(grad(loss_of))(scores)

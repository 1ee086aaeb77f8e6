"""Gauss–Newton influence on a prediction that is asked for from either side.

A model with inverse triples scores a prediction twice: as (h, r, t) among all tails, and as (t, r⁻¹, h) among all
heads. What a training triple's label does to the sum of both scores is taken here (`gauss_newton` has the formula for
one). In the second the head's row stands where the tail's stood, and its gradient is a query vector instead of one
that came through the convolution, which tells the head's own triples apart better.
"""

import numpy as np
import torch
from torch import Tensor

from conve_tracin.influence.conve.tangent import ConvETangent
from conve_tracin.influence.gauss_newton import RowCurvature, gauss_newton_tangents, label_effects
from conve_tracin.model import ConvE
from conve_tracin.triples import with_inverse_triples


def both_sides_effects(
    model: ConvE,
    test_triples: np.ndarray,
    training_triples: np.ndarray,
    *,
    curvature: RowCurvature,
    batch_size: int = 256,
    progress: str | None = None,
) -> Tensor:
    """Compute the effect of each training label on the sum of a prediction's two scores.

    Args:
        model: ConvE with inverse triples, in eval mode: relation r of the files is its row 2r, the inverse 2r + 1.
        test_triples, training_triples: (n, 3) and (N, 3) in the files' ids.
        curvature: of the model and the training triples.
        batch_size, progress: see `iterate_derivatives`.

    Returns:
        (n, N) on the CPU; positive is a proponent. A training triple's two queries add, too.
    """
    asked = with_inverse_triples(test_triples)
    tangents = gauss_newton_tangents(model, asked, curvature)
    half = len(test_triples)
    both = [summed(*pair) for pair in zip(tangents[:half], tangents[half:], strict=True)]
    triples = with_inverse_triples(training_triples)
    effects = label_effects(model, both, triples, batch_size=batch_size, progress=progress)
    return effects[:, : len(training_triples)] + effects[:, len(training_triples) :]


def summed(left: ConvETangent, right: ConvETangent) -> ConvETangent:
    """Add two tangents that move rows alone."""
    return ConvETangent(
        entity_rows=_summed_rows(left.entity_rows, right.entity_rows),
        relation_rows=_summed_rows(left.relation_rows, right.relation_rows),
    )


def _summed_rows(left: dict[int, Tensor], right: dict[int, Tensor]) -> dict[int, Tensor]:
    rows = dict(left)
    for row, values in right.items():
        rows[row] = torch.add(rows[row], values) if row in rows else values
    return rows

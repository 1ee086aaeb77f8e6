"""The Gauss–Newton method (see `gauss_newton`) behind the interface of the other analyzers."""

import numpy as np
from torch import Tensor

from conve_tracin.influence.analyzer import TracInReferencePyTorch, Triples, as_ids
from conve_tracin.influence.gauss_newton import (
    GaussNewtonMethod,
    RowCurvature,
    gauss_newton_effects,
    leverages,
    training_curvature,
)
from conve_tracin.model import ConvE
from conve_tracin.triples import with_inverse_triples


class GaussNewtonAnalyzer(TracInReferencePyTorch):
    """Influences as effects of labels on the test triple's score, for a native ConvE.

    Args:
        model: ConvE; it is put into eval mode.
        training_approach, loss, query_weights: what the model was trained with, as in `TrainingConfig`.
        damping: λ over the mean eigenvalue of each row's curvature, in units of the method's own for such models.
        inverse_triples: the model has inverse relations: relation r of the files is its rows 2r and 2r + 1.
        training_triples: all that the model was trained on, (N, 3) in the files' ids; without them the triples of
            each call are taken for all.
    """

    # The curvature, and the competition within a query, need all training triples in one process.
    shares_training_triples = False
    # An effect on a score has no learning rate.
    default_learning_rate = 1.0

    def __init__(
        self,
        model: ConvE,
        *,
        training_approach: str,
        damping: float = 1.0,
        loss: str = "bce",
        query_weights: str = "equal",
        inverse_triples: bool = False,
        training_triples: np.ndarray | None = None,
    ) -> None:
        super().__init__(model, inverse_triples=inverse_triples, cache_test_gradients=False)
        self.method = GaussNewtonMethod.for_training(
            training_approach, damping=damping, loss=loss, query_weights=query_weights
        )
        self.training_triples = training_triples
        self._curvature: RowCurvature | None = None
        self._curvature_of: np.ndarray | None = None

    def curvature_for(self, triples: np.ndarray) -> RowCurvature:
        """Return the curvatures of the training triples, or without any of `triples`; computed rows are kept."""
        training_triples = triples if self.training_triples is None else self.training_triples
        if self._curvature is None or self._curvature_of is not training_triples:
            self._curvature = training_curvature(
                self.model, training_triples, self.method.curvature, inverse_triples=self.inverse_triples
            )
            self._curvature_of = training_triples
        return self._curvature

    def gradient_products(
        self,
        test_triples: Triples,
        training_triples: Triples,
        *,
        batch_size: int = 256,
        progress: str | None = None,
    ) -> Tensor:
        """Compute the effects of N training triples on n test triples' scores: (n, N) on the CPU.

        `training_triples` are all that the model was trained on.
        """
        training_triples = as_ids(training_triples)
        return gauss_newton_effects(
            self.model,
            as_ids(test_triples),
            training_triples,
            self.method,
            inverse_triples=self.inverse_triples,
            curvature=self.curvature_for(training_triples),
            batch_size=batch_size,
            progress=progress,
        )

    def self_products(
        self,
        triples: Triples,
        *,
        batch_size: int = 256,
        progress: str | None = None,
    ) -> Tensor:
        """Compute the effect of each triple's label on its own score: (N,) on the CPU.

        It needs the curvature of every row that the triples touch: for graphs of some ten thousand entities.
        """
        triples = as_ids(triples)
        curvature = self.curvature_for(triples)
        if not self.inverse_triples:
            return leverages(self.model, triples, curvature, batch_size=batch_size, progress=progress)
        triples_of_both = with_inverse_triples(triples)
        both = leverages(self.model, triples_of_both, curvature, batch_size=batch_size, progress=progress)
        return both[: len(triples)] + both[len(triples) :]

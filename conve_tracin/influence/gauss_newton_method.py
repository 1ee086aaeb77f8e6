"""The Gauss–Newton method (see `gauss_newton`) behind the interface of all methods."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from conve_tracin.data.queries import with_inverse_triples
from conve_tracin.errors import InputError
from conve_tracin.influence.gauss_newton import (
    GaussNewtonMethod,
    RowCurvature,
    gauss_newton_effects,
    leverages,
    training_curvature,
)
from conve_tracin.influence.method import Method, Triples, as_ids
from conve_tracin.influence.scorers import LoadedModel
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import GAUSS_NEWTON, TracInOptions


def build(
    loaded: LoadedModel, options: TracInOptions, training_triples: np.ndarray | None, say: Callable[[str], None]
) -> "GaussNewton":
    """Put the method on a ConvE, with the constants for how its checkpoint was trained.

    Raises InputError for a model of another kind.
    """
    if loaded.scorer.conve is None:
        kind = type(loaded.scorer.model).__name__
        raise InputError(f"{loaded.path}: --method {GAUSS_NEWTON} is for ConvE, not {kind}; leave it out")
    for message in remarks_on_training(loaded.training_config, loaded.path):
        say(message)
    return GaussNewton(
        loaded.scorer.conve,
        training_approach=loaded.training_config["training_approach"],
        damping=options.damping,
        inverse_triples=loaded.scorer.inverse_triples,
        training_triples=training_triples,
    )


def title(options: TracInOptions) -> str:
    """Name the method for people."""
    return f"Gauss–Newton, damping {options.damping:g}"


def members(options: TracInOptions) -> dict[str, Any]:
    """Return the method's settings in the JSON output."""
    return {"damping": options.damping}


def remarks_on_training(training: Mapping[str, Any], path: Path) -> list[str]:
    """Say where the curvature is not that of the training's loss."""
    remarks = []
    if training.get("loss", "bce") != "bce":
        remarks.append(
            f"{path}: was trained with cross-entropy; the curvature of --method {GAUSS_NEWTON} is that of binary "
            "cross-entropy, and its agreement with retraining was measured for that loss only"
        )
    if training.get("training_approach") == "kvsall" and training.get("query_weights", "equal") != "equal":
        remarks.append(
            f"{path}: was trained with --query-weights {training['query_weights']}; the curvature of --method "
            f"{GAUSS_NEWTON} weighs all queries alike, and its agreement with retraining was measured that way only"
        )
    return remarks


class GaussNewton(Method):
    """Influences as effects of labels on the test triple's score, for a native ConvE.

    Args:
        model: ConvE; it is put into eval mode.
        training_approach: "kvsall" or "1vsall": what the model was trained with.
        damping: λ over the mean eigenvalue of each row's curvature.
        inverse_triples: the model has inverse relations: relation r of the files is its rows 2r and 2r + 1.
        training_triples: all that the model was trained on, (N, 3) in the files' ids; without them the triples of
            each call are taken for all.
    """

    # The curvature, and the competition within a query, need all training triples in one process.
    shares_training_triples = False
    # An effect on a score has no learning rate.
    uses_learning_rate = False

    def __init__(
        self,
        model: ConvE,
        *,
        training_approach: str,
        damping: float = 1.0,
        inverse_triples: bool = False,
        training_triples: np.ndarray | None = None,
    ) -> None:
        self.model = model.eval()
        self.inverse_triples = inverse_triples
        self.method = GaussNewtonMethod.for_training(training_approach, damping=damping)
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

    def products(
        self, test_triples: Triples, training_triples: Triples, *, batch_size: int = 256, progress: str | None = None
    ) -> Tensor:
        """Compute the effects of N training triples, all of the model, on n test triples' scores: (n, N) on the CPU."""
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

    def self_products(self, triples: Triples, *, batch_size: int = 256, progress: str | None = None) -> Tensor:
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

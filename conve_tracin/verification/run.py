"""What one run of verify_tracin.py works on, and each of its trainings."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from conve_tracin.data.names import Names
from conve_tracin.data.queries import known_tails
from conve_tracin.influence.explained import Explained
from conve_tracin.influence.verification import Measurement, measure
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import TrainingConfig, VerificationOptions

# What a training leaves out.
NOTHING, PROPONENTS, OTHERS = "nothing", "proponents", "others"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all trainings have in common, sent to each worker once.

    Attributes:
        triples: the training triples as the file has them, (N, 3).
        config, model_config, learning_rates, device: see `retrain`.
        predictions: in the files' ids, (n, 3).
        questions: what each model is asked about them, in relation rows, (n, 3).
        known: true triples in the files' ids, (M, 3), which ranks pass over. The other predictions are none of them,
            as in the explanation.
    """

    triples: np.ndarray
    config: TrainingConfig
    model_config: dict[str, Any]
    learning_rates: list[float]
    device: str
    predictions: np.ndarray
    questions: np.ndarray
    known: np.ndarray

    def measure(self, model: ConvE) -> list[Measurement]:
        """Score and rank each prediction with a model."""
        found = []
        for place, (head, relation, tail) in enumerate(self.predictions):
            heads, relations, tails = self.known.T
            near = self.known[(relations == relation) & ((heads == head) | (tails == tail))]
            known = known_tails(
                [near, self.predictions[place : place + 1]],
                inverse_triples=self.config.inverse_triples,
                device=self.device,
            )
            found += measure(model, self.questions[place : place + 1], known)
        return found


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: what it leaves out, for which prediction, and its seed.

    `removed` are places among the distinct training triples, (m,); `prediction` is None for all predictions.
    """

    leaves_out: str
    prediction: int | None
    seed: int
    removed: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run works on.

    Attributes:
        options: what was asked for.
        names: the mappings and what they call things.
        recipe: what all trainings have in common.
        model: what the given model says about each prediction.
        predictions: with the influences listed for each, at least one of them positive.
        skipped: predictions without a proponent.
        triples, counts: the distinct training triples (N, 3), and how often each stands in the file (N,).
        seeds: one for each training of a kind.
    """

    options: VerificationOptions
    names: Names
    recipe: Recipe
    model: list[Measurement]
    predictions: list[Explained]
    skipped: list[Explained]
    triples: np.ndarray
    counts: np.ndarray
    seeds: list[int]

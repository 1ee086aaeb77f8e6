"""Models that were trained already: their checkpoints, the ranks of predictions, and scores of training triples.

Scores are kept in a folder, one file for each model, method and set of predictions, so that an interrupted exam goes on
and a second exam needs none anew.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.checkpoint.native import build_model, load_checkpoint, require_matching_mappings, uses_inverse_triples
from conve_tracin.data.queries import known_tails, with_relation_rows
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write, digest_of_file
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.influence.curvature import CurvatureConfig, RowCurvature
from conve_tracin.influence.effects import GaussNewtonMethod, gauss_newton_effects, training_curvature
from conve_tracin.influence.scorers import LAST_LAYERS
from conve_tracin.model.conve import ConvE
from conve_tracin.ranking.ranks import rank_triples

EMBEDDINGS = ("entity_embeddings.weight", "relation_embeddings.weight")
# Predictions that are scored in one pass over the training triples.
AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A native checkpoint and the triples (N, 3), in the files' ids, that it was trained on."""

    path: Path
    train: np.ndarray

    @cached_property
    def _checkpoint(self) -> dict:
        return load_checkpoint(self.path)

    @cached_property
    def model(self) -> ConvE:
        """The model, in eval mode."""
        return build_model(self._checkpoint, source=self.path).eval()

    @cached_property
    def inverse_triples(self) -> bool:
        """Whether relation r of the files is row 2r of the model's table, and its inverse row 2r + 1."""
        return uses_inverse_triples(self._checkpoint)

    @property
    def training_config(self) -> dict[str, Any]:
        """The settings of its training, as far as the checkpoint tells."""
        return {"training_approach": "1vsall", **self._checkpoint.get("training_config", {})}

    @cached_property
    def objective(self) -> dict[str, str]:
        """Return what decides the method's constants: training_approach, loss and query_weights."""
        stored = self.training_config
        return {name: stored[name] for name in ("training_approach", "loss", "query_weights") if name in stored}

    @cached_property
    def _curvatures(self) -> dict[CurvatureConfig, RowCurvature]:
        return {}

    def curvature_of(self, config: CurvatureConfig) -> RowCurvature:
        """Return the curvature of an objective; its rows are computed when asked for, once for all dampings."""
        undamped = replace(config, damping=1.0)
        if undamped not in self._curvatures:
            self._curvatures[undamped] = training_curvature(
                self.model, self.train, undamped, inverse_triples=self.inverse_triples
            )
        curvature = copy.copy(self._curvatures[undamped])
        curvature.config = config
        return curvature

    def require_mappings(self, entities: Vocabulary, relations: Vocabulary) -> None:
        """Raise InputError where the checkpoint is of other mappings."""
        require_matching_mappings(self._checkpoint, entities, relations, source=self.path)

    def rank_tails(self, triples: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Rank the tails of triples (n, 3) among all entities that `known` (M, 3) does not make true: (n,)."""
        queries = known_tails([self.train, known, triples], inverse_triples=self.inverse_triples)
        triples = with_relation_rows(triples, inverse_triples=self.inverse_triples)
        return rank_triples(self.model, triples, queries, num_relations=self.model.config.num_relations).numpy()


ScoreTriples = Callable[[TrainedModel, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class GaussNewtonScores:
    """The Gauss–Newton method, as scores of trained models.

    Attributes:
        damping: in units of the method's own.
        as_binary: take the model for one of binary cross-entropy, whatever it was trained with.
        constants: members of `GaussNewtonMethod` to replace, as pairs.
    """

    damping: float = 1.0
    as_binary: bool = False
    constants: tuple[tuple[str, float | bool], ...] = ()

    def method_for(self, trained: TrainedModel) -> GaussNewtonMethod:
        """Return the method with the constants for how a model was trained."""
        objective = trained.objective
        if self.as_binary:
            objective = {"training_approach": objective["training_approach"]}
        return replace(GaussNewtonMethod.for_training(**objective, damping=self.damping), **dict(self.constants))

    def __call__(self, trained: TrainedModel, test: np.ndarray) -> np.ndarray:
        """Score the training triples for predictions (n, 3): (n, N)."""
        method, inverse = self.method_for(trained), trained.inverse_triples
        curvature = trained.curvature_of(method.curvature)
        return gauss_newton_effects(
            trained.model, test, trained.train, method, inverse_triples=inverse, curvature=curvature
        ).numpy()


def tracin(names: Sequence[str] | None) -> ScoreTriples:
    """Make TracIn over the parameters `names`, or all."""

    def score(trained: TrainedModel, test: np.ndarray) -> np.ndarray:
        analyzer = TracInAnalyzerPyTorch(
            trained.model, last_layer_names=names, inverse_triples=trained.inverse_triples, cache_test_gradients=False
        )
        return analyzer.gradient_products(test, trained.train).numpy()

    return score


def gauss_newton(*, damping: float = 1.0, as_binary: bool = False, **constants: float | bool) -> ScoreTriples:
    """Make the Gauss–Newton method; `constants` are members of `GaussNewtonMethod` to replace."""
    return GaussNewtonScores(damping, as_binary, tuple(constants.items()))


GAUSS_NEWTON = "gauss-newton"
LABELS_ALONE = "gauss-newton, labels alone"
BOTH_SIDES = "gauss-newton, labels alone, both sides"
TRACIN_ALL = "TracIn, all parameters"
TRACIN_ROWS = "TracIn, embeddings alone"
NOTHING_ELSE = {"competition": 0.0, "same_tail_share": 0.0, "same_query_share": 0.0}
HUNDREDFOLD = "gauss-newton, a hundred times the damping"
METHODS: dict[str, ScoreTriples] = {
    "TracIn, last layers": tracin(LAST_LAYERS[:2]),
    TRACIN_ROWS: tracin(EMBEDDINGS),
    TRACIN_ALL: tracin(None),
    GAUSS_NEWTON: gauss_newton(),
    "gauss-newton, a tenth of the damping": gauss_newton(damping=0.1),
    "gauss-newton, ten times the damping": gauss_newton(damping=10.0),
    HUNDREDFOLD: gauss_newton(damping=100.0),
    "gauss-newton, one side, ten times the damping": gauss_newton(damping=10.0, both_sides=False),
    "gauss-newton for binary models": gauss_newton(as_binary=True),
    LABELS_ALONE: gauss_newton(as_binary=True, **NOTHING_ELSE),
    "gauss-newton, labels alone, damping 0.1": gauss_newton(as_binary=True, damping=0.1, **NOTHING_ELSE),
    BOTH_SIDES: gauss_newton(as_binary=True, both_sides=True, **NOTHING_ELSE),
}


def require_methods(names: Sequence[str]) -> None:
    """Raise InputError where a name is none of METHODS."""
    for name in names:
        if name not in METHODS:
            raise InputError(f"--methods: there is no {name!r}; give one of: {'; '.join(METHODS)}")


@dataclass(frozen=True)
class ScoreCache:
    """A folder of scores; a name holds a digest of all that the scores depend on."""

    folder: Path

    def scores(self, trained: TrainedModel, method: str, test: np.ndarray) -> np.ndarray:
        """Score the training triples for predictions (n, 3): (n, N) float32; computed once."""
        content = f"{digest_of_file(trained.path)} {method}{self._constants(trained, method)}".encode()
        content += test.tobytes() + trained.train.tobytes()
        path = self.folder / f"scores_{hashlib.sha256(content).hexdigest()[:16]}.npz"
        if not path.is_file():
            parts = [METHODS[method](trained, test[i : i + AT_ONCE]) for i in range(0, len(test), AT_ONCE)]
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.savez(file, scores=np.concatenate(parts).astype(np.float32))
        return np.load(path)["scores"]

    @staticmethod
    def _constants(trained: TrainedModel, method: str) -> str:
        scores = METHODS[method]
        return f" {scores.method_for(trained)}" if isinstance(scores, GaussNewtonScores) else ""

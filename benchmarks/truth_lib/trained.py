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

import numpy as np

from conve_tracin.checkpoint import build_model, load_checkpoint, require_matching_mappings, uses_inverse_triples
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write, digest_of_file
from conve_tracin.influence.analyzer import LAST_LAYERS, TracInAnalyzerPyTorch
from conve_tracin.influence.both_sides import both_sides_effects
from conve_tracin.influence.gauss_newton import (
    GaussNewtonMethod,
    RowCurvature,
    gauss_newton_effects,
    training_curvature,
)
from conve_tracin.model import ConvE
from conve_tracin.queries import Queries
from conve_tracin.ranking import rank_triples
from conve_tracin.triples import Vocabulary, distinct_triples, group_by_query, with_inverse_triples

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

    @cached_property
    def approach(self) -> str:
        """Return "kvsall" or "1vsall"."""
        return self._checkpoint.get("training_config", {}).get("training_approach", "1vsall")

    @cached_property
    def curvature(self) -> RowCurvature:
        """The curvature of the training objective; rows are computed when they are asked for."""
        config = GaussNewtonMethod.for_training(self.approach).curvature
        return training_curvature(self.model, self.train, config, inverse_triples=self.inverse_triples)

    def require_mappings(self, entities: Vocabulary, relations: Vocabulary) -> None:
        """Raise InputError where the checkpoint is of other mappings."""
        require_matching_mappings(self._checkpoint, entities, relations, source=self.path)

    def model_triples(self, triples: np.ndarray) -> np.ndarray:
        """Translate triples (n, 3) from the files' relation ids to the model's."""
        return triples * np.array([1, 2 if self.inverse_triples else 1, 1])

    def rank_tails(self, triples: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Rank the tails of triples (n, 3) among all entities that `known` (M, 3) does not make true: (n,)."""
        known = np.concatenate([self.train, known, triples])
        if self.inverse_triples:
            known = with_inverse_triples(known)
        queries = Queries.distinct(group_by_query(distinct_triples(known)))
        triples = self.model_triples(triples)
        return rank_triples(self.model, triples, queries, num_relations=self.model.config.num_relations).numpy()


ScoreTriples = Callable[[TrainedModel, np.ndarray], np.ndarray]


def tracin(names: Sequence[str] | None) -> ScoreTriples:
    """Make TracIn over the parameters `names`, or all."""

    def score(trained: TrainedModel, test: np.ndarray) -> np.ndarray:
        analyzer = TracInAnalyzerPyTorch(
            trained.model, last_layer_names=names, inverse_triples=trained.inverse_triples, cache_test_gradients=False
        )
        return analyzer.gradient_products(test, trained.train).numpy()

    return score


def gauss_newton(*, labels_alone: bool = True, damping: float = 1.0) -> ScoreTriples:
    """Make the Gauss–Newton method, with its shares and competition or without."""

    def score(trained: TrainedModel, test: np.ndarray) -> np.ndarray:
        method = GaussNewtonMethod.for_training(trained.approach, damping=damping)
        if labels_alone:
            method = replace(method, competition=0.0, same_tail_share=0.0, same_query_share=0.0)
        # The curvature is the same for every damping.
        curvature = copy.copy(trained.curvature)
        curvature.config = method.curvature
        inverse = trained.inverse_triples
        return gauss_newton_effects(
            trained.model, test, trained.train, method, inverse_triples=inverse, curvature=curvature
        ).numpy()

    return score


def both_sides(trained: TrainedModel, test: np.ndarray) -> np.ndarray:
    """Score by the labels' effects on a prediction's score as tail and as head together."""
    if not trained.inverse_triples:
        raise InputError(f"{trained.path}: has no inverse triples; only such models score heads as well")
    return both_sides_effects(trained.model, test, trained.train, curvature=trained.curvature).numpy()


LABELS_ALONE = "gauss-newton, labels alone"
BOTH_SIDES = "gauss-newton, labels alone, both sides"
TRACIN_ALL = "TracIn, all parameters"
TRACIN_ROWS = "TracIn, embeddings alone"
METHODS: dict[str, ScoreTriples] = {
    "TracIn, last layers": tracin(LAST_LAYERS[:2]),
    TRACIN_ROWS: tracin(EMBEDDINGS),
    TRACIN_ALL: tracin(None),
    "gauss-newton": gauss_newton(labels_alone=False),
    LABELS_ALONE: gauss_newton(),
    "gauss-newton, labels alone, damping 0.1": gauss_newton(damping=0.1),
    BOTH_SIDES: both_sides,
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
        content = f"{digest_of_file(trained.path)} {method}".encode() + test.tobytes() + trained.train.tobytes()
        path = self.folder / f"scores_{hashlib.sha256(content).hexdigest()[:16]}.npz"
        if not path.is_file():
            parts = [METHODS[method](trained, test[i : i + AT_ONCE]) for i in range(0, len(test), AT_ONCE)]
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.savez(file, scores=np.concatenate(parts).astype(np.float32))
        return np.load(path)["scores"]

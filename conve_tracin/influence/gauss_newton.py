"""`--method gauss-newton`: how much lower the test triple's score would be without each training triple.

The mathematics is in `effects` and `curvature`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from conve_tracin.data.graph import Graph, Keep
from conve_tracin.data.queries import count_relations, examples_of
from conve_tracin.data.sorted_queries import SortedQueries
from conve_tracin.errors import InputError
from conve_tracin.influence.curvature import RowCurvature
from conve_tracin.influence.effects import GaussNewtonMethod, leverages, touched_effects
from conve_tracin.influence.method import Method, Scores, Triples, as_ids
from conve_tracin.influence.scorers import LoadedModel
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import GAUSS_NEWTON, TracInOptions, TrainingConfig


def build(
    loaded: LoadedModel,
    options: TracInOptions,
    graph: Graph,
    say: Callable[[str], None],  # noqa: ARG001 - there is nothing to say
) -> "GaussNewton":
    """Put the method on a ConvE, with the constants for how its checkpoint was trained.

    Raises InputError for a model of another kind.
    """
    if loaded.scorer.conve is None:
        kind = type(loaded.scorer.model).__name__
        raise InputError(f"{loaded.path}: --method {GAUSS_NEWTON} is for ConvE, not {kind}; leave it out")
    return GaussNewton(
        loaded.scorer.conve,
        training_approach=loaded.training_config["training_approach"],
        loss=loaded.training_config.get("loss", TrainingConfig.loss),
        query_weights=loaded.training_config.get("query_weights", TrainingConfig.query_weights),
        damping=options.damping,
        inverse_triples=loaded.scorer.inverse_triples,
        graph=graph,
        keep_of_settings=loaded.keep_of_settings,
    )


def title(options: TracInOptions) -> str:
    """Name the method for people."""
    return f"Gauss–Newton, damping {options.damping:g}"


def members(options: TracInOptions) -> dict[str, Any]:
    """Return the method's settings in the JSON output."""
    return {"damping": options.damping}


class GaussNewton(Method):
    """Influences as effects of labels on the test triple's score, for a native ConvE.

    Args:
        model: ConvE; it is put into eval mode.
        training_approach, loss, query_weights: what the model was trained with, as in `TrainingConfig`.
        damping: λ over the mean eigenvalue of each row's curvature, in units of the method's own for such models.
        inverse_triples: the model has inverse relations: relation r of the files is its rows 2r and 2r + 1.
        graph: of all triples that the model was trained on; without it the triples of each call are taken for all.
        keep_of_settings: keeps curvatures of this model, graph and some settings for later runs.
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
        loss: str = "bce",
        query_weights: str = "equal",
        inverse_triples: bool = False,
        graph: Graph | None = None,
        keep_of_settings: Callable[[Any], Keep] | None = None,
    ) -> None:
        self.model = model.eval()
        self.inverse_triples = inverse_triples
        self.method = GaussNewtonMethod.for_training(
            training_approach, damping=damping, loss=loss, query_weights=query_weights
        )
        self.graph = graph
        self.keep_of_settings = keep_of_settings
        self._graph_of_others: Graph | None = None
        self._curvature: RowCurvature | None = None

    def graph_of(self, triples: np.ndarray) -> Graph:
        """Return the graph of triples (N, 3); the latest that is not the whole one is kept."""
        if self.graph is not None and _is_of(self.graph, triples):
            return self.graph
        if self._graph_of_others is None or self._graph_of_others.listed_triples is not triples:
            sizes = self.model.config
            num_relations = count_relations(sizes.num_relations, inverse_triples=self.inverse_triples)
            self._graph_of_others = Graph.of_listed(triples, sizes.num_entities, num_relations)
        return self._graph_of_others

    def curvature_for(self, triples: np.ndarray) -> RowCurvature:
        """Return the curvatures of the training triples, or without any of `triples`; computed rows are kept."""
        graph = self.graph_of(triples) if self.graph is None else self.graph
        queries = self._queries(graph)
        if self._curvature is None or self._curvature.queries is not queries:
            keep = {}
            if self.keep_of_settings is not None and graph is self.graph:
                # PyKEEN's weights do not tell the height of an embedding's image, which the options choose.
                kind = self.model.entity_embeddings.weight.device.type
                settings = (self.method.curvature, self.inverse_triples, self.model.config, kind)
                keep = {"keep": self.keep_of_settings(settings)}
            self._curvature = RowCurvature(self.model, queries, self.method.curvature, **keep)
        return self._curvature

    def _queries(self, graph: Graph) -> SortedQueries:
        return graph.queries(
            inverse_triples=self.inverse_triples, repeated=self.method.curvature.repeated_triples_count
        )

    def scores(
        self, test_triples: Triples, training_triples: Triples, *, batch_size: int = 256, progress: str | None = None
    ) -> list[Scores]:
        """Compute the effects of N training triples, all of the model, on each of n test triples' scores.

        Only the queries are looked at that share an entity with the test triple, or the relation where that moves: all
        other effects are zero. If the training weighs a repeated triple by how often it stands, so do the means over a
        query's tails.
        """
        training_triples = as_ids(training_triples)
        graph, curvature = self.graph_of(training_triples), self.curvature_for(training_triples)
        queries = self._queries(graph)
        found = []
        for test_triple in tqdm(as_ids(test_triples), desc=progress, unit="test triple", disable=progress is None):
            positions, effects = touched_effects(
                self.model, test_triple, queries, self.method, curvature=curvature, batch_size=batch_size
            )
            if queries.triples is not graph.triples:
                # Of a repeated triple, the first place stands for all.
                places = np.searchsorted(graph.first_places, positions)
                is_first = graph.first_places[np.minimum(places, len(graph.triples) - 1)] == positions
                positions, effects = places[is_first], effects[torch.from_numpy(is_first)]
            found.append(Scores(effects, torch.from_numpy(positions), len(graph.triples)))
        if len(training_triples) == len(graph.triples):
            return found
        return [Scores.of_all(scores.dense()[torch.from_numpy(graph.places_of_listed)]) for scores in found]

    def products(
        self, test_triples: Triples, training_triples: Triples, *, batch_size: int = 256, progress: str | None = None
    ) -> Tensor:
        """Compute the same in full: (n, N) on the CPU."""
        found = self.scores(test_triples, training_triples, batch_size=batch_size, progress=progress)
        if not found:
            return self.model.entity_embeddings.weight.new_zeros(0, len(training_triples), device="cpu")
        return torch.stack([scores.dense() for scores in found])

    def self_products(self, triples: Triples, *, batch_size: int = 256, progress: str | None = None) -> Tensor:
        """Compute the effect of each triple's label on its own score: (N,) on the CPU.

        It needs the curvature of every row that the triples touch: for graphs of some ten thousand entities. With
        inverse triples, each side's label counts for that side's score.
        """
        keywords = {"relation_moves": self.method.relation_moves, "batch_size": batch_size, "progress": progress}
        triples = as_ids(triples)
        curvature = self.curvature_for(triples)
        if not self.inverse_triples:
            return leverages(self.model, triples, curvature, **keywords)
        triples_of_both = examples_of(triples, inverse_triples=True)
        both = leverages(self.model, triples_of_both, curvature, **keywords)
        return both[: len(triples)] + both[len(triples) :]


def _is_of(graph: Graph, triples: np.ndarray) -> bool:
    """Whether triples (N, 3) are the distinct ones of a graph, or those of its file."""
    if triples is graph.triples or triples is graph.listed_triples:
        return True
    return any(np.array_equal(triples, own) for own in (graph.triples, graph.listed_triples))

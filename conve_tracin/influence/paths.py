"""The paths of a prediction: what the graph itself has between head and tail, best first, with the model's influences.

The graph is searched, not a list of strong influences, so that a path that the model does not use is shown, too, and is
seen to be such a one. `graph_paths` has the search and `path_ranking` the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from conve_tracin.data.graph import Graph
from conve_tracin.influence.method import Influence, Scores
from conve_tracin.influence.path_ranking import PathRanker, SparseNumbers, best_first


@dataclass(frozen=True)
class Hop:
    """A step between two entities.

    Attributes:
        influence: of the triple that is walked.
        forward: the step goes from the triple's head to its tail.
        others: how many more training triples join the same two entities.
    """

    influence: Influence
    forward: bool
    others: int


@dataclass(frozen=True)
class GraphPath:
    """A path without repeated entities; `hops[i]` joins `entities[i]` and `entities[i + 1]`. See `path_ranking`."""

    entities: tuple[int, ...]
    hops: tuple[Hop, ...]
    score: float

    @property
    def weakest(self) -> float:
        """The smallest influence on the path: a chain is as strong as its weakest link."""
        return min(hop.influence.influence for hop in self.hops)


class PathFinder:
    """Finds the paths of predictions in one training graph.

    Args:
        graph: of the training triples.
        limit: how many paths of a prediction are kept.
        max_hops: triples in a path at most, 1 to 3.
    """

    def __init__(self, graph: Graph, *, limit: int, max_hops: int) -> None:
        self.triples = graph.triples
        self.limit = limit
        self.max_hops = max_hops
        self.ranker = PathRanker(graph)

    def __call__(self, test_triple: Sequence[int], influences: Tensor | Scores) -> list[GraphPath]:
        """Return the best paths of a prediction, for the influences of the training triples on it, all (N,) or some.

        Of several triples that join the same two entities, a path takes those with which it stands first. Training
        triples that are the prediction itself are no path.
        """
        scores = _by_position(influences)
        ranked = self.ranker.rank(test_triple, scores, max_hops=self.max_hops)
        found: dict[tuple[int, ...], GraphPath] = {}
        for length, place in best_first(ranked):
            paths = ranked[length]
            entities = tuple(paths.paths.entities[place].tolist())
            if entities not in found:
                positions = paths.paths.positions[place].tolist()
                hops = tuple(self._hop(*step, scores) for step in zip(pairwise(entities), positions, strict=True))
                found[entities] = GraphPath(entities, hops, float(paths.scores[place]))
            if len(found) == self.limit:
                break
        return list(found.values())

    def _hop(self, ends: tuple[int, int], position: int, scores: np.ndarray | SparseNumbers) -> Hop:
        head, relation, tail = self.triples[position].tolist()
        influence = Influence(head, relation, tail, scores[position].item(), position)
        return Hop(influence, forward=head == ends[0], others=len(self.ranker.adjacency.between(*ends)) - 1)


def _by_position(influences: Tensor | Scores) -> np.ndarray | SparseNumbers:
    """Return what gives the influences at positions in the training set."""
    if isinstance(influences, Tensor):
        return influences.numpy()
    if influences.positions is None:
        return influences.values.numpy()
    return SparseNumbers(influences.positions.numpy(), influences.values.numpy())

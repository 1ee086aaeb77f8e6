"""The order of the graph's paths between a prediction's head and tail, by influence, support and kind.

A path's first triple touches the prediction's head and its last one the tail. For each of these two ends the place of
the triple among all of that entity's triples of the same relation is taken twice, 1 being the best: by influence, and
by support. Comparing within a relation leaves out how much larger the influences of one relation are than another's.
With ρ for the places by influence, σ for those by support, and the sum over the two ends, a path's score is

    score = −Σ (log ρ + ½ log σ) + KIND_WEIGHT · lift(kind).

- Weight of a path: Π (degree of its triple's head in that relation · that of its tail)^−½ over its triples. Summed over
  the paths between two entities it is the degree-weighted path count (Himmelstein and Baranzini, 2015,
  https://doi.org/10.1371/journal.pcbi.1004259): a path through a hub says little.
- Support of a triple: the weights of the paths of three triples that it is on, between the prediction's two entities.
- Kind of a path: its relations, and which way each is walked. lift(kind) is the logarithm of how many times the weight
  of its paths is between the pairs that the relation joins in training of what it is between pairs of the same heads
  and tails put together at random. Only the training graph is looked at.

Before the score comes what a path leads through, and within that its length:

0. nothing, as a single triple joins the two; or an entity that is neither a head nor a tail of the prediction's
   relation, and no triple of that relation (a drug's target that is a gene of the disease), as mechanisms are made of;
1. such an entity, but another triple of the prediction's relation as well (a drug with the same target treats it);
2. heads and tails of the prediction's relation alone (a similar drug treats it): an analogy.

The two weights were chosen on predictions of Hetionet that were held out of training;
docs/notes_hetionet.md says which figures are of those, and what influence adds to the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conve_tracin.data.adjacency import Adjacency
from conve_tracin.data.graph import Graph
from conve_tracin.influence.graph_paths import MAX_HOPS, GraphPaths, Walks, find_graph_paths, find_walks

SUPPORT_WEIGHT = 0.5
KIND_WEIGHT = 3.0
# Pairs of each sort that kinds are counted between, triples that each search for them may look at, and paths after
# which no further pair is looked at: a dense graph has hundreds of thousands between two entities.
SAMPLED_PAIRS = 400
SAMPLED_STEPS = 2**18
SAMPLED_PATHS = 2**20
# Of so few kinds the sums of all are kept; of more, those that occur are sorted.
FEW_KINDS = 2**20


@dataclass(frozen=True, eq=False)
class RankedPaths:
    """Paths of one length, and what they are ordered by: groups (P,), the lowest first, then scores (P,)."""

    paths: GraphPaths
    scores: np.ndarray
    groups: np.ndarray

    @property
    def hops(self) -> int:
        """How many triples each path has."""
        return self.paths.positions.shape[1]


def best_first(ranked: Sequence[RankedPaths], limit: int | None = None) -> list[tuple[int, int]]:
    """List the best paths as (place in `ranked`, place among its paths): by group, then score, then as found."""
    places = [(i, j) for i, each in enumerate(ranked) for j in range(len(each.paths))]
    if not places:
        return []
    groups = np.concatenate([each.groups for each in ranked])
    scores = np.concatenate([each.scores for each in ranked])
    return [places[i] for i in np.lexsort((-scores, groups))[:limit].tolist()]


@dataclass(frozen=True, eq=False)
class SparseNumbers:
    """Numbers of all training triples, of which those at `positions` (m,), in ascending order, may differ from zero."""

    positions: np.ndarray
    values: np.ndarray

    def __getitem__(self, wanted: np.ndarray) -> np.ndarray:
        if not len(self.positions):
            return np.zeros(np.shape(wanted))
        places = np.minimum(np.searchsorted(self.positions, wanted), len(self.positions) - 1)
        return np.where(self.positions[places] == wanted, self.values[places], 0.0)


class PathRanker:
    """Orders the paths of one training graph.

    Args:
        graph: of the training triples.
        sampled_pairs, seed: for the kinds of paths, see `kind_lifts`.
    """

    def __init__(self, graph: Graph, *, sampled_pairs: int = SAMPLED_PAIRS, seed: int = 0) -> None:
        self.graph = graph
        self.triples = graph.triples
        self.adjacency = graph.adjacency
        self.sampled_pairs = sampled_pairs
        self.seed = seed
        self._lifts: dict[tuple[int, int], dict[int, float]] = {}

    @property
    def weights(self) -> np.ndarray:
        """The factor of each triple in a path's weight: (N,)."""
        return self.graph.weights

    def rank(
        self, triple: Sequence[int], influences: np.ndarray | SparseNumbers, *, max_hops: int = MAX_HOPS
    ) -> list[RankedPaths]:
        """Find and score the paths of a prediction (h, r, t) of up to `max_hops` triples.

        `influences` are those of the training triples on it, by their positions. The prediction itself is no path.
        """
        head, relation, tail = (int(value) for value in triple)
        found = [find_graph_paths(self.adjacency, head, tail, hops=hops) for hops in range(1, MAX_HOPS + 1)]
        # The prediction explains itself only where it is known, and then says nothing.
        found[0] = found[0].take((self.triples[found[0].positions[:, 0]] != (head, relation, tail)).any(axis=1))
        support = self._support(found[-1])
        return [
            RankedPaths(paths, self._scores(paths, relation, influences, support), self._groups(paths, relation))
            for paths in found[:max_hops]
        ]

    def lifts(self, relation: int, hops: int) -> dict[int, float]:
        """Return how much each kind of path of a length speaks for a relation; computed once."""
        if (relation, hops) not in self._lifts:
            name = f"lifts/{self.sampled_pairs}-{self.seed}-{relation}-{hops}"
            arrays = self.graph.keep(name, lambda: _as_arrays(kind_lifts(self, relation, hops)))
            self._lifts[relation, hops] = dict(zip(arrays["kinds"].tolist(), arrays["lifts"].tolist(), strict=True))
        return self._lifts[relation, hops]

    def kinds(self, paths: GraphPaths) -> np.ndarray:
        """Number the kinds of paths: (P,)."""
        forward = self.triples[paths.positions, 0] == paths.entities[:, :-1]
        steps = 2 * self.triples[paths.positions, 1] + forward
        return steps @ ((2 * self.graph.num_relations) ** np.arange(steps.shape[1]))

    def num_kinds(self, hops: int) -> int:
        """Return how many kinds of paths of a length there may be."""
        return (2 * self.graph.num_relations) ** hops

    def weigh(self, walks: Walks) -> tuple[np.ndarray, np.ndarray]:
        """Number the kinds of P walks, as `kinds` does for paths, and compute their weights: (P,) twice."""
        base = 2 * self.graph.num_relations
        starts = np.concatenate([np.full((len(walks.beginnings), 1), walks.head), walks.middles], axis=1)
        kinds, weights = np.zeros(len(starts), dtype=np.int64), np.ones(len(starts))
        for place, slots in enumerate(walks.beginnings.T):
            steps, factors = self._steps(slots, starts[:, place])
            kinds += steps * base**place
            weights *= factors
        # The last slot is one around the tail: it leads back. Of many paths, each slot is looked up once.
        slots, ends = walks.ends, slice(None)
        if len(walks) > self.adjacency.degrees[walks.tail]:
            slots, ends = self.adjacency.around(walks.tail), walks.ends - self.adjacency.offsets[walks.tail]
        steps, factors = self._steps(slots, walks.tail)
        kinds = kinds[walks.rows] + (steps ^ 1)[ends] * base ** walks.beginnings.shape[1]
        return kinds, weights[walks.rows] * factors[ends]

    def _steps(self, slots: np.ndarray, starts: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Number the relations of slots (m,) and the ways they are walked from where they start; and their weights."""
        positions = self.adjacency.positions[slots]
        heads, relations, _ = np.take(self.triples, positions, axis=0).T
        return 2 * relations + (heads == starts), self.weights[positions]

    def _scores(
        self, paths: GraphPaths, relation: int, influences: np.ndarray | SparseNumbers, support: SparseNumbers
    ) -> np.ndarray:
        scores = np.zeros(len(paths))
        if not len(paths):
            return scores
        for column in (0, -1):
            end = paths.entities[0, column]
            scores -= log_places(self.adjacency, self.triples, influences, end, paths.positions[:, column])
            places = log_places(self.adjacency, self.triples, support, end, paths.positions[:, column])
            scores -= SUPPORT_WEIGHT * places
        lifts = self.lifts(relation, paths.positions.shape[1])
        return scores + KIND_WEIGHT * np.array([lifts.get(kind, 0.0) for kind in self.kinds(paths).tolist()])

    def _support(self, paths: GraphPaths) -> SparseNumbers:
        weights = self.weights[paths.positions].prod(axis=1)
        positions, places = np.unique(paths.positions[:, [0, -1]], return_inverse=True)
        places = places.reshape(-1, 2)
        sums = sum(np.bincount(places[:, column], weights, minlength=len(positions)) for column in (0, 1))
        return SparseNumbers(positions, sums)

    def _groups(self, paths: GraphPaths, relation: int) -> np.ndarray:
        hops = paths.positions.shape[1]
        if hops == 1:
            return np.full(len(paths), hops)
        among_ends = self._is_end(relation)[paths.entities[:, 1:-1]].all(axis=1)
        uses_relation = (self.triples[paths.positions, 1] == relation).any(axis=1)
        return np.where(among_ends, 2, uses_relation) * (MAX_HOPS + 1) + hops

    def pairs_of(self, relation: int) -> np.ndarray:
        """Return head and tail of the training triples of a relation, in their order: (k, 2)."""
        return np.take(self.triples, self.graph.positions_of_relation(relation), axis=0)[:, [0, 2]]

    def _is_end(self, relation: int) -> np.ndarray:
        is_end = np.zeros(len(self.adjacency.degrees), dtype=bool)
        is_end[self.pairs_of(relation)] = True
        return is_end


def log_places(
    adjacency: Adjacency, triples: np.ndarray, scores: np.ndarray | SparseNumbers, entity: int, positions: np.ndarray
) -> np.ndarray:
    """Compute the logarithms of places, 1 being the best, among an entity's triples of the same relation.

    Args:
        adjacency, triples: of the training set; triples (N, 3).
        scores: of the triples, (N,); equal ones share the better place.
        entity: one end of the triples at `positions` (P,).

    Returns:
        (P,).
    """
    own = adjacency.positions[adjacency.around(entity)]
    places = np.empty(len(positions))
    relations = triples[positions, 1]
    for relation in np.unique(relations):
        rising = np.sort(scores[own[triples[own, 1] == relation]])
        here = relations == relation
        places[here] = 1 + len(rising) - np.searchsorted(rising, scores[positions[here]], side="right")
    return np.log(places)


def kind_lifts(ranker: PathRanker, relation: int, hops: int) -> dict[int, float]:
    """Compute how many times the weight of each kind of path is between related pairs of what chance makes it.

    Args:
        ranker: of the graph.
        relation: whose training pairs are looked at, at most `sampled_pairs`, and as many of their heads and tails
            put together at random.
        hops: length of the paths.

    Returns:
        {kind: logarithm of the ratio}. The weight of one mean path of the kind is added on both sides, so that a kind
        that was seen once or twice says little.
    """
    generator = np.random.default_rng(ranker.seed)
    related = ranker.pairs_of(relation)
    key = np.array([len(ranker.adjacency.degrees), 1])
    joined = related @ key
    related = related[generator.permutation(len(related))[: ranker.sampled_pairs]]
    mixed = np.stack([generator.permutation(related[:, 0]), generator.permutation(related[:, 1])], axis=1)
    mixed = mixed[~np.isin(mixed @ key, joined)]
    of_related, of_mixed = (_weigh(ranker, pairs, hops) for pairs in (related, mixed))
    kinds = np.union1d(of_related.kinds, of_mixed.kinds)
    (weights, paths), (chances, paths_of_mixed) = (each.of(kinds) for each in (of_related, of_mixed))
    means = (weights + chances) / (paths + paths_of_mixed)
    chances = (chances + means) / max(of_mixed.pairs, 1)
    lifts = np.log((weights + means) / max(of_related.pairs, 1) / chances)
    return dict(zip(kinds.tolist(), lifts.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class WeighedKinds:
    """Kinds of paths (m,) between some pairs: their weights (m,), how many paths they are (m,), and how many pairs."""

    kinds: np.ndarray
    weights: np.ndarray
    paths: np.ndarray
    pairs: int

    def of(self, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights and the numbers of paths of some kinds (M,), all of these among them: (M,) twice."""
        places = np.searchsorted(kinds, self.kinds)
        whole = np.zeros(len(kinds)), np.zeros(len(kinds))
        whole[0][places], whole[1][places] = self.weights, self.paths
        return whole


def _weigh(ranker: PathRanker, pairs: np.ndarray, hops: int) -> WeighedKinds:
    """Sum the weights of the paths between pairs (m, 2), kind by kind."""
    kinds, weights = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    used = found = 0
    for head, tail in pairs.tolist():
        walks = find_walks(ranker.adjacency, head, tail, hops=hops, max_steps=SAMPLED_STEPS)
        for collected, of_walks in zip((kinds, weights), ranker.weigh(walks), strict=True):
            collected.append(of_walks)
        used, found = used + 1, found + len(walks)
        if found > SAMPLED_PATHS:
            break
    return WeighedKinds(*sums_by_kind(np.concatenate(kinds), np.concatenate(weights), ranker.num_kinds(hops)), used)


def sums_by_kind(kinds: np.ndarray, weights: np.ndarray, num_kinds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the kinds that some paths (P,) have, (m,), the sums of their weights (P,), and how many paths they are."""
    if num_kinds <= max(len(kinds), FEW_KINDS):
        paths = np.bincount(kinds, minlength=num_kinds)
        present = np.flatnonzero(paths)
        return present, np.bincount(kinds, weights, minlength=num_kinds)[present], paths[present]
    present, places, paths = np.unique(kinds, return_inverse=True, return_counts=True)
    return present, np.bincount(places, weights, minlength=len(present)), paths


def _as_arrays(lifts: dict[int, float]) -> dict[str, np.ndarray]:
    return {"kinds": np.array(list(lifts), dtype=np.int64), "lifts": np.array(list(lifts.values()), dtype=np.float64)}

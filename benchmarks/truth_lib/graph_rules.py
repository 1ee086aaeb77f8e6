"""Simple rules that look at the graph alone: scores of training triples (N,) for a prediction, without any model."""

from collections.abc import Callable

import numpy as np

from conve_tracin.influence.graph_paths import Adjacency, find_graph_paths

Rule = Callable[[np.ndarray, np.ndarray, Adjacency], np.ndarray]


def shares_query_or_answer(triple: np.ndarray, train: np.ndarray, _adjacency: Adjacency) -> np.ndarray:
    """Score 1 for triples with the prediction's (h, r) or its (r, t)."""
    head, relation, tail = triple
    shares = (train[:, 1] == relation) & ((train[:, 0] == head) | (train[:, 2] == tail))
    return shares.astype(np.float64)


def joins_or_touches(triple: np.ndarray, train: np.ndarray, _adjacency: Adjacency) -> np.ndarray:
    """Score 2 for triples that join the prediction's two entities, 1 for those that touch one of them."""
    head, _, tail = triple
    ends = train[:, [0, 2]]
    return (ends == head).any(axis=1).astype(np.float64) + (ends == tail).any(axis=1)


def on_two_hop_path(triple: np.ndarray, train: np.ndarray, adjacency: Adjacency) -> np.ndarray:
    """Score 1 for triples on a path of two triples between the prediction's entities."""
    return _on_paths(triple, train, adjacency, hops=2)


def on_short_path(triple: np.ndarray, train: np.ndarray, adjacency: Adjacency) -> np.ndarray:
    """Score 2 for triples on a path of two triples between the prediction's entities, 1 for those on one of three."""
    three = _on_paths(triple, train, adjacency, hops=3)
    return np.maximum(2 * on_two_hop_path(triple, train, adjacency), three)


def _on_paths(triple: np.ndarray, train: np.ndarray, adjacency: Adjacency, *, hops: int) -> np.ndarray:
    head, _, tail = triple.tolist()
    scores = np.zeros(len(train))
    scores[find_graph_paths(adjacency, head, tail, hops=hops).positions.ravel()] = 1
    return scores


RULES: dict[str, Rule] = {
    "rule: shares (h, r) or (r, t)": shares_query_or_answer,
    "rule: joins both ends, or else touches one": joins_or_touches,
    "rule: on a path of two hops": on_two_hop_path,
    "rule: on a path of two hops, or else of three": on_short_path,
}

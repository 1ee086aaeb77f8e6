"""How far two rankings of the training triples agree about one prediction: what differs by the seed is no evidence.

Each measure takes two arrays of scores (N,), the training triples (N, 3) and the prediction (3,).
"""

import numpy as np

from truth_lib.lds import rank_correlations

# Fewer triples than this have no order to speak of.
FEWEST = 4


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Compute Spearman's correlation of two arrays (n,); NaN for fewer than `FEWEST`."""
    return float(rank_correlations(left[:, None], right[:, None])[0]) if len(left) >= FEWEST else float("nan")


def over_edges_of_the_pair(left: np.ndarray, right: np.ndarray, train: np.ndarray, triple: np.ndarray) -> float:
    """Correlate over the triples that touch the prediction's head or tail, the prediction itself apart."""
    touches = np.isin(train[:, [0, 2]], triple[[0, 2]]).any(axis=1) & (train != triple).any(axis=1)
    return spearman(left[touches], right[touches])


def over_own(
    left: np.ndarray, right: np.ndarray, train: np.ndarray, triple: np.ndarray, *, end: int, relations: np.ndarray
) -> float:
    """Correlate over one end's own triples (0: the head's; 2: the tail's), relation by relation, and average.

    `relations` (k,) are those that count.
    """
    others = (train != triple).any(axis=1)
    values = []
    for place in (0, 2):
        own = np.flatnonzero((train[:, place] == triple[end]) & others)
        for relation in np.intersect1d(train[own, 1], relations):
            group = own[train[own, 1] == relation]
            values.append(spearman(left[group], right[group]))
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")


def of_ten_strongest(left: np.ndarray, right: np.ndarray, train: np.ndarray, triple: np.ndarray) -> float:
    """Compute the share of the ten strongest proponents that both name, the prediction itself apart."""
    others = np.flatnonzero((train != triple).any(axis=1))
    tops = [others[np.argpartition(-scores[others], 9)[:10]] for scores in (left, right)]
    return len(np.intersect1d(*tops)) / 10


def agreements(
    left: np.ndarray, right: np.ndarray, train: np.ndarray, triple: np.ndarray, *, relations: np.ndarray
) -> dict[str, float]:
    """Compute every measure; `relations` (k,) are those whose triples count as the head's and the tail's own."""
    return {
        "edges_of_the_pair": over_edges_of_the_pair(left, right, train, triple),
        "heads_own": over_own(left, right, train, triple, end=0, relations=relations),
        "tails_own": over_own(left, right, train, triple, end=2, relations=relations),
        "ten_strongest": of_ten_strongest(left, right, train, triple),
    }

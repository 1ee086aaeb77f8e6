"""The order of ranked paths held against known reasons."""

from collections.abc import Sequence

import numpy as np

from conve_tracin.influence.known_reasons import average_ranks, first_rank


def listed_triples(paths: Sequence[np.ndarray]) -> np.ndarray:
    """List the triples of paths in the order in which a reader meets them, each once: (m,).

    Args:
        paths: arrays (P, hops) of positions, best path first, each walked from head to tail.
    """
    walked = np.concatenate([np.empty(0, dtype=np.int64), *(each.ravel() for each in paths)])
    _, first = np.unique(walked, return_index=True)
    return walked[np.sort(first)]


def first_listed_rank(listed: np.ndarray, is_reason: np.ndarray, rest: np.ndarray) -> float:
    """Return the place of the first reason in a list of positions (m,) that the other triples follow by score (N,)."""
    found = np.flatnonzero(is_reason[listed])
    if len(found):
        return float(found[0] + 1)
    scores = rest.astype(np.float64)
    scores[listed] = -np.inf
    return len(listed) + first_rank(scores, is_reason)


def scores_of_list(listed: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Turn a list of positions (m,), best first, that the other triples follow by score (N,), into scores: (N,)."""
    scores = average_ranks(rest) / len(rest)
    scores[listed] = 1 + np.arange(len(listed), 0, -1)
    return scores


def first_whole_path(scores: np.ndarray, positions: np.ndarray, is_reason: np.ndarray) -> float:
    """Return 1 / the place of the first path all of whose triples are reasons; NaN where there is none.

    Args:
        scores: of the paths, (P,); those that tie are in any order (see `first_rank`).
        positions: of their triples, (P, hops).
        is_reason: (N,) bool.
    """
    whole = is_reason[positions].all(axis=1)
    return 1 / first_rank(scores, whole) if whole.any() else float("nan")

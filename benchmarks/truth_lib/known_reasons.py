"""Measures of known reasons that only the exams have; the others are in `conve_tracin.influence.known_reasons`."""

from collections.abc import Sequence

import numpy as np

from conve_tracin.data.reasons import KnownReasons
from conve_tracin.influence.known_reasons import average_precision, first_rank, mark_reasons, own_auc


def first_place(scores: np.ndarray, is_reason: np.ndarray) -> float:
    """Return the chance that a reason comes first, ties in any order."""
    first = scores == scores.max()
    return float(is_reason[first].mean())


def best_jaccard(scores: np.ndarray, explanations: Sequence[np.ndarray], *, seed: int = 0) -> float:
    """Compare the top |e| with each explanation e; return the largest |both| / |either|. Ties are drawn by lot."""
    largest = min(max(map(len, explanations)), len(scores))
    least = np.partition(scores, -largest)[-largest]
    candidates = np.random.default_rng(seed).permutation(np.flatnonzero(scores >= least))
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    overlaps = [(len(np.intersect1d(order[: len(each)], each)), len(each)) for each in explanations]
    return max(both / (2 * size - both) for both, size in overlaps)


def measure(scores: np.ndarray, train: np.ndarray, explained: KnownReasons) -> dict[str, float]:
    """Compute all measures of one prediction from the scores (N,) of the training triples (N, 3).

    The prediction itself, where it is a training triple, takes no part.
    """
    others = (train != explained.triple).any(axis=1)
    is_reason = mark_reasons(explained, len(train))
    rest = np.where(others, scores, -np.inf)
    return {
        "reciprocal_rank": 1 / first_rank(rest, is_reason),
        "first_place": first_place(rest, is_reason),
        "average_precision": average_precision(rest, is_reason),
        "jaccard": best_jaccard(rest, explained.explanations),
        "head_auc": own_auc(scores, train, explained, end=0, seen=others),
        "tail_auc": own_auc(scores, train, explained, end=2, seen=others),
    }

"""Scores held against known reasons (see `data.reasons`).

Each measure says how it treats ties. The prediction itself, if it is a training triple, takes no part.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from conve_tracin.data.reasons import KnownReasons

PERMUTATIONS = 999
# Random numbers held at once.
DRAWN_AT_ONCE = 2**20


@dataclass(frozen=True)
class ReasonRanks:
    """Where the known reasons of a prediction stand among the training triples, the highest influence first.

    Attributes:
        ranks: of each reason, ascending; ties by their mean.
        num_triples: training triples that are ranked.
        reciprocal_rank: 1 / the rank of the first reason.
        average_precision: the mean precision at each reason.
        head_auc, tail_auc: see `own_auc`; None if the head, or the tail, has no such groups.
        auc: the mean over all these groups, the head's and the tail's; None without any.
        auc_variance: of that mean if the reasons of each group are drawn by lot.
        p_value: how often a draw has as high a mean; None without groups. See `permutation_p_value`.
    """

    ranks: tuple[float, ...]
    num_triples: int
    reciprocal_rank: float
    average_precision: float
    head_auc: float | None
    tail_auc: float | None
    auc: float | None
    auc_variance: float
    p_value: float | None


# Scores (n,) of triples that are compared with one another, and which of them are reasons, (n,) bool.
Group = tuple[np.ndarray, np.ndarray]


def rank_reasons(scores: np.ndarray, train: np.ndarray, explained: KnownReasons) -> ReasonRanks | None:
    """Rank the reasons of a prediction by the scores (N,) of the training triples (N, 3).

    Returns None if the prediction itself is the only reason.
    """
    others = (train != explained.triple).any(axis=1)
    is_reason = mark_reasons(explained, len(train)) & others
    if not is_reason.any():
        return None
    rest = np.where(others, scores, -np.inf)
    of_head, of_tail = (list(own_groups(scores, train, explained, end=end, seen=others)) for end in (0, 2))
    groups = of_head + of_tail
    return ReasonRanks(
        ranks=tuple(sorted(ranks_of(rest, is_reason).tolist())),
        num_triples=int(others.sum()),
        reciprocal_rank=1 / first_rank(rest, is_reason),
        average_precision=average_precision(rest, is_reason),
        head_auc=_mean_area(of_head),
        tail_auc=_mean_area(of_tail),
        auc=_mean_area(groups),
        auc_variance=variance_by_lot(groups),
        p_value=permutation_p_value(groups) if groups else None,
    )


def mark_reasons(explained: KnownReasons, num_triples: int) -> np.ndarray:
    """Return which of the training triples are reasons: (N,) bool."""
    is_reason = np.zeros(num_triples, dtype=bool)
    is_reason[explained.reasons] = True
    return is_reason


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Rank values (M,) from 1 up; equal ones share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def ranks_of(scores: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Return the places of the marked among triples with scores (N,), highest first; ties by their mean: (m,)."""
    rising = np.sort(scores)
    below, not_above = (np.searchsorted(rising, scores[marked], side=side) for side in ("left", "right"))
    return len(scores) - (below + not_above - 1) / 2


def first_rank(scores: np.ndarray, is_reason: np.ndarray) -> float:
    """Return the place of the first reason among triples with scores (N,), highest first.

    Of m triples that tie with the best reason, k reasons among them, in any order, the first reason has the mean place
    (m + 1) / (k + 1).
    """
    best = scores[is_reason].max()
    ties = scores == best
    return float((scores > best).sum() + (ties.sum() + 1) / ((ties & is_reason).sum() + 1))


def average_precision(scores: np.ndarray, is_reason: np.ndarray) -> float:
    """Average the precision at each reason, where those that tie are taken together: scikit-learn's definition."""
    values, groups = np.unique(-scores, return_inverse=True)
    sizes = np.bincount(groups, minlength=len(values))
    reasons = np.bincount(groups[is_reason], minlength=len(values))
    precision = reasons.cumsum() / sizes.cumsum()
    return float((reasons * precision).sum() / is_reason.sum())


def own_groups(
    scores: np.ndarray, train: np.ndarray, explained: KnownReasons, *, end: int, seen: np.ndarray | None = None
) -> Iterator[Group]:
    """Yield the triples of one entity that have the same relation and the entity in the same place.

    Groups without a reason, or of reasons alone, are left out.

    Args:
        scores: of the training triples, (N,).
        train: (N, 3).
        explained: the prediction.
        end: 0 for the prediction's head, 2 for its tail.
        seen: which training triples count, (N,) bool; all without.
    """
    entity = explained.triple[end]
    is_reason = mark_reasons(explained, len(train))
    for place in (0, 2):
        own = train[:, place] == entity
        if seen is not None:
            own &= seen
        for relation in np.unique(train[own & is_reason, 1]):
            group = own & (train[:, 1] == relation)
            if not is_reason[group].all():
                yield scores[group], is_reason[group]


def own_auc(
    scores: np.ndarray, train: np.ndarray, explained: KnownReasons, *, end: int, seen: np.ndarray | None = None
) -> float:
    """Compute the area under the ROC curve of reasons among one entity's own triples: the mean over `own_groups`.

    Returns NaN where there are none.
    """
    area = _mean_area(own_groups(scores, train, explained, end=end, seen=seen))
    return float("nan") if area is None else area


def _mean_area(groups: Iterator[Group] | Sequence[Group]) -> float | None:
    areas = [area_under_roc(*group) for group in groups]
    return float(np.mean(areas)) if areas else None


def area_under_roc(scores: np.ndarray, marked: np.ndarray) -> float:
    """Compute the chance that a marked one of (n,) has a higher score than another, ties counted as half."""
    return float(_area(average_ranks(scores)[marked].sum(), marked))


def _area(rank_sum: float | np.ndarray, marked: np.ndarray) -> float | np.ndarray:
    positives, others = marked.sum(), (~marked).sum()
    return (rank_sum - positives * (positives + 1) / 2) / (positives * others)


def permutation_p_value(groups: Sequence[Group], *, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Test whether reasons have higher scores than the other triples of their groups.

    The hypothesis: in each group, every choice of as many triples could as well have been the reasons. Chosen by lot,
    group by group, the mean area of the groups is as high as that of the reasons in k of the draws; then p is
    (k + 1) / (permutations + 1).
    """
    generator = np.random.default_rng(seed)
    drawn = np.zeros(permutations)
    for scores, marked in groups:
        drawn += _area(_rank_sums_by_lot(average_ranks(scores), int(marked.sum()), permutations, generator), marked)
    observed = sum(area_under_roc(*group) for group in groups)
    # The sums of a draw that is the reasons themselves may differ in the last bits.
    return float((drawn >= observed - 1e-9).sum() + 1) / (permutations + 1)


def _rank_sums_by_lot(ranks: np.ndarray, size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Add up `size` of the ranks (n,), drawn without putting back, `count` times: (count,)."""
    sums = []
    rows_at_once = max(1, DRAWN_AT_ONCE // len(ranks))
    for start in range(0, count, rows_at_once):
        lots = generator.random((min(rows_at_once, count - start), len(ranks)))
        sums.append(ranks[lots.argpartition(size - 1, axis=1)[:, :size]].sum(axis=1))
    return np.concatenate(sums)


def variance_by_lot(groups: Sequence[Group]) -> float:
    """Compute the variance of the groups' mean area if the reasons of each are drawn by lot, ties included.

    A sum of m of n ranks that are drawn without putting back has the variance m (n − m) / n · S², S² being that of the
    ranks (with n − 1).
    """
    if not groups:
        return 0.0
    variances = [
        average_ranks(scores).var(ddof=1) / (len(marked) * marked.sum() * (~marked).sum()) for scores, marked in groups
    ]
    return float(sum(variances)) / len(groups) ** 2


@dataclass(frozen=True)
class ReasonsSummary:
    """`ReasonRanks` of several predictions together.

    Attributes:
        predictions: those with known reasons.
        mean_reciprocal_rank, mean_average_precision: over them.
        head_auc, tail_auc: over those that have groups; None without any.
        p_value: of the mean area, by the normal approximation of the same draws; None without groups.
    """

    predictions: int
    mean_reciprocal_rank: float
    mean_average_precision: float
    head_auc: float | None
    tail_auc: float | None
    p_value: float | None


def summarise_reasons(ranks: Sequence[ReasonRanks]) -> ReasonsSummary:
    """Average over predictions, at least one; of a single one the p-value stays."""
    return ReasonsSummary(
        predictions=len(ranks),
        mean_reciprocal_rank=float(np.mean([each.reciprocal_rank for each in ranks])),
        mean_average_precision=float(np.mean([each.average_precision for each in ranks])),
        head_auc=_mean_of_known([each.head_auc for each in ranks]),
        tail_auc=_mean_of_known([each.tail_auc for each in ranks]),
        p_value=ranks[0].p_value if len(ranks) == 1 else _p_value_of_all(ranks),
    )


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _p_value_of_all(ranks: Sequence[ReasonRanks]) -> float | None:
    with_groups = [each for each in ranks if each.auc is not None]
    variance = sum(each.auc_variance for each in with_groups)
    if not with_groups:
        return None
    # Where all scores tie, every draw is like every other.
    if variance == 0:
        return 1.0
    excess = sum(each.auc - 0.5 for each in with_groups)
    return 0.5 * math.erfc(excess / math.sqrt(2 * variance))

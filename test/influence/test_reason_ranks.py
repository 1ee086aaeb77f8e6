"""Ranks of known reasons and their test, against all orders and all choices there are."""

import itertools

import numpy as np
import pytest

from conve_tracin.data.reasons import KnownReasons
from conve_tracin.influence.known_reasons import (
    area_under_roc,
    permutation_p_value,
    rank_reasons,
    ranks_of,
    summarise_reasons,
    variance_by_lot,
)


def all_choices(groups):
    """The mean area of every way to choose as many reasons in each group."""
    choices = [itertools.combinations(range(len(marked)), int(marked.sum())) for _, marked in groups]
    for chosen in itertools.product(*choices):
        areas = []
        for (scores, _), places in zip(groups, chosen, strict=True):
            marked = np.isin(np.arange(len(scores)), places)
            pairs = [(a > b) + (a == b) / 2 for a in scores[marked] for b in scores[~marked]]
            areas.append(np.mean(pairs))
        yield np.mean(areas)


@pytest.fixture(params=range(4))
def groups(request):
    """Two groups of scores, some with ties."""
    generator = np.random.default_rng(request.param)
    sizes = ((6, 2), (5, 1))
    return [
        (generator.integers(0, 5, n).astype(float), np.isin(np.arange(n), generator.permutation(n)[:m]))
        for n, m in sizes
    ]


def test_the_variance_is_that_of_all_choices(groups):
    assert variance_by_lot(groups) == pytest.approx(np.var(list(all_choices(groups))))


def test_the_p_value_is_the_share_of_choices_that_are_as_good(groups):
    observed = np.mean([area_under_roc(*group) for group in groups])
    share = np.mean([value >= observed - 1e-9 for value in all_choices(groups)])
    found = permutation_p_value(groups, permutations=4000)
    assert found == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4000) + 1 / 4001)
    assert found == permutation_p_value(groups, permutations=4000)


def test_ranks_are_means_over_ties():
    scores = np.array([3.0, 1.0, 3.0, 2.0, 1.0, 1.0])
    marked = np.array([True, True, False, True, False, False])
    assert ranks_of(scores, marked).tolist() == [1.5, 5.0, 3.0]


def explained(triple, *positions):
    return KnownReasons(np.array(triple), (np.array(positions),), (True,))


TRAIN = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [4, 1, 9], [5, 1, 9], [0, 2, 9], [7, 0, 8]])


def test_reasons_rank_among_all_triples_but_the_prediction():
    scores = np.array([0.1, 0.5, -0.2, 0.3, 0.9, 8.0, 0.0])
    ranks = rank_reasons(scores, TRAIN, explained((0, 2, 9), 1, 3, 5))
    assert ranks.ranks == (2, 3)
    assert ranks.num_triples == 6
    assert ranks.reciprocal_rank == 1 / 2
    assert ranks.average_precision == pytest.approx((1 / 2 + 2 / 3) / 2)
    # Of the head's three triples the reason is first, of the tail's two the last.
    assert (ranks.head_auc, ranks.tail_auc, ranks.auc) == (1.0, 0.0, 0.5)
    # Drawn by lot: 1/3 for both right, and 1/6 · … of 6 choices 4 have a mean of at least ½.
    assert ranks.p_value == pytest.approx(4 / 6, abs=0.06)


def test_reasons_away_from_both_ends_have_ranks_alone():
    ranks = rank_reasons(np.arange(7.0), TRAIN, explained((0, 2, 9), 6))
    assert ranks.ranks == (1,)
    assert (ranks.head_auc, ranks.tail_auc, ranks.auc, ranks.p_value) == (None,) * 4


def test_a_prediction_that_is_its_own_reason_has_none():
    assert rank_reasons(np.arange(7.0), TRAIN, explained((0, 2, 9), 5)) is None


def test_several_predictions_are_averaged():
    scores = np.array([0.1, 0.5, -0.2, 0.3, 0.9, 8.0, 0.0])
    both = [rank_reasons(scores, TRAIN, explained((0, 2, 9), *found)) for found in ((1, 3), (6,))]
    summary = summarise_reasons(both)
    assert summary.predictions == 2
    assert summary.mean_reciprocal_rank == np.mean([each.reciprocal_rank for each in both])
    assert summary.mean_average_precision == np.mean([each.average_precision for each in both])
    assert (summary.head_auc, summary.tail_auc) == (1.0, 0.0)
    assert summary.p_value == pytest.approx(0.5)
    assert summarise_reasons(both[:1]).p_value == both[0].p_value
    assert summarise_reasons(both[1:]).p_value is None


def test_the_p_value_of_many_predictions_is_that_of_their_sum():
    generator = np.random.default_rng(0)
    train = np.stack([np.zeros(12, int), np.zeros(12, int), np.arange(1, 13)], axis=1)
    ranks = [
        rank_reasons(
            generator.permutation(np.arange(12.0)), train, explained((0, 1, 99), *generator.permutation(12)[:3])
        )
        for _ in range(100)
    ]
    # By lot the area is ½, and its variance (n + 1) / (12 m (n − m)) for ranks without ties.
    assert ranks[0].auc_variance == pytest.approx(13 / (12 * 3 * 9))
    excess = (np.mean([each.auc for each in ranks]) - 0.5) / np.sqrt(13 / (12 * 3 * 9) / 100)
    above = np.mean(generator.normal(size=200_000) >= excess)
    assert summarise_reasons(ranks).p_value == pytest.approx(above, abs=0.006)

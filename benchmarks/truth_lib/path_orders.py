"""Exam: paths of the graph, ranked in several ways, against known reasons."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from conve_tracin.data.graph import Graph
from conve_tracin.data.reasons import KnownReasons
from conve_tracin.influence.graph_paths import GraphPaths
from conve_tracin.influence.known_reasons import own_auc
from conve_tracin.influence.path_ranking import PathRanker, RankedPaths, best_first
from truth_lib.exams import Exam, averages, normalized, summarize
from truth_lib.path_exam import first_listed_rank, first_whole_path, listed_triples, scores_of_list

# How paths are ordered, from those that the ranker found and scored, and the influences (N,).
Order = Callable[[list[RankedPaths], np.ndarray], list[RankedPaths]]


def by_score(ranked: list[RankedPaths], _influences: np.ndarray) -> list[RankedPaths]:
    """Order paths by influence, support and kind: the method of `path_ranking`."""
    return ranked


def by_weaker_influence(ranked: list[RankedPaths], influences: np.ndarray) -> list[RankedPaths]:
    """Order paths of two triples by the weaker of their two influences."""
    return [_by_weakest(of_hops(ranked, 2).paths, influences)]


def by_weakest_influence_of_three(ranked: list[RankedPaths], influences: np.ndarray) -> list[RankedPaths]:
    """Order paths of three triples by the weakest of their influences."""
    return [_by_weakest(of_hops(ranked, 3).paths, influences)]


def by_weaker_influence_through_others(ranked: list[RankedPaths], influences: np.ndarray) -> list[RankedPaths]:
    """Do the same, but paths among heads and tails of the prediction's relation come last."""
    two = of_hops(ranked, 2)
    return [replace(_by_weakest(two.paths, influences), groups=two.groups)]


def of_hops(ranked: Sequence[RankedPaths], hops: int) -> RankedPaths:
    """Return the paths of so many triples."""
    return next(each for each in ranked if each.hops == hops)


def _by_weakest(paths: GraphPaths, influences: np.ndarray) -> RankedPaths:
    return RankedPaths(paths, influences[paths.positions].min(axis=1), np.zeros(len(paths)))


ORDERS: dict[str, Order] = {
    "weaker influence": by_weaker_influence,
    "weaker influence, analogies last": by_weaker_influence_through_others,
    "three triples, weakest influence": by_weakest_influence_of_three,
    "ranked paths": by_score,
}


def measure_order(
    ranked: list[RankedPaths],
    explained: KnownReasons,
    influences: np.ndarray,
    train: np.ndarray,
    *,
    is_through: np.ndarray,
) -> dict[str, float]:
    """Compute where an order has the first reason and the first path that consists of reasons.

    Args:
        ranked: the paths.
        explained: the prediction.
        influences: of the training triples, (N,); triples on no listed path follow in this order.
        train: (N, 3).
        is_through: the entities that the paths of the last measure lead through, (E,) bool.
    """
    is_reason = np.zeros(len(train), dtype=bool)
    is_reason[explained.reasons] = True
    others = (train != explained.triple).any(axis=1)
    influences = np.where(others, influences, -np.inf)
    listed = list_triples(ranked)
    scores = scores_of_list(listed, influences)
    anywhere = np.ones_like(is_through)
    return {
        "first_reason": 1 / first_listed_rank(listed, is_reason, influences),
        "first_whole_path": _first_whole_path(ranked, 2, is_reason, anywhere),
        "first_whole_path_through": _first_whole_path(ranked, 2, is_reason, is_through),
        "first_whole_path_of_three": _first_whole_path(ranked, 3, is_reason, anywhere),
        "head_auc": own_auc(scores, train, explained, end=0, seen=others),
        "tail_auc": own_auc(scores, train, explained, end=2, seen=others),
    }


def _first_whole_path(ranked: Sequence[RankedPaths], hops: int, is_reason: np.ndarray, is_through: np.ndarray) -> float:
    """Return 1 / the place of the first path of reasons, of one length and through some entities; NaN without any."""
    for each in ranked:
        if each.hops == hops:
            through = is_through[each.paths.entities[:, 1:-1]].all(axis=1)
            # Groups weigh more than scores do, and scores are finite.
            keys = each.scores - 1e9 * each.groups
            return first_whole_path(keys[through], each.paths.positions[through], is_reason)
    return float("nan")


def list_triples(ranked: list[RankedPaths]) -> np.ndarray:
    """List the triples of paths, best path first: positions (m,)."""
    return listed_triples([ranked[i].paths.positions[j] for i, j in best_first(ranked)])


def paths_exam(exam: Exam, through: str, methods: Sequence[str]) -> dict[str, Any]:
    """Measure every order with the influences of every method, of each model and of all summed, and without any.

    Args:
        exam: predictions and models.
        through: how the labels of entities begin that one measure is about.
        methods: of METHODS.

    Returns:
        {order: {method: {"by_model": […], "mean": …, "sum": …, "above_no_model": …}}}; "no model" has influences that
        are all alike, and the last is the paired difference from it, prediction by prediction.
    """
    ranker = PathRanker(Graph(exam.train, len(exam.entities)))
    is_through = np.array([label.startswith(through) for label in exam.entities.labels])

    def measured(influences: np.ndarray) -> dict[str, list[dict[str, float]]]:
        values: dict[str, list[dict[str, float]]] = {name: [] for name in ORDERS}
        for each, of_one in zip(exam.explained, influences, strict=True):
            ranked = ranker.rank(each.triple.tolist(), of_one)
            for name, order in ORDERS.items():
                values[name].append(
                    measure_order(order(ranked, of_one), each, of_one, exam.train, is_through=is_through)
                )
        return values

    without = measured(np.zeros((len(exam.explained), len(exam.train))))
    results = {name: {"no model": {"mean": summarize(values)}} for name, values in without.items()}
    for method in tqdm(methods, desc="methods"):
        scores = exam.scores(method)
        by_model = [measured(of_model) for of_model in scores]
        of_sum = measured(normalized(scores).sum(axis=0)) if len(scores) > 1 else None
        for name in ORDERS:
            results[name][method] = _compared([values[name] for values in by_model], without[name])
            if of_sum is not None:
                results[name][method]["sum"] = summarize(of_sum[name])
    return results


def _compared(values: Sequence[Sequence[dict[str, float]]], without: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Summarize each model's measures, their mean, and how far it is above that without a model, paired."""
    mean = averages(values)
    above = [
        {measure: with_model[measure] - alone[measure] for measure in alone}
        for with_model, alone in zip(mean, without, strict=True)
    ]
    return {
        "by_model": [summarize(each) for each in values],
        "mean": summarize(mean),
        "above_no_model": summarize(above),
    }


def scores_in_path_order(exam: Exam, influences: np.ndarray) -> np.ndarray:
    """Turn influences (models, n, N) into scores that follow the ranked paths, then the influences: (models, n, N)."""
    ranker = PathRanker(Graph(exam.train, len(exam.entities)))
    scores = np.empty(influences.shape)
    for of_model, out in zip(influences, scores, strict=True):
        for each, of_one, row in zip(exam.explained, of_model, out, strict=True):
            row[:] = scores_of_list(list_triples(ranker.rank(each.triple.tolist(), of_one)), of_one)
    return scores

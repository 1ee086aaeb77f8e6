"""Tracing: test triples × checkpoints to ranked training triples (TracInCP: the checkpoints' influences add up)."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conve_tracin.compute import parallel
from conve_tracin.data.queries import inverse_of
from conve_tracin.errors import InputError
from conve_tracin.influence.known_reasons import ReasonRanks
from conve_tracin.influence.method import Influence, Method, Scores, rank_influences
from conve_tracin.influence.paths import GraphPath
from conve_tracin.influence.scorers import Scorer
from conve_tracin.influence.summary import InfluenceSummary, Prediction, SummarySettings, describe_prediction, summarise
from conve_tracin.settings import TAIL

# Test triples in one pass over the training set: one score for each of them and each training triple is held.
GROUP_SIZE = 16


@dataclass(frozen=True)
class TracedCheckpoint:
    """A loaded checkpoint: what scores, what compares, and its weight in the sum (η, or its share of 1)."""

    scorer: Scorer
    method: Method
    weight: float


@dataclass(frozen=True)
class Trace:
    """The influences on one test triple, all in the ids of the files.

    Attributes:
        test_triple: head, relation, tail.
        influences: the strongest by absolute influence, ties in training order.
        proponents, opponents: the strongest positive and negative ones.
        summary: what all the scores say together, where it was asked for.
        prediction: score and rank of the test triple by the last checkpoint, where they were asked for.
        num_models: how many checkpoints were summed.
        total: the sum of the absolute influences of all training triples.
        paths: what the training graph has between head and tail, best first, if it was asked for.
        reasons: where the known reasons stand among all training triples, if there are any.
    """

    test_triple: tuple[int, int, int]
    influences: list[Influence]
    proponents: list[Influence]
    opponents: list[Influence]
    summary: InfluenceSummary | None = None
    prediction: Prediction | None = None
    paths: list[GraphPath] | None = None
    num_models: int = 1
    total: float = 0.0
    reasons: ReasonRanks | None = None

    def share(self, influence: float) -> float:
        """Return an influence's share of all absolute influence, 0 to 1."""
        return abs(influence) / self.total if self.total else 0.0


def trace(
    load: Callable[[Path], TracedCheckpoint],
    checkpoints: Sequence[Path],
    test_triples: np.ndarray | None,
    training_triples: np.ndarray,
    *,
    top_k: int,
    batch_size: int = 256,
    progress: bool = True,
    describe: SummarySettings | None = None,
    summarised: bool = False,
    side: str = TAIL,
    find_paths: Callable[[np.ndarray, Scores], list[GraphPath]] | None = None,
    rank_reasons: Callable[[np.ndarray, Tensor], ReasonRanks | None] | None = None,
) -> Iterator[Trace]:
    """Trace each test triple (n, 3) to the training triples (N, 3), summed over the checkpoints.

    Args:
        load: reads a checkpoint; the latest one is kept, so that a single one is read once.
        checkpoints: what to load, in order.
        test_triples: ids of the files; None in the processes that follow process 0 (see `parallel`), which
            compute their share and yield nothing.
        training_triples: ids of the files.
        top_k: how many influences to list.
        batch_size: see the method.
        progress: show progress bars.
        describe: score and rank each test triple among the entities of its graph, that of the training triples.
        summarised: also summarise all its influences; goes with `describe`.
        find_paths: finds the paths of a test triple (3,), given the influences; see `PathFinder`.
        rank_reasons: ranks the known reasons of a test triple (3,), given all influences (N,).
        side: "tail", or "head" to explain the score of (tail, inverse of the relation, head) instead.

    Raises InputError if heads are to be explained by a model without inverse triples.
    """
    load = lru_cache(maxsize=1)(load)
    test_triples = parallel.broadcast(test_triples)
    progress = progress and parallel.is_main_process()
    for start in range(0, len(test_triples), GROUP_SIZE):
        group = test_triples[start : start + GROUP_SIZE]
        totals, strongest_of, scorer = _sum_over_checkpoints(
            load, checkpoints, group, training_triples, side=side, top_k=top_k, batch_size=batch_size, progress=progress
        )
        if not parallel.is_main_process():
            continue
        for place, (test_triple, scores) in enumerate(zip(group, totals, strict=True)):
            models = [each[place] for each in strongest_of]
            traced = make_trace(test_triple, scores, training_triples, top_k=top_k, models=models)
            traced = _described(traced, scores, scorer=scorer, describe=describe, summarised=summarised)
            if find_paths is not None:
                traced = replace(traced, paths=find_paths(test_triple, scores))
            if rank_reasons is not None:
                traced = replace(traced, reasons=rank_reasons(test_triple, scores.dense()))
            yield traced


def _sum_over_checkpoints(
    load: Callable[[Path], TracedCheckpoint],
    checkpoints: Sequence[Path],
    test_triples: np.ndarray,
    training_triples: np.ndarray,
    *,
    side: str,
    top_k: int,
    batch_size: int,
    progress: bool,
) -> tuple[list[Scores], list[list[set[int]]], Scorer]:
    """Sum the weighted scores of each test triple (n, 3) over the checkpoints.

    Returns the sums; the `top_k` strongest of each of several checkpoints, by checkpoint and test triple; and the last
    checkpoint's scorer.
    """
    totals: list[Scores] = []
    strongest_of: list[list[set[int]]] = []
    for checkpoint in checkpoints:
        loaded = load(checkpoint)
        title = f"{checkpoint.name}: {len(test_triples)} test triple(s)" if progress else None
        asked = _asked(test_triples, side, loaded.scorer, checkpoint)
        scores_of = _scores(loaded.method, checkpoint, asked, training_triples, batch_size=batch_size, progress=title)
        if len(checkpoints) > 1:
            strongest_of.append([set(scores.strongest(top_k)[0].tolist()) for scores in scores_of])
        scaled = [scores.scaled(loaded.weight) for scores in scores_of]
        totals = [before.plus(one) for before, one in zip(totals, scaled, strict=True)] if totals else scaled
    return totals, strongest_of, loaded.scorer


def _described(
    traced: Trace,
    scores: Scores,
    *,
    scorer: Scorer,
    describe: SummarySettings | None,
    summarised: bool,
) -> Trace:
    """Add the score and the ranks of the prediction, and a summary of all its influences, if they are asked for."""
    if describe is None:
        return traced
    prediction = describe_prediction(scorer, np.array(traced.test_triple), describe)
    summary = summarise(scores, describe.graph) if summarised else traced.summary
    return replace(traced, prediction=prediction, summary=summary)


def with_counts(trace: Trace, counts: np.ndarray | None) -> Trace:
    """Say of each influence how often its triple stands in the training file: `counts` (M,) of the distinct ones."""
    if counts is None:
        return trace

    def counted(influences: list[Influence]) -> list[Influence]:
        return [replace(influence, count=int(counts[influence.position])) for influence in influences]

    return replace(
        trace,
        influences=counted(trace.influences),
        proponents=counted(trace.proponents),
        opponents=counted(trace.opponents),
    )


def _asked(group: np.ndarray, side: str, scorer: Scorer, checkpoint: Path) -> np.ndarray:
    """Turn test triples (n, 3) round if their heads are to be explained; raises InputError if the model ranks none."""
    if side == TAIL:
        return group
    require_inverse_triples(scorer, checkpoint)
    return inverse_of(group)


def require_inverse_triples(scorer: Scorer, checkpoint: Path) -> None:
    """Raise InputError for a model that ranks no heads."""
    if not scorer.inverse_triples:
        raise InputError(
            f"{checkpoint}: was trained without inverse triples, so that it predicts no heads; leave out "
            "--predicted-side head, or train with --inverse-triples"
        )


def _scores(
    method: Method,
    checkpoint: Path,
    group: np.ndarray,
    training_triples: np.ndarray,
    *,
    batch_size: int,
    progress: str | None,
) -> list[Scores]:
    """Compute the influences of a checkpoint on each test triple of a group, shared between the processes.

    Raises InputError, which names the checkpoint.
    """
    keywords = {"batch_size": batch_size, "progress": progress}
    with naming_the_checkpoint(checkpoint):
        if parallel.world_size() == 1:
            scores = method.scores(group, training_triples, **keywords)
        elif method.shares_training_triples:
            products = parallel.compute_shared(partial(method.products, group, **keywords), training_triples)
            scores = [Scores.of_all(row) for row in products]
        else:
            scores = parallel.map_shared(lambda mine: method.scores(mine, training_triples, **keywords), group)
    for each in scores:
        require_finite_influences(each.values, checkpoint)
    return scores


@contextmanager
def naming_the_checkpoint(checkpoint: Path) -> Iterator[None]:
    """Put the path of a checkpoint before the message of what a method cannot compute with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error


def require_finite_influences(products: Tensor, checkpoint: Path) -> None:
    """Raise InputError where a product of gradients is not finite: weights can be too large to compute with."""
    if not torch.isfinite(products).all():
        raise InputError(
            f"{checkpoint}: the influences computed with it are not finite, as its weights are too large; "
            "use an earlier checkpoint"
        )


def make_trace(
    test_triple: np.ndarray,
    scores: Tensor | Scores,
    training_triples: np.ndarray,
    *,
    top_k: int,
    models: Sequence[Collection[int]] = (),
) -> Trace:
    """Rank the influences (N,) of the training triples (N, 3) on one test triple (3,).

    `models` are the positions of the `top_k` strongest by each of several checkpoints alone.
    """

    scores = scores if isinstance(scores, Scores) else Scores.of_all(scores)

    def rank(kept: Tensor) -> list[Influence]:
        ranked = rank_influences(scores.where(kept), training_triples, top_k)
        return counted([influence for influence in ranked if influence.influence != 0])

    def counted(influences: list[Influence]) -> list[Influence]:
        if not models:
            return influences
        return [replace(one, models=sum(one.position in strong for strong in models)) for one in influences]

    return Trace(
        test_triple=tuple(test_triple.tolist()),
        influences=counted(rank_influences(scores, training_triples, top_k)),
        proponents=rank(scores.values > 0),
        opponents=rank(scores.values < 0),
        num_models=max(len(models), 1),
        total=scores.values.abs().sum(dtype=torch.float64).item(),
    )

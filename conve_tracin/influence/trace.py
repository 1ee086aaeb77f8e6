"""Tracing: test triples × checkpoints to ranked training triples (TracInCP: the checkpoints' influences add up)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conve_tracin import parallel
from conve_tracin.data.queries import inverse_of
from conve_tracin.errors import InputError
from conve_tracin.influence.method import Influence, Method, rank_influences
from conve_tracin.influence.scorers import Scorer
from conve_tracin.influence.summary import InfluenceSummary, Prediction, SummarySettings, describe_prediction, summarise
from conve_tracin.settings import HEAD, TAIL

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
    """

    test_triple: tuple[int, int, int]
    influences: list[Influence]
    proponents: list[Influence]
    opponents: list[Influence]
    summary: InfluenceSummary | None = None
    prediction: Prediction | None = None


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
        describe: score and rank each test triple among the entities of these mappings.
        summarised: also summarise all its influences; goes with `describe`.
        side: "tail", or "head" to explain the score of (tail, inverse of the relation, head) instead.

    Raises InputError if heads are to be explained by a model without inverse triples.
    """
    load = lru_cache(maxsize=1)(load)
    test_triples = parallel.broadcast(test_triples)
    progress = progress and parallel.is_main_process()
    for start in range(0, len(test_triples), GROUP_SIZE):
        group = test_triples[start : start + GROUP_SIZE]
        totals: Tensor | None = None
        for checkpoint in checkpoints:
            loaded = load(checkpoint)
            if side == HEAD:
                require_inverse_triples(loaded.scorer, checkpoint)
            compute = partial(
                loaded.method.products,
                group if side == TAIL else inverse_of(group),
                batch_size=batch_size,
                progress=f"{checkpoint.name}: {len(group)} test triple(s)" if progress else None,
            )
            with naming_the_checkpoint(checkpoint):
                if loaded.method.shares_training_triples:
                    products = parallel.compute_shared(compute, training_triples)
                elif parallel.is_main_process():
                    products = compute(training_triples)
                else:
                    continue
            require_finite_influences(products, checkpoint)
            scaled = products.mul_(loaded.weight)
            totals = scaled if totals is None else totals.add_(scaled)
        if not parallel.is_main_process():
            continue
        for test_triple, scores in zip(group, totals, strict=True):
            traced = make_trace(test_triple, scores, training_triples, top_k=top_k)
            if describe is not None:
                prediction = describe_prediction(loaded.scorer, test_triple, training_triples, describe)
                traced = replace(traced, prediction=prediction)
                if summarised:
                    traced = replace(traced, summary=summarise(scores, training_triples, describe))
            yield traced


def require_inverse_triples(scorer: Scorer, checkpoint: Path) -> None:
    """Raise InputError for a model that ranks no heads."""
    if not scorer.inverse_triples:
        raise InputError(
            f"{checkpoint}: was trained without inverse triples, so that it predicts no heads; leave out "
            "--predicted-side head, or train with --inverse-triples"
        )


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


def make_trace(test_triple: np.ndarray, scores: Tensor, training_triples: np.ndarray, *, top_k: int) -> Trace:
    """Rank the influences (N,) of the training triples (N, 3) on one test triple (3,)."""

    def rank(kept: Tensor) -> list[Influence]:
        ranked = rank_influences(torch.where(kept, scores, 0), training_triples, top_k)
        return [influence for influence in ranked if influence.influence != 0]

    return Trace(
        test_triple=tuple(test_triple.tolist()),
        influences=rank_influences(scores, training_triples, top_k),
        proponents=rank(scores > 0),
        opponents=rank(scores < 0),
    )

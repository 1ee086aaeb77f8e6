"""What the scores of all training triples say together, taken while they exist: a report needs more than the top k."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from conve_tracin.influence.scorers import Scorer
from conve_tracin.ranking import filtered_ranks

if TYPE_CHECKING:
    from conve_tracin.data.names import Names


# Points of the cumulative curve between 1 and N; they lie evenly on a logarithmic axis.
CURVE_POINTS = 60

# How many tails of a higher rank a report can name.
TAILS_AHEAD = 5


@dataclass(frozen=True, kw_only=True)
class SummarySettings:
    """What a test triple is ranked among, and what of its influences to summarise.

    Attributes:
        num_entities, num_relations: the lengths of the mappings.
        known_triples: true triples besides the training triples, whose tails the rank passes over, (M, 3).
    """

    num_entities: int
    num_relations: int
    known_triples: np.ndarray | None = None

    @classmethod
    def of(cls, names: "Names", known_triples: np.ndarray | None = None) -> "SummarySettings":
        """Take the lengths of the mappings."""
        return cls(
            num_entities=len(names.entities), num_relations=len(names.relations), known_triples=known_triples
        )  # fmt: skip


@dataclass(frozen=True)
class RelationInfluence:
    """The influences of a relation's training triples: the sums above and below zero, and how many triples they are."""

    relation: int
    positive: float
    negative: float
    triples: int


@dataclass(frozen=True)
class Concentration:
    """How much of the sum of all absolute influences the strongest triples carry.

    Attributes:
        counts: numbers of triples k, ascending, from 1 to N, the powers of ten among them.
        shares: the share of the k strongest, 0 to 1; zeros where all influences are zero.
        half: the smallest k whose share is at least one half.
    """

    counts: tuple[int, ...]
    shares: tuple[float, ...]
    half: int


@dataclass(frozen=True)
class InfluenceSummary:
    """The scores (N,) on one test triple in a few numbers.

    Attributes:
        num_triples, num_positive, num_negative: counts of training triples.
        positive, negative: the sums of the influences above and below zero.
        by_relation: largest absolute sums first; relations without training triples are left out.
        concentration: the cumulative curve of the absolute influences.
    """

    num_triples: int
    num_positive: int
    num_negative: int
    positive: float
    negative: float
    by_relation: list[RelationInfluence]
    concentration: Concentration


@dataclass(frozen=True)
class Prediction:
    """What the model says about a test triple.

    Attributes:
        score: the model's raw score (a logit).
        rank: place of the tail among the candidates, ties by their mean.
        num_candidates: all entities without the other tails that known triples give this (head, relation).
        num_known: those other tails.
        ahead: the candidates of highest score that stand before the tail, best first.
        in_training: whether the test triple is itself a training triple.
    """

    score: float
    rank: float
    num_candidates: int
    num_known: int
    ahead: tuple[int, ...]
    in_training: bool


def summarise(scores: Tensor, training_triples: np.ndarray, settings: SummarySettings) -> InfluenceSummary:
    """Summarise the influences (N,) of training triples (N, 3) on one test triple."""
    positive, negative = scores.clamp(min=0), scores.clamp(max=0)
    return InfluenceSummary(
        num_triples=len(scores),
        num_positive=int((scores > 0).sum()),
        num_negative=int((scores < 0).sum()),
        positive=positive.sum(dtype=torch.float64).item(),
        negative=negative.sum(dtype=torch.float64).item(),
        by_relation=sum_by_relation(positive, negative, training_triples[:, 1], settings.num_relations),
        concentration=concentration(scores),
    )


def sum_by_relation(
    positive: Tensor, negative: Tensor, relations: np.ndarray, num_relations: int
) -> list[RelationInfluence]:
    """Sum the positive and the negative parts (N,) of the influences by relation (N,), largest sums first."""
    triples = np.bincount(relations, minlength=num_relations)
    sums = [np.bincount(relations, weights=part.numpy(), minlength=num_relations) for part in (positive, negative)]
    order = np.argsort(sums[1] - sums[0], kind="stable")
    return [
        RelationInfluence(relation, sums[0][relation].item(), sums[1][relation].item(), triples[relation].item())
        for relation in order.tolist()
        if triples[relation]
    ]


def concentration(scores: Tensor) -> Concentration:
    """Compute which share of Σ|influence| (N,) the k strongest carry."""
    # On a CPU NumPy sorts millions of floats several times faster than torch.
    cumulative = np.sort(scores.abs().numpy())[::-1].cumsum(dtype=np.float64)
    total = cumulative[-1]
    powers_of_ten = 10 ** np.arange(len(str(len(scores))))
    counts = np.union1d(np.geomspace(1, len(scores), CURVE_POINTS).round().astype(np.int64), powers_of_ten)
    shares = cumulative[counts - 1] / (total or 1.0)
    half = int(np.searchsorted(cumulative, total / 2)) + 1
    return Concentration(tuple(counts.tolist()), tuple(shares.tolist()), half)


@torch.no_grad()
def describe_prediction(
    scorer: Scorer, test_triple: Sequence[int], training_triples: np.ndarray, settings: SummarySettings
) -> Prediction:
    """Score and rank a test triple among all tails, leaving out the others that training or known triples have."""
    head, relation, tail = (int(value) for value in test_triple)
    scores = scorer.score_tails(head, relation, settings.num_entities)  # (K,)
    trained = _tails_of(training_triples, head, relation)
    further = trained[:0] if settings.known_triples is None else _tails_of(settings.known_triples, head, relation)
    known = torch.from_numpy(np.union1d(trained, further))
    rank = filtered_ranks(scores[None], torch.tensor([tail]), torch.zeros_like(known), known).item()
    others = known[known != tail]
    is_candidate = torch.ones(settings.num_entities, dtype=torch.bool)
    is_candidate[others] = False
    ahead = ((scores > scores[tail]) & is_candidate).nonzero()[:, 0]
    best = scores[ahead].sort(descending=True, stable=True).indices[:TAILS_AHEAD]
    return Prediction(
        score=scores[tail].item(),
        rank=rank,
        num_candidates=int(is_candidate.sum()),
        num_known=len(others),
        ahead=tuple(ahead[best].tolist()),
        in_training=tail in trained,
    )


def _tails_of(triples: np.ndarray, head: int, relation: int) -> np.ndarray:
    return triples[(triples[:, 0] == head) & (triples[:, 1] == relation), 2]

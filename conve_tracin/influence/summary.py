"""What the scores of all training triples say together, taken while they exist: a report needs more than the top k."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from conve_tracin.data.graph import Graph
from conve_tracin.data.kgx.categories import UNKNOWN, Categories
from conve_tracin.data.queries import inverse_of
from conve_tracin.data.triples import COLUMN_NAMES
from conve_tracin.influence.method import Scores
from conve_tracin.influence.scorers import Scorer
from conve_tracin.influence.standing import RelationSamples, Standing, ask_others, stand
from conve_tracin.ranking.ranks import filtered_ranks
from conve_tracin.settings import TAIL

if TYPE_CHECKING:
    pass


# Points of the cumulative curve between 1 and N; they lie evenly on a logarithmic axis.
CURVE_POINTS = 60


@dataclass(frozen=True, kw_only=True)
class SummarySettings:
    """What a test triple is ranked among, and what of its influences to summarise.

    Attributes:
        graph: of the training triples.
        known_triples: true triples besides them, whose tails the rank passes over, (M, 3).
        side: which one is explained, "tail" or "head".
        categories: of the entities; None if they are unknown.
        samples: what was asked to tell how an answer stands; of the one model that ranks.
    """

    graph: Graph
    known_triples: np.ndarray | None = None
    side: str = TAIL
    categories: Categories | None = None
    samples: RelationSamples = field(default_factory=RelationSamples, compare=False)

    def untrained_parts(self, head: int, relation: int, tail: int) -> tuple[str, ...]:
        """Return which of "head", "relation" and "tail" no training triple has."""
        has_relation = self.graph.triples_of_relations[relation] > 0
        are_known = (self.graph.has_entity(head), has_relation, self.graph.has_entity(tail))
        return tuple(part for part, is_known in zip(COLUMN_NAMES, are_known, strict=True) if not is_known)


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
class Place:
    """Where a triple's tail stands among the entities, or its head by the inverse of the relation.

    Attributes:
        score: the model's raw score (a logit).
        rank: place among the candidates, ties by their mean.
        num_candidates: all entities without the other answers that known triples give to this query.
        num_known: those other answers.
        standing: what the rank says.
    """

    score: float
    rank: float
    num_candidates: int
    num_known: int
    standing: Standing


@dataclass(frozen=True)
class Prediction:
    """What the model says about a test triple.

    Attributes:
        score, rank, num_candidates, num_known, standing: the tail's, see `Place`.
        in_training: whether the test triple is itself a training triple.
        head: the head's place; None for a model without inverse triples.
        side: "tail" or "head", which one is explained.
        untrained: which of "head", "relation" and "tail" no training triple has.
        unseen_kinds: "head" or "tail", and its category, where no training triple of the relation has that kind there.
    """

    score: float
    rank: float
    num_candidates: int
    num_known: int
    standing: Standing
    in_training: bool
    head: Place | None = None
    side: str = TAIL
    untrained: tuple[str, ...] = ()
    unseen_kinds: tuple[tuple[str, str], ...] = ()

    @property
    def explained(self) -> "Place | Prediction":
        """The place of the side that is explained."""
        return self if self.head is None or self.side == TAIL else self.head

    @property
    def remark(self) -> str | None:
        """One sentence if the model cannot know what it predicts."""
        if not self.untrained:
            return self._remark_on_kinds
        parts = " and the ".join(self.untrained)
        return (
            f"No training triple has the {parts} of this prediction: the model has learned nothing about it, so its "
            "rank and its influences say nothing."
        )

    @property
    def _remark_on_kinds(self) -> str | None:
        if not self.unseen_kinds:
            return None
        kinds = ", and none a ".join(f"{part} of the category {category}" for part, category in self.unseen_kinds)
        return (
            f"No training triple of this relation has a {kinds}: training gives no example of what is predicted here."
        )


def summarise(scores: Tensor | Scores, graph: Graph) -> InfluenceSummary:
    """Summarise the influences (N,) of a graph's triples on one test triple."""
    scores = scores if isinstance(scores, Scores) else Scores.of_all(scores)
    values = scores.values
    positive, negative = values.clamp(min=0), values.clamp(max=0)
    felt = graph.triples if scores.positions is None else np.take(graph.triples, scores.positions, axis=0)
    return InfluenceSummary(
        num_triples=scores.total,
        num_positive=int((values > 0).sum()),
        num_negative=int((values < 0).sum()),
        positive=positive.sum(dtype=torch.float64).item(),
        negative=negative.sum(dtype=torch.float64).item(),
        by_relation=sum_by_relation(positive, negative, felt[:, 1], graph.triples_of_relations),
        concentration=concentration(values, scores.total),
    )


def sum_by_relation(
    positive: Tensor, negative: Tensor, relations: np.ndarray, triples: np.ndarray
) -> list[RelationInfluence]:
    """Sum the positive and the negative parts (M,) of the influences by relation (M,), largest sums first.

    `triples` are how many triples each relation has, (R,); one without any is left out.
    """
    num_relations = len(triples)
    sums = [np.bincount(relations, weights=part.numpy(), minlength=num_relations) for part in (positive, negative)]
    order = np.argsort(sums[1] - sums[0], kind="stable")
    return [
        RelationInfluence(relation, sums[0][relation].item(), sums[1][relation].item(), triples[relation].item())
        for relation in order.tolist()
        if triples[relation]
    ]


def concentration(scores: Tensor, total_triples: int | None = None) -> Concentration:
    """Compute which share of Σ|influence| the k strongest carry, for the influences (M,) that may differ from zero.

    `total_triples` is N, how many triples there are; by default M.
    """
    num_triples = len(scores) if total_triples is None else total_triples
    # On a CPU NumPy sorts millions of floats several times faster than torch.
    cumulative = np.sort(scores.abs().numpy())[::-1].cumsum(dtype=np.float64)
    if not len(cumulative):
        cumulative = np.zeros(1)
    total = cumulative[-1]
    powers_of_ten = 10 ** np.arange(len(str(num_triples)))
    counts = np.union1d(np.geomspace(1, num_triples, CURVE_POINTS).round().astype(np.int64), powers_of_ten)
    shares = cumulative[np.minimum(counts, len(cumulative)) - 1] / (total or 1.0)
    half = int(np.searchsorted(cumulative, total / 2)) + 1
    return Concentration(tuple(counts.tolist()), tuple(shares.tolist()), half)


def describe_prediction(scorer: Scorer, test_triple: Sequence[int], settings: SummarySettings) -> Prediction:
    """Score and rank a test triple among all tails and, if the model has inverse triples, among all heads.

    Ranks leave out the other tails, or heads, that training or known triples have.
    """
    triple = np.array([test_triple])
    places = [place_of(scorer, triple, settings)]
    if scorer.inverse_triples:
        places.append(place_of(scorer, inverse_of(triple), settings))
    of_relation = _trained_answers(settings.graph, triple[0, 1])
    return Prediction(
        **vars(places[0]),
        in_training=triple[0, 2] in _tails_of(of_relation, triple[0, 0]),
        head=places[1] if scorer.inverse_triples else None,
        side=settings.side,
        untrained=settings.untrained_parts(*triple[0].tolist()),
        unseen_kinds=() if settings.categories is None else unseen_kinds(triple[0], of_relation, settings.categories),
    )


def unseen_kinds(triple: np.ndarray, of_relation: np.ndarray, categories: Categories) -> tuple[tuple[str, str], ...]:
    """Say where a triple (3,) has a kind of entity that its relation's heads and tails, (M, 2), never have.

    Returns "head" or "tail" and the category of each; nothing where a category is unknown.
    """
    return tuple(
        (part, categories.name(entity))
        for part, entity, trained in zip(("head", "tail"), triple[[0, 2]], of_relation.T, strict=True)
        if categories.of[entity] != UNKNOWN and categories.are_all_others(trained, categories.name(entity))
    )


@torch.no_grad()
def place_of(scorer: Scorer, triple: np.ndarray, settings: SummarySettings) -> Place:
    """Rank the tail of a triple (1, 3), which may be an inverse one, among all entities."""
    tail = int(triple[0, 2])
    scores = scorer.score_queries(triple[:, :2], settings.graph.num_entities)[0]  # (K,)
    answers = _trained_answers(settings.graph, triple[0, 1])
    further = _answers_of(settings.known_triples, triple[0, 1])
    known = torch.from_numpy(np.unique(_tails_of(np.concatenate([answers, further]), triple[0, 0])))
    rank = filtered_ranks(scores[None], torch.tensor([tail]), torch.zeros_like(known), known).item()
    others = known[known != tail]
    relation = int(triple[0, 1])
    first_answers = settings.samples.of(
        relation,
        lambda: ask_others(
            scorer.score_queries,
            relation,
            answers,
            further,
            settings.graph.num_entities,
            score_chunks=scorer.score_chunks,
            keep=scorer.keep,
        ),
    )
    return Place(
        score=scores[tail].item(),
        rank=rank,
        num_candidates=settings.graph.num_entities - len(others),
        num_known=len(others),
        standing=stand(
            scores, tail, known, entity=int(triple[0, 0]), first_answers=first_answers, categories=settings.categories
        ),
    )


def _trained_answers(graph: Graph, relation: int) -> np.ndarray:
    positions = graph.positions_of_relation(max(relation, ~relation))
    return _answers_of(np.take(graph.triples, positions, axis=0), relation)


def _answers_of(triples: np.ndarray | None, relation: int) -> np.ndarray:
    """List head and tail of a relation's triples, or tail and head if it is an inverse: (M, 2)."""
    if triples is None:
        return np.empty((0, 2), dtype=np.int64)
    return triples[triples[:, 1] == max(relation, ~relation)][:, (0, 2) if relation >= 0 else (2, 0)]


def _tails_of(answers: np.ndarray, entity: int) -> np.ndarray:
    """List the answers to one question among those of its relation, (M, 2)."""
    return answers[answers[:, 0] == entity, 1]

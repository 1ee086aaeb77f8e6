"""What a rank says: among which entities, beside which other answers, and whether other questions get the same answer.

Rank 1 of 18,000 entities is little where 136 of them can be an answer, and nothing where the model gives that answer to
everything.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from conve_tracin.compute.device import compute_in_batches
from conve_tracin.data.graph import Arrays, Keep
from conve_tracin.data.kgx.categories import UNKNOWN, Categories
from conve_tracin.ranking.ranks import choose_batch_size

# How many answers are listed, and what counts as being among the first.
FIRST = 10
# Other questions with the same relation that are asked, at most; chosen by this seed where there are more.
OTHER_QUESTIONS = 200
SEED = 0
# Of fewer questions asked, a share means nothing.
TELLING = 10
# Questions that are scored at once, at most, if they are scored against all entities.
BATCH_SIZE = 64

# The first entity of each chunk, and the scores of the chunk's entities, (B, k).
Chunks = Iterable[tuple[int, Tensor]]


@dataclass(frozen=True)
class Answer:
    """One of the best answers to a question; `known` says that training or known triples give it."""

    entity: int
    score: float
    known: bool


@dataclass(frozen=True)
class Peers:
    """The rank among some of the candidates only, of which there are `num_candidates`; ties share their mean rank."""

    rank: float
    num_candidates: int
    category: str | None = None


@dataclass(frozen=True)
class OtherQuestions:
    """How often other questions with the same relation have the same answer.

    Attributes:
        num_questions: those that training triples answer, this one left out.
        num_asked: of these, how many were asked; none of them is known to have the answer.
        num_among_first: how many of those asked have it among their first ten answers that are not known.
    """

    num_questions: int
    num_asked: int
    num_among_first: int

    @property
    def share(self) -> float | None:
        """The share of those asked that have the answer among their first, 0 to 1; None if few were asked."""
        return self.num_among_first / self.num_asked if self.num_asked >= TELLING else None


@dataclass(frozen=True)
class Standing:
    """How an answer stands, besides its rank among all entities.

    Attributes:
        among_answers: its rank among the entities that training triples have as answers to the relation, and itself.
        in_category: its rank among the entities of its category, where that is known.
        best: the ten answers of highest score, known ones among them, best first.
        elsewhere: what other questions say.
    """

    among_answers: Peers
    in_category: Peers | None
    best: tuple[Answer, ...]
    elsewhere: OtherQuestions


@dataclass(frozen=True, eq=False)
class FirstAnswers:
    """The first answers to a sample of a relation's questions.

    Attributes:
        asked: what they ask of: heads, or tails where heads are the answers, (S,).
        first: their first answers that are not known, (S, at most ten).
        known: the known answers to each.
        num_questions: of the relation.
        answers: all entities that answer one of its questions in training, (A,).
    """

    asked: np.ndarray
    first: np.ndarray
    known: list[np.ndarray]
    num_questions: int
    answers: np.ndarray

    def of_others(self, entity: int, answer: int) -> OtherQuestions:
        """Count those that have `answer` among their first; the question about `entity` is left out."""
        fitting = [
            row for row, (asked, known) in enumerate(zip(self.asked, self.known, strict=True))
            if asked != entity and answer not in known
        ]  # fmt: skip
        among_first = int((self.first[fitting] == answer).any(axis=1).sum())
        return OtherQuestions(self.num_questions, len(fitting), among_first)


@dataclass(eq=False)
class RelationSamples:
    """Keeps the first answers of each relation and its inverse: one model, many test triples."""

    kept: dict[int, FirstAnswers] = field(default_factory=dict)

    def of(self, relation: int, ask: Callable[[], FirstAnswers]) -> FirstAnswers:
        """Return those of a relation, which are asked for once."""
        if relation not in self.kept:
            self.kept[relation] = ask()
        return self.kept[relation]


def ask_others(
    score_queries: Callable[[np.ndarray, int], Tensor],
    relation: int,
    training: np.ndarray,
    known: np.ndarray,
    num_entities: int,
    *,
    score_chunks: Callable[[np.ndarray], Chunks] | None = None,
    keep: Keep = lambda _, make: make(),
) -> FirstAnswers:
    """Ask a sample of the questions that a relation answers in training.

    Args:
        score_queries: of a scorer.
        relation: ids of the files, or ~r for the inverse of r.
        training, known: what is asked of and the answer, of training triples and of others known to be true, (M, 2).
        num_entities: K.
        score_chunks: of a scorer, if it has them.
        keep: may return arrays that are kept from an earlier time, of the same model and training triples.
    """
    questions, answers = np.unique(training[:, 0]), np.unique(training[:, 1])
    asked = questions
    if len(asked) > OTHER_QUESTIONS:
        asked = np.sort(np.random.default_rng(SEED).choice(questions, OTHER_QUESTIONS, replace=False))
    true = np.concatenate([training, known])
    true = true[np.argsort(true[:, 0], kind="stable")]
    low, high = (np.searchsorted(true[:, 0], asked, side=side) for side in ("left", "right"))
    known_of = [true[start:stop, 1] for start, stop in zip(low, high, strict=True)]

    def first_of(batch: slice) -> Tensor:
        queries = np.stack([asked[batch], np.full_like(asked[batch], relation)], axis=1)
        chunks = [(0, score_queries(queries, num_entities))] if score_chunks is None else score_chunks(queries)
        return best_of_chunks(chunks, known_of[batch])  # (B, 10)

    batch_size = OTHER_QUESTIONS
    if score_chunks is None:
        batch_size = choose_batch_size(num_entities, at_most=BATCH_SIZE)

    def ask() -> Arrays:
        parts = list(compute_in_batches(first_of, len(asked), batch_size=batch_size))
        return {"first": torch.cat(parts).numpy() if parts else np.empty((0, FIRST), dtype=np.int64)}

    digest = hashlib.sha256(np.ascontiguousarray(known)).hexdigest()[:16]
    first = keep(f"standing-{relation}-{digest}", ask)["first"]
    return FirstAnswers(asked, first, known_of, len(questions), answers)


@torch.no_grad()
def best_of_chunks(chunks: Chunks, known: list[np.ndarray], count: int = FIRST) -> Tensor:
    """Find the entities of highest score in each of B rows, known ones left out: (B, at most `count`), −1 for none.

    Args:
        chunks: the scores (B, k) of entities from a first one on, chunk by chunk; known ones are overwritten.
        known: the known entities of each row.
    """
    rows = torch.arange(len(known)).repeat_interleave(torch.tensor([len(each) for each in known], dtype=torch.int64))
    entities = torch.from_numpy(np.concatenate(known)) if known else rows
    values, best = torch.empty(len(known), 0), torch.empty(len(known), 0, dtype=torch.int64)
    for start, scores in chunks:
        here = (entities >= start) & (entities < start + scores.shape[1])
        scores[rows[here], entities[here] - start] = -torch.inf
        risen = torch.arange(len(known))
        if best.shape[1] == count:
            # Most chunks change little.
            risen = (scores.amax(dim=1) > values[:, -1]).nonzero()[:, 0]
            scores = scores[risen]
        found, places = scores.topk(min(count, scores.shape[1]))
        found, places = torch.cat([values[risen], found], dim=1), torch.cat([best[risen], places + start], dim=1)
        kept, order = found.topk(min(count, found.shape[1]))
        if best.shape[1] < kept.shape[1]:
            values, best = (each.new_empty(len(known), kept.shape[1]) for each in (kept, places))
        values[risen], best[risen] = kept, places.gather(1, order)
    return best.masked_fill_(values == -torch.inf, -1)


def first_places(scores: Tensor, count: int) -> Tensor:
    """Find the highest scores (K,) without sorting all: their places, best first, ties by place; (at most `count`,)."""
    candidates = torch.arange(len(scores))
    if count < len(scores) and not (least := scores.topk(count).values[-1]).isnan():
        candidates = (~(scores < least)).nonzero()[:, 0]
    return candidates[scores[candidates].sort(descending=True, stable=True).indices[:count]]


def stand(
    scores: Tensor,
    answer: int,
    known: Tensor,
    *,
    entity: int,
    first_answers: FirstAnswers,
    categories: Categories | None,
) -> Standing:
    """Say how an answer stands.

    Args:
        scores: of all entities as answers, (K,).
        answer: the one in question.
        known: the answers known to be right, (M,); ranks pass over the others of them.
        entity: what the question asks of.
        first_answers: of the relation, see `ask_others`.
        categories: of the entities.
    """
    is_known = torch.zeros(len(scores), dtype=torch.bool)
    is_known[known] = True
    is_rival = ~is_known
    is_rival[answer] = True
    has_answered = torch.zeros_like(is_known)
    has_answered[torch.from_numpy(first_answers.answers)] = True
    in_category = None
    if categories is not None and categories.of[answer] != UNKNOWN:
        is_alike = torch.from_numpy(categories.of == categories.of[answer])
        in_category = rank_among(scores, answer, is_alike & is_rival, category=categories.name(answer))
    best = first_places(scores, FIRST)
    return Standing(
        among_answers=rank_among(scores, answer, has_answered & is_rival),
        in_category=in_category,
        best=tuple(
            Answer(one, value, bool(is_known[one]))
            for one, value in zip(best.tolist(), scores[best].tolist(), strict=True)
        ),
        elsewhere=first_answers.of_others(entity, answer),
    )


def rank_among(scores: Tensor, answer: int, is_peer: Tensor, *, category: str | None = None) -> Peers:
    """Rank an answer among some entities, `is_peer` (K,), and itself."""
    is_peer = is_peer.clone()
    is_peer[answer] = True
    peers = scores[is_peer]
    higher, equal = int((peers > scores[answer]).sum()), int((peers == scores[answer]).sum())
    return Peers(higher + (equal + 1) / 2, len(peers), category)

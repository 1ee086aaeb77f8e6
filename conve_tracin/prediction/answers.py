"""The best answers of a model to queries, and their ranks among all candidates."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from conve_tracin.compute.device import compute_in_batches
from conve_tracin.data.keys import is_among, pair_keys
from conve_tracin.data.queries import group_by_query, inverse_of
from conve_tracin.errors import InputError
from conve_tracin.influence.scorers import Scorer
from conve_tracin.ranking.ranks import choose_batch_size

# Queries that are scored at once, at most; of many entities fewer.
MAX_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Answers:
    """The best answers to one query, by score, equal scores by id.

    Attributes:
        query: entity and relation, (2,).
        entities, scores, ranks, known: (k,) each, k <= top_k.
        num_candidates: how many entities were ranked, known ones not counted.
        num_known: how many candidates are known answers.
    """

    query: tuple[int, int]
    entities: Tensor
    scores: Tensor
    ranks: Tensor
    known: Tensor
    num_candidates: int
    num_known: int


def answer(
    scorer: Scorer,
    queries: np.ndarray,
    known_triples: np.ndarray,
    *,
    num_entities: int,
    top_k: int,
    keep_known: bool = False,
    candidates: np.ndarray | None = None,
) -> Iterator[Answers]:
    """Rank the candidates for each query (Q, 2); no more than a batch of answers is in memory.

    Args:
        scorer: the model; queries for heads need one with inverse triples.
        queries: (head, relation), or (tail, ~relation).
        known_triples: what is left out, or marked if `keep_known`, ids (N, 3).
        num_entities: K.
        top_k: how many answers to list.
        keep_known: list known answers, too; no other's rank counts them.
        candidates: the entities that may be answers, (C,); all without.

    Raises InputError if a score is not finite.
    """
    known = known_answers(queries, known_triples)
    is_candidate = torch.ones(num_entities, dtype=torch.bool)
    if candidates is not None:
        is_candidate.fill_(False)[torch.from_numpy(candidates)] = True

    def answer_batch(batch: slice) -> list[Answers]:
        scores = scorer.score_queries(queries[batch], num_entities)  # (B, K)
        if not torch.isfinite(torch.stack(scores.aminmax())).all():
            raise InputError("the model's scores are not finite, as its weights are too large; use another checkpoint")
        return [
            best_answers(
                query, row, is_candidate, known.get(query, np.empty(0, np.int64)), top_k=top_k, keep_known=keep_known
            )
            for query, row in zip(map(tuple, queries[batch].tolist()), scores, strict=True)
        ]

    batch_size = choose_batch_size(num_entities, at_most=MAX_BATCH_SIZE)
    with tqdm(total=len(queries), desc="asking", unit="query", delay=2) as bar:
        for batch in compute_in_batches(answer_batch, len(queries), batch_size=batch_size):
            yield from batch
            bar.update(len(batch))


def known_answers(queries: np.ndarray, known_triples: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Find the known answers to queries (Q, 2) among known triples (N, 3): {query: entities, each once}.

    Queries without a known answer are left out.
    """
    size = int(max(known_triples[:, 1].max(initial=0), np.abs(queries[:, 1]).max())) + 1

    def keys_of(pairs: np.ndarray) -> np.ndarray:
        # Relations go from −size to size − 1.
        return pair_keys(pairs[:, 0], pairs[:, 1] + size, 2 * size)

    wanted = np.unique(keys_of(queries))

    def matching(triples: np.ndarray) -> np.ndarray:
        return triples[is_among(keys_of(triples), wanted)]

    found = [matching(known_triples)]
    if (queries[:, 1] < 0).any():
        found.append(matching(inverse_of(known_triples)))
    index = group_by_query(np.concatenate(found) + np.array((0, size, 0)))
    return {
        (entity, relation - size): np.unique(index.tails[start:stop])
        for (entity, relation), start, stop in zip(
            index.queries.tolist(), index.offsets[:-1].tolist(), index.offsets[1:].tolist(), strict=True
        )
    }


def best_answers(
    query: tuple[int, int],
    scores: Tensor,
    is_candidate: Tensor,
    known: np.ndarray,
    *,
    top_k: int,
    keep_known: bool,
) -> Answers:
    """List the answers of highest score to one query, with their filtered ranks.

    Args:
        query: what is asked.
        scores, is_candidate: of all entities, (K,) each.
        known: the known answers, (M,).
        top_k, keep_known: see `answer`.
    """
    is_known = torch.zeros_like(is_candidate)
    is_known[torch.from_numpy(known)] = True
    is_unknown = is_candidate & ~is_known
    is_listed = is_candidate if keep_known else is_unknown
    count = min(top_k, int(is_listed.sum()))
    best = scores.masked_fill(~is_listed, -torch.inf).topk(count).values  # (k,)
    # All that tie with the last one take part in the stable sort, so that equal scores are listed by id.
    strong = scores >= (best[-1] if count else torch.inf)
    entities = (strong & is_listed).nonzero()[:, 0]
    values, order = scores[entities].sort(descending=True, stable=True)
    values, entities = values[:top_k], entities[order][:top_k]
    rivals = scores[(strong & is_unknown).nonzero()[:, 0]].sort().values
    return Answers(
        query=query,
        entities=entities,
        scores=values,
        ranks=ranks_among(rivals, values, is_known[entities]),
        known=is_known[entities],
        num_candidates=int(is_unknown.sum()),
        num_known=int((is_candidate & is_known).sum()),
    )


def ranks_among(rivals: Tensor, scores: Tensor, is_known: Tensor) -> Tensor:
    """Rank scores (k,) among those of the unknown candidates, which rise, (n,): (k,) float64, ties by their mean.

    Unknown answers are among the rivals themselves; known ones are ranked as if they alone had been left in.
    """
    up_to, below = (torch.searchsorted(rivals, scores, right=right) for right in (True, False))
    ties = up_to - below - (~is_known).long()
    return 1 + (len(rivals) - up_to).double() + ties / 2

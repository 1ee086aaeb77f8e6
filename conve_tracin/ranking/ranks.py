"""Filtered ranking: scores to ranks to MRR and Hits@k.

Ties take their mean rank (PyKEEN's "realistic" rank), so that a constant model does not look perfect.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from conve_tracin.compute.device import compute_in_batches
from conve_tracin.data.keys import pair_keys, pairs_of_keys
from conve_tracin.data.queries import Queries, group_by_query

HITS_AT = (1, 3, 5, 10)
# Scores held at once: a quarter of a gigabyte, and a few times that with what is counted in them.
SCORES_AT_ONCE = 2**26
MAX_BATCH_SIZE = 512


def choose_batch_size(num_entities: int, *, at_most: int = MAX_BATCH_SIZE) -> int:
    """Return how many triples to rank at once, so that memory does not grow with the entities."""
    return max(1, min(at_most, SCORES_AT_ONCE // num_entities))


def filtered_ranks(scores: Tensor, targets: Tensor, known_rows: Tensor, known_tails: Tensor) -> Tensor:
    """Rank each row's target among all entities that are not known to be true.

    Args:
        scores: shape (B, K).
        targets: the entity to rank in each row, shape (B,).
        known_rows: the row of each known tail, shape (M,).
        known_tails: the entities known to be true there, shape (M,), each once in its row; the target
            itself may be among them.

    Returns:
        Ranks from 1, shape (B,), float64; ties may give halves. A NaN counts against the target: a broken model must
        not look perfect.
    """
    target_scores = scores.gather(1, targets[:, None])  # (B, 1)
    # Sums of truth values take 64 bits each by default, which are larger than the scores.
    lower = (scores < target_scores).sum(dim=1, dtype=torch.int32)
    equal = (scores == target_scores).sum(dim=1, dtype=torch.int32)
    # Subtracting the known tails' counts saves a masked copy of the scores.
    is_other = known_tails != targets[known_rows]
    known_scores, their_target = scores[known_rows, known_tails], target_scores[known_rows, 0]
    candidates = torch.full_like(lower, scores.shape[1])
    candidates, lower, equal = (
        counts.index_add(0, known_rows, (is_other & known).to(counts.dtype), alpha=-1)
        for counts, known in (
            (candidates, is_other),
            (lower, known_scores < their_target),
            (equal, known_scores == their_target),
        )
    )
    # The target equals itself, unless its score is NaN.
    return candidates - lower - (equal.clamp(min=1).double() - 1) / 2


def ranking_metrics(ranks: Tensor) -> dict[str, float]:
    """Compute mean rank, mean reciprocal rank and Hits@k of ranks (N,)."""
    metrics = {"mean_rank": ranks.mean().item(), "mean_reciprocal_rank": (1 / ranks).mean().item()}
    return metrics | {f"hits@{k}": (ranks <= k).double().mean().item() for k in HITS_AT}


@torch.no_grad()
def rank_triples(
    score_all_tails: Callable[[Tensor, Tensor], Tensor],
    triples: np.ndarray,
    known: Queries,
    *,
    num_relations: int,
    batch_size: int = MAX_BATCH_SIZE,
    progress: str | None = None,
) -> Tensor:
    """Rank the tail of each triple (N, 3) among all entities; returns the ranks (N,) in the triples' order.

    Args:
        score_all_tails: heads (B,) and relations (B,) to scores (B, K).
        triples: what to rank, in relation rows; see `examples_of` for both sides.
        known: the true tails of each distinct query, those of `triples` included.
        num_relations: the number of relation ids in `known`.
        batch_size: triples ranked at once; halved if memory does not suffice.
        progress: title of a progress bar, or None.
    """
    device = known.heads.device
    index = group_by_query(triples)
    heads, relations, tails = torch.from_numpy(triples[index.order]).to(device).unbind(dim=1)
    known_ids = known.find(heads, relations, num_relations=num_relations)  # (N,)

    def rank(batch: slice) -> Tensor:
        # Triples of a query stand together: each query is scored once.
        keys = pair_keys(heads[batch], relations[batch], num_relations)
        distinct, rows = keys.unique_consecutive(return_inverse=True)  # (D,), (B,)
        scores = score_all_tails(*pairs_of_keys(distinct, num_relations))  # (D, K)
        if len(distinct) < len(rows):
            scores = scores[rows]  # (B, K)
        known_rows, known_tails = known.tails_of(known_ids[batch])
        return filtered_ranks(scores, tails[batch], known_rows, known_tails).cpu()

    parts = compute_in_batches(rank, len(triples), batch_size=batch_size, progress=progress)
    in_query_order = torch.cat([torch.empty(0, dtype=torch.float64), *parts])
    ranks = torch.empty_like(in_query_order)
    ranks[torch.from_numpy(index.order)] = in_query_order
    return ranks

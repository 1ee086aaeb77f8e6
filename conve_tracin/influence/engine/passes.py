"""The fast engine for ConvE: derivatives of triple scores along any tangents, sharing all that can be shared.

With q(h, r) the query vector, a triple's score is s = q·e_t + b_t, so its derivative along a tangent is

    ṡ = q̇·e_t + q·ė_t + ḃ_t.

q depends on (h, r) alone and is computed once for each distinct pair; most of its features depend on h alone or on r
alone and are computed once for each of those (`strips`). For the others two ways lead to ṡ (`derivatives`):

- forward: q̇ for each pair and tangent. One product with `fc.weight` for each of them.
- backward: the factors of each training triple's gradient, which serve all tangents. One product with `fc.weight` for
  each triple, however many tangents there are. Squared norms come out of such factors, too (`squared_norms`).
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from conve_tracin.influence.engine.batches import PairBatch, map_batches
from conve_tracin.influence.engine.derivatives import FactoredDerivatives, ForwardDerivatives
from conve_tracin.influence.engine.shared_queries import SharedQueries, features_at_once
from conve_tracin.influence.engine.squared_norms import SquaredNorms
from conve_tracin.influence.engine.strips import StripSizes
from conve_tracin.influence.engine.tangent import ConvETangent
from conve_tracin.model.conve import ConvE
from conve_tracin.model.triple_loss import LossFunction, loss_slopes
from conve_tracin.settings import DEFAULT_BATCH_SIZE

# From this many tangents on, one backward product for each triple is cheaper than forward products for each pair and
# tangent; measured on a CPU (benchmarks/scale.py --growth).
FACTORED_FROM = 4

# With more products for heads and relations than this for each triple, the way back through whole maps is cheaper; that
# is so for sixteen tangents and two triples a head (docs/notes.md).
WHOLE_FROM = 8


def iterate_derivatives(
    model: ConvE,
    tangents: list[ConvETangent],
    triples: np.ndarray,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    low_precision: torch.dtype | None = None,
    progress: str | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Go through training triples (N, 3) and yield, batch by batch, positions (M,), scores (M,), derivatives (n, M).

    Triples that no tangent touches are left out: their derivatives are zero.

    Args:
        model: ConvE in eval mode.
        tangents: the n directions.
        triples: ids, int64.
        batch_size: the most distinct (head, relation) pairs in a batch; see `choose_batch_size`.
        low_precision: bfloat16 or float16 for the convolution and the products with `fc.weight`, or None.
        progress: title of a progress bar, or None.
    """
    device = model.entity_embeddings.weight.device
    touched = _touched(tangents, triples)
    if touched is not None:
        # Rows of an array are taken in a tenth of the time that an index takes (docs/notes.md).
        triples = np.take(triples, touched, axis=0)
    many = len(tangents) >= FACTORED_FROM and any(tangent.moves_every_query for tangent in tangents)
    heads, relations = (np.flatnonzero(np.bincount(triples[:, column])) for column in (0, 1))
    whole = many and (1 + len(tangents)) * (len(heads) + len(relations)) > WHOLE_FROM * len(triples)
    shared = SharedQueries(
        model,
        tangents,
        relations=torch.from_numpy(relations).to(device),
        low_precision=low_precision,
        sizes=StripSizes.of(model.config, whole=whole),
    )
    work = FactoredDerivatives(shared) if many else ForwardDerivatives(shared)
    batch_size = choose_batch_size(batch_size, features=work.features_of_pair, device=device)
    for positions, (scores, derivatives) in map_batches(
        triples, work, device=device, batch_size=batch_size, progress=progress
    ):
        yield positions if touched is None else torch.from_numpy(touched)[positions], scores, derivatives


@torch.no_grad()
def encode_queries(model: ConvE, heads: Tensor, relations: Tensor) -> Tensor:
    """Compute the query vectors of pairs (Q,) on the model's device, sharing what they have in common: (Q, d)."""
    device = model.entity_embeddings.weight.device
    pairs = torch.stack([heads, relations, torch.zeros_like(heads)], dim=1).cpu().numpy()
    shared = SharedQueries(model, [], relations=relations.unique().to(device))

    def work(batch: PairBatch) -> Tensor:
        return shared.query_vectors(batch).index_select(0, batch.rows)

    vectors = model.entity_embeddings.weight.new_empty(len(pairs), shared.dimension)
    batch_size = choose_batch_size(DEFAULT_BATCH_SIZE, features=shared.features_of_pair, device=device)
    for positions, found in map_batches(pairs, work, device=device, batch_size=batch_size):
        vectors[positions.to(device)] = found
    return vectors


def iterate_squared_norms(
    model: ConvE,
    triples: np.ndarray,
    *,
    names: Iterable[str],
    loss_fn: LossFunction,
    batch_size: int = DEFAULT_BATCH_SIZE,
    low_precision: torch.dtype | None = None,
    progress: str | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through triples (N, 3) and yield positions (M,) and ‖∇ℓ‖² (M,) over the parameters `names`."""
    device = model.entity_embeddings.weight.device
    relations = torch.from_numpy(np.flatnonzero(np.bincount(triples[:, 1]))).to(device)
    shared = SharedQueries(model, [], relations=relations, low_precision=low_precision)
    squared_norms = SquaredNorms(shared, frozenset(names))

    def work(batch: PairBatch) -> Tensor:
        scores, norms = squared_norms(batch)
        return norms * loss_slopes(scores, loss_fn) ** 2

    batch_size = choose_batch_size(batch_size, features=squared_norms.features_of_pair, device=device)
    yield from map_batches(triples, work, device=device, batch_size=batch_size, progress=progress)


def choose_batch_size(batch_size: int, *, features: int, device: torch.device) -> int:
    """Return what is fast for pairs with this many features, or the given size if it is not the default.

    On a CPU no batch is larger than what is fast.
    """
    fast = max(1, features_at_once(device) // features)
    if batch_size == DEFAULT_BATCH_SIZE:
        return fast
    return min(batch_size, fast) if device.type == "cpu" else batch_size


def _touched(tangents: list[ConvETangent], triples: np.ndarray) -> np.ndarray | None:
    """Find the triples of (N, 3) whose score some tangent moves: positions (M,), or None if it may be every one."""
    if any(tangent.moves_every_query for tangent in tangents):
        return None
    entities = {entity for tangent in tangents for entity in (*tangent.entity_rows, *tangent.entity_bias)}
    relations = {relation for tangent in tangents for relation in tangent.relation_rows}
    head, relation, tail = triples.T
    return np.flatnonzero(
        np.isin(head, list(entities)) | np.isin(tail, list(entities)) | np.isin(relation, list(relations))
    )

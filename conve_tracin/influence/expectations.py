"""What a query of softmax cross-entropy expects along a tangent: the part of a triple's effect that its rivals take.

The loss of a triple (h, r, t) is log Σ_k exp(s_k) − s_t. When the triple goes, so do both terms, and the derivative of
the first is Σ_k p_k ṡ_k with p = softmax(s): what t gains counts as far as it is more than what else the model
believes of (h, r) gains.
"""

import torch
from torch import Tensor

from conve_tracin.data.queries import Queries
from conve_tracin.data.sorted_queries import SortedQueries
from conve_tracin.influence.beliefs import Beliefs
from conve_tracin.influence.engine.jacobians import moved_query_vectors
from conve_tracin.influence.engine.passes import encode_queries
from conve_tracin.influence.engine.tangent import ConvETangent
from conve_tracin.model.conve import ConvE


@torch.no_grad()
def expected_derivatives(tangent: ConvETangent, beliefs: Beliefs, ids: Tensor, *, batch_size: int = 256) -> Tensor:
    """Compute Σ_k p_qk ṡ_qk of training queries along a tangent that moves entities' rows alone: (M,) on the CPU.

    With ē = Σ_k p_k e_k it is q̇·ē + Σ_e p_e q·ė_e over the moved entities e; q̇ is zero where the query does not start
    from one of them. Each query costs a pass over all entities (or, of a hub, over a sample), so that those which
    neither start from a moved entity nor know one as a tail are passed over, and have 0: p_e is next to nothing there.

    Args:
        tangent: what moves.
        beliefs: of the model; what it lacks is computed.
        ids: of queries in `beliefs.queries`, in ascending order, (M,); all with a moved entity at an end are there.
        batch_size: queries that are encoded at once.
    """
    model, queries, table = beliefs.model, beliefs.queries, beliefs.model.entity_embeddings.weight
    expected = torch.zeros(len(ids), dtype=table.dtype)
    # Hubs first: the normalizers of others, which may be of the same query, are the more exact ones.
    of_tails = {entity: queries.with_tail(entity) for entity in tangent.entity_rows}
    for entity, found in sorted(of_tails.items(), key=lambda item: -len(item[1])):
        normalizers = beliefs.of_tail(entity)
        for part, of_part in zip(found.split(batch_size), normalizers.split(batch_size), strict=True):
            vectors = encode_queries(model, *_pairs(queries, part, table.device))
            values = _of_moved_tails(model, tangent, vectors, of_part)
            expected[torch.searchsorted(ids, part).cpu()] = values.cpu()
    # Those that start from a moved entity come last: there the query moves, too.
    for entity, direction in tangent.entity_rows.items():
        parts = (of_all.split(batch_size) for of_all in (queries.of_head(entity), *beliefs.of_head(entity)[:2]))
        for part, normalizers, means in zip(*parts, strict=True):
            heads, relations = _pairs(queries, part, table.device)
            rows = model.entity_embeddings(heads), model.relation_embeddings(relations)
            directions = direction.expand_as(rows[0]), torch.zeros_like(rows[1])
            vectors, derivatives = moved_query_vectors(model, rows, directions)  # (B, d) twice
            values = (derivatives * means).sum(dim=1)
            values += _of_moved_tails(model, tangent, vectors, normalizers)
            expected[torch.searchsorted(ids, part).cpu()] = values.cpu()
    return expected


def _of_moved_tails(model: ConvE, tangent: ConvETangent, vectors: Tensor, normalizers: Tensor) -> Tensor:
    """Compute Σ_e p_e q·ė_e over the moved entities, for query vectors (B, d) and their normalizers (B,): (B,)."""
    values = torch.zeros_like(normalizers)
    for entity, direction in tangent.entity_rows.items():
        scores = vectors @ model.entity_embeddings.weight[entity]
        if model.entity_bias is not None:
            scores = scores + model.entity_bias[entity]
        values += (scores - normalizers).exp() * (vectors @ direction)
    return values


def _pairs(queries: Queries | SortedQueries, ids: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(column.to(device) for column in queries.pairs(ids))

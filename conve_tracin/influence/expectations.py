"""What a query of softmax cross-entropy expects along a tangent: the part of a triple's effect that its rivals take.

The loss of a triple (h, r, t) is log Σ_k exp(s_k) − s_t. When the triple goes, so do both terms, and the derivative of
the first is Σ_k p_k ṡ_k with p = softmax(s): what t gains counts as far as it is more than what else the model
believes of (h, r) gains.
"""

import torch
from torch import Tensor

from conve_tracin.data.queries import Queries
from conve_tracin.influence.curvature import softmax_moments
from conve_tracin.influence.engine.jacobians import moved_query_vectors
from conve_tracin.influence.engine.tangent import ConvETangent
from conve_tracin.model.conve import ConvE


@torch.no_grad()
def expected_derivatives(model: ConvE, tangent: ConvETangent, queries: Queries, *, batch_size: int = 256) -> Tensor:
    """Compute Σ_k p_qk ṡ_qk of each training query along a tangent that moves rows alone: (Q,) on the model's device.

    With ē = Σ_k p_k e_k it is q̇·ē + Σ_e p_e q·ė_e over the moved entities e. Each query costs a pass over all entities,
    so that those which neither start from a moved entity nor know one as a tail are passed over, and have 0: p_e is
    next to nothing there, and a moved relation alone does little.
    """
    table = model.entity_embeddings.weight
    expected = torch.zeros(len(queries), dtype=table.dtype, device=table.device)
    for batch in queries_of_entities(list(tangent.entity_rows), queries).split(batch_size):
        heads, relations = queries.heads[batch], queries.relations[batch]
        rows = (model.entity_embeddings(heads), model.relation_embeddings(relations))
        directions = (
            _directions(rows[0], heads, tangent.entity_rows),
            _directions(rows[1], relations, tangent.relation_rows),
        )
        vectors, derivatives = moved_query_vectors(model, rows, directions)  # (B, d) twice
        normalizers, means = softmax_moments(model, vectors)
        values = (derivatives * means).sum(dim=1)  # (B,)
        for row, direction in tangent.entity_rows.items():
            scores = vectors @ table[row]
            if model.entity_bias is not None:
                scores = scores + model.entity_bias[row]
            values += (scores - normalizers).exp() * (vectors @ direction)
        expected[batch] = values
    return expected


def queries_of_entities(entities: list[int], queries: Queries) -> Tensor:
    """Find the queries that start from one of some entities, or know one of them as a tail: ids (M,)."""
    wanted = torch.tensor(entities, dtype=torch.int64, device=queries.heads.device)
    concerned = torch.isin(queries.heads, wanted)
    positions = torch.isin(queries.tails, wanted).nonzero()[:, 0]
    concerned[torch.searchsorted(queries.offsets, positions, right=True) - 1] = True
    return concerned.nonzero()[:, 0]


def _directions(rows: Tensor, ids: Tensor, moved: dict[int, Tensor]) -> Tensor:
    """Lay the directions of the moved rows beside those (B, d) of `ids` (B,), zero for the others: (B, d)."""
    directions = torch.zeros_like(rows)
    for row, direction in moved.items():
        directions[ids == row] = direction
    return directions

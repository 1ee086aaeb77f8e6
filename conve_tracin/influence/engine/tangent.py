"""Directions in ConvE's parameter space, and the test triple's gradient as one of them.

A triple's gradient has one or two rows in the embedding tables and rank one in `fc.weight`; it is kept that way, so
that a tangent costs no more memory on a graph with a million entities than on a small one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from conve_tracin.model.conve import ConvE
from conve_tracin.model.triple_loss import LossFunction, binary_cross_entropy, loss_slopes

ENTITY_TABLE = "entity_embeddings.weight"

RELATION_TABLE = "relation_embeddings.weight"

ENTITY_BIAS = "entity_bias"

LINEAR_WEIGHT = "fc.weight"

# The parameters before the linear layer that fold into one convolution.
CONVOLUTION = ("bn0.weight", "bn0.bias", "conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias")

# Those behind it that act on each coordinate of the query vector by itself.
COORDINATES = ("fc.bias", "bn2.weight", "bn2.bias")


@dataclass
class ConvETangent:
    """A direction in ConvE's parameter space, stored by what is not zero.

    Attributes:
        entity_rows, relation_rows: {id: direction (d,)} of rows of the two tables.
        entity_bias: {id: direction ()} of the tails' biases.
        linear_weight: `fc.weight`'s direction as the factors left (k, d) and right (k, F) of leftᵀ·right, or None.
        dense: {name: direction} of the other parameters, each of its parameter's shape.
    """

    entity_rows: dict[int, Tensor] = field(default_factory=dict)
    relation_rows: dict[int, Tensor] = field(default_factory=dict)
    entity_bias: dict[int, Tensor] = field(default_factory=dict)
    linear_weight: tuple[Tensor, Tensor] | None = None
    dense: dict[str, Tensor] = field(default_factory=dict)

    @property
    def moves_every_query(self) -> bool:
        """Whether the query vectors of all pairs change, and not just those of the moved rows."""
        return self.linear_weight is not None or bool(self.dense)

    def restricted_to(self, names: Iterable[str]) -> "ConvETangent":
        """Return this tangent with all parameters but `names` at rest."""
        names = set(names)
        return ConvETangent(
            entity_rows=self.entity_rows if ENTITY_TABLE in names else {},
            relation_rows=self.relation_rows if RELATION_TABLE in names else {},
            entity_bias=self.entity_bias if ENTITY_BIAS in names else {},
            linear_weight=self.linear_weight if LINEAR_WEIGHT in names else None,
            dense={name: direction for name, direction in self.dense.items() if name in names},
        )

    def as_dict(self, model: ConvE) -> dict[str, Tensor]:
        """Write the tangent out as one dense tensor for each parameter."""
        directions = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
        for name, rows in (
            (ENTITY_TABLE, self.entity_rows),
            (RELATION_TABLE, self.relation_rows),
            (ENTITY_BIAS, self.entity_bias),
        ):
            for row, direction in rows.items():
                directions[name][row] = direction
        if self.linear_weight is not None:
            left, right = self.linear_weight
            directions[LINEAR_WEIGHT] = left.T @ right
        return directions | self.dense


def score_gradient(model: ConvE, triple: Iterable[int]) -> tuple[Tensor, ConvETangent]:
    """Compute a triple's score () and its gradient by all parameters, without a gradient as large as a table."""
    head, relation, tail = (int(value) for value in triple)
    rows = [
        model.entity_embeddings.weight[head],
        model.relation_embeddings.weight[relation],
        model.entity_embeddings.weight[tail],
    ]
    head_row, relation_row, tail_row = (row.detach().requires_grad_() for row in rows)
    dense = {name: model.get_parameter(name) for name in (*CONVOLUTION, *COORDINATES)}
    with torch.enable_grad():
        features = model.extract_features(head_row[None], relation_row[None])  # (1, F)
        score = (model.project(features)[0] * tail_row).sum()
        gradients = torch.autograd.grad(score, [head_row, relation_row, tail_row, *dense.values()])
    by_head, by_relation, by_tail, *by_dense = gradients
    entity_rows = {head: by_head}
    entity_rows[tail] = by_tail + entity_rows.get(tail, 0)
    directions = dict(zip(dense, by_dense, strict=True))
    tangent = ConvETangent(
        entity_rows=entity_rows,
        relation_rows={relation: by_relation},
        # The gradient by the linear layer's output is its bias's gradient.
        linear_weight=(directions["fc.bias"][None], features.detach()),
        dense=directions,
    )
    score = score.detach()
    if model.entity_bias is not None:
        score = score + model.entity_bias.detach()[tail]
        tangent.entity_bias[tail] = torch.ones_like(score)
    return score, tangent


def loss_gradient(
    model: ConvE,
    triple: Iterable[int],
    *,
    names: Iterable[str] | None = None,
    loss_fn: LossFunction = binary_cross_entropy,
) -> ConvETangent:
    """Compute ∇ℓ of one triple as a tangent; `names` restricts it to some parameters."""
    score, tangent = score_gradient(model, triple)
    slope = loss_slopes(score[None], loss_fn)[0]
    scaled = scale(tangent, slope)
    return scaled if names is None else scaled.restricted_to(names)


def scale(tangent: ConvETangent, factor: Tensor | float) -> ConvETangent:
    """Multiply a tangent by a number."""
    linear = tangent.linear_weight
    return ConvETangent(
        entity_rows={row: factor * direction for row, direction in tangent.entity_rows.items()},
        relation_rows={row: factor * direction for row, direction in tangent.relation_rows.items()},
        entity_bias={row: factor * direction for row, direction in tangent.entity_bias.items()},
        linear_weight=None if linear is None else (factor * linear[0], linear[1]),
        dense={name: factor * direction for name, direction in tangent.dense.items()},
    )

"""The fast engine for ConvE: derivatives of triple scores along any tangents, sharing all that can be shared.

With q(h, r) the query vector, a triple's score is s = q·e_t + b_t, so its derivative along a tangent is

    ṡ = q̇·e_t + q·ė_t + ḃ_t.

q and q̇ depend on (h, r) alone and are computed once for each distinct pair. In eval mode bn0 and bn1 are affine and
fold into the convolution, in value and in tangent. A test triple's gradient has one or two rows in the embedding
tables and rank one in `fc.weight`, and is kept that way (`ConvETangent`).
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp
from tqdm import tqdm

from conve_tracin.influence.forward import loss_slopes
from conve_tracin.influence.reference import LossFunction, binary_cross_entropy
from conve_tracin.model import ConvE
from conve_tracin.queries import Queries
from conve_tracin.triples import group_by_query

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


@dataclass(frozen=True)
class _FoldedConvolution:
    """bn0, conv1 and bn1 as one convolution: kernel (C, 1, kh, kw) and bias (C,)."""

    kernel: Tensor
    bias: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.kernel, self.bias)


def _fold_convolution(model: ConvE, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Fold the parameters CONVOLUTION and the running statistics into kernel and bias."""
    input_scale = values["bn0.weight"] / torch.sqrt(model.bn0.running_var + model.bn0.eps)
    input_shift = values["bn0.bias"] - model.bn0.running_mean * input_scale
    output_scale = values["bn1.weight"] / torch.sqrt(model.bn1.running_var + model.bn1.eps)
    output_shift = values["bn1.bias"] - model.bn1.running_mean * output_scale
    kernel = values["conv1.weight"] * (output_scale[:, None, None, None] * input_scale)
    # Without padding, a constant added to the image adds the kernel's sum times that constant everywhere.
    bias = values["conv1.bias"] + values["conv1.weight"].sum(dim=(1, 2, 3)) * input_shift
    return kernel, bias * output_scale + output_shift


def _coordinate_map(model: ConvE, values: dict[str, Tensor], linear: Tensor) -> Tensor:
    """Apply fc.bias and bn2 to the linear products (…, d), before the last ReLU."""
    scale = values["bn2.weight"] / torch.sqrt(model.bn2.running_var + model.bn2.eps)
    return (linear + values["fc.bias"] - model.bn2.running_mean) * scale + values["bn2.bias"]


class ScoreDerivatives:
    """Scores of training triples and their derivatives along n tangents, at one model.

    Args:
        model: ConvE in eval mode.
        tangents: the n directions.
        low_precision: bfloat16 or float16 for the products with `fc.weight` and the convolution, or None.
    """

    def __init__(self, model: ConvE, tangents: list[ConvETangent], *, low_precision: torch.dtype | None = None) -> None:
        self.model = model
        self.tangents = tangents
        self.low_precision = low_precision
        self._values = {name: model.get_parameter(name).detach() for name in (*CONVOLUTION, *COORDINATES)}
        self._convolution = _FoldedConvolution(
            *_fold_convolution(model, {name: self._values[name] for name in CONVOLUTION})
        )
        self._convolution_tangents = [self._fold_tangent(tangent) for tangent in tangents]

    def _fold_tangent(self, tangent: ConvETangent) -> _FoldedConvolution | None:
        moved = {name: direction for name, direction in tangent.dense.items() if name in CONVOLUTION}
        if not moved:
            return None
        primal = {name: self._values[name] for name in CONVOLUTION}
        directions = {name: moved.get(name, torch.zeros_like(value)) for name, value in primal.items()}
        return _FoldedConvolution(
            *jvp(lambda values: _fold_convolution(self.model, values), (primal,), (directions,))[1]
        )

    @torch.no_grad()
    def __call__(self, heads: Tensor, relations: Tensor, rows: Tensor, tails: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiate the scores of M triples that share B distinct pairs.

        Args:
            heads, relations: the pairs, ids (B,).
            rows: the pair of each triple, (M,).
            tails: the tail of each triple, ids (M,).

        Returns:
            Scores (M,) and derivatives (n, M).
        """
        table = self.model.entity_embeddings.weight
        tail_rows = table[tails]  # (M, d)
        with self._autocast(table.device.type):
            queries, query_tangents = self._queries(heads, relations)
        queries = queries.to(table.dtype)
        triple_queries = queries[rows]  # (M, d)
        scores = (triple_queries * tail_rows).sum(dim=1)
        if self.model.entity_bias is not None:
            scores = scores + self.model.entity_bias[tails]
        derivatives = scores.new_zeros(len(self.tangents), len(tails))
        for tangent, query_tangent, out in zip(self.tangents, query_tangents, derivatives, strict=True):
            if query_tangent is not None:
                out += (query_tangent.to(table.dtype)[rows] * tail_rows).sum(dim=1)
            for entity, direction in tangent.entity_rows.items():
                out += torch.where(tails == entity, triple_queries @ direction.to(queries), 0)
            for entity, direction in tangent.entity_bias.items():
                out += torch.where(tails == entity, direction.to(queries), 0)
        return scores, derivatives

    def _autocast(self, device_type: str) -> contextlib.AbstractContextManager:
        if self.low_precision is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self.low_precision)

    def _queries(self, heads: Tensor, relations: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Compute q (B, d) and, for each tangent, q̇ (B, d) or None where it is zero."""
        head_rows = self.model.entity_embeddings.weight[heads]
        relation_rows = self.model.relation_embeddings.weight[relations]
        images = self._images(head_rows, relation_rows)
        maps = self._convolution(images)  # (B, C, height, width)
        features = F.relu(maps).flatten(start_dim=1)  # (B, F)
        linear = features @ self.model.fc.weight.T  # (B, d), without the bias
        active = (maps > 0).flatten(start_dim=1)
        coordinates = {name: self._values[name] for name in COORDINATES}
        before_relu = _coordinate_map(self.model, coordinates, linear)
        queries = F.relu(before_relu)

        query_tangents: list[Tensor | None] = []
        for tangent, folded in zip(self.tangents, self._convolution_tangents, strict=True):
            moved_linear = self._linear_tangent(
                tangent, folded, images=images, active=active, features=features, heads=heads, relations=relations
            )
            moved = {name: tangent.dense[name] for name in COORDINATES if name in tangent.dense}
            if moved_linear is None and not moved:
                query_tangents.append(None)
                continue
            directions = {name: moved.get(name, torch.zeros_like(value)) for name, value in coordinates.items()}
            if moved_linear is None:
                moved_linear = torch.zeros_like(linear)
            moved_before_relu = jvp(
                lambda values, products: _coordinate_map(self.model, values, products),
                (coordinates, linear),
                (directions, moved_linear),
            )[1]
            query_tangents.append(moved_before_relu * (before_relu > 0))
        return queries, query_tangents

    def _linear_tangent(
        self,
        tangent: ConvETangent,
        folded: _FoldedConvolution | None,
        *,
        images: Tensor,
        active: Tensor,
        features: Tensor,
        heads: Tensor,
        relations: Tensor,
    ) -> Tensor | None:
        """Differentiate the products with fc.weight: (B, d), or None where nothing before them moves."""
        moved_maps = None if folded is None else folded(images)
        moved_images = self._image_tangent(tangent, heads, relations)
        if moved_images is not None:
            through_input = F.conv2d(moved_images, self._convolution.kernel)
            moved_maps = through_input if moved_maps is None else moved_maps + through_input
        moved_linear = None
        if moved_maps is not None:
            moved_features = moved_maps.flatten(start_dim=1) * active  # (B, F)
            moved_linear = moved_features @ self.model.fc.weight.T
        if tangent.linear_weight is not None:
            left, right = tangent.linear_weight
            through_weight = (features @ right.T) @ left  # (B, k), (B, d)
            moved_linear = through_weight if moved_linear is None else moved_linear + through_weight
        return moved_linear

    def _image_tangent(self, tangent: ConvETangent, heads: Tensor, relations: Tensor) -> Tensor | None:
        """Collect how the embeddings of the pairs move: images (B, 1, 2 · height, width), or None for not at all."""
        table = self.model.entity_embeddings.weight
        moved_heads = _rows_at(tangent.entity_rows, heads, like=table)
        moved_relations = _rows_at(tangent.relation_rows, relations, like=table)
        if moved_heads is None and moved_relations is None:
            return None
        zeros = table.new_zeros(len(heads), table.shape[1])
        return self._images(
            zeros if moved_heads is None else moved_heads, zeros if moved_relations is None else moved_relations
        )

    def _images(self, head_rows: Tensor, relation_rows: Tensor) -> Tensor:
        config = self.model.config
        shape = (-1, 1, 2 * config.embedding_height, config.embedding_width)
        return torch.cat([head_rows, relation_rows], dim=1).view(shape)


def _rows_at(rows: dict[int, Tensor], ids: Tensor, *, like: Tensor) -> Tensor | None:
    """Place {id: direction (d,)} at the ids (B,): (B, d), or None where no id moves."""
    placed = None
    for row, direction in rows.items():
        here = ids == row
        if here.any():
            placed = like.new_zeros(len(ids), like.shape[1]) if placed is None else placed
            placed[here] = direction.to(like)
    return placed


def iterate_derivatives(
    model: ConvE,
    tangents: list[ConvETangent],
    triples: np.ndarray,
    *,
    batch_size: int = 256,
    low_precision: torch.dtype | None = None,
    progress: str | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Go through training triples (N, 3) and yield, batch by batch, positions (M,), scores (M,), derivatives (n, M).

    Args:
        model: ConvE in eval mode.
        tangents: the n directions.
        triples: ids, int64.
        batch_size: distinct (head, relation) pairs in a batch.
        low_precision: see `ScoreDerivatives`.
        progress: what to call the work on a progress bar; none is shown without.
    """
    device = model.entity_embeddings.weight.device
    index = group_by_query(triples)
    queries = Queries.distinct(index, device)
    order = torch.from_numpy(index.order)
    differentiate = ScoreDerivatives(model, tangents, low_precision=low_precision)
    with tqdm(total=len(triples), desc=progress, unit="triple", unit_scale=True, disable=progress is None) as bar:
        for batch in torch.arange(len(queries), device=device).split(batch_size):
            rows, tails = queries.tails_of(batch)
            first = int(queries.offsets[batch[0]])
            scores, derivatives = differentiate(queries.heads[batch], queries.relations[batch], rows, tails)
            yield order[first : first + len(rows)], scores, derivatives
            bar.update(len(rows))


def loss_gradient(
    model: ConvE,
    triple: Iterable[int],
    *,
    names: Iterable[str] | None = None,
    loss_fn: LossFunction = binary_cross_entropy,
    label: float = 1.0,
) -> ConvETangent:
    """Compute ∇ℓ of one triple as a tangent; `names` restricts it to some parameters."""
    score, tangent = score_gradient(model, triple)
    slope = loss_slopes(score[None], loss_fn, label=label)[0]
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

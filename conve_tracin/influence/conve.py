"""The fast engine for ConvE: derivatives of triple scores along any tangents, sharing all that can be shared.

With q(h, r) the query vector, a triple's score is s = q·e_t + b_t, so its derivative along a tangent is

    ṡ = q̇·e_t + q·ė_t + ḃ_t.

q depends on (h, r) alone and is computed once for each distinct pair. From there two ways lead to ṡ:

- forward (`ForwardDerivatives`): q̇ for each pair and tangent. One product with `fc.weight` for each of them.
- backward (`FactoredDerivatives`): the factors of each training triple's gradient, which serve all tangents. One
  product with `fc.weight` for each triple, however many tangents there are; squared norms come out of it, too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conve_tracin.influence import folding
from conve_tracin.influence.forward import loss_slopes
from conve_tracin.influence.reference import LossFunction
from conve_tracin.influence.sweep import PairBatch, sweep
from conve_tracin.influence.tangent import (
    CONVOLUTION,
    ENTITY_BIAS,
    ENTITY_TABLE,
    LINEAR_WEIGHT,
    RELATION_TABLE,
    ConvETangent,
)
from conve_tracin.model import ConvE
from conve_tracin.options import DEFAULT_BATCH_SIZE

# Measured on a CPU: from here on one backward product for each triple is cheaper than forward products for each
# pair and tangent (benchmarks/scale.py --growth).
FACTORED_FROM = 4
# Up to this size on a CPU, and always on a GPU, a pair's feature maps are copied for each of its triples: that is
# cheaper than going through the pairs one by one.
COPIED_FEATURES = 4096
# The feature maps of a batch should stay in a CPU core's cache. A GPU is kept busy by large batches, as far as its
# memory goes: each feature of a pair is there in at most four triples, and these in up to four arrays, of float32.
CPU_BATCH_FEATURES = 1_400_000
GPU_BATCH_FEATURES = 2**26
GPU_BYTES_PER_FEATURE = 4 * 4 * 4


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
        progress: what to call the work on a progress bar; none is shown without.
    """
    device = model.entity_embeddings.weight.device
    touched = np.flatnonzero(_touched(tangents, triples))
    many = len(tangents) >= FACTORED_FROM and any(tangent.moves_every_query for tangent in tangents)
    engine = FactoredDerivatives if many else ForwardDerivatives
    work = engine(model, tangents, low_precision=low_precision)
    batch_size = choose_batch_size(batch_size, model)
    for positions, (scores, derivatives) in sweep(
        triples[touched], work, device=device, batch_size=batch_size, progress=progress
    ):
        yield torch.from_numpy(touched)[positions], scores, derivatives


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
    factors = FactoredDerivatives(model, [], low_precision=low_precision)
    names = frozenset(names)

    def work(batch: PairBatch) -> Tensor:
        scores, norms = factors.squared_norms(batch, names)
        return norms * loss_slopes(scores, loss_fn) ** 2

    batch_size = choose_batch_size(batch_size, model)
    yield from sweep(triples, work, device=device, batch_size=batch_size, progress=progress)


def choose_batch_size(batch_size: int, model: ConvE) -> int:
    """Lower the batch size to what is fast on a CPU; on a GPU raise the default one to what is, and leave any other."""
    device, features = model.fc.weight.device, model.config.feature_map_size
    if device.type == "cpu":
        return max(1, min(batch_size, CPU_BATCH_FEATURES // features))
    if batch_size != DEFAULT_BATCH_SIZE:
        return batch_size
    at_once = GPU_BATCH_FEATURES
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        at_once = min(at_once, free_bytes // GPU_BYTES_PER_FEATURE)
    return max(batch_size, at_once // features)


def _touched(tangents: list[ConvETangent], triples: np.ndarray) -> np.ndarray:
    """Tell which triples (N, 3) have a score that some tangent moves: (N,) bool."""
    if any(tangent.moves_every_query for tangent in tangents):
        return np.ones(len(triples), dtype=bool)
    entities = {entity for tangent in tangents for entity in (*tangent.entity_rows, *tangent.entity_bias)}
    relations = {relation for tangent in tangents for relation in tangent.relation_rows}
    head, relation, tail = triples.T
    return np.isin(head, list(entities)) | np.isin(tail, list(entities)) | np.isin(relation, list(relations))


class _SharedQueries:
    """What both engines compute of each pair: images, features, linear products and query vectors."""

    def __init__(self, model: ConvE, tangents: list[ConvETangent], *, low_precision: torch.dtype | None = None) -> None:
        self.model = model
        self.tangents = tangents
        self.table = model.entity_embeddings.weight.detach()
        self.precision = low_precision or self.table.dtype
        self.linear_weight = model.fc.weight.detach().to(self.precision)
        self.convolution = folding.folded_convolution(model)
        bn2 = model.bn2
        self.deviation = torch.sqrt(bn2.running_var + bn2.eps)
        self.scale = bn2.weight.detach() / self.deviation
        self.center = bn2.running_mean - model.fc.bias.detach()
        self.shift = bn2.bias.detach()

    def images(self, head_rows: Tensor, relation_rows: Tensor) -> Tensor:
        """Lay embeddings (B, d) twice as images (B, 1, 2 · height, width)."""
        config = self.model.config
        shape = (-1, 1, 2 * config.embedding_height, config.embedding_width)
        return torch.cat([head_rows, relation_rows], dim=1).view(shape).to(self.precision)

    def pair_images(self, batch: PairBatch) -> Tensor:
        """Lay the pairs' embeddings as images."""
        return self.images(self.table[batch.heads], self.model.relation_embeddings.weight[batch.relations])

    def normalised(self, linear: Tensor) -> Tensor:
        """Normalise the linear products (B, d), whose bias is still missing, with bn2's statistics."""
        return (linear - self.center) / self.deviation

    def before_relu(self, linear: Tensor) -> Tensor:
        """Apply fc.bias and bn2 to the linear products (B, d)."""
        return (linear - self.center) * self.scale + self.shift

    def scores(self, queries: Tensor, tail_rows: Tensor, batch: PairBatch) -> Tensor:
        """Score the triples: query vectors (M, d) and tail embeddings (M, d) to (M,)."""
        scores = (queries * tail_rows).sum(dim=1)
        return scores if self.model.entity_bias is None else scores + self.model.entity_bias[batch.tails]

    def direct_tangent(self, tangent: ConvETangent, *, linear: Tensor, features: Tensor) -> Tensor | None:
        """Differentiate what comes before the last ReLU by fc and bn2 alone: (B, d), or None where they rest."""
        parts = []
        if tangent.linear_weight is not None:
            left, right = tangent.linear_weight
            parts.append((features @ right.T.to(self.precision)).to(left.dtype) @ (left * self.scale))
        if "fc.bias" in tangent.dense:
            parts.append(tangent.dense["fc.bias"] * self.scale)
        if "bn2.weight" in tangent.dense:
            parts.append(tangent.dense["bn2.weight"] * self.normalised(linear))
        if "bn2.bias" in tangent.dense:
            parts.append(tangent.dense["bn2.bias"])
        return sum(parts).expand_as(linear) if parts else None

    def add_tail_terms(self, derivatives: Tensor, queries: Tensor, tails: Tensor) -> None:
        """Add q·ė_t + ḃ_t of the triples' query vectors (M, d) to the derivatives (n, M)."""
        for tangent, out in zip(self.tangents, derivatives, strict=True):
            for entity, direction in tangent.entity_rows.items():
                here = (tails == entity).nonzero()[:, 0]
                out[here] += queries[here] @ direction.to(queries)
            for entity, direction in tangent.entity_bias.items():
                out += torch.where(tails == entity, direction.to(out), 0)


class ForwardDerivatives(_SharedQueries):
    """Scores of a batch and their derivatives along n tangents, by moving each pair's query vector.

    Args:
        model: ConvE in eval mode.
        tangents: the n directions.
        low_precision: see `iterate_derivatives`.
    """

    def __init__(self, model: ConvE, tangents: list[ConvETangent], *, low_precision: torch.dtype | None = None) -> None:
        super().__init__(model, tangents, low_precision=low_precision)
        folded = [folding.folded_tangent(model, tangent) for tangent in tangents]
        self.moving = [place for place, convolution in enumerate(folded) if convolution is not None]
        # One convolution computes the maps and how they move along every tangent.
        stacked = folding.stack([self.convolution, *(folded[place] for place in self.moving)])
        self.stacked_convolution = stacked.to(self.precision)
        self.input_kernel = self.convolution.kernel.to(self.precision)

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the scores (M,) and their derivatives (n, M)."""
        tail_rows = self.table[batch.tails]  # (M, d)
        queries, query_tangents = self._queries(batch)
        triple_queries = queries[batch.rows]  # (M, d)
        scores = self.scores(triple_queries, tail_rows, batch)
        derivatives = scores.new_zeros(len(self.tangents), len(batch.tails))
        for query_tangent, out in zip(query_tangents, derivatives, strict=True):
            if query_tangent is not None:
                torch.sum(query_tangent[batch.rows] * tail_rows, dim=1, out=out)
        self.add_tail_terms(derivatives, triple_queries, batch.tails)
        return scores, derivatives

    def _queries(self, batch: PairBatch) -> tuple[Tensor, list[Tensor | None]]:
        """Compute q (B, d) and, for each tangent, q̇ (B, d) or None where it is zero."""
        size = len(batch.heads)
        maps = self.stacked_convolution(self.pair_images(batch))  # (B, (1 + moving) · C, …)
        maps = maps.view(size, 1 + len(self.moving), -1)  # (B, 1 + moving, F)
        # The features and their tangents, in the place of the maps: one product with fc.weight serves them all.
        features = maps
        for place in range(1, 1 + len(self.moving)):
            mask_where_inactive(maps[:, place], maps[:, 0], out=features[:, place])
        features[:, 0].clamp_(min=0)
        linear = (features.flatten(0, 1) @ self.linear_weight.T).to(self.table.dtype)
        linear = linear.view(size, 1 + len(self.moving), -1)  # (B, 1 + moving, d)

        before_relu = self.before_relu(linear[:, 0])
        query_tangents = []
        for place, tangent in enumerate(self.tangents):
            moved = self.direct_tangent(tangent, linear=linear[:, 0], features=features[:, 0])
            if place in self.moving:
                through_convolution = linear[:, 1 + self.moving.index(place)] * self.scale
                moved = through_convolution if moved is None else moved + through_convolution
            moved = self._add_embedding_tangent(moved, tangent, batch, features[:, 0])
            query_tangents.append(None if moved is None else mask_where_inactive(moved, before_relu))
        return F.relu(before_relu), query_tangents

    def _add_embedding_tangent(
        self, moved: Tensor | None, tangent: ConvETangent, batch: PairBatch, features: Tensor
    ) -> Tensor | None:
        """Add what the moving rows of the tables do to the pairs (B, d) that have them."""
        pairs, images = self._image_tangent(tangent, batch)
        if not len(pairs):
            return moved
        moved_maps = F.conv2d(images, self.input_kernel).flatten(start_dim=1)
        moved_features = mask_where_inactive(moved_maps, features[pairs])
        through_input = (moved_features @ self.linear_weight.T).to(self.table.dtype) * self.scale
        if moved is None:
            moved = self.table.new_zeros(len(batch.heads), self.table.shape[1])
        return moved.index_add(0, pairs, through_input)

    def _image_tangent(self, tangent: ConvETangent, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Collect the pairs (S,) whose embeddings move, and how: images (S, 1, 2 · height, width)."""
        moved_heads, heads_move = _rows_at(tangent.entity_rows, batch.heads, like=self.table)
        moved_relations, relations_move = _rows_at(tangent.relation_rows, batch.relations, like=self.table)
        pairs = (heads_move | relations_move).nonzero()[:, 0]
        return pairs, self.images(moved_heads[pairs], moved_relations[pairs])


class FactoredDerivatives(_SharedQueries):
    """The same from the factors of each training triple's gradient, at a cost that hardly grows with n."""

    def __init__(self, model: ConvE, tangents: list[ConvETangent], *, low_precision: torch.dtype | None = None) -> None:
        super().__init__(model, tangents, low_precision=low_precision)
        self.low_convolution = self.convolution.to(self.precision)
        self.stacked = None
        if tangents:
            stacked = _stack_tangents(model, tangents, self.convolution)
            self.stacked = replace(stacked, right=stacked.right.to(self.precision))

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the scores (M,) and their derivatives (n, M)."""
        pairs = self._pairs(batch)
        tail_rows = self.table[batch.tails]  # (M, d)
        by_before_relu = mask_where_inactive(tail_rows, pairs.before_relu[batch.rows])  # (M, d)
        by_linear = by_before_relu * self.scale
        scores = self.scores(pairs.queries[batch.rows], tail_rows, batch)
        by_maps = self._by_maps(by_linear, pairs, batch)
        by_kernel, by_bias = self._by_convolution(by_maps, pairs, batch)

        stacked = self.stacked
        derivatives = stacked.kernel @ by_kernel.flatten(start_dim=1).T  # (n, M)
        derivatives += stacked.bias @ by_bias.T
        derivatives += stacked.linear_bias @ by_linear.T
        derivatives += stacked.bn2_bias @ by_before_relu.T
        derivatives += stacked.bn2_weight @ (by_before_relu * self.normalised(pairs.linear)[batch.rows]).T
        # A product of outer products is the product of the inner ones.
        through_right = (pairs.features @ stacked.right.T).to(derivatives)  # (B, k)
        derivatives.index_add_(0, stacked.owner, through_right[batch.rows].T * (stacked.left @ by_linear.T))
        self._add_embedding_terms(derivatives, by_maps, batch)
        self.add_tail_terms(derivatives, pairs.queries[batch.rows], batch.tails)
        return scores, derivatives

    def squared_norms(self, batch: PairBatch, names: frozenset[str]) -> tuple[Tensor, Tensor]:
        """Return the scores (M,) and the squared norms (M,) of their gradients by the parameters `names`."""
        pairs = self._pairs(batch)
        tail_rows = self.table[batch.tails]  # (M, d)
        queries = pairs.queries[batch.rows]  # (M, d)
        scores = self.scores(queries, tail_rows, batch)
        by_before_relu = mask_where_inactive(tail_rows, pairs.before_relu[batch.rows])  # (M, d)
        by_linear = by_before_relu * self.scale

        norms = torch.zeros_like(scores)
        if LINEAR_WEIGHT in names:
            # The gradient is the outer product of by_linear and the features, so the norms multiply.
            feature_norms = pairs.features.to(norms.dtype).square().sum(dim=1)
            norms += _squared(by_linear) * feature_norms[batch.rows]
        if "fc.bias" in names:
            norms += _squared(by_linear)
        if "bn2.weight" in names:
            norms += _squared(by_before_relu * self.normalised(pairs.linear)[batch.rows])
        if "bn2.bias" in names:
            norms += _squared(by_before_relu)
        if ENTITY_BIAS in names:
            norms += 1
        if names.isdisjoint({*CONVOLUTION, ENTITY_TABLE, RELATION_TABLE}):
            return scores, norms

        by_maps = self._by_maps(by_linear, pairs, batch)
        if not names.isdisjoint(CONVOLUTION):
            by_kernel, by_bias = self._by_convolution(by_maps, pairs, batch)
            for name, gradient in folding.unfolded_gradients(self.model, by_kernel, by_bias).items():
                if name in names:
                    norms += _squared(gradient)
        by_head, by_relation = self._by_embeddings(by_maps)
        if RELATION_TABLE in names:
            norms += _squared(by_relation)
        if ENTITY_TABLE in names:
            same = (batch.heads[batch.rows] == batch.tails)[:, None]
            norms += torch.where(same[:, 0], _squared(by_head + queries), _squared(by_head) + _squared(queries))
        return scores, norms

    def _pairs(self, batch: PairBatch) -> "_Pairs":
        images = self.pair_images(batch)
        features = F.relu_(self.low_convolution(images)).flatten(start_dim=1)  # (B, F)
        linear = (features @ self.linear_weight.T).to(self.table.dtype)  # (B, d)
        before_relu = self.before_relu(linear)
        return _Pairs(images, features, linear, before_relu, F.relu(before_relu))

    def _copies_maps(self) -> bool:
        return self.table.device.type != "cpu" or self.model.config.feature_map_size <= COPIED_FEATURES

    def _by_maps(self, by_linear: Tensor, pairs: "_Pairs", batch: PairBatch) -> Tensor:
        """Go back through fc and ReLU: gradients (M, d) to gradients by the maps (M, C, P)."""
        by_maps = by_linear.to(self.precision) @ self.linear_weight  # (M, F), before the ReLU's derivative
        if self._copies_maps():
            by_maps = mask_where_inactive(by_maps, pairs.features[batch.rows])
            return by_maps.view(len(by_maps), self.model.config.output_channels, -1)
        for pair, triples in enumerate(batch.triples_of_pairs()):
            here = by_maps[triples]
            mask_where_inactive(here, pairs.features[pair].expand_as(here), out=here)
        return by_maps.view(len(by_maps), self.model.config.output_channels, -1)

    def _by_convolution(self, by_maps: Tensor, pairs: "_Pairs", batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Go back to the folded convolution: kernel gradients (M, C, 1, kh, kw) and bias gradients (M, C)."""
        kernel_shape = self.convolution.kernel.shape
        patches = F.unfold(pairs.images, kernel_shape[2:]).transpose(1, 2)  # (B, P, kh · kw)
        if self._copies_maps():
            by_kernel = by_maps @ patches[batch.rows]  # (M, C, kh · kw)
        else:
            by_kernel = by_maps.new_empty(*by_maps.shape[:2], patches.shape[2])
            for pair, triples in enumerate(batch.triples_of_pairs()):
                torch.matmul(by_maps[triples].flatten(0, 1), patches[pair], out=by_kernel[triples].flatten(0, 1))
        dtype = self.table.dtype
        return by_kernel.view(-1, *kernel_shape).to(dtype), by_maps.sum(dim=2, dtype=dtype)

    def _by_embeddings(self, by_maps: Tensor) -> tuple[Tensor, Tensor]:
        """Go back to the embeddings: gradients by head and relation, (M, d) each."""
        config = self.model.config
        kernel = self.convolution.kernel.flatten(start_dim=1).to(self.precision)  # (C, kh · kw)
        by_patches = kernel.T @ by_maps  # (M, kh · kw, P)
        image_size = (2 * config.embedding_height, config.embedding_width)
        by_images = F.fold(by_patches.to(self.table.dtype), image_size, self.convolution.kernel.shape[2:])
        by_head, by_relation = by_images.flatten(start_dim=1).split(config.embedding_dim, dim=1)
        return by_head, by_relation

    def _add_embedding_terms(self, derivatives: Tensor, by_maps: Tensor, batch: PairBatch) -> None:
        """Add how the moving rows of the tables move the query vectors to the derivatives (n, M)."""
        heads, relations = batch.heads[batch.rows], batch.relations[batch.rows]
        moves = torch.zeros_like(heads, dtype=torch.bool)
        for tangent in self.tangents:
            for ids, rows in ((heads, tangent.entity_rows), (relations, tangent.relation_rows)):
                for row in rows:
                    moves |= ids == row
        triples = moves.nonzero()[:, 0]
        if not len(triples):
            return
        by_head, by_relation = self._by_embeddings(by_maps[triples])
        for tangent, out in zip(self.tangents, derivatives, strict=True):
            for ids, gradients, rows in (
                (heads[triples], by_head, tangent.entity_rows),
                (relations[triples], by_relation, tangent.relation_rows),
            ):
                for row, direction in rows.items():
                    out.index_add_(0, triples, torch.where(ids == row, gradients @ direction.to(gradients), 0))


@dataclass(frozen=True)
class _StackedTangents:
    """n tangents as matrices: one product takes the derivatives along all of them.

    `right` (k, F), `left` (k, d) and `owner` (k,) are the factors of all `fc.weight` directions and their tangents.
    """

    kernel: Tensor
    bias: Tensor
    linear_bias: Tensor
    bn2_weight: Tensor
    bn2_bias: Tensor
    right: Tensor
    left: Tensor
    owner: Tensor


def _stack_tangents(model: ConvE, tangents: list[ConvETangent], convolution: folding.Convolution) -> _StackedTangents:
    resting = folding.Convolution(torch.zeros_like(convolution.kernel), torch.zeros_like(convolution.bias))
    folded = [folding.folded_tangent(model, tangent) or resting for tangent in tangents]

    def rows(name: str) -> Tensor:
        zeros = torch.zeros_like(model.get_parameter(name))
        return torch.stack([tangent.dense.get(name, zeros) for tangent in tangents])

    nothing = (model.fc.weight.new_zeros(0, model.fc.out_features), model.fc.weight.new_zeros(0, model.fc.in_features))
    factors = [tangent.linear_weight or nothing for tangent in tangents]
    ranks = torch.tensor([len(left) for left, _ in factors], device=nothing[0].device)
    return _StackedTangents(
        kernel=torch.stack([one.kernel.flatten() for one in folded]),
        bias=torch.stack([one.bias for one in folded]),
        linear_bias=rows("fc.bias"),
        bn2_weight=rows("bn2.weight"),
        bn2_bias=rows("bn2.bias"),
        right=torch.cat([right for _, right in factors]),
        left=torch.cat([left for left, _ in factors]),
        owner=torch.repeat_interleave(ranks),
    )


@dataclass(frozen=True)
class _Pairs:
    """The activations of B pairs: images, features (B, F), linear, before_relu and queries (B, d)."""

    images: Tensor
    features: Tensor
    linear: Tensor
    before_relu: Tensor
    queries: Tensor


def mask_where_inactive(values: Tensor, activations: Tensor, out: Tensor | None = None) -> Tensor:
    """Set `values` to zero where a ReLU, whose input or output `activations` are, was off: its derivative, fused."""
    if out is None:
        return torch.ops.aten.threshold_backward(values, activations, 0)
    return torch.ops.aten.threshold_backward.grad_input(values, activations, 0, grad_input=out)


def _squared(gradients: Tensor) -> Tensor:
    return gradients.flatten(start_dim=1).square().sum(dim=1)


def _rows_at(rows: dict[int, Tensor], ids: Tensor, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Place {id: direction (d,)} at the ids (B,): (B, d), and which ids are among them: (B,) bool."""
    placed = like.new_zeros(len(ids), like.shape[1])
    moves = torch.zeros_like(ids, dtype=torch.bool)
    for row, direction in rows.items():
        here = ids == row
        placed[here] = direction.to(like)
        moves |= here
    return placed, moves

"""Scores of a batch of triples and their derivatives along tangents, in two ways; see `conve`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conve_tracin.influence import folding
from conve_tracin.influence.backward import MapGradients
from conve_tracin.influence.shared_queries import SharedQueries
from conve_tracin.influence.strips import Strip, mask_where_inactive
from conve_tracin.influence.sweep import PairBatch
from conve_tracin.influence.tangent import CONVOLUTION, ConvETangent
from conve_tracin.model import ConvE


class ForwardDerivatives(SharedQueries):
    """By moving each pair's query vector along every tangent. The arguments are those of `SharedQueries`."""

    def __init__(
        self,
        model: ConvE,
        tangents: list[ConvETangent],
        *,
        relations: Tensor,
        low_precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, tangents, relations=relations, low_precision=low_precision)
        self.strip_of_both = Strip(self.stacked_convolution, self.kernel, self.weight_of_both, len(tangents))

    @property
    def features_of_pair(self) -> int:
        """How many features, and directions in which they move, a pair has in a batch."""
        return max(self.dimension, self.sizes.features_of_both) * (1 + len(self.tangents))

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the scores (M,) and their derivatives (n, M)."""
        tail_rows = self.table.index_select(0, batch.tails)  # (M, d)
        queries, query_tangents = self._queries(batch)
        triple_queries = queries.index_select(0, batch.rows)  # (M, d)
        scores = self.scores(triple_queries, tail_rows, batch)
        derivatives = scores.new_zeros(len(self.tangents), len(batch.tails))
        for query_tangent, out in zip(query_tangents, derivatives, strict=True):
            torch.sum(query_tangent.index_select(0, batch.rows) * tail_rows, dim=1, out=out)
        self.add_tail_terms(derivatives, triple_queries, batch.tails)
        return scores, derivatives

    def _queries(self, batch: PairBatch) -> tuple[Tensor, list[Tensor]]:
        """Compute q (B, d) and, for each tangent, q̇ (B, d)."""
        moved = self.moved_images_of_both(batch)
        products = self.strip_of_both(self.images_of_both(batch), moved, dtype=self.table.dtype)
        products += self.products_alone(batch)  # (B, 1 + n, d + k)
        linear, through_factors = products[:, 0].tensor_split([self.dimension], dim=1)
        before_relu = self.before_relu(linear)
        query_tangents = []
        first_factor = 0
        for place, tangent in enumerate(self.tangents):
            moved = products[:, 1 + place, : self.dimension] * self.scale
            if tangent.linear_weight is not None:
                left = tangent.linear_weight[0]
                moved += through_factors[:, first_factor : first_factor + len(left)] @ (left * self.scale)
                first_factor += len(left)
            if "fc.bias" in tangent.dense:
                moved += tangent.dense["fc.bias"] * self.scale
            if "bn2.weight" in tangent.dense:
                moved += tangent.dense["bn2.weight"] * self.normalised(linear)
            if "bn2.bias" in tangent.dense:
                moved += tangent.dense["bn2.bias"]
            query_tangents.append(mask_where_inactive(moved, before_relu, out=moved))
        return F.relu(before_relu), query_tangents


class FactoredDerivatives(SharedQueries):
    """By going back from each triple to its pair's strip in the middle, at a cost that hardly grows with n.

    How the shares of head and relation move is computed forward, once for each of them. The arguments are those of
    `SharedQueries`.
    """

    def __init__(
        self,
        model: ConvE,
        tangents: list[ConvETangent],
        *,
        relations: Tensor,
        low_precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, tangents, relations=relations, low_precision=low_precision)
        self.low_convolution = self.convolution.to(self.precision)
        self.back = MapGradients(self.kernel, self.weight_of_both[:, : self.dimension], self.table.dtype)
        self.stacked = _stack_tangents(model, tangents, self.convolution)
        self.convolution_moves = any(name in tangent.dense for tangent in tangents for name in CONVOLUTION)

    @property
    def features_of_pair(self) -> int:
        """How many features, and gradients by them, a pair has in a batch."""
        return 2 * max(self.dimension, self.sizes.features_of_both)

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the scores (M,) and their derivatives (n, M)."""
        alone = self.products_alone(batch)  # (B, 1 + n, d + k)
        products = alone[:, 0]
        if self.sizes.features_of_both:
            images = self.images_of_both(batch)
            features = F.relu_(self.low_convolution(images)).flatten(start_dim=1)  # (B, F′)
            products = products + (features @ self.weight_of_both).to(products.dtype)
        linear, through_factors = products.tensor_split([self.dimension], dim=1)
        before_relu = self.before_relu(linear)
        queries = F.relu(before_relu).index_select(0, batch.rows)  # (M, d)
        tail_rows = self.table.index_select(0, batch.tails)  # (M, d)
        scores = self.scores(queries, tail_rows, batch)

        by_before_relu = mask_where_inactive(tail_rows, before_relu.index_select(0, batch.rows))  # (M, d)
        by_linear = by_before_relu * self.scale
        derivatives = self._directly(by_before_relu, by_linear, linear, batch)
        # A product of outer products is the product of the inner ones.
        through_factors = through_factors[:, : self.num_factors][batch.rows].T  # (k, M)
        derivatives.index_add_(0, self.stacked.owner, through_factors * (self.stacked.left @ by_linear.T))
        moved = alone[:, 1:, : self.dimension].transpose(0, 1).contiguous()  # (n, B, d)
        for moved_alone, out in zip(moved, derivatives, strict=True):
            out += (moved_alone.index_select(0, batch.rows) * by_linear).sum(dim=1)
        if self.sizes.features_of_both:
            self._add_strip_of_both(derivatives, by_linear, images, features, batch)
        self.add_tail_terms(derivatives, queries, batch.tails)
        return scores, derivatives

    def _directly(self, by_before_relu: Tensor, by_linear: Tensor, linear: Tensor, batch: PairBatch) -> Tensor:
        """Differentiate by what comes after the linear layer's product: (n, M)."""
        derivatives = self.stacked.linear_bias @ by_linear.T
        derivatives += self.stacked.bn2_bias @ by_before_relu.T
        derivatives += (
            self.stacked.bn2_weight @ (by_before_relu * self.normalised(linear).index_select(0, batch.rows)).T
        )
        return derivatives

    def _add_strip_of_both(
        self, derivatives: Tensor, by_linear: Tensor, images: Tensor, features: Tensor, batch: PairBatch
    ) -> None:
        """Add how the strip in the middle moves the query vectors to the derivatives (n, M)."""
        touched = self._triples_of_moved_rows(batch)
        if not self.convolution_moves and not len(touched):
            return
        by_maps = self.back.by_maps(by_linear, features, batch)
        if self.convolution_moves:
            by_kernel, by_bias = self.back.by_convolution(by_maps, images, batch)
            derivatives += self.stacked.kernel @ by_kernel.flatten(start_dim=1).T
            derivatives += self.stacked.bias @ by_bias.T
        if not len(touched):
            return
        by_images = self.back.by_images(by_maps[touched], images.shape[2:])  # (m, h, w)
        by_last_rows, by_first_rows = by_images.tensor_split(2, dim=1)
        heads, relations = batch.heads[batch.rows][touched], batch.relations[batch.rows][touched]
        for tangent, out in zip(self.tangents, derivatives, strict=True):
            for ids, gradients, cut, rows in (
                (heads, by_last_rows, self.sizes.last_rows, tangent.entity_rows),
                (relations, by_first_rows, self.sizes.first_rows, tangent.relation_rows),
            ):
                for row, direction in rows.items():
                    moved = (gradients * cut(direction)[0, 0].to(gradients)).sum(dim=(1, 2))
                    out.index_add_(0, touched, torch.where(ids == row, moved, 0))

    def _triples_of_moved_rows(self, batch: PairBatch) -> Tensor:
        """Find the triples (m,) whose head or relation moves along some tangent."""
        heads, relations = batch.heads[batch.rows], batch.relations[batch.rows]
        moves = torch.zeros_like(heads, dtype=torch.bool)
        for tangent in self.tangents:
            for ids, rows in ((heads, tangent.entity_rows), (relations, tangent.relation_rows)):
                for row in rows:
                    moves |= ids == row
        return moves.nonzero()[:, 0]


@dataclass(frozen=True)
class _StackedTangents:
    """n tangents as matrices: one product takes the derivatives along all of them.

    `left` (k, d) are the factors of all `fc.weight` directions on the side of its output, `owner` (k,) their tangents.
    """

    kernel: Tensor
    bias: Tensor
    linear_bias: Tensor
    bn2_weight: Tensor
    bn2_bias: Tensor
    left: Tensor
    owner: Tensor


def _stack_tangents(model: ConvE, tangents: list[ConvETangent], convolution: folding.Convolution) -> _StackedTangents:
    resting = folding.Convolution(torch.zeros_like(convolution.kernel), torch.zeros_like(convolution.bias))
    folded = folding.folded_tangents(model, tangents) or [resting] * len(tangents)

    def rows(name: str) -> Tensor:
        zeros = torch.zeros_like(model.get_parameter(name))
        return torch.stack([tangent.dense.get(name, zeros) for tangent in tangents])

    nothing = model.fc.weight.new_zeros(0, model.fc.out_features)
    left = [nothing if tangent.linear_weight is None else tangent.linear_weight[0] for tangent in tangents]
    ranks = torch.tensor([len(factor) for factor in left], device=nothing.device)
    return _StackedTangents(
        kernel=torch.stack([one.kernel.flatten() for one in folded]),
        bias=torch.stack([one.bias for one in folded]),
        linear_bias=rows("fc.bias"),
        bn2_weight=rows("bn2.weight"),
        bn2_bias=rows("bn2.bias"),
        left=torch.cat(left),
        owner=torch.repeat_interleave(ranks),
    )

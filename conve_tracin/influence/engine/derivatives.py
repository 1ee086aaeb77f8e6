"""Scores of a batch of triples and their derivatives along tangents, in two ways; see `passes`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conve_tracin.influence.engine import folding
from conve_tracin.influence.engine.backward import MapGradients
from conve_tracin.influence.engine.batches import PairBatch
from conve_tracin.influence.engine.shared_queries import SharedQueries
from conve_tracin.influence.engine.strips import Strip
from conve_tracin.influence.engine.tangent import ConvETangent


class ForwardDerivatives:
    """By moving each pair's query vector along every tangent."""

    def __init__(self, shared: SharedQueries) -> None:
        self.shared = shared
        self.strip_of_both = Strip(
            shared.stacked_convolution, shared.kernel, shared.weight_of_both, len(shared.tangents)
        )

    @property
    def features_of_pair(self) -> int:
        """How many features, and numbers that take as much, a pair has in a batch."""
        shared = self.shared
        features = shared.sizes.features_of_both * (1 + len(shared.folded_tangents))
        return max(features, shared.dimension * (1 + len(shared.tangents)))

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the scores (M,) and their derivatives (n, M)."""
        shared = self.shared
        moved_images = shared.moved_images_of_both(batch)
        products = self.strip_of_both(shared.images_of_both(batch), moved_images, dtype=shared.table.dtype)
        products += shared.products_alone(batch)  # (B, 1 + n, d + k)
        linear, through_factors = products[:, 0].tensor_split([shared.dimension], dim=1)
        triples = shared.triples(linear, batch)
        derivatives = triples.scores.new_zeros(len(shared.tangents), len(batch.tails))
        through_factors = through_factors.split([*shared.ranks, through_factors.shape[1] - sum(shared.ranks)], dim=1)
        for place, (tangent, out) in enumerate(zip(shared.tangents, derivatives, strict=True)):
            moved = products[:, 1 + place, : shared.dimension] * shared.scale
            moved += self._moved_directly(tangent, linear, through_factors[place])
            torch.sum(moved.index_select(0, batch.rows) * triples.by_before_relu, dim=1, out=out)
        shared.add_tail_terms(derivatives, triples.queries, batch.tails)
        return triples.scores, derivatives

    def _moved_directly(self, tangent: ConvETangent, linear: Tensor, through_factors: Tensor) -> Tensor:
        """Compute how fc and bn2 themselves move what comes before the last ReLU: (B, d)."""
        shared = self.shared
        moved = torch.zeros_like(linear)
        if tangent.linear_weight is not None:
            moved += through_factors @ (tangent.linear_weight[0] * shared.scale)
        if "fc.bias" in tangent.dense:
            moved += tangent.dense["fc.bias"] * shared.scale
        if "bn2.weight" in tangent.dense:
            moved += tangent.dense["bn2.weight"] * shared.normalised(linear)
        if "bn2.bias" in tangent.dense:
            moved += tangent.dense["bn2.bias"]
        return moved


class FactoredDerivatives:
    """By going back from each triple to its pair's strip in the middle, at a cost that hardly grows with n.

    How the shares of head and relation move is computed forward, for each of them and every tangent.
    """

    def __init__(self, shared: SharedQueries) -> None:
        self.shared = shared
        self.convolution = shared.convolution.to(shared.precision)
        self.back = MapGradients(shared.kernel, shared.weight_of_both[:, : shared.dimension], shared.table.dtype)
        self.stacked_tangents = _stack_tangents(shared)

    @property
    def features_of_pair(self) -> int:
        """How many features, and numbers that take as much, a pair has in a batch."""
        shared = self.shared
        return max(2 * shared.sizes.features_of_both, shared.dimension * (1 + len(shared.tangents)) // 2)

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the scores (M,) and their derivatives (n, M)."""
        shared, stacked = self.shared, self.stacked_tangents
        alone = shared.products_alone(batch)  # (B, 1 + n, d + k)
        products = alone[:, 0]
        if shared.sizes.features_of_both:
            images = shared.images_of_both(batch)
            features = F.relu_(self.convolution(images)).flatten(start_dim=1)  # (B, F′)
            products = products + (features @ shared.weight_of_both).to(products.dtype)
        linear, through_factors = products.tensor_split([shared.dimension], dim=1)
        triples = shared.triples(linear, batch)

        derivatives = stacked.linear_bias @ triples.by_linear.T  # (n, M)
        derivatives += stacked.bn2_bias @ triples.by_before_relu.T
        normalised = shared.normalised(linear).index_select(0, batch.rows)  # (M, d)
        derivatives += stacked.bn2_weight @ (triples.by_before_relu * normalised).T
        # A product of outer products is the product of the inner ones.
        through_factors = through_factors[:, : sum(shared.ranks)].index_select(0, batch.rows).T  # (k, M)
        derivatives.index_add_(0, stacked.owner, through_factors * (stacked.left @ triples.by_linear.T))
        moved = alone[:, 1:, : shared.dimension].transpose(0, 1).contiguous()  # (n, B, d)
        for moved_alone, out in zip(moved, derivatives, strict=True):
            out += (moved_alone.index_select(0, batch.rows) * triples.by_linear).sum(dim=1)
        if shared.sizes.features_of_both:
            self._add_strip_of_both(derivatives, triples.by_linear, images, features, batch)
        shared.add_tail_terms(derivatives, triples.queries, batch.tails)
        return triples.scores, derivatives

    def _add_strip_of_both(
        self, derivatives: Tensor, by_linear: Tensor, images: Tensor, features: Tensor, batch: PairBatch
    ) -> None:
        """Add how the strip in the middle moves the query vectors to the derivatives (n, M)."""
        touched = self._triples_of_moved_rows(batch)
        if not self.shared.folded_tangents and not len(touched):
            return
        by_maps = self.back.by_maps(by_linear, features, batch)
        if self.shared.folded_tangents:
            by_kernel, by_bias = self.back.by_convolution(by_maps, images, batch)
            derivatives += self.stacked_tangents.kernel @ by_kernel.flatten(start_dim=1).T
            derivatives += self.stacked_tangents.bias @ by_bias.T
        if not len(touched):
            return
        by_images = self.back.by_images(by_maps[touched], images.shape[2:])  # (m, h, w)
        by_last_rows, by_first_rows = by_images.tensor_split(2, dim=1)
        heads, relations = batch.heads[batch.rows][touched], batch.relations[batch.rows][touched]
        for tangent, out in zip(self.shared.tangents, derivatives, strict=True):
            for ids, gradients, cut, rows in (
                (heads, by_last_rows, self.shared.sizes.last_rows, tangent.entity_rows),
                (relations, by_first_rows, self.shared.sizes.first_rows, tangent.relation_rows),
            ):
                for row, direction in rows.items():
                    moved = (gradients * cut(direction)[0, 0].to(gradients)).sum(dim=(1, 2))
                    out.index_add_(0, touched, torch.where(ids == row, moved, 0))

    def _triples_of_moved_rows(self, batch: PairBatch) -> Tensor:
        """Find the triples (m,) whose head or relation moves along some tangent."""
        heads, relations = batch.heads[batch.rows], batch.relations[batch.rows]
        moves = torch.zeros_like(heads, dtype=torch.bool)
        for tangent in self.shared.tangents:
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


def _stack_tangents(shared: SharedQueries) -> _StackedTangents:
    model, tangents, convolution = shared.model, shared.tangents, shared.convolution
    folded = shared.folded_tangents or [folding.resting(convolution)] * len(tangents)

    def rows(name: str) -> Tensor:
        zeros = torch.zeros_like(model.get_parameter(name))
        return torch.stack([tangent.dense.get(name, zeros) for tangent in tangents])

    nothing = model.fc.weight.new_zeros(0, model.fc.out_features)
    left = [nothing if tangent.linear_weight is None else tangent.linear_weight[0] for tangent in tangents]
    ranks = torch.tensor(shared.ranks, device=nothing.device)
    return _StackedTangents(
        kernel=torch.stack([one.kernel.flatten() for one in folded]),
        bias=torch.stack([one.bias for one in folded]),
        linear_bias=rows("fc.bias"),
        bn2_weight=rows("bn2.weight"),
        bn2_bias=rows("bn2.bias"),
        left=torch.cat(left),
        owner=torch.repeat_interleave(ranks),
    )

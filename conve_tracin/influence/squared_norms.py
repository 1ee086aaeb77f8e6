"""Squared norms of the gradients of triples' scores, without the gradients where a closed form exists."""

import torch
import torch.nn.functional as F
from torch import Tensor

from conve_tracin.influence import folding
from conve_tracin.influence.backward import MapGradients
from conve_tracin.influence.shared_queries import SharedQueries
from conve_tracin.influence.strips import mask_where_inactive
from conve_tracin.influence.sweep import PairBatch
from conve_tracin.influence.tangent import CONVOLUTION, ENTITY_BIAS, ENTITY_TABLE, LINEAR_WEIGHT, RELATION_TABLE
from conve_tracin.model import ConvE


class SquaredNorms(SharedQueries):
    """Squared norms over some of the parameters.

    Args:
        model: ConvE in eval mode.
        names: the parameters.
        relations, low_precision: see `SharedQueries`.
    """

    def __init__(
        self,
        model: ConvE,
        names: frozenset[str],
        *,
        relations: Tensor,
        low_precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, [], relations=relations, low_precision=low_precision)
        self.names = names
        self.low_convolution = self.convolution.to(self.precision)
        self.back = MapGradients(self.kernel, model.fc.weight.detach().to(self.precision).T, self.table.dtype)

    @property
    def features_of_pair(self) -> int:
        """How many features a pair has in a batch."""
        return self.model.config.feature_map_size

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the scores (M,) and the squared norms (M,) of their gradients."""
        names = self.names
        heads, relations = self.table.index_select(0, batch.heads), self.relation_table.index_select(0, batch.relations)
        images = torch.cat([heads, relations], dim=1)
        images = images.view(-1, 1, 2 * self.sizes.height, self.sizes.width).to(self.precision)
        features = F.relu_(self.low_convolution(images)).flatten(start_dim=1)  # (B, F)
        linear = self._linear(features, batch)  # (B, d)
        before_relu = self.before_relu(linear)
        queries = F.relu(before_relu).index_select(0, batch.rows)  # (M, d)
        tail_rows = self.table.index_select(0, batch.tails)  # (M, d)
        scores = self.scores(queries, tail_rows, batch)
        by_before_relu = mask_where_inactive(tail_rows, before_relu.index_select(0, batch.rows))  # (M, d)
        by_linear = by_before_relu * self.scale

        norms = torch.zeros_like(scores)
        if LINEAR_WEIGHT in names:
            # The gradient is the outer product of by_linear and the features, so the norms multiply.
            feature_norms = features.to(norms.dtype).square().sum(dim=1)
            norms += _squared(by_linear) * feature_norms[batch.rows]
        if "fc.bias" in names:
            norms += _squared(by_linear)
        if "bn2.weight" in names:
            norms += _squared(by_before_relu * self.normalised(linear).index_select(0, batch.rows))
        if "bn2.bias" in names:
            norms += _squared(by_before_relu)
        if ENTITY_BIAS in names:
            norms += 1
        if names.isdisjoint({*CONVOLUTION, ENTITY_TABLE, RELATION_TABLE}):
            return scores, norms

        by_maps = self.back.by_maps(by_linear, features, batch)
        if not names.isdisjoint(CONVOLUTION):
            by_kernel, by_bias = self.back.by_convolution(by_maps, images, batch)
            for name, gradient in folding.unfolded_gradients(self.model, by_kernel, by_bias).items():
                if name in names:
                    norms += _squared(gradient)
        by_images = self.back.by_images(by_maps, images.shape[2:])
        by_head, by_relation = (part.flatten(start_dim=1) for part in by_images.tensor_split(2, dim=1))
        if RELATION_TABLE in names:
            norms += _squared(by_relation)
        if ENTITY_TABLE in names:
            same = batch.heads[batch.rows] == batch.tails
            norms += torch.where(same, _squared(by_head + queries), _squared(by_head) + _squared(queries))
        return scores, norms

    def _linear(self, features: Tensor, batch: PairBatch) -> Tensor:
        """Multiply the pairs' features (B, F) with `fc.weight`: (B, d)."""
        of_both = self.sizes.split(features)[1]
        products = self.products_alone(batch)[:, 0]
        return (products + (of_both @ self.weight_of_both).to(products.dtype))[:, : self.dimension]


def _squared(gradients: Tensor) -> Tensor:
    return gradients.flatten(start_dim=1).square().sum(dim=1)

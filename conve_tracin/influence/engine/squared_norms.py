"""Squared norms of the gradients of triples' scores, without the gradients if a closed form exists."""

import torch
import torch.nn.functional as F
from torch import Tensor

from conve_tracin.influence.engine import folding
from conve_tracin.influence.engine.backward import MapGradients
from conve_tracin.influence.engine.batches import PairBatch
from conve_tracin.influence.engine.shared_queries import SharedQueries
from conve_tracin.influence.engine.tangent import CONVOLUTION, ENTITY_BIAS, ENTITY_TABLE, LINEAR_WEIGHT, RELATION_TABLE


class SquaredNorms:
    """Squared norms over some of the parameters; `shared` has no tangents."""

    def __init__(self, shared: SharedQueries, names: frozenset[str]) -> None:
        self.shared = shared
        self.names = names
        self.convolution = shared.convolution.to(shared.precision)
        weight = shared.model.fc.weight.detach().to(shared.precision)
        self.back = MapGradients(shared.kernel, weight.T, shared.table.dtype)

    @property
    def features_of_pair(self) -> int:
        """How many features a pair has in a batch."""
        return self.shared.model.config.feature_map_size

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the scores (M,) and the squared norms (M,) of their gradients."""
        shared, names = self.shared, self.names
        images = shared.images(batch)
        features = F.relu_(self.convolution(images)).flatten(start_dim=1)  # (B, F)
        linear = self._linear(features, batch)  # (B, d)
        triples = shared.triples(linear, batch)
        scores, queries = triples.scores, triples.queries
        by_before_relu, by_linear = triples.by_before_relu, triples.by_linear

        norms = torch.zeros_like(scores)
        if LINEAR_WEIGHT in names:
            # The gradient is the outer product of by_linear and the features, so the norms multiply.
            feature_norms = features.to(norms.dtype).square().sum(dim=1)
            norms += _squared(by_linear) * feature_norms[batch.rows]
        if "fc.bias" in names:
            norms += _squared(by_linear)
        if "bn2.weight" in names:
            norms += _squared(by_before_relu * shared.normalised(linear).index_select(0, batch.rows))
        if "bn2.bias" in names:
            norms += _squared(by_before_relu)
        if ENTITY_BIAS in names:
            norms += 1
        if names.isdisjoint({*CONVOLUTION, ENTITY_TABLE, RELATION_TABLE}):
            return scores, norms

        by_maps = self.back.by_maps(by_linear, features, batch)
        if not names.isdisjoint(CONVOLUTION):
            by_kernel, by_bias = self.back.by_convolution(by_maps, images, batch)
            for name, gradient in folding.unfolded_gradients(shared.model, by_kernel, by_bias).items():
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
        shared = self.shared
        of_both = shared.sizes.split(features)[1]
        products = shared.products_alone(batch)[:, 0]
        return (products + (of_both @ shared.weight_of_both).to(products.dtype))[:, : shared.dimension]


def _squared(gradients: Tensor) -> Tensor:
    return gradients.flatten(start_dim=1).square().sum(dim=1)

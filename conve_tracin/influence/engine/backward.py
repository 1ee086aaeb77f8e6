"""From gradients by the linear layer's output back through ConvE's maps: for each triple of a batch, not their sum."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conve_tracin.influence.engine import folding
from conve_tracin.influence.engine.batches import PairBatch
from conve_tracin.influence.engine.strips import mask_where_inactive

# Up to this size on a CPU, and always on a GPU, a pair's feature maps are copied for each of its triples: that is
# cheaper than going through the pairs one by one.
COPIED_FEATURES = 4096


@dataclass(frozen=True)
class MapGradients:
    """The way back for M triples, whose B pairs have images (B, 1, h, w) and features (B, F′) in common.

    Attributes:
        kernel: of the convolution, (C, 1, kh, kw), in the precision of the products.
        weight: of the features in the linear layer, (F′, d), in that precision.
        dtype: of the gradients by kernel, bias and images.
    """

    kernel: Tensor
    weight: Tensor
    dtype: torch.dtype

    def by_maps(self, by_linear: Tensor, features: Tensor, batch: PairBatch) -> Tensor:
        """Go back through the linear layer and the ReLU: gradients (M, d) to gradients by the maps (M, C, P)."""
        by_maps = by_linear.to(self.weight.dtype) @ self.weight.T  # (M, F′), before the ReLU's derivative
        if self._copies_features:
            mask_where_inactive(by_maps, features.index_select(0, batch.rows), out=by_maps)
        else:
            for pair, triples in enumerate(batch.triples_of_pairs()):
                here = by_maps[triples]
                mask_where_inactive(here, features[pair].expand_as(here), out=here)
        return by_maps.view(len(by_maps), len(self.kernel), -1)

    def by_convolution(self, by_maps: Tensor, images: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Go back to the convolution: kernel gradients (M, C, 1, kh, kw) and bias gradients (M, C)."""
        patches = folding.patches(images, self.kernel.shape[2:]).transpose(1, 2)  # (B, P, kh · kw)
        if self._copies_features:
            by_kernel = by_maps @ patches.index_select(0, batch.rows)  # (M, C, kh · kw)
        else:
            by_kernel = by_maps.new_empty(*by_maps.shape[:2], patches.shape[2])
            for pair, triples in enumerate(batch.triples_of_pairs()):
                torch.matmul(by_maps[triples].flatten(0, 1), patches[pair], out=by_kernel[triples].flatten(0, 1))
        return by_kernel.view(-1, *self.kernel.shape).to(self.dtype), by_maps.sum(dim=2, dtype=self.dtype)

    def by_images(self, by_maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Go back to the images: gradients (M, h, w)."""
        by_patches = self.kernel.flatten(start_dim=1).T @ by_maps  # (M, kh · kw, P)
        return F.fold(by_patches.to(self.dtype), size, self.kernel.shape[2:])[:, 0]

    @property
    def _copies_features(self) -> bool:
        return self.weight.device.type != "cpu" or len(self.weight) <= COPIED_FEATURES

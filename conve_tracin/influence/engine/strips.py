"""ConvE's feature maps as three strips of rows: those that see the head alone, both embeddings, the relation alone.

The image is the head's rows above the relation's, and the convolution has no padding. So the upper rows of the maps
depend on the head alone and the lower ones on the relation alone; only kernel_height − 1 rows between them see both.
The product with `fc.weight` is a sum over all features, and each strip has its share of it: one for each head, one for
each relation, and for each pair that of the narrow strip in the middle.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from conve_tracin.influence.engine.folding import Convolution, convolve
from conve_tracin.model.conve import ConvEConfig


@dataclass(frozen=True)
class StripSizes:
    """How the rows of image and maps are shared out.

    Attributes:
        height, width: of an embedding's image.
        rows_alone: rows of the maps that see the head alone, and as many that see the relation alone.
        rows_of_both: rows of the maps that see both.
        columns: of the maps.
        channels: feature maps.
    """

    height: int
    width: int
    rows_alone: int
    rows_of_both: int
    columns: int
    channels: int

    @classmethod
    def of(cls, config: ConvEConfig, *, whole: bool = False) -> "StripSizes":
        """Take them from a model's sizes, or make one strip of the `whole` maps.

        A kernel taller than an embedding's image leaves no row that sees one embedding alone.
        """
        rows_alone = 0 if whole else max(0, config.embedding_height - config.kernel_height + 1)
        rows = 2 * config.embedding_height - config.kernel_height + 1
        return cls(
            height=config.embedding_height,
            width=config.embedding_width,
            rows_alone=rows_alone,
            rows_of_both=rows - 2 * rows_alone,
            columns=config.embedding_width - config.kernel_width + 1,
            channels=config.output_channels,
        )

    @property
    def features_alone(self) -> int:
        """Features of each outer strip."""
        return self.channels * self.rows_alone * self.columns

    @property
    def features_of_both(self) -> int:
        """Features of the strip in the middle."""
        return self.channels * self.rows_of_both * self.columns

    def images(self, rows: Tensor) -> Tensor:
        """Lay embeddings (S, d) as images (S, 1, height, width), what an outer strip sees."""
        return rows.view(-1, 1, self.height, self.width)

    def images_of_both(self, head_rows: Tensor, relation_rows: Tensor) -> Tensor:
        """Lay what the strip in the middle sees of embeddings (S, d): the head's last rows, the relation's first."""
        return torch.cat([self.last_rows(head_rows), self.first_rows(relation_rows)], dim=2)

    def last_rows(self, head_rows: Tensor) -> Tensor:
        """Cut what the strip in the middle sees of heads (S, d): (S, 1, h / 2, w)."""
        return self.images(head_rows)[:, :, self.rows_alone :]

    def first_rows(self, relation_rows: Tensor) -> Tensor:
        """Cut what the strip in the middle sees of relations (S, d): (S, 1, h / 2, w)."""
        return self.images(relation_rows)[:, :, : self.height - self.rows_alone]

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split weights of all features (m, F) into those of head, both and relation, (m, F′) each."""
        by_rows = weight.view(len(weight), self.channels, -1, self.columns)
        sizes = [self.rows_alone, self.rows_of_both, self.rows_alone]
        head, both, relation = (part.flatten(start_dim=1) for part in by_rows.split(sizes, dim=2))
        return head, both, relation


@dataclass(frozen=True)
class MovedImages:
    """How some of a strip's images move along a tangent.

    Attributes:
        tangent: which one, from 0.
        places: of the images that move, (s,).
        directions: of these images, (s, 1, h, w).
    """

    tangent: int
    places: Tensor
    directions: Tensor


@dataclass(frozen=True)
class Strip:
    """One strip's share in products with weights of all features, and how these shares move along n tangents.

    Attributes:
        convolution: of the maps and, if any tangent moves them, of how they move along each.
        input_kernel: the convolution's kernel for the maps themselves, in which an image moves.
        weight: (F′, m), in the precision of the products.
        num_tangents: n.
    """

    convolution: Convolution
    input_kernel: Tensor
    weight: Tensor
    num_tangents: int

    def __call__(self, images: Tensor, moved: Iterable[MovedImages], *, dtype: torch.dtype) -> Tensor:
        """Return the products of images (S, 1, h, w), and how they move: (S, 1 + n, m) of `dtype`."""
        size, (num_features, width) = len(images), self.weight.shape
        if num_features == 0:
            return images.new_zeros(size, 1 + self.num_tangents, width, dtype=dtype)
        channels = len(self.convolution.kernel) // len(self.input_kernel)
        maps = self.convolution(images).view(size, channels, num_features)
        # The features and how they move, in the place of the maps: one product serves them all.
        features = maps
        for copy in range(1, channels):
            mask_where_inactive(maps[:, copy], maps[:, 0], out=features[:, copy])
        features[:, 0].clamp_(min=0)
        products = (features.flatten(0, 1) @ self.weight).to(dtype).view(size, channels, width)
        if channels < 1 + self.num_tangents:
            products = torch.cat([products, products.new_zeros(size, self.num_tangents, width)], dim=1)
        for part in moved:
            no_bias = self.input_kernel.new_zeros(len(self.input_kernel))
            moved_maps = convolve(part.directions, self.input_kernel, no_bias).flatten(start_dim=1)
            moved_features = mask_where_inactive(moved_maps, features[part.places, 0])
            products[:, 1 + part.tangent].index_add_(0, part.places, (moved_features @ self.weight).to(dtype))
        return products


def mask_where_inactive(values: Tensor, activations: Tensor, out: Tensor | None = None) -> Tensor:
    """Set `values` to zero where a ReLU with input or output `activations` was off: its derivative, fused."""
    if out is None:
        return torch.ops.aten.threshold_backward(values, activations, 0)
    return torch.ops.aten.threshold_backward.grad_input(values, activations, 0, grad_input=out)

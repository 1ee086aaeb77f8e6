"""How ConvE's query vectors move with one row of an embedding table, in closed form for many queries at once.

In eval mode q = ReLU(scale · (W · ReLU(K ∗ image) + b) + shift), with the normalisations folded into K, scale and
shift. The image is the head's rows above the relation's, so that with D the derivatives of the two ReLUs

    J = ∂q/∂(row) = D₂ · diag(scale) · W · D₁ · K,

over the features alone that see the row. J's column of a pixel sums W · D₁ · K over the kernel's places and channels:
W · K is the same for all queries and is laid out once, and what differs between queries are the zeros and ones of D₁.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from conve_tracin.influence.engine import folding
from conve_tracin.influence.engine.strips import mask_where_inactive
from conve_tracin.model.conve import ConvE

HEAD, RELATION = 0, 1


class RowJacobians:
    """The derivatives of query vectors by their head's row (side 0) or their relation's row (side 1).

    Args:
        model: ConvE in eval mode.
        side: `HEAD` or `RELATION`.
    """

    def __init__(self, model: ConvE, side: int) -> None:
        self.config = config = model.config
        self.side = side
        self.convolution = folding.folded_convolution(model)
        bn2 = model.bn2
        self.scale = bn2.weight.detach() / torch.sqrt(bn2.running_var + bn2.eps)
        self.shift = bn2.bias.detach() + (model.fc.bias.detach() - bn2.running_mean) * self.scale
        self.linear = model.fc.weight.detach()  # (d, F)
        # Rows of the feature maps that see the side's rows of the image: all but those of the other side alone.
        map_rows = 2 * config.embedding_height - config.kernel_height + 1
        seeing = min(map_rows, config.embedding_height)
        self.first = 0 if side == HEAD else map_rows - seeing
        self.rows = slice(self.first, self.first + seeing)
        self.columns = config.embedding_width - config.kernel_width + 1
        by_map = self.linear.view(len(self.linear), config.output_channels, map_rows, self.columns)
        self.seeing = by_map[:, :, self.rows]  # (d, C, rows, columns)

    def __call__(self, head_rows: Tensor, relation_rows: Tensor) -> "Activations":
        """Compute the query vectors of embeddings (B, d) twice, and what their derivatives need."""
        size = (-1, 1, self.config.embedding_height, self.config.embedding_width)
        images = torch.cat([head_rows.view(size), relation_rows.view(size)], dim=2)
        maps = self.convolution(images).clamp_(min=0)  # (B, C, P)
        vectors = (maps.flatten(start_dim=1) @ self.linear.T).mul_(self.scale).add_(self.shift).clamp_(min=0)
        maps = maps.view(*maps.shape[:2], -1, self.columns)[:, :, self.rows]
        return Activations(self, vectors, maps)

    @cached_property
    def products(self) -> Tensor:
        """W · K at each pixel of the row's image, for the features that see it: (d pixels, kh · kw · C, d)."""
        by_map = self.seeing.permute(2, 3, 1, 0).contiguous()  # (rows, columns, C, d)
        by_place = self._windows(by_map)  # (height, width, C, d, kh, kw)
        # What stands y rows above and x columns left of a pixel meets it with the kernel's place (y, x).
        kernel = self.convolution.kernel[:, 0].flip(1, 2).permute(1, 2, 0)[..., None]  # (kh, kw, C, 1)
        return (by_place.permute(0, 1, 4, 5, 2, 3).contiguous() * kernel).flatten(2, 4).flatten(0, 1)

    def places(self, maps: Tensor) -> Tensor:
        """Lay out which features (B, C, rows, columns) are active as `products` has them: (d, B, kh · kw · C)."""
        active = (maps > 0).to(maps.dtype).permute(2, 3, 0, 1).contiguous()  # (rows, columns, B, C)
        by_place = self._windows(active)  # (height, width, B, C, kh, kw)
        return by_place.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 1)

    def _windows(self, by_map: Tensor) -> Tensor:
        """Collect what each pixel of the side meets of maps (rows, columns, …): (height, width, …, kh, kw)."""
        height, width = self.config.kernel_height, self.config.kernel_width
        padding = (0, 0) * (by_map.dim() - 2) + (width - 1, width - 1, height - 1, height - 1)
        windows = F.pad(by_map, padding).unfold(0, height, 1).unfold(1, width, 1)
        return self.pixels_of_side(windows, dim=0)

    def pixels_of_side(self, by_pixel: Tensor, *, dim: int) -> Tensor:
        """Cut the side's rows of pixels from all that the features see."""
        start = self.side * self.config.embedding_height - self.first
        return by_pixel.narrow(dim, start, self.config.embedding_height)


def moved_query_vectors(
    model: ConvE, rows: tuple[Tensor, Tensor], directions: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute the query vectors of embeddings of heads and relations, (B, d) each, and their derivatives: (B, d) twice.

    `directions` are how the embeddings move. `torch.func.jvp` gives the same; for BatchNorm it first loads torch's
    compiler, which takes longer than most runs.
    """
    jacobians, config = RowJacobians(model, HEAD), model.config
    size = (-1, 1, config.embedding_height, config.embedding_width)
    images, moved = (torch.cat([part.view(size) for part in pair], dim=2) for pair in (rows, directions))
    kernel, bias = jacobians.convolution.kernel, jacobians.convolution.bias
    features = folding.convolve(images, kernel, bias).clamp_(min=0).flatten(start_dim=1)  # (B, F)
    moved_features = folding.convolve(moved, kernel, torch.zeros_like(bias)).flatten(start_dim=1)
    moved_features = mask_where_inactive(moved_features, features)
    vectors, moved_vectors = (part @ jacobians.linear.T * jacobians.scale for part in (features, moved_features))
    vectors = (vectors + jacobians.shift).clamp_(min=0)
    return vectors, mask_where_inactive(moved_vectors, vectors)


class Activations:
    """What the derivatives of B query vectors need: the vectors (B, d) and the features (B, C, rows, columns)."""

    def __init__(self, of: RowJacobians, vectors: Tensor, maps: Tensor) -> None:
        self.of = of
        self.vectors = vectors
        self.maps = maps

    def jacobians(self) -> Tensor:
        """Compute ∂q_i/∂(row)_j: (B, d, d)."""
        by_pixel = torch.bmm(self.of.places(self.maps), self.of.products)  # (d pixels, B, d)
        return by_pixel.permute(1, 2, 0) * self._by_linear()[:, :, None]

    def pull_back(self, directions: Tensor) -> Tensor:
        """Multiply directions (P, B, d) by the transposed Jacobians: (P, B, d)."""
        of, (count, size, dim) = self.of, directions.shape
        by_linear = (directions * self._by_linear()).flatten(0, 1)  # (P · B, d)
        by_maps = (by_linear @ of.seeing.flatten(start_dim=1)).view(count, size, *self.maps.shape[1:])
        by_maps = mask_where_inactive(by_maps, self.maps.expand_as(by_maps)).flatten(0, 1)  # (P · B, C, rows, columns)
        by_image = F.conv_transpose2d(by_maps, of.convolution.kernel)  # (P · B, 1, …)
        return of.pixels_of_side(by_image, dim=2).reshape(count, size, dim)

    def _by_linear(self) -> Tensor:
        return torch.where(self.vectors > 0, self.of.scale, 0)  # (B, d)

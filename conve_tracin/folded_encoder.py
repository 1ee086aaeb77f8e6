"""ConvE's query vectors in training on a CPU, without a pass over the feature maps for their BatchNorm.

A map of the convolution is w · p over the patches p of the image, and so its mean and variance over the batch follow
from the mean and the covariance of the patches, of which there are kernel height × kernel width: w · E[p] and
wᵀ Cov[p] w. BatchNorm's scale and shift then belong to the weights, and a map's dropout does as well, since the ReLU
behind it commutes with a factor that is not negative. What is left is one product of patches and weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conve_tracin.model import ConvE


def encode_rows_folded(model: ConvE, head_rows: Tensor, relation_rows: Tensor) -> Tensor:
    """Compute what `model.encode_rows` computes in training mode: (B, d) twice to (B, d), running statistics included.

    Equal but for rounding; dropout draws other random numbers from the same generator.
    """
    config = model.config
    image_shape = (-1, 1, config.embedding_height, config.embedding_width)
    image = torch.cat([head_rows.view(image_shape), relation_rows.view(image_shape)], dim=2)
    image = model.input_dropout(model.bn0(image))  # (B, 1, 2 · height, width)
    patches = F.unfold(image, (config.kernel_height, config.kernel_width))  # (B, kernel, positions)
    patch_mean = patches.mean(dim=(0, 2))  # (kernel,)
    centred = patches - patch_mean[:, None]
    weight, bias = fold_normalization(model.conv1, model.bn1, centred, patch_mean)
    ones = centred.new_ones(len(image), config.output_channels, 1)
    kept = F.dropout(ones, model.feature_map_dropout.p)  # (B, channels, 1)
    maps = torch.baddbmm(bias[:, None] * kept, weight * kept, centred).relu_()  # (B, channels, positions)
    return model.project(maps.flatten(start_dim=1))


def fold_normalization(
    convolution: nn.Conv2d, norm: nn.BatchNorm2d, centred: Tensor, patch_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weight (channels, kernel) and bias (channels,) that turn centred patches into normalized maps.

    `centred` are the patches (B, kernel, positions) minus their mean (kernel,). Updates the running statistics.
    """
    weight = convolution.weight.flatten(start_dim=1)  # (channels, kernel)
    samples = centred.transpose(0, 1).flatten(start_dim=1)  # (kernel, B · positions)
    count = samples.shape[1]
    covariance = samples @ samples.T / count
    variance = ((weight @ covariance) * weight).sum(dim=1)  # (channels,)
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(weight @ patch_mean + convolution.bias, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    # The convolution's bias goes with the mean; it keeps a gradient, of zero, for the optimizer.
    return weight * scale[:, None], norm.bias + 0 * convolution.bias

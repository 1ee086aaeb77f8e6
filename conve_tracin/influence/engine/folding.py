"""bn0, conv1 and bn1 of ConvE as one convolution: in eval mode the two normalisations are affine and fold into it."""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap

from conve_tracin.influence.engine.tangent import CONVOLUTION, ConvETangent
from conve_tracin.model.conve import ConvE


@dataclass(frozen=True)
class Convolution:
    """A convolution without padding: kernel (C, 1, kh, kw) and bias (C,)."""

    kernel: Tensor
    bias: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Convolve images (B, 1, h, w) to maps (B, C, P)."""
        return convolve(images, self.kernel, self.bias)

    def to(self, dtype: torch.dtype) -> "Convolution":
        """Return the same convolution in another precision."""
        return Convolution(self.kernel.to(dtype), self.bias.to(dtype))


def convolve(images: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolve images (B, 1, h, w) with a kernel (C, 1, kh, kw) and a bias (C,) to maps (B, C, P)."""
    if images.device.type != "cpu" or images.dtype == torch.bfloat16:
        return F.conv2d(images, kernel, bias).flatten(start_dim=2)
    # On a CPU torch's own convolution of one channel takes several times as long (docs/notes.md).
    by_patch = kernel.flatten(start_dim=1).expand(len(images), -1, -1)  # (B, C, kh · kw)
    return torch.baddbmm(bias[:, None], by_patch, patches(images, kernel.shape[2:]))


def patches(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Collect what a kernel of (kh, kw) meets on images (B, 1, h, w): (B, kh · kw, P), as `F.unfold` but faster."""
    height, width = size
    rows, columns = images.shape[2] - height + 1, images.shape[3] - width + 1
    corners = itertools.product(range(height), range(width))
    return torch.cat(
        [images[:, :, row : row + rows, column : column + columns].flatten(start_dim=2) for row, column in corners],
        dim=1,
    )


def stack(convolutions: list[Convolution]) -> Convolution:
    """Put several convolutions into one with all their channels, in order."""
    return Convolution(
        torch.cat([convolution.kernel for convolution in convolutions]),
        torch.cat([convolution.bias for convolution in convolutions]),
    )


def parameters(model: ConvE) -> dict[str, Tensor]:
    """Return the parameters that are folded, detached."""
    return {name: model.get_parameter(name).detach() for name in CONVOLUTION}


def fold(model: ConvE, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Fold the parameters `values` and the model's running statistics into kernel and bias."""
    (input_scale, input_shift), (output_scale, output_shift) = scales_and_shifts(model, values)
    kernel = values["conv1.weight"] * (output_scale[:, None, None, None] * input_scale)
    # Without padding, a constant added to the image adds the kernel's sum times that constant everywhere.
    bias = values["conv1.bias"] + values["conv1.weight"].sum(dim=(1, 2, 3)) * input_shift
    return kernel, bias * output_scale + output_shift


def scales_and_shifts(model: ConvE, values: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Write bn0 and bn1 as x · scale + shift; both are linear in their weight and bias."""
    found = []
    for name, norm in (("bn0", model.bn0), ("bn1", model.bn1)):
        scale = values[f"{name}.weight"] / torch.sqrt(norm.running_var + norm.eps)
        found.append((scale, values[f"{name}.bias"] - norm.running_mean * scale))
    return found


def folded_convolution(model: ConvE) -> Convolution:
    """Fold the model's own parameters."""
    return Convolution(*fold(model, parameters(model)))


def folded_tangent(model: ConvE, tangent: ConvETangent) -> Convolution | None:
    """Return how the folded convolution moves along a tangent, or None if it rests."""
    at = parameters(model)
    if not any(name in tangent.dense for name in at):
        return None
    along = {name: tangent.dense.get(name, torch.zeros_like(value)) for name, value in at.items()}
    # The product rule by hand: the first torch.func.jvp of a process takes seconds, which it spends on imports.
    (input_scale, input_shift), (output_scale, _) = scales_and_shifts(model, at)
    (moved_input_scale, moved_input_shift), (moved_output_scale, moved_output_shift) = scales_and_shifts(model, along)
    weight, moved_weight = at["conv1.weight"], along["conv1.weight"]
    scale = output_scale[:, None, None, None] * input_scale
    moved_scale = moved_output_scale[:, None, None, None] * input_scale
    moved_scale += output_scale[:, None, None, None] * moved_input_scale
    total, moved_total = weight.sum(dim=(1, 2, 3)), moved_weight.sum(dim=(1, 2, 3))
    bias = at["conv1.bias"] + total * input_shift
    moved_bias = along["conv1.bias"] + (moved_total * input_shift + total * moved_input_shift)
    return Convolution(
        moved_weight * scale + weight * moved_scale,
        moved_bias * output_scale + bias * moved_output_scale + moved_output_shift,
    )


def folded_tangents(model: ConvE, tangents: list[ConvETangent]) -> list[Convolution]:
    """Return how the folded convolution moves along each of the tangents; none if it rests along all."""
    folded = [folded_tangent(model, tangent) for tangent in tangents]
    if all(convolution is None for convolution in folded):
        return []
    at_rest = resting(folded_convolution(model))
    return [convolution or at_rest for convolution in folded]


def resting(convolution: Convolution) -> Convolution:
    """Return the direction in which a convolution does not move."""
    return Convolution(torch.zeros_like(convolution.kernel), torch.zeros_like(convolution.bias))


def unfolded_gradients(model: ConvE, by_kernel: Tensor, by_bias: Tensor) -> dict[str, Tensor]:
    """Turn gradients by the folded kernel (M, C, 1, kh, kw) and bias (M, C) into those by the parameters, (M, …)."""
    pull_back = vjp(lambda values: fold(model, values), parameters(model))[1]
    return vmap(lambda kernel, bias: pull_back((kernel, bias))[0])(by_kernel, by_bias)

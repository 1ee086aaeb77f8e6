"""In what precision a device multiplies."""

import torch


def set_tf32(allowed: bool) -> None:
    """Have GPUs round the factors of float32 products to TensorFloat-32's 10 bits, or not.

    torch by itself rounds those of convolutions, but not those of matrices. This holds for the whole process.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def supports_tf32(device: str) -> bool:
    """Whether the device has units for TensorFloat-32: NVIDIA's GPUs from Ampere on."""
    is_nvidia = device.startswith("cuda") and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def supports_bfloat16(device: str) -> bool:
    """Whether the device has instructions for bfloat16; without them it is slower than float32."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public name for this question on a CPU.
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())

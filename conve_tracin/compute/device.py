"""Which device computes, in what precision, and in batches that are halved if they do not fit into its memory."""

import os
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from conve_tracin.errors import InputError

Result = TypeVar("Result")


def choose_device(name: str) -> str:
    """Turn `--device` into a device, which then multiplies float32 exactly: "auto" is the GPU if there is one.

    Raises InputError for a device that this machine lacks, or of a kind on which nothing here was tried.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name}: use auto, cpu, cuda or cuda:N")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = own_gpu(name)
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available here; use --device cpu") from error
    set_tf32(allowed=False)
    return name


def own_gpu(device: str) -> str:
    """Name the GPU of this process if several processes share a machine, and make it the current one.

    Raises InputError if the machine has fewer GPUs than processes.
    """
    if device != "cuda" or not dist.is_initialized():
        return device
    own, gpus = int(os.environ.get("LOCAL_RANK") or dist.get_rank()), torch.cuda.device_count()
    if own >= gpus:
        raise InputError(f"this machine has {gpus} GPUs, fewer than processes; start one for each, or use the CPU")
    torch.cuda.set_device(own)
    return f"cuda:{own}"


def set_tf32(allowed: bool) -> None:
    """Let GPUs round the factors of float32 products to TensorFloat-32's 10 bits, or not, in the whole process.

    By default torch rounds those of convolutions, but not those of matrices.
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


# On Linux and macOS, on Windows, and for sizes beyond any address.
CPU_ALLOCATOR_TEXTS = ("allocate memory", "not enough memory", "Storage size calculation overflowed")

# From the libraries behind a GPU's products and convolutions.
GPU_LIBRARY_TEXTS = ("STATUS_ALLOC_FAILED",)


def compute_in_halves(compute: Callable[[slice], Result], batch: slice) -> list[Result]:
    """Compute a batch, or its halves if memory does not suffice, and so on; returns the results in order."""
    try:
        return [compute(batch)]
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if batch.stop - batch.start <= 1 or not is_out_of_memory(error):
            raise
    # Outside of the except block the failed attempt's memory is free.
    middle = (batch.start + batch.stop) // 2
    first, second = slice(batch.start, middle), slice(middle, batch.stop)
    return compute_in_halves(compute, first) + compute_in_halves(compute, second)


def compute_in_batches(
    compute: Callable[[slice], Result], count: int, *, batch_size: int, progress: str | None = None
) -> Iterator[Result]:
    """Go through `count` items in batches of at most `batch_size`; yield the results in order."""
    with tqdm(total=count, desc=progress, unit="triple", unit_scale=True, disable=progress is None) as bar:
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            yield from compute_in_halves(compute, slice(start, stop))
            bar.update(stop - start)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, on a GPU or a CPU, is about memory."""
    # The CPU's allocator raises a plain RuntimeError, with a text of its own on each system.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(text in str(error) for text in (*CPU_ALLOCATOR_TEXTS, *GPU_LIBRARY_TEXTS))
    )

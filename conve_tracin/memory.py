"""Batches that do not fit into memory are halved until they do: the batch size changes no result."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from tqdm import tqdm

Result = TypeVar("Result")

# Of Linux and macOS, of Windows, and of sizes that no address reaches.
CPU_ALLOCATOR_TEXTS = ("allocate memory", "not enough memory", "Storage size calculation overflowed")
# Of the libraries behind a GPU's products and convolutions.
GPU_LIBRARY_TEXTS = ("STATUS_ALLOC_FAILED",)


def compute_in_halves(compute: Callable[[slice], Result], batch: slice) -> list[Result]:
    """Compute a batch; where memory does not suffice its halves, and so on. Returns the results in order."""
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

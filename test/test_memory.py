"""What counts as a lack of memory, and batches that are halved until they fit."""

import pytest
import torch

from conve_tracin.compute.device import compute_in_batches, is_out_of_memory


def test_this_systems_own_error_is_one_of_memory():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**58)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("cannot allocate memory"), False),
    ],
)
def test_what_counts_as_a_lack_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_batches_are_halved_until_they_fit_and_results_keep_their_order():
    tried = []

    def compute(batch):
        tried.append(batch.stop - batch.start)
        if batch.stop - batch.start > 3:
            torch.empty(2**58)
        return list(range(batch.start, batch.stop))

    parts = list(compute_in_batches(compute, 21, batch_size=10))
    assert [number for part in parts for number in part] == list(range(21))
    assert max(tried) == 10
    assert max(map(len, parts)) == 3


def test_a_single_item_that_does_not_fit_is_an_error():
    with pytest.raises(RuntimeError, match="memory"):
        list(compute_in_batches(lambda _: torch.empty(2**58), 2, batch_size=2))

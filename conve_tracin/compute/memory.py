"""What a process does with memory that was freed."""

import ctypes
import gc

import torch


def release_memory(device: torch.device) -> None:
    """Give a GPU's cached memory back to other processes; the CPU caches none."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def keep_freed_memory(device: torch.device | str) -> None:
    """Let glibc keep what a CPU's tensors free: otherwise each batch pays for its large ones in page faults.

    This changes the whole process, so programs ask for it, not the library. Other C libraries stay as they are.
    """
    if torch.device(device).type != "cpu":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # The gradient of a very large table is given back all the same, or small tensors would take its place. This is the
    # largest threshold that glibc takes.
    for parameter, value in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**22)):
        mallopt(parameter, value)

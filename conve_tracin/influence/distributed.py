"""Sharing one run over the processes of torchrun: GPUs, or machines.

Every process reads the inputs and computes its share of the training triples; the scores are gathered in all of them.
Process 0 alone knows what an earlier, killed run has left, prints and writes; the others follow it.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from conve_tracin.triples import group_by_query

LOOPBACK = "lo"  # Linux's name of it


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the other processes where torchrun started this one; do nothing otherwise."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    keep_to_loopback()
    # Scores are gathered on the CPU, whatever computed them.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def keep_to_loopback() -> None:
    """Have the processes of a single machine exchange scores over its loopback, whatever its name resolves to."""
    is_single_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if is_single_machine and LOOPBACK in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)


def is_main() -> bool:
    """Whether this process prints and writes: the only one, or process 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def own_gpu(device: str) -> str:
    """Name this process's GPU where several processes share a machine."""
    local_rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{local_rank}" if device == "cuda" and local_rank is not None and dist.is_initialized() else device


def announce(triples: np.ndarray | None) -> np.ndarray:
    """Tell all processes which triples process 0 is about to trace; the others pass None."""
    if not dist.is_initialized():
        return triples
    message = [triples]
    dist.broadcast_object_list(message, src=0)
    return message[0]


def compute_shared(compute: Callable[[np.ndarray], Tensor], triples: np.ndarray) -> Tensor:
    """Compute scores (…, N) of triples (N, 3), each process those of its share; all get the whole.

    Args:
        compute: triples (S, 3) to scores (…, S) on the CPU.
        triples: the same in every process.
    """
    if not dist.is_initialized():
        return compute(triples)
    shares = split_by_query(triples, dist.get_world_size())
    mine = compute(triples[shares[dist.get_rank()]])
    whole = mine.new_empty(*mine.shape[:-1], len(triples))
    for rank, share in enumerate(shares):
        block = mine if rank == dist.get_rank() else mine.new_empty(*mine.shape[:-1], len(share))
        dist.broadcast(block, src=rank)
        whole[..., torch.from_numpy(share)] = block
    return whole


def split_by_query(triples: np.ndarray, count: int) -> list[np.ndarray]:
    """Split triples (N, 3) into `count` shares of positions; triples of one (head, relation) stay together mostly."""
    return np.array_split(group_by_query(triples).order, count)


def run_on_all_gpus() -> int | None:
    """Start the running script again with one process for each visible GPU, and return its exit code.

    None where there is nothing to start: fewer than two GPUs, or already one of several processes.
    """
    gpus = torch.cuda.device_count()
    if gpus < 2 or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    return subprocess.call([*launcher, *sys.argv])

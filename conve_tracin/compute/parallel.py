"""One run in several processes, started by torchrun or --enable-multi-gpu on GPUs or machines.

Every process reads the inputs, does its share of the work and gets the results of all. Only process 0 looks for what an
earlier, killed run has left, and logs, prints and writes. If processes fail, the first says why, and all end with its
exit code.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
import uuid
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from conve_tracin.data.queries import group_by_query
from conve_tracin.errors import InputError, exit_code_of

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

# What a launcher tells each process.
NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")

# A process may wait for another that writes or ranks. One that ends is noticed at once.
LONGEST_WAIT = timedelta(days=1)

LOOPBACK = "lo"  # Linux's name of it

SECONDS_FOR_THE_LAUNCHER = 5

FAILURE = "first failure"


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the other processes if a launcher started several.

    If one of them fails, all end: the first with its own error, the others silently.

    Raises InputError if the launcher does not say all that is needed, or another process vanished.
    """
    if number_started() == 1:
        yield
        return
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {number_started()}, but {', '.join(missing)} not set; start several processes with torchrun"
        )
    keep_to_loopback()
    store, rank, size = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))
    dist.init_process_group(_backends(), store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    if not is_main_process():
        logging.disable(logging.CRITICAL)
    try:
        yield
    except BaseException as error:
        ending = _error_to_end_with(error, dist.PrefixStore("failures", store))
        if ending is error:
            raise
        raise ending from error
    else:
        dist.destroy_process_group()
    finally:
        logging.disable(logging.NOTSET)


def number_started() -> int:
    """Return how many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _backends() -> str:
    # Scores and ranks are gathered on the CPU, whatever computed them; gradients are added up where they are.
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def keep_to_loopback() -> None:
    """Let the processes of a single machine communicate over its loopback, whatever its name resolves to."""
    is_single_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if is_single_machine and LOOPBACK in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)


def _error_to_end_with(error: BaseException, store: dist.Store) -> BaseException:
    own = f"process {dist.get_rank()}: {exit_code_of(error)}"
    try:
        # Only the first process finds nothing there.
        first = store.compare_set(FAILURE, "", own).decode()
    except RuntimeError:
        first = f"unknown: {exit_code_of(error)}"
    if first != own:
        return SystemExit(int(first.rpartition(" ")[2]))
    if not is_lost_connection(error):
        return error
    # If the launcher knows what became of the other one, it says so and ends this process.
    time.sleep(SECONDS_FOR_THE_LAUNCHER)
    return InputError(
        "another process of this run has vanished, killed perhaps for lack of memory; start the run again, and "
        "train_pytorch.py with --resume-from-checkpoint auto"
    )


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error comes from waiting for another process."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process prints and writes: the only one, or process 0."""
    return rank() == 0


def broadcast(value: Value) -> Value:
    """Return process 0's value in all processes."""
    if not dist.is_initialized():
        return value
    message = [value]
    dist.broadcast_object_list(message, src=0)
    return message[0]


def all_gather(value: Value) -> list[Value]:
    """Return the values of all processes, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Value] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce(values: Tensor) -> Tensor:
    """Return the elementwise sum over all processes."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def compute_shared(compute: Callable[[np.ndarray], Tensor], triples: np.ndarray) -> Tensor:
    """Compute scores (…, N) of triples (N, 3), which all processes share and all get.

    `compute` takes triples (S, 3), of which there may be none, to scores (…, S) on the CPU.
    """
    if not dist.is_initialized():
        return compute(triples)
    shares = split_by_query(triples, world_size())
    mine = compute(np.take(triples, shares[rank()], axis=0)).contiguous()
    whole = mine.new_empty(*mine.shape[:-1], len(triples))
    for process, share in enumerate(shares):
        block = mine if process == rank() else mine.new_empty(*mine.shape[:-1], len(share))
        dist.broadcast(block, src=process)
        whole[..., torch.from_numpy(share)] = block
    return whole


def map_shared(compute: Callable[[np.ndarray], list[Value]], items: np.ndarray) -> list[Value]:
    """Compute a value for each of the items (n, …), which all processes share and all get, in their order.

    `compute` takes some of the items, of which there may be none.
    """
    if not dist.is_initialized():
        return compute(items)
    found: list[Value | None] = [None] * len(items)
    # Neighbouring items may cost the same, so each process takes every n-th.
    for process, values in enumerate(all_gather(compute(items[rank() :: world_size()]))):
        found[process :: world_size()] = values
    return found


def split_by_query(triples: np.ndarray, count: int) -> list[np.ndarray]:
    """Split triples (N, 3) into `count` shares of positions, most queries (head, relation) whole."""
    return np.array_split(group_by_query(triples).order, count)


def share_of_batch(chosen: Tensor) -> Tensor:
    """Return this process's part of a batch (B,); the sizes of the parts differ by at most one."""
    return chosen.tensor_split(world_size())[rank()]


def average_gradients(module: nn.Module) -> nn.Module:
    """Wrap a module so that its backward passes average the gradients over all processes."""
    if not dist.is_initialized():
        return module
    with warnings.catch_warnings():
        # Older versions do not know its successor.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        wrapped = DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
    if next(module.parameters()).device.type == "cpu":
        wrapped.register_comm_hook(None, average_each)
    return wrapped


def average_each(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average some gradients over all processes, one by one.

    All at once, the order of summation would depend on their places, which change after the first batch: a resumed run
    would differ in its last digits.
    """
    for gradient in bucket.gradients():
        dist.all_reduce(gradient.div_(world_size()))
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def synchronizes_batch_norm(device: torch.device) -> bool:
    """Whether BatchNorm normalizes training batches by the statistics of all processes; on a CPU each has its own."""
    return device.type == "cuda" and world_size() > 1


def average_statistics(model: nn.Module) -> None:
    """Set BatchNorm's running statistics to their mean over all processes."""
    if not dist.is_initialized():
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world_size()


def broadcast_weights(model: nn.Module) -> None:
    """Give the model of every process the weights and statistics of process 0."""
    if not dist.is_initialized():
        return
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)


def obstacle_to_several_gpus(*, device: str, gpus: int) -> str | None:
    """Say why influence on `device` needs or allows one process alone; None if it can use all visible `gpus`."""
    if device not in ("auto", "cuda"):
        return f"--device {device} names one device"
    if gpus < 2:
        return "no GPU is visible here" if gpus == 0 else "one GPU is visible here, which one process uses"
    return None


def run_on_all_gpus_if_asked(args: Namespace) -> None:
    """Do the whole run on all GPUs and exit with its code; return if --enable-multi-gpu is off or has an obstacle."""
    if args.enable_multi_gpu:
        exit_code = start_on_all_gpus(device=args.device)
        if exit_code is not None:
            sys.exit(exit_code)


def start_on_all_gpus(*, device: str, gpus: int | None = None) -> int | None:
    """Start the running script again with one process for each visible GPU, and return its exit code.

    Returns None if this process is one of several already, or there is an obstacle. `gpus` replaces the number of
    visible GPUs.
    """
    gpus = torch.cuda.device_count() if gpus is None else gpus
    if number_started() > 1 or obstacle_to_several_gpus(device=device, gpus=gpus):
        return None
    return launch(sys.argv, gpus)


def launch(command: list[str], number: int) -> int:
    """Run a Python script with its arguments in several processes of this machine.

    Returns the exit code of the process that failed first; a line in the log says if a signal ended it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes say themselves what is wrong.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL + 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=number,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        process, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        logger.error("process %d of %d was ended by %s", process, number, signal.Signals(-failure.exitcode).name)
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0

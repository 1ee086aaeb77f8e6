"""Independent jobs in worker processes: a call each, results as they end, and no process left behind."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from conve_tracin.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")

SECONDS_BETWEEN_COUNTS = 0.5

# What a worker was started with: a count of steps that all of them add to, and what every job gets.
_steps: Any = None
_shared: tuple[Any, ...] = ()


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_step() -> None:
    """Tell the process that started this worker that a step of a job is done."""
    if _steps is not None:
        with _steps.get_lock():
            _steps.value += 1


def compute_in_workers(
    function: Callable[..., Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    threads: int | None = None,
    shared: tuple[Any, ...] = (),
    on_steps: Callable[[int], Any] = lambda _: None,
) -> Iterator[tuple[int, Result]]:
    """Call `function(job, *shared)` for each job in worker processes; yield (place, result) as they end.

    Args:
        function, jobs: what can be pickled.
        workers: how many processes.
        threads: of torch in each of them; None leaves torch alone, which need not even be imported then.
        shared: sent to each worker once.
        on_steps: told now and then how often jobs have called `count_step` in all.

    Raises what a job raises, and InputError if a worker was killed. All workers end then.
    """
    # Forked processes would inherit torch's thread pools in an unknown state.
    context = multiprocessing.get_context("spawn")
    steps = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(threads, steps, shared)
    )
    try:
        waiting = {pool.submit(_call, function, job): place for place, job in enumerate(jobs)}
        while waiting:
            done, _ = wait(waiting, timeout=SECONDS_BETWEEN_COUNTS, return_when=FIRST_COMPLETED)
            on_steps(steps.value)
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise InputError("a worker process was killed, perhaps for lack of memory; give fewer workers") from error
    except BaseException:
        # A job may have hours to go.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(threads: int | None, steps: Any, shared: tuple[Any, ...]) -> None:
    global _steps, _shared
    # Control-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    _steps, _shared = steps, shared


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(function: Callable[..., Result], job: Job) -> Result:
    return function(job, *_shared)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads in the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

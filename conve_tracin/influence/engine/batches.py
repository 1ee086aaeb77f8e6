"""Going through training triples in batches that share (head, relation) pairs, on all cores."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from conve_tracin.compute.device import compute_in_halves
from conve_tracin.data.queries import Queries, group_by_query

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PairBatch:
    """M triples that share B distinct pairs.

    Attributes:
        heads, relations: the pairs, ids (B,).
        rows: the pair of each triple, (M,).
        tails: the tail of each triple, ids (M,).
    """

    heads: Tensor
    relations: Tensor
    rows: Tensor
    tails: Tensor

    def triples_of_pairs(self) -> list[slice]:
        """Return the places of each pair's triples, which are sorted by pair."""
        ends = torch.bincount(self.rows, minlength=len(self.heads)).cumsum(dim=0).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def map_batches(
    triples: np.ndarray,
    work: Callable[[PairBatch], Result],
    *,
    device: torch.device,
    batch_size: int,
    progress: str | None = None,
) -> Iterator[tuple[Tensor, Result]]:
    """Apply `work` to all triples (N, 3) in batches; yield each batch's positions (M,) in `triples`, and the result.

    Args:
        work: called without gradients; on the CPU by several threads at once.
        device: of the batches.
        batch_size: the most distinct pairs in a batch; a batch that does not fit into memory is halved.
        progress: title of a progress bar, or None.
    """
    if not len(triples):
        return
    index = group_by_query(triples)
    queries = Queries.from_index(index, device)
    order = torch.from_numpy(index.order)
    rows = torch.repeat_interleave(torch.arange(len(queries)), torch.from_numpy(np.diff(index.offsets)))
    rows = rows.to(device)

    @torch.no_grad()
    def compute(batch: slice) -> tuple[Tensor, Result]:
        pairs, rows_here = rows[batch].unique_consecutive(return_inverse=True)
        pair_batch = PairBatch(queries.heads[pairs], queries.relations[pairs], rows_here, queries.tails[batch])
        return order[batch], work(pair_batch)

    # A pair with many tails is spread over several batches: memory stays bounded, and the pair is computed again.
    batches = _cut(rows.cpu(), batch_size)
    with tqdm(total=len(triples), desc=progress, unit="triple", unit_scale=True, disable=progress is None) as bar:
        for results in map_on_all_cores(partial(compute_in_halves, compute), batches, device):
            for positions, result in results:
                yield positions, result
                bar.update(len(positions))


def _cut(rows: Tensor, batch_size: int) -> list[slice]:
    """Cut triples, sorted by pair, into batches of at most `batch_size` pairs and 4 · `batch_size` triples."""
    batches = []
    start = 0
    while start < len(rows):
        next_pair = int(torch.searchsorted(rows, rows[start] + batch_size))
        end = min(next_pair, start + 4 * batch_size)
        batches.append(slice(start, end))
        start = end
    return batches


def map_on_all_cores(run: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """Map in order. On the CPU whole items, such as batches, go to single-threaded workers.

    That beats torch's own threads inside each operation: nothing waits at the end of every operation, and a batch's
    activations stay in one core's cache.
    """
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    if workers == 1 or len(items) < 2:
        yield from map(run, items)
        return
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    # The reader's own threads would take the cores from the workers, also while they wait for each other.
    torch.set_num_threads(1)
    try:
        for item in items:
            pending.append(pool.submit(run, item))
            # A bounded queue: results do not pile up while their reader is busy.
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # After an error, or Ctrl-C, what has not begun need not begin.
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(workers)

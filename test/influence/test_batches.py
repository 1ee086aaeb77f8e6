"""Batches on all cores: what is not wanted any more is not computed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from conve_tracin.influence.engine.batches import map_on_all_cores

CPU = torch.device("cpu")
WORKERS = 2
BATCHES = [slice(start, start + 1) for start in range(40)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(WORKERS)
    yield WORKERS
    assert torch.get_num_threads() == WORKERS
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_results_come_in_order():
    assert list(map_on_all_cores(lambda batch: batch.start, BATCHES, CPU)) == list(range(40))


@pytest.mark.parametrize("ends", ["error", "reader leaves"])
@pytest.mark.usefixtures("threads")
def test_batches_that_wait_are_not_begun_after_the_end(ends, monkeypatch):
    begun, ended = [], threading.Event()
    shutdown = ThreadPoolExecutor.shutdown

    def announced(pool, **settings):
        shutdown(pool, **settings | {"wait": False})
        ended.set()
        shutdown(pool)

    def work(batch):
        begun.append(batch.start)
        if batch.start > 0:
            ended.wait()
        elif ends == "error":
            raise ValueError

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", announced)
    results = map_on_all_cores(work, BATCHES, CPU)
    if ends == "error":
        with pytest.raises(ValueError):
            next(results)
    else:
        next(results)
        results.close()
    # The first, and the one that each worker is at; more are in the queue.
    assert len(begun) <= 1 + WORKERS

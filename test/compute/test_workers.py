"""Jobs in worker processes: results, errors and deaths, and nothing that is left behind."""

import math
import multiprocessing
import signal
import time

import pytest
import torch

from conve_tracin.compute.workers import compute_in_workers, torch_threads
from conve_tracin.errors import InputError


def test_results_come_with_their_places_and_what_is_shared_arrives():
    found = dict(compute_in_workers(pow, [2, 3, 5, 7], workers=2, shared=(3, 1000)))
    assert found == {0: 8, 1: 27, 2: 125, 3: 343}
    assert multiprocessing.active_children() == []


def test_an_error_of_a_job_is_raised_and_ends_the_others():
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        list(compute_in_workers(math.sqrt, [4.0, -1.0], workers=1))
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_told_in_one_line():
    with pytest.raises(InputError, match="a worker process was killed, perhaps for lack of memory"):
        list(compute_in_workers(signal.raise_signal, [signal.SIGKILL], workers=1))
    assert multiprocessing.active_children() == []


def test_who_stops_listening_ends_jobs_that_have_hours_to_go():
    results = compute_in_workers(time.sleep, [0, 3600], workers=2)
    assert next(results) == (0, None)
    results.close()
    assert multiprocessing.active_children() == []


def test_threads_are_as_before_after_the_block():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before

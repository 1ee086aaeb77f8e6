"""Retraining on parts of the training set: many short jobs, side by side, each with its own file.

A job that has its file is not run again, so that an interrupted run goes on where it was.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from conve_tracin.compute.device import set_tf32
from conve_tracin.compute.workers import compute_in_workers
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write, write_json
from conve_tracin.model.conve import ConvE
from truth_lib.setups import Setup, rank_tails, score_triples


@dataclass(frozen=True)
class Job:
    """One retraining: which training triples are kept, under which seed, and where its result goes.

    The result holds the scores (n, sides) and filtered ranks as tails (n,) of the triples `measured` (n, 3), the test
    triples without; `keep_model` stores the weights too.
    """

    path: Path
    setup: Setup
    kept: np.ndarray  # (N,) bool, or (M, 3) int64: the training triples themselves
    seed: int
    keep_model: bool = False
    measured: np.ndarray | None = None

    @property
    def model_path(self) -> Path:
        """Return where the weights go."""
        return self.path.with_suffix(".pt")

    def is_done(self) -> bool:
        """Say whether the result is there."""
        return self.path.is_file() and (not self.keep_model or self.model_path.is_file())


def random_parts(num_triples: int, count: int, *, share: float = 0.5, seed: int = 0) -> np.ndarray:
    """Draw parts of the training set, a `share` of it each: (count, N) bool. The first m do not depend on `count`."""
    generator = np.random.default_rng(seed)
    parts = np.zeros((count, num_triples), dtype=bool)
    for part in parts:
        part[generator.permutation(num_triples)[: int(num_triples * share)]] = True
    return parts


def run_job(job: Job) -> float:
    """Train, score the test triples and write the result; returns the seconds it took."""
    torch.set_num_threads(1)
    set_tf32(allowed=False)
    started = time.perf_counter()
    data = job.setup.load()
    triples = data.train[job.kept] if job.kept.dtype == bool else job.kept
    model = job.setup.train(data, triples, job.seed)
    if job.keep_model:
        with atomic_write(job.model_path) as temporary:
            torch.save(model.state_dict(), temporary)
    seconds = time.perf_counter() - started
    measured = data.test if job.measured is None else job.measured
    with atomic_write(job.path) as temporary, temporary.open("wb") as file:
        ranks = rank_tails(model, job.setup, data, measured)
        np.savez(file, scores=score_triples(model, job.setup, measured), ranks=ranks, seconds=seconds)
    return seconds


def run_jobs(jobs: Iterable[Job], *, workers: int, description: str = "retraining") -> None:
    """Run the jobs that have no result yet, in `workers` processes of one thread each."""
    jobs = list(jobs)
    waiting = [job for job in jobs if not job.is_done()]
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc=description, unit="model")
    with bar:
        for _, seconds in compute_in_workers(_run_unless_done, waiting, workers=workers):
            bar.set_postfix(seconds=f"{seconds:.1f}")
            bar.update()


def _run_unless_done(job: Job) -> float:
    # Another run over the same cache may have been faster.
    return 0.0 if job.is_done() else run_job(job)


def read_scores(jobs: Iterable[Job]) -> np.ndarray:
    """Read the scores of the measured triples as tails: (len(jobs), n)."""
    return np.stack([np.load(job.path)["scores"][:, 0] for job in jobs])


def read_scores_of_sides(jobs: Iterable[Job]) -> np.ndarray:
    """Read the scores of the measured triples, of a triple and its inverse summed: (len(jobs), n)."""
    return np.stack([np.load(job.path)["scores"].sum(axis=1) for job in jobs])


def read_ranks(jobs: Iterable[Job]) -> np.ndarray:
    """Read the filtered ranks of the measured triples as tails: (len(jobs), n)."""
    return np.stack([np.load(job.path)["ranks"] for job in jobs])


def read_seconds(jobs: Iterable[Job]) -> float:
    """Sum the processor seconds that jobs took."""
    return float(sum(np.load(job.path)["seconds"] for job in jobs))


def read_model(job: Job) -> ConvE:
    """Load the model that a job with `keep_model` has stored, in eval mode."""
    model = ConvE(**job.setup.model_config(job.setup.load()))
    model.load_state_dict(torch.load(job.model_path, weights_only=True))
    return model.eval()


def require_same_setup(setup: Setup, cache: Path) -> None:
    """Note in the cache how its models are trained.

    Raises InputError where it holds models that were trained otherwise.
    """
    path = cache / setup.name / "setup.json"
    description = setup.describe()
    if not path.is_file():
        write_json(path, description)
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    for name, value in description.items():
        if stored.get(name) != value:
            raise InputError(
                f"{path}: the models there were trained with {name} {stored.get(name)}, not {value}; give the same "
                "settings or another --cache"
            )


def lds_jobs(setup: Setup, cache: Path, *, num_halves: int, num_seeds: int, share: float = 0.5) -> list[list[Job]]:
    """List the jobs of random parts, a `share` of the training triples each: [seed][part]."""
    parts = random_parts(len(setup.load().train), num_halves, share=share)
    folder = cache / setup.name
    kind = "half" if share == 0.5 else f"kept_{share:g}"
    return [
        [
            Job(folder / f"{kind}_{index:03d}_seed_{seed}.npz", setup, part, 1000 * (seed + 1) + index)
            for index, part in enumerate(parts)
        ]
        for seed in range(num_seeds)
    ]


def full_jobs(setup: Setup, cache: Path, *, num_seeds: int) -> list[Job]:
    """List the jobs that train on everything; their models are what the influence methods see."""
    everything = np.ones(len(setup.load().train), dtype=bool)
    return [
        Job(cache / setup.name / f"full_seed_{seed}.npz", setup, everything, seed, keep_model=True)
        for seed in range(num_seeds)
    ]

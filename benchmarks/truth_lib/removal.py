"""Remove and retrain: what a model loses without the training triples that a method holds responsible.

The protocol of Kelpie (Rossi et al., 2022, https://doi.org/10.1145/3514221.3517887): take test triples that the model
ranks first, remove the strongest proponents of all of them together, train anew, rank them again. Without controls
retraining noise would count as explanation, so nothing and random triples are removed as well.
"""

import zlib
from pathlib import Path

import numpy as np

from truth_lib.retraining import Job
from truth_lib.setups import Setup

CONTROLS = ("nothing", "random triples that share an entity", "random triples")


def triples_ranked_first(ranks: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Draw the positions of `count` test triples of rank 1: sorted (m,), fewer where there are not so many."""
    first = np.flatnonzero(ranks == 1)
    return np.sort(np.random.default_rng(seed).permutation(first)[:count])


def strongest_proponents(influence: np.ndarray, top_k: int, *, seed: int = 0) -> np.ndarray:
    """Mark the `top_k` training triples of highest score of each test triple, ties drawn by lot: (N,) bool."""
    generator = np.random.default_rng(seed)
    marked = np.zeros(influence.shape[1], dtype=bool)
    for scores in influence:
        lots = generator.permutation(len(scores))
        marked[lots[np.argsort(-scores[lots], kind="stable")[:top_k]]] = True
    return marked


def random_triples(test: np.ndarray, train: np.ndarray, top_k: int, *, share_entity: bool, seed: int = 0) -> np.ndarray:
    """Mark `top_k` random training triples for each test triple, of those that share an entity or of all: (N,) bool."""
    generator = np.random.default_rng(seed)
    marked = np.zeros(len(train), dtype=bool)
    for head, _, tail in test:
        near = np.isin(train[:, [0, 2]], [head, tail]).any(axis=1) if share_entity else np.ones(len(train), dtype=bool)
        marked[generator.permutation(np.flatnonzero(near))[:top_k]] = True
    return marked


def removed_by_control(name: str, test: np.ndarray, train: np.ndarray, *, top_k: int, seed: int) -> np.ndarray:
    """Mark what a control of CONTROLS removes: (N,) bool."""
    if name == "nothing":
        return np.zeros(len(train), dtype=bool)
    return random_triples(test, train, top_k, share_entity="entity" in name, seed=seed)


def removal_jobs(setup: Setup, cache: Path, removed: list[np.ndarray]) -> list[Job]:
    """List the retrainings without the marked triples, each (N,) bool: one for each seed."""
    jobs = []
    for seed, marked in enumerate(removed):
        # Named by what is removed, so that a method that changed does not find its old result.
        digest = zlib.crc32(np.packbits(marked).tobytes())
        path = cache / setup.name / f"without_{digest:08x}_seed_{seed}.npz"
        jobs.append(Job(path, setup, ~marked, 5000 + seed))
    return jobs

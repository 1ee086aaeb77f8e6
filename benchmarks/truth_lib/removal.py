"""Remove and retrain: what a model loses without the training triples that a method holds responsible.

The protocol of Kelpie (Rossi et al., 2022, https://doi.org/10.1145/3514221.3517887): take test triples that the model
ranks first, remove the strongest proponents of all of them together, train anew, rank them again. Without controls
retraining noise would count as explanation, so nothing and random triples are removed as well.
"""

import itertools
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.data.keys import places_of
from conve_tracin.data.triples import read_triples
from conve_tracin.data.vocabulary import read_vocabulary
from conve_tracin.errors import InputError
from truth_lib.lds import bootstrap
from truth_lib.methods import BASELINES, RECOMMENDED, REMOVED_BY
from truth_lib.retraining import Job, read_ranks, read_scores
from truth_lib.setups import Setup

NOTHING = "nothing"
SHARE_AN_ENTITY = "random triples that share an entity"
RANDOM = "random triples"
ALIKE = "others of the same entities and degrees"
CONTROLS = (NOTHING, SHARE_AN_ENTITY, RANDOM, ALIKE)
RULE = "shares (h, r) or (r, t)"
SUMMED = f"{RECOMMENDED}, all models summed"
REMOVALS = (*CONTROLS, *REMOVED_BY, SUMMED, RULE)

# The others of like degree are drawn among as many that come nearest.
NEAREST = 5


def triples_ranked_first(ranks: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Draw the positions of `count` test triples of rank 1: sorted (m,), fewer where there are not so many."""
    first = np.flatnonzero(ranks == 1)
    return np.sort(np.random.default_rng(seed).permutation(first)[:count])


def proponents_of_each(influence: np.ndarray, top_k: int, *, seed: int = 0) -> list[np.ndarray]:
    """Find the `top_k` training triples of highest score above 0 of each test triple, ties drawn by lot: positions."""
    generator = np.random.default_rng(seed)
    found = []
    for scores in influence:
        lots = generator.permutation(len(scores))
        strongest = lots[np.argsort(-scores[lots], kind="stable")[:top_k]]
        found.append(strongest[scores[strongest] > 0])
    return found


def strongest_proponents(influence: np.ndarray, top_k: int, *, seed: int = 0) -> np.ndarray:
    """Mark what `proponents_of_each` finds for scores (n, N): (N,) bool."""
    return _marked(proponents_of_each(influence, top_k, seed=seed), influence.shape[1])


def _marked(positions: Sequence[np.ndarray], num_triples: int) -> np.ndarray:
    marked = np.zeros(num_triples, dtype=bool)
    marked[np.concatenate([np.empty(0, dtype=np.int64), *positions])] = True
    return marked


def random_triples(test: np.ndarray, train: np.ndarray, top_k: int, *, share_entity: bool, seed: int = 0) -> np.ndarray:
    """Mark `top_k` random training triples for each test triple, of those that share an entity or of all: (N,) bool."""
    generator = np.random.default_rng(seed)
    marked = np.zeros(len(train), dtype=bool)
    for head, _, tail in test:
        near = np.isin(train[:, [0, 2]], [head, tail]).any(axis=1) if share_entity else np.ones(len(train), dtype=bool)
        marked[generator.permutation(np.flatnonzero(near))[:top_k]] = True
    return marked


def alike_triples(influence: np.ndarray, test: np.ndarray, train: np.ndarray, top_k: int, *, seed: int) -> np.ndarray:
    """Mark another triple for each that `strongest_proponents` marks: (N,) bool.

    It has the same entity of the test triple, and its other entity occurs about as often in training. Where all triples
    of that entity are taken, any other stands in. No strongest proponent of any test triple is drawn.
    """
    generator = np.random.default_rng(seed)
    of_each = proponents_of_each(influence, top_k)
    proponents = _marked(of_each, len(train))
    log_degrees = np.log(np.maximum(np.bincount(train[:, [0, 2]].ravel()), 1))
    drawn = np.zeros(len(train), dtype=bool)
    done = np.zeros(len(train), dtype=bool)
    for (head, _, tail), strongest in zip(test, of_each, strict=True):
        for position in strongest[~done[strongest]].tolist():
            done[position] = True
            ends = train[position, [0, 2]]
            shared = np.intersect1d(ends, (head, tail))
            wanted = ends[ends != shared[0]] if len(shared) and ends[0] != ends[1] else ends
            free = ~(proponents | drawn)
            near = np.isin(train[:, [0, 2]], shared[:1]).any(axis=1) & free
            candidates = np.flatnonzero(near if near.any() else free)
            if len(candidates):
                other = np.where(np.isin(train[candidates, 0], shared[:1]), train[candidates, 2], train[candidates, 0])
                distance = np.abs(log_degrees[other] - log_degrees[wanted].mean())
                lots = generator.permutation(len(candidates))
                nearest = lots[np.argsort(distance[lots], kind="stable")[:NEAREST]]
                drawn[candidates[generator.choice(nearest)]] = True
    return drawn


def triples_of_facts(path: Path, setup: Setup, test: np.ndarray) -> np.ndarray:
    """Find the test triples that a file of facts names, head<TAB>relation<TAB>tail a line: sorted positions (m,).

    Raises InputError where a fact is no test triple.
    """
    entities = read_vocabulary(setup.data_dir / "entity_to_id.tsv", "entity")
    relations = read_vocabulary(setup.data_dir / "relation_to_id.tsv", "relation")
    facts = np.unique(read_triples(path, entities, relations), axis=0)
    found = places_of(test, facts)
    missing = len(facts) - len(np.unique(test[found], axis=0))
    if missing:
        raise InputError(f"{path}: {missing} of {len(facts)} facts are no test triples; leave them out")
    return found


def removed_triples(name: str, influences: dict[str, np.ndarray], test: np.ndarray, train: np.ndarray, **draw: int):
    """Mark what a removal of REMOVALS takes out: (N,) bool.

    `influences` hold (n, N) scores by the names of methods; `draw` are the `top_k` of each test triple and the `seed`
    of what is drawn.
    """
    if name == NOTHING:
        return np.zeros(len(train), dtype=bool)
    if name in (RANDOM, SHARE_AN_ENTITY):
        return random_triples(test, train, draw["top_k"], share_entity=name == SHARE_AN_ENTITY, seed=draw["seed"])
    if name == ALIKE:
        return alike_triples(influences[RECOMMENDED], test, train, draw["top_k"], seed=draw["seed"])
    # A rule ties most triples, and a method next to none: its set is the same for all seeds.
    return strongest_proponents(influences[name], draw["top_k"], seed=draw["seed"] if name == RULE else 0)


def influences_of(names: Iterable[str], models: Sequence[Any], setup: Setup, test: np.ndarray, train: np.ndarray):
    """Score training triples (N, 3) by the methods that removals need: {name: (n, N)}."""
    names = set(names)
    methods = REMOVED_BY | {RULE: BASELINES[RULE]}
    needed = [name for name in methods if name in names or (name == RECOMMENDED and names & {ALIKE, SUMMED})]
    influences = {name: methods[name](models[0], setup, test, train) for name in needed}
    if SUMMED in names:
        others = (methods[RECOMMENDED](model, setup, test, train) for model in models[1:])
        influences[SUMMED] = sum(others, start=influences[RECOMMENDED])
    return influences


def summarize_removal(jobs: Sequence[Job], measured: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """Summarize retrainings, one for each seed, on the test triples at positions `measured` (n,).

    `first` (m,) are those of them that the explained model ranks first, as all are in Kelpie's protocol.
    """
    every_rank = read_ranks(jobs)
    ranks, of_first = every_rank[:, measured], every_rank[:, first]  # (seeds, n) and (seeds, m)
    by_seed = (1 / ranks).mean(axis=1)
    error = by_seed.std(ddof=1) / np.sqrt(len(by_seed)) if len(by_seed) > 1 else 0.0
    return {
        "triples_removed": round(float(np.mean([(~job.kept).sum() for job in jobs]))),
        "mrr": float(by_seed.mean()),
        "mrr_standard_error": float(error),
        "hits@1": float((ranks <= 1).mean()),
        "score": float(read_scores(jobs)[:, measured].mean()),
        "first_before": {
            "test_triples": len(first),
            "mrr": float((1 / of_first).mean()) if len(first) else None,
            "hits@1": float((of_first <= 1).mean()) if len(first) else None,
        },
    }


def add_falls(summaries: dict[str, dict[str, Any]], jobs: dict[str, Sequence[Job]], measured: np.ndarray) -> None:
    """Say how far scores fall below those without the controls, paired by test triple, where these were removed, too.

    `summaries` and `jobs` have the same names; `measured` are positions of test triples, (n,).
    """
    scores = {name: read_scores(of_one)[:, measured].mean(axis=0) for name, of_one in jobs.items()}
    for name, than in itertools.product(jobs, (NOTHING, ALIKE)):
        if name not in (than, NOTHING) and than in scores:
            member = f"fall_below_{'nothing' if than == NOTHING else 'others'}"
            summaries[name][member] = asdict(bootstrap(scores[than] - scores[name]))


def removal_jobs(setup: Setup, cache: Path, removed: list[np.ndarray]) -> list[Job]:
    """List the retrainings without the marked triples, each (N,) bool: one for each seed."""
    jobs = []
    for seed, marked in enumerate(removed):
        # Named by what is removed, so that a method that changed does not find its old result.
        digest = zlib.crc32(np.packbits(marked).tobytes())
        path = cache / setup.name / f"without_{digest:08x}_seed_{seed}.npz"
        jobs.append(Job(path, setup, ~marked, 5000 + seed))
    return jobs


def with_earlier(results: Path, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Add what a file of results has of the same removal for other numbers of proponents, or by other names."""
    if not results.is_file():
        return result
    earlier = json.loads(results.read_text(encoding="utf-8")).get("remove", {}).get(name, {})
    if any(earlier.get(member) != result[member] for member in ("test_triples", "seeds")):
        return result
    both = {top_k: dict(by_name) for top_k, by_name in earlier["by_top_k"].items()}
    for top_k, by_name in result["by_top_k"].items():
        both[top_k] = both.get(top_k, {}) | by_name
    return result | {"by_top_k": both}

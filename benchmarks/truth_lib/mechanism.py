"""Exam: do models use the known reasons?

The model's training is repeated without the known reasons of all predictions, without as many other triples of the
same entities and relations, and with everything. A model uses the reasons if the predictions' scores fall without them
and stay without the others. What scores and ranked paths put first is removed in the same way, for each prediction as
many triples as it has reasons.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.data.graph import Graph
from conve_tracin.influence.path_ranking import PathRanker
from conve_tracin.settings import TrainingConfig, stored_settings
from truth_lib import retraining
from truth_lib.exams import Exam
from truth_lib.lds import bootstrap
from truth_lib.path_orders import list_triples
from truth_lib.setups import Setup
from truth_lib.trained import TrainedModel

NOTHING = "nothing"
REASONS = "known reasons"
OTHERS = "as many others of the same entities and relations"
STRONGEST = "strongest proponents"
PATHS = "first on the page's paths"
PATHS_WITHOUT_MODEL = "first on the graph's paths, without a model"
REMOVALS = (NOTHING, REASONS, OTHERS, STRONGEST, PATHS, PATHS_WITHOUT_MODEL)
MORE_SIZES = ("output_channels", "kernel_height", "kernel_width", "entity_bias")


def setup_of(trained: TrainedModel, data: Path, device: str) -> Setup:
    """Describe how a checkpoint was trained."""
    config = TrainingConfig(**stored_settings(TrainingConfig, trained.training_config))
    sizes = trained.model.config
    return Setup(
        data_dir=data,
        config=config,
        embedding_height=sizes.embedding_height,
        embedding_width=sizes.embedding_width,
        dropouts=(sizes.input_dropout, sizes.feature_map_dropout, sizes.output_dropout),
        more_sizes={name: getattr(sizes, name) for name in MORE_SIZES},
        device=device,
    )


def removed_triples(exam: Exam, influences: np.ndarray, name: str, *, seed: int) -> np.ndarray:
    """Mark what a removal of REMOVALS takes out of the training set: (N,) bool.

    `influences` (n, N) are those of the training triples on each prediction; `seed` draws the others.
    """
    marked = np.zeros(len(exam.train), dtype=bool)
    if name == OTHERS:
        marked[list(other_triples(exam, np.random.default_rng(seed)))] = True
        return marked
    ranker = PathRanker(Graph(exam.train, len(exam.entities)))
    for each, of_one in zip(exam.explained, influences, strict=True):
        count = len(each.reasons)
        if name == REASONS:
            marked[each.reasons] = True
        elif name == STRONGEST:
            marked[np.argsort(-of_one, kind="stable")[:count]] = True
        elif name in (PATHS, PATHS_WITHOUT_MODEL):
            order = of_one if name == PATHS else np.zeros(len(exam.train))
            marked[list_triples(ranker.rank(each.triple.tolist(), order))[:count]] = True
    return marked


def other_triples(exam: Exam, generator: np.random.Generator) -> Iterator[int]:
    """Draw another training triple for each known reason: its relation, an entity of the prediction, no reason."""
    taken = np.zeros(len(exam.train), dtype=bool)
    taken[np.concatenate([each.reasons for each in exam.explained])] = True
    drawn_for = np.zeros(len(exam.train), dtype=bool)
    for each in exam.explained:
        for position in each.reasons[~drawn_for[each.reasons]].tolist():
            drawn_for[position] = True
            ends = exam.train[position, [0, 2]]
            own = np.intersect1d(ends, each.triple[[0, 2]])
            near = np.isin(exam.train[:, [0, 2]], own if len(own) else ends).any(axis=1) & ~taken
            alike = near & (exam.train[:, 1] == exam.train[position, 1])
            candidates = np.flatnonzero(alike if alike.any() else near)
            if len(candidates):
                chosen = int(generator.choice(candidates))
                taken[chosen] = True
                yield chosen


def mechanism_jobs(setup: Setup, cache: Path, exam: Exam, removed: Mapping[str, Sequence[np.ndarray]]) -> dict:
    """List the trainings: {removal: one job for each seed}."""
    predictions = np.stack([each.triple for each in exam.explained])
    jobs: dict[str, list[retraining.Job]] = {}
    for name, marks in removed.items():
        for seed, marked in enumerate(marks):
            # Named by what is removed and measured, so that other predictions do not find an old result.
            digest = zlib.crc32(np.packbits(marked).tobytes() + predictions.tobytes())
            path = cache / setup.name / f"mechanism_{digest:08x}_seed_{seed}.npz"
            job = retraining.Job(path, setup, ~marked, 7000 + seed, measured=predictions)
            jobs.setdefault(name, []).append(job)
    return jobs


def summarize_removals(jobs: Mapping[str, Sequence[retraining.Job]]) -> dict[str, Any]:
    """Summarize the predictions' scores and ranks after each removal, and how far scores fall, paired by prediction."""
    scores = {name: retraining.read_scores(of_one) for name, of_one in jobs.items()}
    results: dict[str, Any] = {}
    for name, of_one in jobs.items():
        ranks = retraining.read_ranks(of_one)
        results[name] = {
            "triples_removed": round(float(np.mean([(~job.kept).sum() for job in of_one]))),
            "score_by_seed": scores[name].mean(axis=1).tolist(),
            "mrr_by_seed": (1 / ranks).mean(axis=1).tolist(),
            "hits@1": float((ranks <= 1).mean()),
        }
        for than in (NOTHING, OTHERS):
            if name != than and than in scores:
                fall = scores[than].mean(axis=0) - scores[name].mean(axis=0)
                results[name][f"fall_below_{'nothing' if than == NOTHING else 'others'}"] = asdict(bootstrap(fall))
    return results

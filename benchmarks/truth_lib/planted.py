"""Planted errors: corrupt some training tails and see which score finds them."""

import zlib
from pathlib import Path

import numpy as np
import torch

from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.influence.effects import gauss_newton_effects, leverages, training_curvature
from conve_tracin.influence.known_reasons import average_ranks
from conve_tracin.model.conve import ConvE
from conve_tracin.training.run import TrainingData
from truth_lib.methods import EMBEDDINGS, recommended_method
from truth_lib.retraining import Job
from truth_lib.setups import Setup

# Validation triples whose influences are summed.
CLEAN_TRIPLES = 300


def plant_errors(data: TrainingData, share: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Replace the tails of a share of the training triples by entities that make them false.

    Returns the triples (N, 3) and which of them are planted (N,) bool. No planted triple is known to be true.
    """
    generator = np.random.default_rng(seed)
    known = {tuple(triple) for triple in np.concatenate([data.train, data.valid, data.test]).tolist()}
    triples = data.train.copy()
    planted = np.zeros(len(triples), dtype=bool)
    planted[generator.permutation(len(triples))[: round(share * len(triples))]] = True
    for position in np.flatnonzero(planted):
        head, relation, _ = triples[position].tolist()
        candidates = [tail for tail in range(data.num_entities) if (head, relation, tail) not in known]
        if not candidates:
            planted[position] = False
            continue
        triples[position, 2] = generator.choice(candidates)
        known.add(tuple(triples[position].tolist()))
    return triples, planted


def planted_jobs(setup: Setup, cache: Path, corrupted: list[np.ndarray]) -> list[Job]:
    """List the trainings on corrupted triples, one for each draw; their models are kept."""
    folder = cache / setup.name
    jobs = []
    for seed, triples in enumerate(corrupted):
        digest = zlib.crc32(triples.tobytes())
        jobs.append(Job(folder / f"planted_{digest:08x}.npz", setup, triples, 7000 + seed, keep_model=True))
    return jobs


def area_under_roc(suspicion: np.ndarray, planted: np.ndarray) -> float:
    """Compute the chance that a planted error is more suspicious than a true triple, ties counted as half."""
    ranks = average_ranks(suspicion)
    errors, others = planted.sum(), (~planted).sum()
    return float((ranks[planted].sum() - errors * (errors + 1) / 2) / (errors * others))


def suspicions(model: ConvE, setup: Setup, data: TrainingData, triples: np.ndarray) -> dict[str, np.ndarray]:
    """Score how suspicious each training triple (N, 3) is, by every method: {name: (N,)}.

    With inverse triples both queries of a triple count, and their values add.
    """
    inverse = setup.config.inverse_triples
    method = recommended_method(setup)
    curvature = training_curvature(model, triples, method.curvature, inverse_triples=inverse)
    model_triples = setup.model_triples(triples)
    with torch.no_grad():
        scores = model.score(*torch.from_numpy(model_triples).unbind(dim=1))
    own_effects = leverages(model, model_triples, curvature)

    def over_queries(values: torch.Tensor) -> np.ndarray:
        return values.reshape(-1, len(triples)).sum(dim=0).numpy()

    analyzer = TracInAnalyzerPyTorch(model, inverse_triples=inverse)
    rows = TracInAnalyzerPyTorch(model, inverse_triples=inverse, last_layer_names=EMBEDDINGS)
    slopes = torch.sigmoid(-scores)
    clean = np.random.default_rng(0).permutation(data.valid)[:CLEAN_TRIPLES]
    on_clean = gauss_newton_effects(model, clean, triples, method, inverse_triples=inverse, curvature=curvature)
    with torch.no_grad():
        clean_scores = model.score(*torch.from_numpy(setup.model_triples(clean)[: len(clean)]).unbind(dim=1))
    weighted = on_clean * torch.sigmoid(-clean_scores)[:, None]
    return {
        "loss": over_queries(torch.nn.functional.softplus(-scores)),
        "TracIn self-influence, all parameters": analyzer.self_products(triples).numpy(),
        "TracIn self-influence, embeddings alone": rows.self_products(triples).numpy(),
        "Gauss–Newton leverage": over_queries(own_effects),
        "Gauss–Newton self-influence (leverage × slope²)": over_queries(own_effects * slopes**2),
        "loss without the own label (score − leverage)": over_queries(own_effects - scores),
        "TracIn on clean validation triples": -analyzer.gradient_products(clean, triples).sum(dim=0).numpy(),
        "Gauss–Newton on clean validation triples": -weighted.sum(dim=0).numpy(),
    }

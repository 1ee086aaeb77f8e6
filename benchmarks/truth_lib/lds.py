"""Linear datamodeling score (Park et al., 2023, https://arxiv.org/abs/2303.14186).

For each test triple: the rank correlation, over random halves of the training set, between the sum of the scores of
the triples in the half and the score that models trained on that half give the test triple.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from conve_tracin.influence.known_reasons import average_ranks

BOOTSTRAP_SAMPLES = 2000


def rank_correlations(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Compute Spearman's correlation of each column of two arrays (M, n): (n,), 0 where a column is constant."""
    ranks = [np.apply_along_axis(average_ranks, 0, values) for values in (predicted, measured)]
    ranks = [values - values.mean(axis=0) for values in ranks]
    norms = [np.linalg.norm(values, axis=0) for values in ranks]
    return (ranks[0] * ranks[1]).sum(axis=0) / np.maximum(norms[0] * norms[1], 1e-12)


def sums_of_parts(influence: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Sum the scores (n, N) of the training triples that each part (M, N) keeps: (M, n)."""
    return parts.astype(np.float64) @ influence.astype(np.float64).T


def noise_ceiling(measured: np.ndarray) -> float | None:
    """Estimate the score of a perfect predictor from the seeds' agreement; measured is (seeds, M, n).

    With r the mean correlation between two seeds, the mean over S seeds has the reliability S·r / (1 + (S − 1)·r)
    (Spearman–Brown), and its root is the correlation with the mean over infinitely many. None for a single seed.
    """
    seeds = len(measured)
    pairs = [(i, j) for i in range(seeds) for j in range(i)]
    if not pairs:
        return None
    agreement = np.mean([rank_correlations(measured[i], measured[j]).mean() for i, j in pairs])
    return float(np.sqrt(max(0.0, seeds * agreement / (1 + (seeds - 1) * agreement))))


@dataclass(frozen=True)
class Interval:
    """A mean over test triples and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray, *, seed: int = 0) -> Interval:
    """Resample test triples: values (n,) to their mean and its interval."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def agreement(
    predicted: Mapping[str, np.ndarray], measured: np.ndarray, *, rules: Collection[str], recommended: str
) -> dict[str, Any]:
    """Compare what each method predicts with what retraining gave, as plain values.

    Args:
        predicted: by each method's name, the summed scores of each part, (M, n).
        measured: score of each test triple after retraining on each part, (seeds, M, n).
        rules: the names of the methods that look at no model.
        recommended: the name of the method that is compared with the best of these.
    """
    scores = {name: rank_correlations(sums, measured.mean(axis=0)) for name, sums in predicted.items()}
    best_rule = max(rules, key=lambda name: scores[name].mean())
    return {
        "ceiling": noise_ceiling(measured),
        "methods": {name: asdict(bootstrap(values)) for name, values in scores.items()},
        "best_baseline": best_rule,
        "recommended_above_best_baseline": asdict(bootstrap(scores[recommended] - scores[best_rule])),
    }

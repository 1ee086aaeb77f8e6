"""The influence of training triples on themselves: for mode "self", and for the table."""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch

from conve_tracin.compute import parallel
from conve_tracin.explanation.run import Run
from conve_tracin.influence import trace as trace_module


def self_influences_of(run: Run, positions: Iterable[int]) -> dict[int, float]:
    """Compute the self-influence of the training triples at these positions: {position: Σ η‖∇ℓ(w; z)‖²}."""
    ordered = sorted(positions)
    # Few triples, known to process 0 alone: they are not shared.
    scores = sum_self_influences(run, run.training_triples[ordered], progress=True, shared=False)
    return dict(zip(ordered, scores.tolist(), strict=True))


def sum_self_influences(run: Run, triples: np.ndarray, *, progress: bool, shared: bool = True) -> torch.Tensor:
    """Compute Σ_k η_k‖∇ℓ(w_k; z)‖² of triples (N, 3), `shared` between all processes or here: (N,)."""
    total: torch.Tensor | float = 0.0
    for path in run.checkpoints:
        loaded = run.load(path)
        compute = partial(
            loaded.method.self_products,
            batch_size=run.options.batch_size,
            progress=f"{path.name}: self-influence" if progress else None,
        )
        shared = shared and loaded.method.shares_training_triples
        with trace_module.naming_the_checkpoint(path):
            products = parallel.compute_shared(compute, triples) if shared else compute(triples)
        trace_module.require_finite_influences(products, path)
        total = total + loaded.weight * products
    return total

"""Per-triple gradients of a whole batch with torch.func: `vmap(grad)`.

Kept because the documents name it. It holds every gradient of a batch at once, so that it is slower than the
reference loop where all parameters are tracked; the forward engine needs no training gradient at all.

Squared norms are another matter: a triple moves a few rows of each embedding table, and no more are built.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from conve_tracin.influence.functional import FunctionalScorer
from conve_tracin.influence.reference import LossFunction, binary_cross_entropy
from conve_tracin.memory import compute_in_batches

# The gradients that are held at once, in numbers: 256 MiB in float32.
GRADIENT_NUMBERS = 2**26


def per_triple_gradients(
    scorer: nn.Module,
    triples: Tensor,
    *,
    names: Iterable[str] | None = None,
    label: float = 1.0,
    loss_fn: LossFunction = binary_cross_entropy,
) -> dict[str, Tensor]:
    """Compute ∇ℓ(w; z) of each triple (B, 3).

    Returns:
        For each name a tensor (B, *shape of the parameter).
    """
    score = FunctionalScorer(scorer)
    chosen = {name: score.parameters[name] for name in (score.parameters if names is None else names)}

    def loss_of(values: dict[str, Tensor], triple: Tensor) -> Tensor:
        scores = score(values, triple[None])
        return loss_fn(scores, torch.full_like(scores, label)).sum()

    return vmap(grad(loss_of), in_dims=(None, 0))(chosen, triples)


def gradient_products(
    scorer: nn.Module,
    test_gradients: list[dict[str, Tensor]],
    training_triples: Tensor,
    *,
    loss_fn: LossFunction = binary_cross_entropy,
    batch_size: int = 32,
) -> Tensor:
    """Compute ∇ℓ(w; z) · g for n test gradients g and each training triple z (N, 3); returns (n, N)."""
    names = list(test_gradients[0])
    blocks = []
    for batch in training_triples.split(batch_size):
        gradients = per_triple_gradients(scorer, batch, names=names, loss_fn=loss_fn)
        products = [
            sum(gradients[name].reshape(len(batch), -1) @ test_gradient[name].flatten() for name in names)
            for test_gradient in test_gradients
        ]
        blocks.append(torch.stack(products))  # (n, B)
    return torch.cat(blocks, dim=1)


def self_products(
    scorer: nn.Module,
    triples: Tensor,
    *,
    tables: dict[str, tuple[int, ...]],
    names: Iterable[str] | None = None,
    loss_fn: LossFunction = binary_cross_entropy,
    batch_size: int = 256,
    progress: str | None = None,
) -> Tensor:
    """Compute ‖∇ℓ(w; z)‖² of each triple (N, 3), without gradients as large as an embedding table; returns (N,).

    Each triple is scored on tables of its own, which hold its rows alone.

    Args:
        scorer: module in eval mode, triples (B, 3) to scores (B,), whose ids are rows of the tables.
        triples: ids, shape (N, 3).
        tables: {name: columns of the triple that index it}; (0, 2) for entities, (1,) for relations.
        names: the parameters to track; all of them without.
        loss_fn: score and label, elementwise, to a loss.
        batch_size: at most so many triples in one pass; fewer where their gradients would take too much memory.
        progress: what to call the work on a progress bar; none is shown without.
    """
    score = FunctionalScorer(scorer)
    values = score.parameters
    tracked = list(values if names is None else names)
    dense = {name: value for name, value in values.items() if name not in tables}
    numbers = sum(values[name].numel() if name in dense else 2 * values[name][0].numel() for name in tracked)
    batch_size = max(1, min(batch_size, GRADIENT_NUMBERS // numbers))

    def loss_of(moved: dict[str, Tensor], resting: dict[str, Tensor], triple: Tensor) -> Tensor:
        scores = score(dense | resting | moved, triple[None])
        return loss_fn(scores, torch.ones_like(scores)).sum()

    gradients_of = vmap(grad(loss_of), in_dims=({n: None if n in dense else 0 for n in tracked}, 0, 0))

    def compute(part: slice) -> Tensor:
        batch = triples[part]
        rows = {name: values[name][batch[:, columns]] for name, columns in tables.items()}  # (B, 1 or 2, …)
        moved = {name: dense[name] if name in dense else rows[name] for name in tracked}
        resting = {name: value for name, value in rows.items() if name not in tracked}
        gradients = gradients_of(moved, resting, _local_ids(batch))
        return sum(gradient.reshape(len(batch), -1).square().sum(dim=1) for gradient in gradients.values())

    nothing = next(scorer.parameters()).detach().new_zeros(0)
    norms = compute_in_batches(compute, len(triples), batch_size=batch_size, progress=progress)
    return torch.cat([nothing, *norms])


def _local_ids(triples: Tensor) -> Tensor:
    """Renumber triples (B, 3) for tables of their own: head 0, relation 0, tail 1, or 0 where it is the head."""
    heads, relations, tails = triples.unbind(dim=1)
    return torch.stack([torch.zeros_like(heads), torch.zeros_like(relations), (heads != tails).long()], dim=1)

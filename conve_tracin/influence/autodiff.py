"""Influence by torch.func for any scorer: forward-mode passes, gradients of a whole batch, squared norms.

∇ℓ(w; z) · T is the directional derivative of ℓ(w; z) along T, the test triple's gradient or any other direction. One
Jacobian-vector product gives it for a batch of training triples z exactly, without their gradients.

`vmap(grad)` is here because the documents name it: it holds every gradient of a batch, and is slower than the reference
loop if all parameters are tracked. For squared norms it is fast, since a triple moves few rows of the embedding tables.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from conve_tracin.compute.device import compute_in_batches
from conve_tracin.model.triple_loss import LossFunction, binary_cross_entropy


class FunctionalScorer:
    """Scores triples with other values in the place of some parameters.

    Args:
        scorer: module in eval mode, triples (B, 3) to scores (B,), see `reference`.

    Attributes:
        parameters: {name in the scored model: its value, without gradient tracking}.
    """

    def __init__(self, scorer: nn.Module) -> None:
        self._scorer = scorer
        self.parameters: dict[str, Tensor] = {}
        # Several modules may hold one parameter, and several paths may lead to one module. functional_call handles the
        # first, but with the second it leaves its substitutes in the module.
        self._places: dict[str, list[str]] = defaultdict(list)
        names: dict[nn.Parameter, str] = {}
        for path, module in scorer.named_modules():
            for attribute, parameter in module.named_parameters(recurse=False):
                place = f"{path}.{attribute}" if path else attribute
                name = names.setdefault(parameter, place.removeprefix("model."))
                self._places[name].append(place)
                self.parameters[name] = parameter.detach()

    def __call__(self, values: dict[str, Tensor], triples: Tensor) -> Tensor:
        """Score triples (B, 3) with `values` for the parameters of these names; returns (B,)."""
        substitutes = {place: value for name, value in values.items() for place in self._places[name]}
        return functional_call(self._scorer, substitutes, (triples,), tie_weights=False)


def directional_derivatives(
    scorer: nn.Module,
    tangent: dict[str, Tensor],
    triples: Tensor,
    *,
    batch_size: int = 256,
    progress: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the scores (N,) of triples (N, 3) and their derivatives (N,) along `tangent`.

    Args:
        scorer: module in eval mode, triples (B, 3) to scores (B,).
        tangent: for each parameter that moves, by the scored model's names, a tensor of its shape.
        batch_size: the most triples in one pass; changes memory and speed, not results.
        progress: title of a progress bar, or None.
    """
    score = FunctionalScorer(scorer)
    primal = {name: score.parameters[name] for name in tangent}

    def differentiate(batch: slice) -> tuple[Tensor, Tensor]:
        return jvp(partial(score, triples=triples[batch]), (primal,), (tangent,))

    nothing = next(scorer.parameters()).new_zeros(0)
    with torch.no_grad():
        results = compute_in_batches(differentiate, len(triples), batch_size=batch_size, progress=progress)
        scores, derivatives = zip((nothing, nothing), *results, strict=True)
    return torch.cat(scores), torch.cat(derivatives)


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
    """Compute ∇ℓ(w; z) of each triple (B, 3): {name: tensor (B, *shape of the parameter)}."""
    score = FunctionalScorer(scorer)
    chosen = {name: score.parameters[name] for name in (score.parameters if names is None else names)}

    def loss_of(values: dict[str, Tensor], triple: Tensor) -> Tensor:
        scores = score(values, triple[None])
        return loss_fn(scores, torch.full_like(scores, label)).sum()

    return vmap(grad(loss_of), in_dims=(None, 0))(chosen, triples)


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
        tables: {name: columns of the triple that index it}; (0, 2) for entities, (1,) for relations.
        names: the parameters to track; by default all.
        batch_size: the most triples in one pass; fewer if their gradients would take too much memory.
        progress: title of a progress bar, or None.
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
    """Renumber triples (B, 3) for tables of their own: head 0, relation 0, tail 1, or 0 if it is the head."""
    heads, relations, tails = triples.unbind(dim=1)
    return torch.stack([torch.zeros_like(heads), torch.zeros_like(relations), (heads != tails).long()], dim=1)

"""Per-triple gradients of a whole batch with torch.func: `vmap(grad)`.

Kept because the documents name it. It holds every gradient of a batch at once, so that it is slower than the
reference loop where all parameters are tracked; the forward engine needs no training gradient at all.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from conve_tracin.influence.reference import LossFunction, binary_cross_entropy, named_parameters


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
    parameters = named_parameters(scorer)
    prefixes = {name.removeprefix("model."): name for name, _ in scorer.named_parameters()}
    chosen = {prefixes[name]: parameters[name].detach() for name in (parameters if names is None else names)}

    def loss_of(values: dict[str, Tensor], triple: Tensor) -> Tensor:
        scores = functional_call(scorer, values, (triple[None],))
        return loss_fn(scores, torch.full_like(scores, label)).sum()

    gradients = vmap(grad(loss_of), in_dims=(None, 0))(chosen, triples)
    return {name.removeprefix("model."): gradient for name, gradient in gradients.items()}


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
            sum(gradients[name].flatten(1) @ test_gradient[name].flatten() for name in names)
            for test_gradient in test_gradients
        ]
        blocks.append(torch.stack(products))  # (n, B)
    return torch.cat(blocks, dim=1)

"""The definition of TracIn (Pruthi et al., 2020, https://arxiv.org/abs/2002.08484), as a loop of backward passes.

influence(z, z′) = η · ∇ℓ(w; z) · ∇ℓ(w; z′). Every faster engine is tested against this module.

A *scorer* here is a module in eval mode that takes triples of ids (B, 3) and returns their scores (B,); see `scorers`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from conve_tracin.influence.method import Method, Triples, as_ids
from conve_tracin.model.triple_loss import LossFunction, binary_cross_entropy

Gradient = dict[str, Tensor]
GradientOf = Callable[[Sequence[int]], Gradient]


def named_parameters(scorer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the scored model under its own names (without the scorer's prefix)."""
    return {name.removeprefix("model."): parameter for name, parameter in scorer.named_parameters()}


def triple_gradient(
    scorer: nn.Module,
    triple: Tensor,
    *,
    names: Iterable[str] | None = None,
    label: float = 1.0,
    loss_fn: LossFunction = binary_cross_entropy,
) -> dict[str, Tensor]:
    """Compute ∇ℓ(w; triple) with one backward pass.

    Args:
        triple: ids, shape (3,).
        names: parameters to differentiate by; by default all.
        loss_fn: score and label, both (1,), to a loss.

    Returns:
        For each name a tensor of the parameter's shape.
    """
    parameters = named_parameters(scorer)
    chosen = {name: parameters[name] for name in (parameters if names is None else names)}
    scores = scorer(triple[None])  # (1,)
    loss = loss_fn(scores, torch.full_like(scores, label)).sum()
    gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(chosen, gradients, strict=True))


def dot(left: dict[str, Tensor], right: dict[str, Tensor]) -> Tensor:
    """Sum the products of two gradients over all parameters."""
    return torch.stack([(left[name] * right[name]).sum() for name in left]).sum()


def triple_gradients(
    scorer: nn.Module,
    triples: Tensor,
    *,
    names: Iterable[str] | None = None,
    loss_fn: LossFunction = binary_cross_entropy,
) -> Iterator[dict[str, Tensor]]:
    """Compute ∇ℓ(w; z) of each triple z (N, 3), one after the other."""
    names = None if names is None else list(names)
    return (triple_gradient(scorer, triple, names=names, loss_fn=loss_fn) for triple in triples)


def products_with(gradients: Iterable[dict[str, Tensor]], test_gradients: list[dict[str, Tensor]]) -> Tensor:
    """Multiply each of N gradients with n test gradients: (n, N)."""
    columns = [next(iter(test_gradients[0].values())).new_zeros(len(test_gradients), 0)]
    for gradient in gradients:
        products = torch.stack([dot(test_gradient, gradient) for test_gradient in test_gradients])  # (n,)
        columns.append(products[:, None])
    return torch.cat(columns, dim=1)


def squared_norms(gradients: Iterable[dict[str, Tensor]], *, like: Tensor) -> Tensor:
    """Square the norms of N gradients: (N,), on the device of `like`."""
    return torch.cat([like.detach().new_zeros(0), *(dot(gradient, gradient)[None] for gradient in gradients)])


class BackwardLoop(Method):
    """The definition: a backward pass for each triple.

    Args:
        gradient: head, relation and tail to ∇ℓ.
        like: a tensor of the gradients' kind and device.
        test_gradient: the same as `gradient` for test triples, from a cache perhaps.
    """

    def __init__(self, gradient: GradientOf, *, like: Tensor, test_gradient: GradientOf | None = None) -> None:
        self.gradient = gradient
        self.like = like
        self.test_gradient = test_gradient or gradient

    def _gradients(self, triples: Triples, progress: str | None) -> Iterator[Gradient]:
        return map(self.gradient, tqdm(as_ids(triples), desc=progress, disable=progress is None, unit="triple"))

    def products(
        self,
        test_triples: Triples,
        training_triples: Triples,
        *,
        batch_size: int = 256,  # noqa: ARG002 - one triple at a time
        progress: str | None = None,
    ) -> Tensor:
        """Compute ∇ℓ(z) · ∇ℓ(z′) of n test triples z′ and N training triples z: (n, N) on the CPU."""
        test_gradients = [self.test_gradient(triple) for triple in as_ids(test_triples)]
        return products_with(self._gradients(training_triples, progress), test_gradients).cpu()

    def self_products(
        self,
        triples: Triples,
        *,
        batch_size: int = 256,  # noqa: ARG002 - one triple at a time
        progress: str | None = None,
    ) -> Tensor:
        """Compute ‖∇ℓ(z)‖² of each triple (N, 3): (N,) on the CPU."""
        return squared_norms(self._gradients(triples, progress), like=self.like).cpu()

"""What the streamed losses do to every score of a chunk: sums over the entities, and gradients.

Each function takes the products q · e of B queries and n entities, (B, n), or what another made of them, and may
overwrite these. As they stand, torch passes over the scores once for each operation; compiled, a function has one pass
or two.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Above this, softplus(s) = s and σ(s) = 1 even in float64, and exp(s) is still finite in float32.
LARGE_SCORE = 60.0


def binary_terms(
    products: Tensor, bias: Tensor | None, *, everywhere: float, dtype: torch.dtype, low_precision: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum softplus(s) − everywhere · s over the scores of each query, (B,), and take the derivative.

    That is σ(s) − everywhere, (B, n), returned in both precisions. One exponential serves both: with e = exp(s),
    σ(s) = e / (1 + e) and softplus(s) = log(1 + e).
    """
    scores = _biased(products, bias, dtype)
    linear = scores.sum(dim=1)
    excess = _excess(scores)
    exponentials = scores.clamp_(max=LARGE_SCORE).exp_()
    ones_plus = exponentials + 1
    gradient = exponentials.div_(ones_plus)
    if everywhere:
        gradient -= everywhere
    return ones_plus.log_().sum(dim=1) + excess - everywhere * linear, gradient, gradient.to(low_precision)


def normalizer_terms(
    products: Tensor, bias: Tensor | None, top: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prepare a softmax: return Σ s, the maximum m of `top` (B,) and the scores, exp(s − m), and its sum.

    The exponentials are (B, n), all else is (B,).
    """
    scores = _biased(products, bias, dtype)
    linear = scores.sum(dim=1)
    new_top = torch.maximum(top, scores.amax(dim=1))
    exponentials = scores.sub_(new_top[:, None]).exp_()
    return linear, new_top, exponentials, exponentials.sum(dim=1)


def relative_exponentials(products: Tensor, bias: Tensor | None, top: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Compute exp(s − top), (B, n), with `top` of each query, (B,)."""
    return _biased(products, bias, dtype).sub_(top[:, None]).exp_()


def softmax_gradient(
    exponentials: Tensor, factors: Tensor, *, everywhere: float, low_precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Make exponentials (B, n) probabilities by each query's factor, (B,), less `everywhere`; in both precisions."""
    gradient = exponentials.mul_(factors[:, None])
    if everywhere:
        gradient -= everywhere
    return gradient, gradient.to(low_precision)


class ScoreTerms(NamedTuple):
    """The functions above, plain or compiled."""

    binary_terms: Callable[..., tuple[Tensor, Tensor, Tensor]] = binary_terms
    normalizer_terms: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = normalizer_terms
    relative_exponentials: Callable[..., Tensor] = relative_exponentials
    softmax_gradient: Callable[..., tuple[Tensor, Tensor]] = softmax_gradient


@functools.cache
def choose_score_terms(*, compiled: bool) -> ScoreTerms:
    """Return the functions; compiled ones are compiled when they are first called, and fail then."""
    plain = ScoreTerms()
    return ScoreTerms(*(torch.compile(function, dynamic=True) for function in plain)) if compiled else plain


def _biased(products: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    scores = products.to(dtype)
    return scores if bias is None else scores.add_(bias)


def _excess(scores: Tensor) -> Tensor | float:
    """Sum what the scores have above LARGE_SCORE over each query's: (B,)."""
    # Such scores are rare; but looking for them would make a GPU wait, and cut a compiled function in two.
    if not torch.compiler.is_compiling() and scores.device.type == "cpu" and scores.amax() <= LARGE_SCORE:
        return 0.0
    return (scores - LARGE_SCORE).clamp_(min=0).sum(dim=1)

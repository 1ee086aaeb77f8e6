"""TracIn (Pruthi et al., 2020, https://arxiv.org/abs/2002.08484): products of gradients, on three engines.

All give the scores of the definition (`reference`): the backward loop for any model, passes that share query vectors
for ConvE (`engine`), and one forward pass for each test triple for any other model (`autodiff`).
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conve_tracin.data.graph import Graph
from conve_tracin.influence import autodiff, reference
from conve_tracin.influence.engine import passes, tangent
from conve_tracin.influence.method import Method, Triples, as_ids
from conve_tracin.influence.reference import BackwardLoop, Gradient, GradientOf
from conve_tracin.influence.scorers import LoadedModel, PyKEENScorer, Scorer
from conve_tracin.influence.training_loss import build_training_loss
from conve_tracin.model.triple_loss import LossFunction, binary_cross_entropy, loss_slopes
from conve_tracin.settings import TracInOptions

logger = logging.getLogger(__name__)

# With mixed precision, as many of each test triple's strongest influences of each sign are computed again in full
# precision, unless more are wanted.
RESCORED = 512


def build(loaded: LoadedModel, options: TracInOptions, graph: Graph, say: Callable[[str], None]) -> Method:
    """Choose the loss and the engine that the options ask for.

    Raises InputError for options that do not fit the model.
    """
    scorer = loaded.scorer
    names = scorer.tracked(
        use_last_layers_only=options.use_last_layers_only,
        num_last_layers=options.num_last_layers,
        last_layer_names=options.last_layer_names,
    )
    if options.training_loss:
        return build_training_loss(loaded, options, graph.listed_triples, names=names)
    if not options.use_optimized_tracin:
        return backward_loop(scorer, names)
    if scorer.conve is None:
        if options.use_mixed_precision:
            kind = type(scorer.model).__name__
            say(f"--use-mixed-precision has no effect on a {kind}; ConvE has the fast engine")
        return ForwardPasses(scorer, names)
    # Twice as many as are listed: rounding moves some over the edge of the list.
    return SharedPasses(
        scorer,
        names,
        low_precision=torch.bfloat16 if options.use_mixed_precision else None,
        rescored=max(RESCORED, 2 * options.top_k),
    )


def title(_: TracInOptions) -> str:
    """Name the method for people."""
    return "TracIn"


def members(options: TracInOptions) -> dict[str, Any]:
    """Return the method's settings in the JSON output."""
    return {"training_loss": True} if options.training_loss else {}


def gradient_of(
    scorer: Scorer, names: Sequence[str], triple: Sequence[int], *, label: float = 1.0, loss_fn: LossFunction
) -> Gradient:
    """Compute ∇ℓ of one triple by the parameters `names`: {name: tensor of the parameter's shape}."""
    ids = scorer.tensor([triple])[0]
    return reference.triple_gradient(scorer, ids, names=names, label=label, loss_fn=loss_fn)


def backward_loop(
    scorer: Scorer,
    names: Sequence[str],
    *,
    loss_fn: LossFunction = binary_cross_entropy,
    test_gradient: GradientOf | None = None,
) -> BackwardLoop:
    """Make the backward loop of the documented loss."""
    gradient = partial(gradient_of, scorer, names, loss_fn=loss_fn)
    return BackwardLoop(gradient, like=next(scorer.parameters()), test_gradient=test_gradient)


class SharedPasses(Method):
    """The same for ConvE by passes in which training triples share query vectors (see `engine`).

    Args:
        scorer: of a ConvE, native or PyKEEN's.
        names: the tracked parameters, by the scored model's names.
        loss_fn: score and label, elementwise, to a loss.
        low_precision: of the matrix products; the strongest influences are computed again in full precision.
        rescored: how many of each sign those are.
    """

    def __init__(
        self,
        scorer: Scorer,
        names: Sequence[str],
        *,
        loss_fn: LossFunction = binary_cross_entropy,
        low_precision: torch.dtype | None = None,
        rescored: int = RESCORED,
    ) -> None:
        self.scorer = scorer
        self.model = scorer.conve
        self.names = scorer.native_names(names)
        self.loss_fn = loss_fn
        self.low_precision = low_precision
        self.rescored = rescored

    def products(
        self, test_triples: Triples, training_triples: Triples, *, batch_size: int = 256, progress: str | None = None
    ) -> Tensor:
        """Compute ∇ℓ(z) · ∇ℓ(z′) of n test triples z′ and N training triples z: (n, N) on the CPU."""
        tangents = [
            tangent.loss_gradient(self.model, triple, names=self.names, loss_fn=self.loss_fn)
            for triple in self.scorer.rows(test_triples)
        ]
        training_triples = self.scorer.rows(training_triples)
        products = torch.zeros(len(tangents), len(training_triples), dtype=self.model.fc.weight.dtype)

        def fill(chosen: np.ndarray, low_precision: torch.dtype | None, progress: str | None) -> None:
            is_all = len(chosen) == len(training_triples)
            for positions, scores, derivatives in passes.iterate_derivatives(
                self.model,
                tangents,
                training_triples if is_all else np.take(training_triples, chosen, axis=0),
                batch_size=batch_size,
                low_precision=low_precision,
                progress=progress,
            ):
                slopes = loss_slopes(scores, self.loss_fn)
                products.numpy()[:, chosen[positions.numpy()]] = (derivatives * slopes).cpu().numpy()

        fill(np.arange(len(training_triples)), self.low_precision, progress)
        if self.low_precision is not None:
            # Low precision finds the strongest; full precision scores them.
            count = min(self.rescored, len(training_triples))
            strongest_of_each_sign = [products.topk(count, dim=1, largest=largest).indices for largest in (True, False)]
            fill(torch.cat(strongest_of_each_sign).unique().numpy(), None, None)
        return products

    def self_products(self, triples: Triples, *, batch_size: int = 256, progress: str | None = None) -> Tensor:
        """Compute ‖∇ℓ(z)‖² of each triple (N, 3): (N,) on the CPU."""
        triples = self.scorer.rows(triples)
        norms = torch.empty(len(triples), dtype=self.model.fc.weight.dtype)
        for positions, squared_norms in passes.iterate_squared_norms(
            self.model,
            triples,
            names=self.names,
            loss_fn=self.loss_fn,
            batch_size=batch_size,
            low_precision=self.low_precision,
            progress=progress,
        ):
            norms[positions] = squared_norms.cpu()
        return norms


class ForwardPasses(Method):
    """The same for any PyKEEN model, by one forward pass over the training triples for each test triple."""

    def __init__(
        self,
        scorer: PyKEENScorer,
        names: Sequence[str],
        *,
        loss_fn: LossFunction = binary_cross_entropy,
        test_gradient: GradientOf | None = None,
    ) -> None:
        self.scorer = scorer
        self.names = names
        self.loss_fn = loss_fn
        self.loop = backward_loop(scorer, names, loss_fn=loss_fn, test_gradient=test_gradient)

    def products(
        self, test_triples: Triples, training_triples: Triples, *, batch_size: int = 256, progress: str | None = None
    ) -> Tensor:
        """Compute ∇ℓ(z) · ∇ℓ(z′) of n test triples z′ and N training triples z: (n, N) on the CPU."""
        tests, trained = as_ids(test_triples), self.scorer.tensor(training_triples)
        try:
            rows = []
            for number, triple in enumerate(tests, start=1):
                scores, derivatives = autodiff.directional_derivatives(
                    self.scorer,
                    self.loop.test_gradient(triple),
                    trained,
                    batch_size=batch_size,
                    progress=None if progress is None else f"{progress}, number {number}",
                )
                rows.append((derivatives * loss_slopes(scores, self.loss_fn)).cpu())
            return torch.stack(rows)
        except NotImplementedError:
            # torch has no forward derivative of some operations, such as RGCN's sparse products.
            logger.info(
                f"a {type(self.scorer.model).__name__} has operations without forward-mode derivatives; "
                "the backward loop computes the same"
            )
            return self.loop.products(test_triples, training_triples, progress=progress)

    def self_products(self, triples: Triples, *, batch_size: int = 256, progress: str | None = None) -> Tensor:
        """Compute ‖∇ℓ(z)‖² of each triple (N, 3): (N,) on the CPU."""
        tables = self.scorer.embedding_tables()
        if tables is None:
            return self.loop.self_products(triples, progress=progress)
        return autodiff.self_products(
            self.scorer.row_scorer(),
            self.scorer.row_triples(triples),
            tables=tables,
            names=self.names,
            loss_fn=self.loss_fn,
            batch_size=batch_size,
            progress=progress,
        ).cpu()

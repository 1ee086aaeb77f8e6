"""The documented classes: a scorer and a method behind the names that users' scripts call.

`TracInAnalyzerPyTorch` (tracin_pytorch.py), `TracInAnalyzer` (tracin.py) and its counterpart of tracin_optimized.py.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from conve_tracin.influence import autodiff
from conve_tracin.influence.method import Method, Triples, as_ids, rank_influences
from conve_tracin.influence.scorers import ConvEScorer, PyKEENScorer, Scorer
from conve_tracin.influence.tracin import RESCORED, ForwardPasses, SharedPasses, backward_loop, gradient_of
from conve_tracin.model.conve import ConvE
from conve_tracin.model.triple_loss import LossFunction, binary_cross_entropy
from conve_tracin.settings import DEFAULT_LEARNING_RATE

if TYPE_CHECKING:
    from conve_tracin.checkpoint.pykeen import PyKEENModel

# Full gradients of a large model are large: keep this many, and fewer if they hold more numbers than this.
CACHED_GRADIENTS = 128
CACHED_NUMBERS = 2**28


class Analyzer:
    """Gradients, their products and ranked influences on one model. Triples have the ids of the files.

    Attributes:
        scorer, method: what scores, and what compares.
        names: the tracked parameters.
        test_gradient_cache: gradients of recent test triples.
    """

    method: Method

    def __init__(
        self, scorer: Scorer, names: Sequence[str], *, loss_fn: LossFunction, cache_test_gradients: bool
    ) -> None:
        self.scorer = scorer
        self.names = list(names)
        self.loss_fn = loss_fn
        self.cache_test_gradients = cache_test_gradients
        self.test_gradient_cache: OrderedDict[tuple[int, int, int], dict[str, Tensor]] = OrderedDict()
        self.method = backward_loop(scorer, names, loss_fn=loss_fn, test_gradient=self.get_or_compute_test_gradient)

    @property
    def model(self) -> torch.nn.Module:
        """The analyzed model."""
        return self.scorer.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.scorer.device

    def compute_gradient(self, head: int, relation: int, tail: int, label: float = 1.0) -> dict[str, Tensor]:
        """Compute ∇ℓ of one triple: {parameter name: tensor of its shape}."""
        return gradient_of(self.scorer, self.names, (head, relation, tail), label=label, loss_fn=self.loss_fn)

    def compute_batch_individual_gradients(self, triples: Triples) -> list[dict[str, Tensor]]:
        """Compute ∇ℓ of each triple (N, 3), one dictionary for each."""
        return [self.compute_gradient(*triple) for triple in as_ids(triples)]

    compute_batch_gradients = compute_batch_individual_gradients

    def get_or_compute_test_gradient(self, test_triple: Sequence[int]) -> dict[str, Tensor]:
        """Return a test triple's gradient, from the cache if it is there."""
        key = tuple(int(value) for value in test_triple)
        if key in self.test_gradient_cache:
            self.test_gradient_cache.move_to_end(key)
            return self.test_gradient_cache[key]
        gradient = self.compute_gradient(*key)
        if self.cache_test_gradients:
            self.test_gradient_cache[key] = gradient
            numbers = sum(part.numel() for part in gradient.values())
            if len(self.test_gradient_cache) > max(1, min(CACHED_GRADIENTS, CACHED_NUMBERS // numbers)):
                self.test_gradient_cache.popitem(last=False)
        return gradient

    def precompute_test_gradients(self, test_triples: Triples) -> None:
        """Fill the cache with the gradients of test triples (n, 3); it holds the latest `CACHED_GRADIENTS`."""
        for triple in as_ids(test_triples):
            self.get_or_compute_test_gradient(triple)

    def gradient_products(
        self, test_triples: Triples, training_triples: Triples, *, batch_size: int = 256, progress: str | None = None
    ) -> Tensor:
        """Compute ∇ℓ(z) · ∇ℓ(z′) of n test triples z′ and N training triples z: (n, N) on the CPU."""
        return self.method.products(test_triples, training_triples, batch_size=batch_size, progress=progress)

    def self_products(self, triples: Triples, *, batch_size: int = 256, progress: str | None = None) -> Tensor:
        """Compute ‖∇ℓ(z)‖² of each triple (N, 3): (N,) on the CPU."""
        return self.method.self_products(triples, batch_size=batch_size, progress=progress)

    def compute_influences_for_test_triple(
        self,
        test_triple: Sequence[int],
        training_triples: Triples,
        learning_rate: float = DEFAULT_LEARNING_RATE,
        top_k: int | None = 10,
        batch_size: int = 256,
    ) -> list[dict[str, int | float]]:
        """Rank training triples (N, 3) by their absolute influence on the test triple.

        Returns:
            The `top_k` strongest (all with None), ties in training order, as members of the JSON output:
            train_head, train_relation, train_tail, influence.
        """
        return self.analyze_test_set(
            [test_triple], training_triples, learning_rate=learning_rate, top_k=top_k, batch_size=batch_size
        )[0]

    def analyze_test_set(
        self,
        test_triples: Triples,
        training_triples: Triples,
        *,
        learning_rate: float = DEFAULT_LEARNING_RATE,
        top_k: int | None = 10,
        batch_size: int = 256,
    ) -> list[list[dict[str, int | float]]]:
        """Do the same for each test triple (n, 3), in one pass over the training triples."""
        training_triples = as_ids(training_triples)
        products = self.gradient_products(test_triples, training_triples, batch_size=batch_size)
        return [
            [influence.as_dict() for influence in rank_influences(row, training_triples, top_k)]
            for row in learning_rate * products
        ]

    def compute_self_influence(
        self, triples: Triples, learning_rate: float = DEFAULT_LEARNING_RATE, batch_size: int = 256
    ) -> np.ndarray:
        """Compute η‖∇ℓ(w; z)‖² of each triple (N, 3): (N,)."""
        return (learning_rate * self.self_products(triples, batch_size=batch_size)).numpy()


class TracInReferencePyTorch(Analyzer):
    """TracIn for native ConvE models by the definition's backward loop.

    Args:
        model: ConvE; it is put into eval mode.
        use_last_layers_only: track the last `num_last_layers` tensors before the scoring layer instead of all.
        num_last_layers: counted backwards from `fc.bias`, see LAST_LAYERS.
        last_layer_names: track exactly these parameters.
        loss_fn: score and label, elementwise, to a loss.
        cache_test_gradients: keep the gradients of recent test triples.
        inverse_triples: the model has inverse relations: relation r of the files is its row 2r.
    """

    def __init__(
        self,
        model: ConvE,
        *,
        use_last_layers_only: bool = False,
        num_last_layers: int = 2,
        last_layer_names: Sequence[str] | None = None,
        loss_fn: LossFunction = binary_cross_entropy,
        cache_test_gradients: bool = True,
        inverse_triples: bool = False,
    ) -> None:
        scorer = ConvEScorer(model, inverse_triples=inverse_triples)
        names = scorer.tracked(
            use_last_layers_only=use_last_layers_only,
            num_last_layers=num_last_layers,
            last_layer_names=last_layer_names,
        )
        super().__init__(scorer, names, loss_fn=loss_fn, cache_test_gradients=cache_test_gradients)


class TracInAnalyzerPyTorch(TracInReferencePyTorch):
    """The same in far less time, by passes in which training triples share query vectors.

    Args:
        model, settings: see `TracInReferencePyTorch`.
        use_mixed_precision: matrix products in bfloat16, except for the strongest influences.
        rescored: how many of each sign those are.
    """

    def __init__(
        self, model: ConvE, *, use_mixed_precision: bool = False, rescored: int = RESCORED, **settings: object
    ) -> None:
        super().__init__(model, **settings)
        self.method = SharedPasses(
            self.scorer,
            self.names,
            loss_fn=self.loss_fn,
            low_precision=torch.bfloat16 if use_mixed_precision else None,
            rescored=rescored,
        )


class TracInAnalyzer(Analyzer):
    """TracIn for PyKEEN models of any class by the definition's backward loop.

    Args:
        model: it is put into eval mode. Make a new analyzer after changing its weights.
        use_last_layers_only, num_last_layers, last_layer_names: as for `TracInReferencePyTorch`, by PyKEEN's names.
        loss_fn: score and label, elementwise, to a loss.
        cache_test_gradients: keep the gradients of recent test triples.
        device: where the model goes; without it the model stays where it is.
    """

    scorer: PyKEENScorer

    def __init__(
        self,
        model: "PyKEENModel",
        *,
        use_last_layers_only: bool = False,
        num_last_layers: int = 2,
        last_layer_names: Sequence[str] | None = None,
        loss_fn: LossFunction = binary_cross_entropy,
        cache_test_gradients: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        scorer = PyKEENScorer(model if device is None else model.to(device))
        names = scorer.tracked(
            use_last_layers_only=use_last_layers_only,
            num_last_layers=num_last_layers,
            last_layer_names=last_layer_names,
        )
        super().__init__(scorer, names, loss_fn=loss_fn, cache_test_gradients=cache_test_gradients)


class TracInAnalyzerOptimized(TracInAnalyzer):
    """The same results by forward passes, which build no training gradient.

    Args:
        model, settings: see `TracInAnalyzer`.
        use_mixed_precision, rescored: see `TracInAnalyzerPyTorch`; models other than ConvE stay exact.
        use_vectorized_gradients, use_torch_compile: accepted for older callers. Forward passes need no training
            gradients, and compiling PyKEEN's models gained little (docs/notes.md).
    """

    def __init__(
        self,
        model: "PyKEENModel",
        *,
        use_mixed_precision: bool = False,
        rescored: int = RESCORED,
        use_vectorized_gradients: bool = True,  # noqa: ARG002 - see above
        use_torch_compile: bool = False,  # noqa: ARG002 - see above
        **settings: object,
    ) -> None:
        super().__init__(model, **settings)
        if self.scorer.conve is None:
            self.method = ForwardPasses(
                self.scorer, self.names, loss_fn=self.loss_fn, test_gradient=self.get_or_compute_test_gradient
            )
        else:
            self.method = SharedPasses(
                self.scorer,
                self.names,
                loss_fn=self.loss_fn,
                low_precision=torch.bfloat16 if use_mixed_precision else None,
                rescored=rescored,
            )

    def compute_batch_gradients_vectorized(self, triples: Triples, label: float = 1.0) -> dict[str, Tensor]:
        """Compute ∇ℓ of each triple (B, 3) at once, by `vmap(grad)`: {parameter name: (B, *its shape)}.

        It holds B gradients of the whole model; the other methods need none of them.
        """
        return autodiff.per_triple_gradients(
            self.scorer, self.scorer.tensor(triples), names=self.names, label=label, loss_fn=self.loss_fn
        )

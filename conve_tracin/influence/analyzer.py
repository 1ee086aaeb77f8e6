"""Analyzers: one model, and the influence of training triples on its predictions.

An analyzer turns triples in the ids of the files into gradients, products of gradients and ranked influences. What
differs between them is the engine behind `gradient_products`; the definition is the same (see `reference`).
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from conve_tracin.data.queries import with_relation_rows
from conve_tracin.device import compute_in_batches
from conve_tracin.errors import InputError
from conve_tracin.influence import reference
from conve_tracin.influence.engine import passes, tangent
from conve_tracin.model.conve import ConvE
from conve_tracin.model.triple_loss import LossFunction, binary_cross_entropy, loss_slopes
from conve_tracin.settings import DEFAULT_LEARNING_RATE

# From the scoring layer backwards; bn2 acts on the query vector and is tracked only where it is named.
LAST_LAYERS = (
    "fc.bias", "fc.weight", "bn1.bias", "bn1.weight", "conv1.bias", "conv1.weight", "bn0.bias", "bn0.weight",
)  # fmt: skip
# Full gradients of a large model are large: keep so many, and fewer where they hold more numbers than this.
CACHED_GRADIENTS = 128
CACHED_NUMBERS = 2**28

# With mixed precision, as many of each test triple's strongest influences of each sign are computed again in full
# precision, unless more are wanted.
RESCORED = 512

Triples = np.ndarray | Tensor | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Influence:
    """One training triple's influence on a test triple; `position` is its place in the training set."""

    head: int
    relation: int
    tail: int
    influence: float
    position: int

    def as_dict(self) -> dict[str, int | float]:
        """Return the members of the JSON output."""
        return {
            "train_head": self.head,
            "train_relation": self.relation,
            "train_tail": self.tail,
            "influence": self.influence,
        }


def strongest(scores: Tensor, top_k: int | None) -> Tensor:
    """Return the positions of the `top_k` scores (N,) of largest size, ties in training order; all without `top_k`."""
    size = scores.abs()
    if top_k is not None and top_k < len(scores):
        # Everything that ties with the k-th largest takes part in the stable sort, so that ties keep their order.
        kth_largest = size.kthvalue(len(size) - top_k + 1).values
        candidates = (size >= kth_largest).nonzero()[:, 0]
    else:
        candidates = torch.arange(len(size))
    order = torch.sort(size[candidates], descending=True, stable=True).indices
    return candidates[order][:top_k]


def as_ids(triples: Triples) -> np.ndarray:
    """Turn triples given as an array, a tensor or rows into (N, 3) int64."""
    if isinstance(triples, Tensor):
        triples = triples.cpu().numpy()
    array = np.asarray(triples, dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise InputError(f"triples have the shape {array.shape}; give (N, 3) ids of head, relation, tail")
    return array


class TripleAnalyzer:
    """The plain analyzer: the definition by backward passes, for any scorer (see `reference`).

    Args:
        scorer: module that scores triples (B, 3); it is put into eval mode.
        names: the parameters to track; all of them without.
        loss_fn: score and label, elementwise, to a loss.
        cache_test_gradients: keep the gradients of recent test triples.
    """

    # Whether each process of torchrun may compute some of the training triples.
    shares_training_triples = True
    # What the methods multiply with where no learning rate is given.
    default_learning_rate = DEFAULT_LEARNING_RATE

    def __init__(
        self,
        scorer: nn.Module,
        *,
        names: Iterable[str] | None = None,
        loss_fn: LossFunction = binary_cross_entropy,
        cache_test_gradients: bool = True,
    ) -> None:
        # Eval mode throughout: BatchNorm in training mode mixes the triples of a batch, and fails on a batch of one.
        self.scorer = scorer.eval()
        self.loss_fn = loss_fn
        self.cache_test_gradients = cache_test_gradients
        self.test_gradient_cache: OrderedDict[tuple[int, int, int], dict[str, Tensor]] = OrderedDict()
        known = reference.named_parameters(scorer)
        self.names = list(known if names is None else names)
        unknown = [name for name in self.names if name not in known]
        if unknown:
            raise InputError(f"no parameter is named {unknown[0]!r}; the model has {', '.join(known)}")
        self.device = next(scorer.parameters()).device

    def model_ids(self, triples: Triples) -> np.ndarray:
        """Translate triples from the ids of the files to the model's own; the same here."""
        return as_ids(triples)

    def _tensor(self, triples: Triples) -> Tensor:
        return torch.from_numpy(self.model_ids(triples)).to(self.device)

    def compute_gradient(self, head: int, relation: int, tail: int, label: float = 1.0) -> dict[str, Tensor]:
        """Compute ∇ℓ of one triple: {parameter name: tensor of its shape}."""
        triple = self._tensor([[head, relation, tail]])[0]
        return reference.triple_gradient(self.scorer, triple, names=self.names, label=label, loss_fn=self.loss_fn)

    def compute_batch_individual_gradients(self, triples: Triples) -> list[dict[str, Tensor]]:
        """Compute ∇ℓ of each triple (N, 3), one dictionary for each."""
        return [self.compute_gradient(*triple) for triple in as_ids(triples)]

    compute_batch_gradients = compute_batch_individual_gradients

    def _gradients(self, triples: Triples, progress: str | None) -> Iterator[dict[str, Tensor]]:
        bar = tqdm(as_ids(triples).tolist(), desc=progress, disable=progress is None, unit="triple")
        return (self.compute_gradient(*triple) for triple in bar)

    def get_or_compute_test_gradient(self, test_triple: Sequence[int]) -> dict[str, Tensor]:
        """Return a test triple's gradient, from the cache where it is there."""
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
        self,
        test_triples: Triples,
        training_triples: Triples,
        *,
        batch_size: int = 256,  # noqa: ARG002 - the engines that work in batches need it
        progress: str | None = None,
    ) -> Tensor:
        """Compute ∇ℓ(z) · ∇ℓ(z′) of n test triples z′ and N training triples z: (n, N) on the CPU."""
        test_gradients = [self.get_or_compute_test_gradient(triple) for triple in as_ids(test_triples)]
        return reference.products_with(self._gradients(training_triples, progress), test_gradients).cpu()

    def self_products(
        self,
        triples: Triples,
        *,
        batch_size: int = 256,  # noqa: ARG002 - the engines that work in batches need it
        progress: str | None = None,
    ) -> Tensor:
        """Compute ‖∇ℓ(z)‖² of each triple (N, 3): (N,) on the CPU."""
        gradients = self._gradients(triples, progress)
        return reference.squared_norms(gradients, like=next(self.scorer.parameters())).cpu()

    @torch.no_grad()
    def score_tails(self, head: int, relation: int, num_entities: int, *, batch_size: int = 256) -> Tensor:
        """Score every entity as tail of (head, relation), in the ids of the files: (num_entities,) on the CPU."""
        tails = torch.arange(num_entities)

        def score(batch: slice) -> Tensor:
            return self.scorer(self._tensor(_with_tails(head, relation, tails[batch]))).cpu()

        return torch.cat(list(compute_in_batches(score, num_entities, batch_size=batch_size)))

    def compute_influences_for_test_triple(
        self,
        test_triple: Sequence[int],
        training_triples: Triples,
        learning_rate: float | None = None,
        top_k: int | None = 10,
        batch_size: int = 256,
    ) -> list[dict[str, int | float]]:
        """Rank training triples (N, 3) by their absolute influence on the test triple; η is 0.001 unless given.

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
        learning_rate: float | None = None,
        top_k: int | None = 10,
        batch_size: int = 256,
    ) -> list[list[dict[str, int | float]]]:
        """Do the same for each test triple (n, 3), in one pass over the training triples."""
        training_triples = as_ids(training_triples)
        products = self.gradient_products(test_triples, training_triples, batch_size=batch_size)
        return [
            [influence.as_dict() for influence in rank_influences(row, training_triples, top_k)]
            for row in self._rate(learning_rate) * products
        ]

    def compute_self_influence(
        self, triples: Triples, learning_rate: float | None = None, batch_size: int = 256
    ) -> np.ndarray:
        """Compute η‖∇ℓ(w; z)‖² of each triple (N, 3): (N,)."""
        return (self._rate(learning_rate) * self.self_products(triples, batch_size=batch_size)).numpy()

    def _rate(self, learning_rate: float | None) -> float:
        return self.default_learning_rate if learning_rate is None else learning_rate


def _with_tails(head: int, relation: int, tails: Tensor) -> np.ndarray:
    """Put each of the tails (B,) behind head and relation: (B, 3)."""
    return np.stack(np.broadcast_arrays(head, relation, tails.numpy()), axis=1)


def rank_influences(scores: Tensor, training_triples: np.ndarray, top_k: int | None) -> list[Influence]:
    """List the strongest of the influences (N,) of training triples (N, 3)."""
    return [
        Influence(*training_triples[position].tolist(), influence=scores[position].item(), position=position)
        for position in strongest(scores, top_k).tolist()
    ]


class TracInReferencePyTorch(TripleAnalyzer):
    """TracIn for native ConvE models by the definition's backward loop.

    Args:
        model: ConvE; it is put into eval mode.
        use_last_layers_only: track the last `num_last_layers` tensors before the scoring layer instead of all.
        num_last_layers: counted backwards from `fc.bias`, see LAST_LAYERS.
        last_layer_names: track exactly these parameters.
        loss_fn: score and label, elementwise, to a loss.
        cache_test_gradients: keep the gradients of recent test triples.
        use_mixed_precision: matrix products in bfloat16, but for the strongest influences; the reference stays exact.
        rescored: how many of each sign those are.
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
        use_mixed_precision: bool = False,
        rescored: int = RESCORED,
        inverse_triples: bool = False,
    ) -> None:
        names = last_layer_names
        if use_last_layers_only and names is None:
            if not 1 <= num_last_layers <= len(LAST_LAYERS):
                raise InputError(f"--num-last-layers {num_last_layers}: give 1 to {len(LAST_LAYERS)}")
            names = LAST_LAYERS[:num_last_layers]
        super().__init__(
            reference.ConvEScorer(model), names=names, loss_fn=loss_fn, cache_test_gradients=cache_test_gradients
        )
        self.model = model
        self.low_precision = torch.bfloat16 if use_mixed_precision else None
        self.rescored = rescored
        self.inverse_triples = inverse_triples

    def model_ids(self, triples: Triples) -> np.ndarray:
        """Translate relation ids of the files to rows of the relation table."""
        return with_relation_rows(as_ids(triples), inverse_triples=self.inverse_triples)

    @torch.no_grad()
    def score_tails(
        self,
        head: int,
        relation: int,
        num_entities: int,  # noqa: ARG002 - the model knows it
        *,
        batch_size: int = 256,  # noqa: ARG002 - one query vector serves all tails
    ) -> Tensor:
        """Score every entity as tail of (head, relation), in the ids of the files: (num_entities,) on the CPU."""
        heads, relations, _ = self._tensor([[head, relation, 0]]).unbind(dim=1)
        return self.model(heads, relations)[0].cpu()


class TracInAnalyzerPyTorch(TracInReferencePyTorch):
    """The same on the engine that shares query vectors between training triples (see `conve`)."""

    def gradient_products(
        self,
        test_triples: Triples,
        training_triples: Triples,
        *,
        batch_size: int = 256,
        progress: str | None = None,
    ) -> Tensor:
        """Compute ∇ℓ(z) · ∇ℓ(z′) of n test triples z′ and N training triples z: (n, N) on the CPU."""
        tangents = [
            tangent.loss_gradient(self.model, triple, names=self.names, loss_fn=self.loss_fn)
            for triple in self.model_ids(test_triples)
        ]
        training_triples = self.model_ids(training_triples)
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
        triples = self.model_ids(triples)
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

"""Analyzers for PyKEEN models of any class: the plain reference, and the same on the forward engines.

Gradients and parameters have the PyKEEN model's own names. Triples are in the ids of the mapping files, also for
models trained with `create_inverse_triples=True`.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from conve_tracin.checkpoint.conversion import NATIVE_TO_PYKEEN, PYKEEN_TO_NATIVE
from conve_tracin.checkpoint.pykeen import as_native_conve, relation_rows, score_pykeen
from conve_tracin.errors import InputError
from conve_tracin.influence import autodiff
from conve_tracin.influence.analyzer import (
    LAST_LAYERS,
    RESCORED,
    TracInAnalyzerPyTorch,
    TripleAnalyzer,
    Triples,
    as_ids,
)
from conve_tracin.model.triple_loss import LossFunction, binary_cross_entropy, loss_slopes

if TYPE_CHECKING:
    from conve_tracin.checkpoint.pykeen import PyKEENModel

logger = logging.getLogger(__name__)

# Where PyKEEN's RGCN and CompGCN keep what they have computed.
_CACHES = ("enriched_embeddings", "enriched_representations")
_PYKEEN_TABLE = "pykeen.nn.representation.Embedding"
# Where each kind of representation is indexed: the columns of (head, relation, tail).
_COLUMNS = {"entity_representations": (0, 2), "relation_representations": (1,)}


class PyKEENScorer(nn.Module):
    """Scores triples in the ids of the mapping files with a PyKEEN model."""

    def __init__(self, model: "PyKEENModel") -> None:
        super().__init__()
        self.model = model
        self._caching = [module for module in model.modules() if any(hasattr(module, name) for name in _CACHES)]

    def forward(self, triples: Tensor) -> Tensor:
        """Score triples (B, 3); returns (B,)."""
        self._forget_vectors()
        try:
            return score_pykeen(self.model, triples)
        finally:
            self._forget_vectors()

    def _forget_vectors(self) -> None:
        # Graph networks keep their entity vectors between calls in eval mode. Kept ones would not follow a tangent,
        # and a second backward pass through them fails.
        for module in self._caching:
            for name in _CACHES:
                if hasattr(module, name):
                    setattr(module, name, None)


class _RowScorer(nn.Module):
    """Scores triples whose relation ids are rows of the relation table."""

    def __init__(self, model: "PyKEENModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, triples: Tensor) -> Tensor:
        return self.model.score_hrt(triples).squeeze(-1)


class TracInAnalyzer(TripleAnalyzer):
    """TracIn for PyKEEN models by the definition's backward loop (see `reference`).

    An analyzer belongs to one state of its model: make a new one after changing the weights.

    Args:
        model: it is put into eval mode. Parameters that do not require gradients are not tracked.
        use_last_layers_only: track the last `num_last_layers` tensors before the scoring layer instead of all.
        num_last_layers: counted backwards, see `last_layers`.
        last_layer_names: track exactly these parameters, by PyKEEN's names.
        loss_fn: score and label, elementwise, to a loss.
        cache_test_gradients: keep the gradients of recent test triples.
        device: where the model goes; it stays where it is without.
    """

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
        self.model = model if device is None else model.to(device)
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not trainable:
            raise InputError(
                f"a {type(model).__name__} has no trainable parameters, so there are no gradients; use another model"
            )
        names = last_layer_names
        if names is None:
            names = last_layers(model, num_last_layers) if use_last_layers_only else trainable
        super().__init__(PyKEENScorer(model), names=names, loss_fn=loss_fn, cache_test_gradients=cache_test_gradients)
        for name in self.names:
            if name not in trainable:
                raise InputError(
                    f"the parameter {name!r} is no trained part of the model (requires_grad is off); name another"
                )


class TracInAnalyzerOptimized(TracInAnalyzer):
    """The same results by forward-mode passes, which build no training gradient.

    A ConvE goes through the engine that shares query vectors (see `conve`), any other model through the generic
    pass (see `forward`).

    Args:
        model: see `TracInAnalyzer`, as the arguments up to `device`.
        use_mixed_precision: matrix products of a ConvE in bfloat16; other models stay exact.
        rescored: see `TracInAnalyzerPyTorch`.
        use_vectorized_gradients, use_torch_compile: accepted for older callers. Forward passes need no training
            gradients, and compiling PyKEEN's models gained little (docs/notes.md).
    """

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
        use_mixed_precision: bool = False,
        rescored: int = RESCORED,
        use_vectorized_gradients: bool = True,  # noqa: ARG002 - see above
        use_torch_compile: bool = False,  # noqa: ARG002 - see above
    ) -> None:
        super().__init__(
            model,
            use_last_layers_only=use_last_layers_only,
            num_last_layers=num_last_layers,
            last_layer_names=last_layer_names,
            loss_fn=loss_fn,
            cache_test_gradients=cache_test_gradients,
            device=device,
        )
        native = as_native_conve(model)
        self.conve_analyzer: TracInAnalyzerPyTorch | None = None
        if native is not None:
            self.conve_analyzer = TracInAnalyzerPyTorch(
                native,
                last_layer_names=[PYKEEN_TO_NATIVE[name] for name in self.names],
                loss_fn=loss_fn,
                cache_test_gradients=False,
                use_mixed_precision=use_mixed_precision,
                rescored=rescored,
                inverse_triples=model.use_inverse_triples,
            )

    def compute_batch_gradients_vectorized(self, triples: Triples, label: float = 1.0) -> dict[str, Tensor]:
        """Compute ∇ℓ of each triple (B, 3) at once, by `vmap(grad)`: {parameter name: (B, *its shape)}.

        It holds B gradients of the whole model; the other methods need none of them.
        """
        return autodiff.per_triple_gradients(
            self.scorer, self._tensor(triples), names=self.names, label=label, loss_fn=self.loss_fn
        )

    def gradient_products(
        self,
        test_triples: Triples,
        training_triples: Triples,
        *,
        batch_size: int = 256,
        progress: str | None = None,
    ) -> Tensor:
        """Compute ∇ℓ(z) · ∇ℓ(z′) of n test triples z′ and N training triples z: (n, N) on the CPU."""
        if self.conve_analyzer is not None:
            return self.conve_analyzer.gradient_products(
                test_triples, training_triples, batch_size=batch_size, progress=progress
            )
        try:
            return self._products_by_forward_passes(
                as_ids(test_triples), self._tensor(training_triples), batch_size=batch_size, progress=progress
            )
        except NotImplementedError:
            # torch has no forward derivative of some operations, such as RGCN's sparse products.
            logger.info(
                f"a {type(self.model).__name__} has operations without forward-mode derivatives; "
                "the backward loop computes the same"
            )
            return super().gradient_products(test_triples, training_triples, progress=progress)

    def _products_by_forward_passes(
        self, test_triples: np.ndarray, training_triples: Tensor, *, batch_size: int, progress: str | None
    ) -> Tensor:
        rows = []
        for number, triple in enumerate(test_triples, start=1):
            tangent = self.get_or_compute_test_gradient(triple)
            scores, derivatives = autodiff.directional_derivatives(
                self.scorer,
                tangent,
                training_triples,
                batch_size=batch_size,
                progress=None if progress is None else f"{progress}, number {number}",
            )
            rows.append((derivatives * loss_slopes(scores, self.loss_fn)).cpu())
        return torch.stack(rows)

    def score_tails(self, head: int, relation: int, num_entities: int, *, batch_size: int = 256) -> Tensor:
        """Score every entity as tail of (head, relation), in the ids of the files: (num_entities,) on the CPU."""
        if self.conve_analyzer is not None:
            return self.conve_analyzer.score_tails(head, relation, num_entities)
        return super().score_tails(head, relation, num_entities, batch_size=batch_size)

    def self_products(self, triples: Triples, *, batch_size: int = 256, progress: str | None = None) -> Tensor:
        """Compute ‖∇ℓ(z)‖² of each triple (N, 3): (N,) on the CPU."""
        if self.conve_analyzer is not None:
            return self.conve_analyzer.self_products(triples, batch_size=batch_size, progress=progress)
        tables = embedding_tables(self.model)
        if tables is None:
            return super().self_products(triples, batch_size=batch_size, progress=progress)
        return autodiff.self_products(
            _RowScorer(self.model),
            relation_rows(self.model, self._tensor(triples)),
            tables=tables,
            names=self.names,
            loss_fn=self.loss_fn,
            batch_size=batch_size,
            progress=progress,
        ).cpu()


def last_layers(model: "PyKEENModel", count: int) -> list[str]:
    """Name the last `count` tensors before the scoring layer, from the scoring layer backwards.

    For a ConvE these are LAST_LAYERS under PyKEEN's names; for another model the parameters of its interaction.

    Raises InputError where the model has fewer.
    """
    interaction = [name for name, _ in model.named_parameters() if name.startswith("interaction.")]
    conve = [NATIVE_TO_PYKEEN[name] for name in LAST_LAYERS]
    layers = conve if set(conve) <= set(interaction) else interaction[::-1]
    if not layers:
        raise InputError(
            f"--use-last-layers-only: a {type(model).__name__} has no layer between its embeddings and the score; "
            "leave the flag out, or name parameters with --last-layer-names"
        )
    if not 1 <= count <= len(layers):
        raise InputError(f"--num-last-layers {count}: give 1 to {len(layers)}")
    return layers[:count]


def embedding_tables(model: "PyKEENModel") -> dict[str, tuple[int, ...]] | None:
    """Say which parameters a triple touches in single rows only, and which of its columns index them.

    Returns {parameter name: columns of (head, relation, tail)}, or None where the model has representations that
    are no plain tables (of subtokens, of a graph neural network, …).
    """
    tables = {}
    for kind, columns in _COLUMNS.items():
        for position, representation in enumerate(getattr(model, kind, [])):
            name = f"{kind}.{position}._embeddings.weight"
            is_table = f"{type(representation).__module__}.{type(representation).__name__}" == _PYKEEN_TABLE
            if not is_table or name not in dict(model.named_parameters()):
                return None
            tables[name] = columns
    return tables or None

"""Models behind one face: native ConvE and any PyKEEN model score triples that have the ids of the files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from conve_tracin.checkpoint.conversion import NATIVE_TO_PYKEEN, PYKEEN_TO_NATIVE
from conve_tracin.checkpoint.pykeen import as_native_conve, relation_rows, score_pykeen
from conve_tracin.compute.device import compute_in_batches
from conve_tracin.data.graph import Keep
from conve_tracin.data.queries import with_relation_rows
from conve_tracin.errors import InputError
from conve_tracin.influence.method import Triples, as_ids
from conve_tracin.model.conve import ConvE

if TYPE_CHECKING:
    from conve_tracin.checkpoint.pykeen import PyKEENModel

# ConvE's tensors from the scoring layer backwards. bn2 acts on the query vector and is tracked only if it is named.
LAST_LAYERS = (
    "fc.bias", "fc.weight", "bn1.bias", "bn1.weight", "conv1.bias", "conv1.weight", "bn0.bias", "bn0.weight",
)  # fmt: skip
# Entity vectors that a PyKEEN model holds at once to score all entities: at d = 100, 1.6 GB.
VECTORS_AT_ONCE = 2**22
# Entities whose scores for up to 200 queries are at hand at once.
ENTITIES_AT_ONCE = 2048
# Where PyKEEN's RGCN and CompGCN keep what they have computed.
_CACHES = ("enriched_embeddings", "enriched_representations")
_PYKEEN_TABLE = "pykeen.nn.representation.Embedding"
# Where each kind of representation is indexed: the columns of (head, relation, tail).
_COLUMNS = {"entity_representations": (0, 2), "relation_representations": (1,)}


class Scorer(nn.Module, ABC):
    """A model in eval mode that scores triples (B, 3): (B,).

    Eval mode throughout: BatchNorm in training mode mixes the triples of a batch, and fails on a batch of one.

    Attributes:
        model: the scored model; parameters have its names.
        inverse_triples: it has inverse relations, and relation r of the files is its row 2r.
        keep: may return arrays that are kept from an earlier time, of the same model and training triples.
    """

    def __init__(self, model: nn.Module, *, inverse_triples: bool) -> None:
        super().__init__()
        self.model = model
        self.inverse_triples = inverse_triples
        self.keep: Keep = lambda _, make: make()
        self.eval()

    @property
    @abstractmethod
    def conve(self) -> ConvE | None:
        """The model as a native ConvE of the same weights; None if it is none."""

    @abstractmethod
    def trainable(self) -> list[str]:
        """Name the parameters that training moves."""

    @abstractmethod
    def native_names(self, names: Iterable[str]) -> list[str]:
        """Translate parameters' names to those of `conve`."""

    @abstractmethod
    def layers_backwards(self) -> list[str]:
        """Name the tensors before the scoring layer, from the scoring layer backwards."""

    def tracked(
        self,
        *,
        use_last_layers_only: bool = False,
        num_last_layers: int = 2,
        last_layer_names: Iterable[str] | None = None,
    ) -> list[str]:
        """Name the parameters that the documented flags ask for: all, the last ones, or those of these names.

        Raises InputError for a name that the model lacks or does not train, and for a number of layers that it lacks.
        """
        trainable = self.trainable()
        if last_layer_names is None:
            return self._last_layers(num_last_layers) if use_last_layers_only else trainable
        known = [name for name, _ in self.model.named_parameters()]
        for name in last_layer_names:
            if name not in known:
                raise InputError(f"no parameter is named {name!r}; the model has {', '.join(known)}")
            if name not in trainable:
                raise InputError(
                    f"the parameter {name!r} is no trained part of the model (requires_grad is off); name another"
                )
        return list(last_layer_names)

    def _last_layers(self, count: int) -> list[str]:
        layers = self.layers_backwards()
        if not layers:
            raise InputError(
                f"--use-last-layers-only: a {type(self.model).__name__} has no layer between its embeddings and the "
                "score; leave the flag out, or name parameters with --last-layer-names"
            )
        if not 1 <= count <= len(layers):
            raise InputError(f"--num-last-layers {count}: give 1 to {len(layers)}")
        return layers[:count]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def tensor(self, triples: Triples) -> Tensor:
        """Put triples (N, 3) on the model's device."""
        return torch.from_numpy(as_ids(triples)).to(self.device)

    def rows(self, triples: Triples) -> np.ndarray:
        """Replace the relation ids of triples (N, 3) by rows of the relation table."""
        return with_relation_rows(as_ids(triples), inverse_triples=self.inverse_triples)

    @torch.no_grad()
    def score_queries(self, queries: np.ndarray, num_entities: int) -> Tensor:
        """Score every entity as the answer to queries (B, 2): (B, num_entities) on the CPU.

        A query is (head, relation), or (tail, ~relation) if the head is asked for (see `inverse_of`).
        """
        rows = self.rows(np.pad(queries, ((0, 0), (0, 1))))[:, :2]
        return self._score_rows(torch.from_numpy(rows).to(self.device), num_entities).cpu()

    @property
    def score_chunks(self) -> Callable[[np.ndarray], Iterator[tuple[int, Tensor]]] | None:
        """Scores queries (B, 2) against a chunk of the entities at a time; None where all at once are as fast.

        Yields the first entity of each chunk and its scores (B, k) on the CPU.
        """
        return None

    def _score_rows(self, queries: Tensor, num_entities: int) -> Tensor:  # noqa: ARG002 - not all models know it
        """Score every entity as tail of (entity, row of the relation table), (B, 2): (B, num_entities)."""
        return self.conve(*queries.unbind(dim=1))


class ConvEScorer(Scorer):
    """Scores triples with a native ConvE."""

    model: ConvE

    def __init__(self, model: ConvE, *, inverse_triples: bool = False) -> None:
        super().__init__(model, inverse_triples=inverse_triples)

    @property
    def conve(self) -> ConvE:
        """The model itself."""
        return self.model

    @property
    def score_chunks(self) -> Callable[[np.ndarray], Iterator[tuple[int, Tensor]]] | None:
        """Scores chunks that stay in a CPU's cache."""
        return self._score_chunks if self.device.type == "cpu" else None

    @torch.no_grad()
    def _score_chunks(self, queries: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        rows = torch.from_numpy(self.rows(np.pad(queries, ((0, 0), (0, 1)))))
        vectors = self.model.encode(rows[:, 0], rows[:, 1])  # (B, d)
        table, bias = self.model.entity_embeddings.weight, self.model.entity_bias
        for start in range(0, len(table), ENTITIES_AT_ONCE):
            scores = vectors @ table[start : start + ENTITIES_AT_ONCE].T
            yield start, scores if bias is None else scores.add_(bias[start : start + ENTITIES_AT_ONCE])

    def trainable(self) -> list[str]:
        """Name all parameters."""
        return [name for name, _ in self.model.named_parameters()]

    def native_names(self, names: Iterable[str]) -> list[str]:
        """Return the names as they are."""
        return list(names)

    def layers_backwards(self) -> list[str]:
        """Return LAST_LAYERS."""
        return list(LAST_LAYERS)

    def forward(self, triples: Tensor) -> Tensor:
        """Score triples (B, 3); returns (B,)."""
        return self.model.score(*with_relation_rows(triples, inverse_triples=self.inverse_triples).unbind(dim=1))


class PyKEENScorer(Scorer):
    """Scores triples with a PyKEEN model of any class, also one with `create_inverse_triples=True`.

    It belongs to one state of the model: make a new one after the weights have changed. Parameters that do not require
    gradients are not tracked.

    Raises InputError if the model has no trainable parameters.
    """

    model: "PyKEENModel"

    def __init__(self, model: "PyKEENModel") -> None:
        super().__init__(model, inverse_triples=model.use_inverse_triples)
        self._caching = [module for module in model.modules() if any(hasattr(module, name) for name in _CACHES)]
        if not self.trainable():
            raise InputError(
                f"a {type(model).__name__} has no trainable parameters, so there are no gradients; use another model"
            )

    @cached_property
    def _native(self) -> ConvE | None:
        return as_native_conve(self.model)

    @property
    def conve(self) -> ConvE | None:
        """A native ConvE that shares the model's weights, if it is a ConvE that ours can be."""
        return self._native

    def trainable(self) -> list[str]:
        """Name the parameters that require gradients."""
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def native_names(self, names: Iterable[str]) -> list[str]:
        """Translate PyKEEN's names of a ConvE."""
        return [PYKEEN_TO_NATIVE[name] for name in names]

    def layers_backwards(self) -> list[str]:
        """Return LAST_LAYERS by PyKEEN's names; for another model the parameters of its interaction."""
        interaction = [name for name, _ in self.model.named_parameters() if name.startswith("interaction.")]
        conve = [NATIVE_TO_PYKEEN[name] for name in LAST_LAYERS]
        return conve if set(conve) <= set(interaction) else interaction[::-1]

    def forward(self, triples: Tensor) -> Tensor:
        """Score triples (B, 3); returns (B,)."""
        with self._forgetting_vectors():
            return score_pykeen(self.model, triples)

    def _score_rows(self, queries: Tensor, num_entities: int) -> Tensor:
        if self.conve is not None:
            return super()._score_rows(queries, num_entities)
        with self._forgetting_vectors():
            # A score of all entities holds their vectors once for each query.
            batch_size = max(1, VECTORS_AT_ONCE // num_entities)
            parts = compute_in_batches(
                lambda batch: self.model.score_t(queries[batch]), len(queries), batch_size=batch_size
            )
            return torch.cat(list(parts))

    @contextmanager
    def _forgetting_vectors(self) -> Iterator[None]:
        self._forget_vectors()
        try:
            yield
        finally:
            self._forget_vectors()

    def _forget_vectors(self) -> None:
        # Graph networks keep their entity vectors between calls in eval mode. Kept ones would not follow a tangent,
        # and a second backward pass through them fails.
        for module in self._caching:
            for name in _CACHES:
                if hasattr(module, name):
                    setattr(module, name, None)

    def embedding_tables(self) -> dict[str, tuple[int, ...]] | None:
        """Say which parameters a triple touches in single rows only, and which of its columns index them.

        Returns {parameter name: columns of (head, relation, tail)}, or None if the model has representations that
        are no plain tables (of subtokens, of a graph neural network, …).
        """
        tables, known = {}, dict(self.model.named_parameters())
        for kind, columns in _COLUMNS.items():
            for position, representation in enumerate(getattr(self.model, kind, [])):
                name = f"{kind}.{position}._embeddings.weight"
                is_table = f"{type(representation).__module__}.{type(representation).__name__}" == _PYKEEN_TABLE
                if not is_table or name not in known:
                    return None
                tables[name] = columns
        return tables or None

    def row_scorer(self) -> nn.Module:
        """Return a module that scores triples whose relation ids are rows of the relation table."""
        return _RowScorer(self.model)

    def row_triples(self, triples: Triples) -> Tensor:
        """Put triples (N, 3) on the device with rows of the relation table for their relation ids."""
        return relation_rows(self.model, self.tensor(triples))


class _RowScorer(nn.Module):
    def __init__(self, model: "PyKEENModel") -> None:
        super().__init__()
        self.model = model

    def forward(self, triples: Tensor) -> Tensor:
        return self.model.score_hrt(triples).squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A checkpoint's model, and what its file says about its training.

    Attributes:
        path: the file, for messages.
        scorer: the model.
        training_config: the settings of its training; `training_approach` is always there.
        is_native: the file is one of train_pytorch.py.
        keep_of_settings: keeps arrays of this model and some settings for later runs; None where there is no index.
    """

    path: Path
    scorer: Scorer
    training_config: Mapping[str, Any] = field(default_factory=dict)
    is_native: bool = True
    keep_of_settings: Callable[[Any], Keep] | None = None

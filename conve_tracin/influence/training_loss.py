"""TracIn with the objective of the model's own training as ℓ, in place of the binary cross-entropy of one score.

A triple (h, r, t) is trained on as part of its query (h, r), whose loss L compares all K entities with its targets T
(see `model.loss` for L):

    1vsAll:  ℓ(h, r, t) = L(h, r; T = {t})
    KvsAll:  ℓ(h, r, t) = L(h, r; T) · w / |T|,  T = {t} and the tails of (h, r) in the training triples

with the query's weight w, 1 or |T| as it was trained. With inverse triples ℓ is that of (h, r, t) plus that of
(t, inverse of r, h). So the sum over all training triples is what an epoch minimises; in KvsAll the triples of one
query have the same influence, apart from what their inverses add.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, jvp

from conve_tracin.compute.device import compute_in_batches
from conve_tracin.data.keys import distinct_triples
from conve_tracin.data.queries import Queries, examples_of, group_by_query
from conve_tracin.errors import InputError
from conve_tracin.influence.method import Method, Triples, as_ids
from conve_tracin.influence.reference import BackwardLoop, Gradient
from conve_tracin.influence.scorers import LoadedModel, Scorer
from conve_tracin.model.loss import loss_without_targets
from conve_tracin.settings import TracInOptions, TrainingConfig

# The scores of a batch against all entities, which exist here.
SCORES_AT_ONCE = 2**23


@dataclass(frozen=True)
class Objective:
    """What a model was trained to minimise, in the settings of `TrainingConfig`."""

    training_approach: str
    loss: str
    label_smoothing: float
    query_weights: str

    @classmethod
    def of(cls, training_config: Mapping[str, Any]) -> "Objective":
        """Read a checkpoint's settings; what they lack has its default."""
        names = cls.__dataclass_fields__
        return cls(**{name: training_config.get(name, getattr(TrainingConfig, name)) for name in names})

    def without_labels(self, scores: Tensor) -> Tensor:
        """Compute the part of L, K · L for "bce", that is not linear in the scores (B, K): (B,)."""
        return loss_without_targets(self.loss, scores, 0.0)

    def losses(
        self, without_labels: Tensor, scores: Tensor, rows: Tensor, tails: Tensor, known: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Compute ℓ of M triples from their B queries: (M,). It is linear in `without_labels` and `scores` together.

        Args:
            without_labels: of the queries' scores, (B,).
            scores: of the queries against all entities, (B, K).
            rows, tails: the query, as its place in the batch, and the tail of each triple, (M,).
            known: places and tails of the queries' targets, each once, (T,) both; for KvsAll.
        """
        bce = self.loss == "bce"
        without_targets = without_labels - self.label_smoothing / scores.shape[1] * scores.sum(dim=1)  # (B,)
        scale = 1 / scores.shape[1] if bce else 1.0
        if self.training_approach == "1vsall":
            return scale * (without_targets[rows] - (1 - self.label_smoothing) * scores[rows, tails])
        known_rows, known_tails = known
        count = torch.bincount(known_rows, minlength=len(scores)).to(scores.dtype)  # (B,)
        labels = scores[known_rows, known_tails] * (1 - self.label_smoothing)
        if not bce:
            labels = labels / count[known_rows]
        losses = scale * (without_targets - torch.zeros_like(count).index_add(0, known_rows, labels))
        return (losses if self.query_weights == "tails" else losses / count)[rows]


def build_training_loss(
    loaded: LoadedModel, options: TracInOptions, training_triples: np.ndarray, *, names: Sequence[str]
) -> Method:
    """Choose the engine that the options ask for.

    Raises InputError for a model whose file does not say how it was trained.
    """
    if not loaded.is_native:
        raise InputError(f"{loaded.path}: --training-loss is for checkpoints of train_pytorch.py; leave it out")
    objective = Objective.of(loaded.training_config)
    method = TrainingLoss(loaded.scorer, objective=objective, training_triples=training_triples, names=names)
    return method if options.use_optimized_tracin else method.loop


class TrainingLoss(Method):
    """TracIn with the training's objective by forward passes, in which the triples of a query share its scores.

    Args:
        scorer: of a ConvE.
        objective: what it was trained to minimise.
        training_triples: all that it was trained on, (N, 3) in the files' ids.
        names: the tracked parameters; all of them without.

    Attributes:
        loop: the same by the definition's backward loop.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        objective: Objective,
        training_triples: np.ndarray,
        names: Sequence[str] | None = None,
    ) -> None:
        self.scorer = scorer
        self.model = scorer.conve
        self.objective = objective
        self.names = scorer.native_names(scorer.trainable() if names is None else names)
        self.known_triples = distinct_triples(self._examples(training_triples))
        self.loop = BackwardLoop(self.gradient, like=self.model.fc.weight)

    def _examples(self, triples: Triples) -> np.ndarray:
        """Return what triples (N, 3) are trained on as: (S · N, 3) with relation rows, S = 2 with inverse triples."""
        return examples_of(as_ids(triples), inverse_triples=self.scorer.inverse_triples)

    def gradient(self, triple: Sequence[int]) -> Gradient:
        """Compute ∇ℓ of one triple: {parameter name: tensor of its shape}."""
        device = self.scorer.device
        names = {name: parameter for name, parameter in self.model.named_parameters() if name in self.names}
        loss = torch.zeros((), dtype=self.model.fc.weight.dtype, device=device)
        for example in self._examples([triple]):
            same_query = (self.known_triples[:, :2] == example[:2]).all(axis=1)
            targets = torch.from_numpy(np.union1d(self.known_triples[same_query, 2], example[2:])).to(device)
            row, tails = torch.zeros_like(targets), torch.tensor([int(example[2])], device=device)
            query = torch.from_numpy(example[:2, None].copy()).to(device)
            scores = self.model(*query)
            without_labels = self.objective.without_labels(scores)
            loss = loss + self.objective.losses(without_labels, scores, row[:1], tails, (row, targets)).sum()
        gradients = torch.autograd.grad(loss, list(names.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(names, gradients, strict=True))

    def products(
        self, test_triples: Triples, training_triples: Triples, *, batch_size: int = 256, progress: str | None = None
    ) -> Tensor:
        """Compute ∇ℓ(z) · ∇ℓ(z′) of n test triples z′ and N training triples z: (n, N) on the CPU.

        Raises InputError if KvsAll's objective is of other training triples than some of the N.
        """
        examples = self._examples(training_triples)
        everything = distinct_triples(np.concatenate([self.known_triples, examples]))
        if self.objective.training_approach == "kvsall" and len(everything) > len(self.known_triples):
            raise InputError("an objective of kvsall is shared by the training triples alone; give no others")
        index = group_by_query(examples)
        queries = Queries.from_index(index, self.scorer.device)
        known = Queries.distinct(everything, self.scorer.device)
        known_ids = known.find(queries.heads, queries.relations, num_relations=self.model.config.num_relations)
        at_once = max(1, min(batch_size, SCORES_AT_ONCE // self.model.config.num_entities))
        rows = []
        for number, triple in enumerate(as_ids(test_triples), start=1):
            tangent = self.gradient(triple)
            title = None if progress is None else f"{progress}, number {number}"
            differentiate = partial(self._differentiate, queries, (known, known_ids), tangent)
            parts = compute_in_batches(differentiate, len(queries), batch_size=at_once, progress=title)
            rows.append(torch.cat([torch.zeros(0, dtype=self.model.fc.weight.dtype), *parts]))
        products = torch.stack(rows)  # (n, S·N), sorted by query
        products[:, torch.from_numpy(index.order)] = products.clone()
        directions = 2 if self.scorer.inverse_triples else 1
        return products.view(len(products), directions, len(training_triples)).sum(dim=1)

    def self_products(self, triples: Triples, *, batch_size: int = 256, progress: str | None = None) -> Tensor:
        """Compute ‖∇ℓ(z)‖² of each triple (N, 3): (N,) on the CPU, by a backward pass for each."""
        return self.loop.self_products(triples, batch_size=batch_size, progress=progress)

    @torch.no_grad()
    def _differentiate(
        self, queries: Queries, targets: tuple[Queries, Tensor], tangent: dict[str, Tensor], batch: slice
    ) -> Tensor:
        """Compute the derivatives of ℓ along `tangent`, for the triples of a batch of queries."""
        known, known_ids = targets
        rows, tails = queries.tails_of(torch.arange(batch.start, batch.stop, device=self.scorer.device))

        def score(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            scores = functional_call(self.model, values, (queries.heads[batch], queries.relations[batch]))
            return self.objective.without_labels(scores), scores

        primal = {name: self.model.get_parameter(name).detach() for name in tangent}
        # The rest is linear. Within jvp it would meet constants, for whose derivatives torch loads its compiler.
        _, moved = jvp(score, (primal,), (tangent,))
        return self.objective.losses(*moved, rows, tails, known.tails_of(known_ids[batch])).cpu()

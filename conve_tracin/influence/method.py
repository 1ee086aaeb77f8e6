"""What a method is, and what it gives: influences of training triples on test triples, and their order."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from conve_tracin.errors import InputError
from conve_tracin.settings import METHODS

Triples = np.ndarray | Tensor | Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Scores:
    """Influences of N training triples on one test triple; all but some are zero.

    Attributes:
        values: the influences that may differ from zero, (M,) on the CPU.
        positions: which triples they belong to, in ascending order, (M,); None stands for all N.
        total: N.
    """

    values: Tensor
    positions: Tensor | None
    total: int

    @classmethod
    def of_all(cls, values: Tensor) -> "Scores":
        """Take the influences of all training triples, (N,)."""
        return cls(values, None, len(values))

    def dense(self) -> Tensor:
        """Return all influences, (N,)."""
        if self.positions is None:
            return self.values
        # Memory that NumPy has zeroed is not touched before it is written.
        whole = torch.from_numpy(np.zeros(self.total, dtype=self.values.numpy().dtype))
        whole[self.positions] = self.values
        return whole

    def where(self, chosen: Tensor) -> "Scores":
        """Keep some of the values, (M,) bool; the others count as zero."""
        places = chosen.nonzero()[:, 0]
        return Scores(self.values[places], places if self.positions is None else self.positions[places], self.total)

    def scaled(self, factor: float) -> "Scores":
        """Multiply all influences by a number."""
        return Scores(self.values * factor, self.positions, self.total)

    def plus(self, other: "Scores") -> "Scores":
        """Add those of another model on the same test triple."""
        if self.positions is None or other.positions is None:
            return Scores.of_all(self.dense() + other.dense())
        positions, places = torch.cat([self.positions, other.positions]).unique(return_inverse=True)
        mine, others = places.split([len(self.positions), len(other.positions)])
        values = self.values.new_zeros(len(positions))
        values[mine] = self.values
        values[others] += other.values
        return Scores(values, positions, self.total)

    def strongest(self, top_k: int | None) -> tuple[Tensor, Tensor]:
        """Return positions and influences of the `top_k` of largest size, ties in training order; all without."""
        if self.positions is None or top_k is None:
            values = self.dense()
            chosen = strongest(values, top_k)
            return chosen, values[chosen]
        felt = self.where(self.values != 0)
        chosen = strongest(felt.values, top_k)
        positions, values = felt.positions[chosen], felt.values[chosen]
        missing = min(top_k, self.total) - len(positions)
        if missing > 0:
            # Then come the first triples without influence.
            first = torch.arange(min(self.total, len(felt.positions) + missing))
            first = first[~torch.isin(first, felt.positions)][:missing]
            positions, values = torch.cat([positions, first]), torch.cat([values, values.new_zeros(len(first))])
        return positions, values


class Method(ABC):
    """One definition of influence on one model. Triples have the ids of the files.

    A method lives in a module that `settings.METHODS` names. The module's `build(loaded, options, graph, say)` returns
    the method, for the graph of the training triples; `title(options)` names it for people, and `members(options)` are
    its settings in the JSON.
    """

    # Whether each process of torchrun computes some of the training triples; if not, it computes some test triples.
    shares_training_triples: ClassVar[bool] = True
    # Products of gradients are multiplied by a learning rate; effects on a score are averaged over the checkpoints.
    uses_learning_rate: ClassVar[bool] = True

    @abstractmethod
    def products(
        self, test_triples: Triples, training_triples: Triples, *, batch_size: int = 256, progress: str | None = None
    ) -> Tensor:
        """Compute the influence of N training triples on n test triples: (n, N) on the CPU.

        Args:
            test_triples, training_triples: ids of the files, (n, 3) and (N, 3).
            batch_size: changes memory and speed, not results.
            progress: what to call the work on a progress bar; without it none is shown.
        """

    def scores(
        self, test_triples: Triples, training_triples: Triples, *, batch_size: int = 256, progress: str | None = None
    ) -> list[Scores]:
        """Compute the same as `products`, for each test triple by itself."""
        rows = self.products(test_triples, training_triples, batch_size=batch_size, progress=progress)
        return [Scores.of_all(row) for row in rows]

    @abstractmethod
    def self_products(self, triples: Triples, *, batch_size: int = 256, progress: str | None = None) -> Tensor:
        """Compute the influence of each triple (N, 3) on itself: (N,) on the CPU."""


def module_of(method: str) -> ModuleType:
    """Import the module of a method that `settings.METHODS` names."""
    return importlib.import_module(METHODS[method])


@dataclass(frozen=True, slots=True)
class Influence:
    """One training triple's influence on a test triple.

    Attributes:
        position: its place among the distinct training triples.
        count: how often it stands in their file.
        models: of several summed checkpoints, how many alone have it among as many strongest as are listed.
    """

    head: int
    relation: int
    tail: int
    influence: float
    position: int
    models: int | None = None
    count: int = 1

    def as_dict(self) -> dict[str, int | float]:
        """Return the members of the JSON output; `count` is one of them if the triple is repeated."""
        repeated = {"count": self.count} if self.count > 1 else {}
        return repeated | {
            "train_head": self.head,
            "train_relation": self.relation,
            "train_tail": self.tail,
            "influence": self.influence,
        }


def as_ids(triples: Triples) -> np.ndarray:
    """Turn triples given as an array, a tensor or rows into (N, 3) int64."""
    if isinstance(triples, Tensor):
        triples = triples.cpu().numpy()
    array = np.asarray(triples, dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise InputError(f"triples have the shape {array.shape}; give (N, 3) ids of head, relation, tail")
    return array


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


def rank_influences(scores: Tensor | Scores, training_triples: np.ndarray, top_k: int | None) -> list[Influence]:
    """List the strongest of the influences (N,) of training triples (N, 3)."""
    scores = scores if isinstance(scores, Scores) else Scores.of_all(scores)
    positions, values = scores.strongest(top_k)
    return [
        Influence(*training_triples[position].tolist(), influence=value, position=position)
        for position, value in zip(positions.tolist(), values.tolist(), strict=True)
    ]

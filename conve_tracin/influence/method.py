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


class Method(ABC):
    """One definition of influence on one model. Triples have the ids of the files.

    A method lives in a module that `settings.METHODS` names. The module's `build(loaded, options, training_triples,
    say)` returns the method; `title(options)` names it for people, and `members(options)` are its settings in the JSON.
    """

    # Whether each process of torchrun may compute some of the training triples.
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


def rank_influences(scores: Tensor, training_triples: np.ndarray, top_k: int | None) -> list[Influence]:
    """List the strongest of the influences (N,) of training triples (N, 3)."""
    return [
        Influence(*training_triples[position].tolist(), influence=scores[position].item(), position=position)
        for position in strongest(scores, top_k).tolist()
    ]

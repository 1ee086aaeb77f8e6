"""Queries (head, relation, ?) on a device, with their known tails in CSR form: the labels of training and ranking."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from conve_tracin.triples import QueryIndex

# Each visit of a query lists all its tails, which with those of millions would be most of the work.
MOST_VISITS = 256


@dataclass(frozen=True)
class Queries:
    """Q queries and the tails of each: those of query i are `tails[offsets[i] : offsets[i + 1]]`.

    Shapes: heads and relations (Q,), offsets (Q + 1,), tails (N,), all int64 on one device. `visits` (Q,) tells how
    often an epoch of training comes to each of them; without it is once.
    """

    heads: Tensor
    relations: Tensor
    offsets: Tensor
    tails: Tensor
    visits: Tensor | None = None

    @classmethod
    def distinct(cls, index: QueryIndex, device: torch.device | str = "cpu") -> "Queries":
        """One query for each distinct (head, relation): what KvsAll trains on and filtered ranking looks up."""
        return cls(*_to_device(device, index.queries[:, 0], index.queries[:, 1], index.offsets, index.tails))

    @classmethod
    def one_per_triple(cls, triples: np.ndarray, device: torch.device | str = "cpu") -> "Queries":
        """One query with one tail for each triple (N, 3), in order: what 1vsAll trains on."""
        offsets = np.arange(len(triples) + 1)
        return cls(*_to_device(device, triples[:, 0], triples[:, 1], offsets, triples[:, 2]))

    def visited_by_tails(self, tails_per_visit: int) -> "Queries":
        """Have training come to each query once for so many of its tails, rounded up, and at most MOST_VISITS times."""
        visits = torch.div(self.offsets.diff() + tails_per_visit - 1, tails_per_visit, rounding_mode="floor")
        return replace(self, visits=visits.clamp(max=MOST_VISITS))

    @cached_property
    def num_visits(self) -> int:
        """V, the number of visits in an epoch."""
        return len(self) if self.visits is None else int(self.visits.sum())

    def shuffled_visits(self, generator: torch.Generator) -> Tensor:
        """Draw an order of the visits of an epoch: the queries, each as often as it is visited, on the CPU: (V,)."""
        order = torch.randperm(self.num_visits, generator=generator)
        return order if self.visits is None else self._visited[order]

    @cached_property
    def _visited(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self)), self.visits.cpu())

    def __len__(self) -> int:
        return len(self.heads)

    def weights_by_tails(self, queries: Tensor) -> Tensor:
        """Weigh visits of the queries (B,) by their shares of the tails, 1 being the mean: (B,) float64."""
        shares = self.count_tails(queries).double()
        if self.visits is not None:
            shares = shares / self.visits[queries]
        return shares * (self.num_visits / len(self.tails))

    def count_tails(self, queries: Tensor) -> Tensor:
        """Count the tails of each of the queries (B,): (B,)."""
        return self.offsets[queries + 1] - self.offsets[queries]

    def tails_of(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """List the tails of the queries (B,) as two (M,) tensors: the place in the batch, and the tail."""
        starts, counts = self.offsets[queries], self.count_tails(queries)
        places = torch.arange(len(queries), device=counts.device)
        rows = torch.repeat_interleave(places, counts)  # (M,)
        first = torch.cumsum(counts, dim=0) - counts
        within = torch.arange(len(rows), device=rows.device) - first[rows]
        return rows, self.tails[starts[rows] + within]

    def padded_tails_of(self, queries: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
        """List the tails as `tails_of` does, in `room` places: rows, tails and whether a place holds one, (room,) each.

        No shape depends on what the tensors hold, so that nobody has to wait for a GPU. Places behind the last tail
        have any row and tail; tails for which there is no place are left out.
        """
        starts, counts = self.offsets[queries], self.count_tails(queries)
        ends = torch.cumsum(counts, dim=0)
        places = torch.arange(room, device=ends.device)
        is_tail = places < ends[-1]
        # What is left over is spread, since sums into one row would wait for each other.
        rows = torch.where(is_tail, torch.searchsorted(ends, places, right=True), places % len(queries))
        positions = starts[rows] + places - (ends - counts)[rows]
        return rows, self.tails[torch.where(is_tail, positions, places % len(self.tails))], is_tail

    def find(self, heads: Tensor, relations: Tensor, *, num_relations: int) -> Tensor:
        """Return the ids of the queries (head, relation), each (B,), in a `distinct` collection.

        Raises KeyError where one of them is not there.
        """
        keys = self.heads * num_relations + self.relations
        wanted = heads * num_relations + relations
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        if not torch.equal(keys[found], wanted):
            raise KeyError("a query has no known tail")
        return found


def _to_device(device: torch.device | str, *arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]

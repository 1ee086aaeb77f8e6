"""Triples as numbers: relation rows of a model with inverse triples, keys, and queries (h, r) with their tails.

A model with inverse triples, like PyKEEN's, has relation r of the files in row 2r of its relation table and the inverse
in row 2r + 1; without them, in row r. No other module knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from conve_tracin.data.keys import distinct_triples, pair_keys, pairs_of_keys

Ids = TypeVar("Ids", np.ndarray, Tensor)

ROWS_OF_A_RELATION = 2


def count_relation_rows(num_relations: int, *, inverse_triples: bool) -> int:
    """Return how many rows the relation table of a model has for relations of the files."""
    return num_relations * ROWS_OF_A_RELATION if inverse_triples else num_relations


def count_relations(num_rows: int, *, inverse_triples: bool) -> int:
    """Undo `count_relation_rows`."""
    return num_rows // ROWS_OF_A_RELATION if inverse_triples else num_rows


def inverse_rows(rows: Ids) -> Ids:
    """Return the rows of the inverse relations, for rows (N,) of a model with inverse triples."""
    return rows ^ 1


def with_relation_rows(triples: Ids, *, inverse_triples: bool) -> Ids:
    """Replace the relation ids of the files in triples (N, 3) by rows of the model's relation table.

    The inverse of relation r has the id ~r, as in `inverse_of`, and the row 2r + 1.
    """
    if not inverse_triples:
        return triples
    rows = triples.clone() if isinstance(triples, Tensor) else np.array(triples)
    forward = ROWS_OF_A_RELATION * rows[:, 1]
    rows[:, 1] = (torch if isinstance(rows, Tensor) else np).where(forward < 0, ~forward, forward)
    return rows


def inverse_of(triples: np.ndarray) -> np.ndarray:
    """Turn triples (N, 3) in the files' ids around: (tail, ~relation, head); turned twice they are what they were."""
    heads, relations, tails = triples.T
    return np.stack((tails, ~relations, heads), axis=1)


def with_inverse_triples(triples: np.ndarray) -> np.ndarray:
    """Return triples (N, 3) and their inverses with relation rows: (2N, 3), row N + i being the inverse of row i."""
    forward = with_relation_rows(np.asarray(triples, dtype=np.int64).reshape(-1, 3), inverse_triples=True)
    heads, relations, tails = forward.T
    return np.concatenate((forward, np.stack((tails, relations + 1, heads), axis=1)))


def examples_of(triples: np.ndarray, *, inverse_triples: bool) -> np.ndarray:
    """Return what a model is trained and ranked on: triples (N, 3), or (2N, 3) as `with_inverse_triples` has them."""
    return with_inverse_triples(triples) if inverse_triples else triples


@dataclass(frozen=True, eq=False)
class QueryIndex:
    """The distinct (head, relation) queries of a set of triples and, in CSR form, their tails.

    The tails of queries[i] are tails[offsets[i]:offsets[i + 1]], in the order of the triples they come from.
    """

    queries: np.ndarray  # (Q, 2) int64, sorted by head, then relation
    offsets: np.ndarray  # (Q + 1,) int64
    tails: np.ndarray  # (N,) int64
    order: np.ndarray  # (N,) int64: tails[i] is the tail of triples[order[i]]


def group_by_query(triples: np.ndarray) -> QueryIndex:
    """Group triples, shape (N, 3), by their (head, relation)."""
    triples = np.asarray(triples, dtype=np.int64).reshape(-1, 3)
    heads, relations, tails = triples.T
    num_relations = int(relations.max(initial=0)) + 1
    keys, order = _sort_stably(pair_keys(heads, relations, num_relations))  # (N,)
    starts = np.flatnonzero(np.diff(keys, prepend=-1))  # (Q,)
    queries = np.stack(pairs_of_keys(keys[starts], num_relations), axis=1)  # (Q, 2)
    return QueryIndex(queries=queries, offsets=np.append(starts, len(keys)), tails=tails[order], order=order)


def _sort_stably(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort keys (N,) of at least 0; return them and where each was, equal ones in their order."""
    bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        order = np.argsort(keys, kind="stable")
        return keys[order], order
    # Key and place in one number: numbers are sorted in less time than places by their keys.
    packed = np.sort((keys << bits) | np.arange(len(keys)))
    return packed >> bits, packed & ((1 << bits) - 1)


# Each visit of a query lists all its tails, which with those of millions would be most of the work.
MOST_VISITS = 256


@dataclass(frozen=True)
class Queries:
    """Q queries and the tails of each: those of query i are `tails[offsets[i] : offsets[i + 1]]`.

    Shapes: heads and relations (Q,), offsets (Q + 1,), tails (N,), all int64 on one device. `visits` (Q,) tells how
    often an epoch of training comes to each of them: once if it is None.
    """

    heads: Tensor
    relations: Tensor
    offsets: Tensor
    tails: Tensor
    visits: Tensor | None = None

    @classmethod
    def distinct(cls, triples: np.ndarray, device: torch.device | str = "cpu") -> "Queries":
        """One query for each distinct (head, relation) of triples (N, 3): what KvsAll trains on."""
        return cls.from_index(group_by_query(triples), device)

    @classmethod
    def from_index(cls, index: QueryIndex, device: torch.device | str = "cpu") -> "Queries":
        """The same from triples that are grouped already."""
        return cls(*_to_device(device, index.queries[:, 0], index.queries[:, 1], index.offsets, index.tails))

    @classmethod
    def one_per_triple(cls, triples: np.ndarray, device: torch.device | str = "cpu") -> "Queries":
        """One query with one tail for each triple (N, 3), in order: what 1vsAll trains on."""
        offsets = np.arange(len(triples) + 1)
        return cls(*_to_device(device, triples[:, 0], triples[:, 1], offsets, triples[:, 2]))

    def visited_by_tails(self, tails_per_visit: int) -> "Queries":
        """Have training visit each query ⌈tails / tails_per_visit⌉ times, but at most MOST_VISITS times."""
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

    @property
    def device(self) -> torch.device:
        """Where the ids are that the methods take and return."""
        return self.heads.device

    def pairs(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the heads and the relations of the queries (B,): (B,) twice."""
        return self.heads[queries], self.relations[queries]

    def of_head(self, head: int) -> Tensor:
        """Find the queries (head, ·): ids (M,)."""
        return (self.heads == head).nonzero()[:, 0]

    def of_relation(self, relation: int) -> Tensor:
        """Find the queries (·, relation): ids (M,)."""
        return (self.relations == relation).nonzero()[:, 0]

    def with_tail(self, tail: int) -> Tensor:
        """Find the queries that have a tail: ids (M,), each once."""
        positions = (self.tails == tail).nonzero()[:, 0]
        return (torch.searchsorted(self.offsets, positions, right=True) - 1).unique()

    def known_tails(self, queries: Tensor) -> Tensor:
        """List all that is a tail of one of the queries (B,), each once: (M,)."""
        return self.tails_of(queries)[1].unique()

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

        No shape depends on what the tensors hold, so nothing has to wait for a GPU. Places behind the last tail
        have any row and tail; tails without a place are left out.
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

        Raises KeyError if one of them is not there.
        """
        keys = pair_keys(self.heads, self.relations, num_relations)
        wanted = pair_keys(heads, relations, num_relations)
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        if not torch.equal(keys[found], wanted):
            raise KeyError("a query has no known tail")
        return found


def known_tails(splits: Sequence[np.ndarray], *, inverse_triples: bool, device: torch.device | str = "cpu") -> Queries:
    """Collect the true tails of every query in the splits, (N, 3) each: what filtered ranking leaves out."""
    triples = distinct_triples(np.concatenate(splits))
    return Queries.distinct(examples_of(triples, inverse_triples=inverse_triples), device)


def _to_device(device: torch.device | str, *arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]

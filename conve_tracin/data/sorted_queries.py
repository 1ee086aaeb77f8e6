"""The training queries of a graph, sorted so that those of a head, a relation or a tail are found without a search.

What is found costs what its degree costs, however many triples the graph has. The arrays may be mapped from files, of
which only what is looked at is read.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from conve_tracin.data.keys import pair_keys
from conve_tracin.data.queries import ROWS_OF_A_RELATION, count_relation_rows, examples_of, group_by_query, inverse_rows


@dataclass(frozen=True, eq=False)
class SortedQueries:
    """Q distinct queries (head, relation row) and the M training examples of each.

    Examples are the N triples, or with inverse triples 2N, as `examples_of` has them. A query's id is its place among
    all, sorted by head, then relation row, as in `Queries.distinct`.

    Attributes:
        triples: in the files' ids, (N, 3).
        num_rows: rows of the model's relation table.
        inverse_triples: the examples have them.
        keys: of the queries, `pair_keys(head, row, num_rows)`, (Q,) int64.
        offsets: examples `order[offsets[i] : offsets[i + 1]]` have query i, (Q + 1,).
        order: examples by query, each query's in their order, (M,).
        head_offsets: queries from `head_offsets[e]` to `head_offsets[e + 1]` start at entity e, (E + 1,).
        by_relation, relation_offsets: queries by relation row, (Q,), and where those of each row start.
        by_tail, tail_offsets: queries of the triples by their tail, (N,), and where those of each entity start; empty
            with inverse triples, where the queries that start at the tail lead to them.
    """

    triples: np.ndarray
    num_rows: int
    inverse_triples: bool
    keys: np.ndarray
    offsets: np.ndarray
    order: np.ndarray
    head_offsets: np.ndarray
    by_relation: np.ndarray
    relation_offsets: np.ndarray
    by_tail: np.ndarray
    tail_offsets: np.ndarray

    @classmethod
    def of(
        cls,
        triples: np.ndarray,
        num_entities: int,
        num_relations: int,
        *,
        inverse_triples: bool,
        kept: Callable[[Callable[[], dict[str, np.ndarray]]], dict[str, np.ndarray]] = lambda sort: sort(),
    ) -> "SortedQueries":
        """Sort the triples (N, 3); `kept` may return the arrays of an earlier time instead of sorting."""
        num_rows = count_relation_rows(num_relations, inverse_triples=inverse_triples)
        arrays = kept(lambda: _sort(triples, num_entities, num_rows, inverse_triples=inverse_triples))
        return cls(triples=triples, num_rows=num_rows, inverse_triples=inverse_triples, **arrays)

    @property
    def device(self) -> torch.device:
        """Where the ids are that the methods take and return."""
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.keys)

    def pairs(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the heads and the relation rows of the queries (B,): (B,) twice."""
        keys = torch.from_numpy(self.keys[queries.numpy()])
        return keys // self.num_rows, keys % self.num_rows

    def count_tails(self, queries: Tensor) -> Tensor:
        """Count the examples of each of the queries (B,): (B,)."""
        ids = queries.numpy()
        return torch.from_numpy(self.offsets[ids + 1].astype(np.int64) - self.offsets[ids])

    def of_head(self, head: int) -> Tensor:
        """Find the queries (head, ·): ids (M,)."""
        return torch.arange(int(self.head_offsets[head]), int(self.head_offsets[head + 1]))

    def of_relation(self, relation: int) -> Tensor:
        """Find the queries (·, relation row): ids (M,)."""
        return _as_ids(_part(self.by_relation, self.relation_offsets, relation))

    def with_tail(self, tail: int) -> Tensor:
        """Find the queries that have a tail: ids (M,), each once."""
        if not self.inverse_triples:
            return _as_ids(np.unique(_part(self.by_tail, self.tail_offsets, tail)))
        _, rows, tails = self.rows_of(self.examples(self.of_head(tail))).T
        # The inverse of each example has the entity as its tail.
        keys = np.unique(pair_keys(tails, inverse_rows(rows), self.num_rows))
        return _as_ids(np.searchsorted(self.keys, keys))

    def known_tails(self, queries: Tensor) -> Tensor:
        """List all that is a tail of one of the queries (B,), each once: (M,)."""
        return _as_ids(np.unique(self.rows_of(self.examples(queries))[:, 2]))

    def touching(self, entities: list[int], relations: list[int]) -> Tensor:
        """Find the queries that have one of the entities as head or tail, or one of the relation rows: ids (M,)."""
        found = [find(entity) for entity in entities for find in (self.of_head, self.with_tail)]
        return torch.cat([*found, *(self.of_relation(relation) for relation in relations)]).unique()

    def examples(self, queries: Tensor) -> np.ndarray:
        """List the examples of the queries (B,), one query after the other: (M,)."""
        ids = queries.numpy()
        starts = self.offsets[ids].astype(np.int64)
        return self.order[ranges(starts, self.offsets[ids + 1] - starts)[1]].astype(np.int64)

    def rows_of(self, examples: np.ndarray) -> np.ndarray:
        """Return head, relation row and tail of the examples (M,): (M, 3)."""
        if not self.inverse_triples:
            return np.take(self.triples, examples, axis=0)
        is_inverse = examples >= len(self.triples)
        heads, relations, tails = np.take(self.triples, examples % len(self.triples), axis=0).T
        rows = ROWS_OF_A_RELATION * relations + is_inverse
        return np.stack([np.where(is_inverse, tails, heads), rows, np.where(is_inverse, heads, tails)], axis=1)


def _sort(triples: np.ndarray, num_entities: int, num_rows: int, *, inverse_triples: bool) -> dict[str, np.ndarray]:
    index = group_by_query(examples_of(triples, inverse_triples=inverse_triples))
    heads, relations = index.queries.T
    by_tail = tail_offsets = np.empty(0, dtype=np.int64)
    if not inverse_triples:
        queries = np.repeat(np.arange(len(heads)), np.diff(index.offsets))
        by_tail, tail_offsets = queries[np.argsort(index.tails, kind="stable")], starts_of(index.tails, num_entities)
    arrays = {
        "keys": pair_keys(heads, relations, num_rows),
        "offsets": as_small(index.offsets),
        "order": as_small(index.order),
        "head_offsets": starts_of(heads, num_entities),
        "by_relation": as_small(np.argsort(relations, kind="stable")),
        "relation_offsets": starts_of(relations, num_rows),
        "by_tail": as_small(by_tail),
        "tail_offsets": tail_offsets,
    }
    assert arrays.keys() == {field.name for field in fields(SortedQueries)} - {"triples", "num_rows", "inverse_triples"}
    return arrays


def starts_of(ids: np.ndarray, size: int) -> np.ndarray:
    """Say where each id from 0 to size − 1 starts in the sorted ids (N,), and where the last one ends: (size + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=size))]).astype(np.int64)


def as_small(numbers: np.ndarray) -> np.ndarray:
    """Store numbers from 0 up in 32 bits where they fit."""
    return numbers.astype(np.int32) if int(numbers.max(initial=0)) < 2**31 else numbers


def ranges(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List starts[i], …, starts[i] + counts[i] − 1 for each i: the i (M,) and the numbers (M,)."""
    rows = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    return rows, np.arange(len(rows)) + np.repeat(starts - before, counts)


def _part(values: np.ndarray, offsets: np.ndarray, place: int) -> np.ndarray:
    return values[int(offsets[place]) : int(offsets[place + 1])]


def _as_ids(ids: np.ndarray) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64))

"""Paths of the training graph between a prediction's head and tail, and their order by influence.

The graph itself is searched, not a list of strong influences: what is a path does not depend on the model, and each of
its triples then has its influence, its sign included.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_HOPS = 3
# Triples that a search may look at from one end, fewest around an entity first: a second or so.
MAX_STEPS = 2**23
# Paths of one length that are kept, those through entities of few triples first.
MAX_PATHS = 2**17


@dataclass(frozen=True, eq=False)
class Adjacency:
    """The triples around each entity, in either direction, in CSR form.

    Slot i leads from one entity over a triple to another; those of entity e are `offsets[e]:offsets[e + 1]`, sorted by
    where they lead. A triple has two slots; one from an entity to itself has none.
    """

    offsets: np.ndarray  # (E + 1,) int64
    neighbours: np.ndarray  # (M,) int64: where a slot leads
    positions: np.ndarray  # (M,) int64: its triple's place in the training set

    @classmethod
    def of(cls, triples: np.ndarray, num_entities: int) -> "Adjacency":
        """Collect the triples (N, 3) around each of the entities."""
        places = np.flatnonzero(triples[:, 0] != triples[:, 2])
        heads, tails = triples[places, 0], triples[places, 2]
        starts, neighbours = np.concatenate([heads, tails]), np.concatenate([tails, heads])
        order = np.argsort(starts * num_entities + neighbours, kind="stable")
        counts = np.bincount(starts, minlength=num_entities)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(offsets, neighbours[order], np.concatenate([places, places])[order])

    @cached_property
    def degrees(self) -> np.ndarray:
        """How many slots each entity has: (E,)."""
        return np.diff(self.offsets)

    def between(self, entity: int, other: int) -> np.ndarray:
        """Return the slots of an entity that lead to another one: (k,)."""
        around = self.around(entity)
        low, high = (np.searchsorted(self.neighbours[around], other, side=side) for side in ("left", "right"))
        return around[low:high]

    def around(self, entity: int) -> np.ndarray:
        """Return the slots of an entity: (k,)."""
        return np.arange(self.offsets[entity], self.offsets[entity + 1])

    def around_each(self, entities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the slots of entities (m,), one after the other: the place in `entities` and the slot, (M,) each."""
        return _ranges(self.offsets[entities], self.degrees[entities])


@dataclass(frozen=True, eq=False)
class GraphPaths:
    """P paths of the same length: entities (P, hops + 1) from head to tail, and their triples' positions (P, hops)."""

    entities: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, chosen: np.ndarray) -> "GraphPaths":
        """Return the paths `chosen`, (m,) indices or (P,) bool."""
        return GraphPaths(self.entities[chosen], self.positions[chosen])


def find_graph_paths(
    adjacency: Adjacency,
    head: int,
    tail: int,
    *,
    hops: int,
    max_steps: int = MAX_STEPS,
    max_paths: int = MAX_PATHS,
) -> GraphPaths:
    """Find the paths of one to three triples from head to tail, in either direction, no entity twice.

    Args:
        adjacency: of the training triples.
        head, tail: the ends; equal ones have no paths.
        hops: 1, 2 or 3.
        max_steps: triples looked at in the middle of a path of three. Where there are more, paths over entities of
            the most triples are left out.
        max_paths: where there are more, those stay that have the smallest product of their middles' degrees.

    Returns:
        The paths; parallel triples make paths of their own.
    """
    if head == tail:
        return _as_paths(np.empty((0, hops), dtype=np.int64), adjacency, head)
    if hops == 1:
        slots = adjacency.between(tail, head)[:, None]
    else:
        slots = _two_hops(adjacency, head, tail) if hops == 2 else _three_hops(adjacency, head, tail, max_steps)
    if len(slots) > max_paths:
        middles = adjacency.neighbours[slots[:, :-1]]
        weight = np.log(adjacency.degrees[middles]).sum(axis=1)
        slots = slots[np.sort(np.argsort(weight, kind="stable")[:max_paths])]
    return _as_paths(slots, adjacency, head)


def _two_hops(adjacency: Adjacency, head: int, tail: int) -> np.ndarray:
    """Return slots (P, 2) of the paths of two triples."""
    first = adjacency.around(head)
    return _close(adjacency, first[:, None], head, tail)


def _three_hops(adjacency: Adjacency, head: int, tail: int, max_steps: int) -> np.ndarray:
    """Return slots (P, 3) of the paths of three triples."""
    first = adjacency.around(head)
    first = first[adjacency.neighbours[first] != tail]
    reached = adjacency.degrees[adjacency.neighbours[first]]
    rising = np.argsort(reached, kind="stable")
    within = np.searchsorted(np.cumsum(reached[rising]), max_steps, side="right")
    first = first[np.sort(rising[:within])]
    rows, second = adjacency.around_each(adjacency.neighbours[first])
    near_tail = np.zeros(len(adjacency.degrees), dtype=bool)
    near_tail[adjacency.neighbours[adjacency.around(tail)]] = True
    near_tail[[head, tail]] = False
    useful = near_tail[adjacency.neighbours[second]]
    return _close(adjacency, np.stack([first[rows[useful]], second[useful]], axis=1), head, tail)


def _close(adjacency: Adjacency, slots: np.ndarray, head: int, tail: int) -> np.ndarray:
    """Add a last triple to `tail` to slots (m, k) that began at `head`: (P, k + 1)."""
    ends = adjacency.neighbours[slots[:, -1]]
    slots = slots[(ends != head) & (ends != tail)]
    ends = adjacency.neighbours[slots[:, -1]]
    # The slots around the tail are sorted by where they lead: those to one entity are a range.
    around = adjacency.around(tail)
    leads_to = adjacency.neighbours[around]
    low, high = (np.searchsorted(leads_to, ends, side=side) for side in ("left", "right"))
    rows, places = _ranges(low, high - low)
    return np.concatenate([slots[rows], around[places][:, None]], axis=1)


def _as_paths(slots: np.ndarray, adjacency: Adjacency, head: int) -> GraphPaths:
    # The last slot is one around the tail: it leads back to the entity before.
    starts = np.full((len(slots), 1), head)
    middles = adjacency.neighbours[slots[:, :-1]]
    tails = np.searchsorted(adjacency.offsets, slots[:, -1:], side="right") - 1
    return GraphPaths(np.concatenate([starts, middles, tails], axis=1), adjacency.positions[slots])


def _ranges(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List starts[i], …, starts[i] + counts[i] − 1 for each i: the i (M,) and the numbers (M,)."""
    rows = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    return rows, np.arange(len(rows)) - before[rows] + starts[rows]

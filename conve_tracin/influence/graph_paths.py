"""Paths of the training graph between a prediction's head and tail, and their order by influence.

The graph itself is searched, not a list of strong influences: what is a path does not depend on the model, and each of
its triples then has its influence, its sign included.
"""

from dataclasses import dataclass, replace

import numpy as np

from conve_tracin.data.adjacency import Adjacency
from conve_tracin.data.sorted_queries import ranges

MAX_HOPS = 3
# Triples that a search may look at from one end, fewest around an entity first: a second or so.
MAX_STEPS = 2**23
# Paths of one length that are kept, those through entities of few triples first.
MAX_PATHS = 2**17


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


@dataclass(frozen=True, eq=False)
class Walks:
    """P paths of one length as slots of an adjacency: m beginnings, each of which may have several last slots.

    Attributes:
        adjacency: whose slots they are.
        head, tail: where they begin and end.
        beginnings: all slots but the last, from the head on, (m, hops − 1).
        rows: the beginning of each path, ascending, (P,).
        ends: the last slot of each path, as the tail has it, (P,).
    """

    adjacency: Adjacency
    head: int
    tail: int
    beginnings: np.ndarray
    rows: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def middles(self) -> np.ndarray:
        """The entities between head and tail of each beginning: (m, hops − 1)."""
        return self.adjacency.neighbours[self.beginnings]

    def fewest(self, count: int) -> "Walks":
        """Keep those that have the smallest product of their middles' degrees."""
        if len(self) <= count:
            return self
        # Paths of one beginning have the same product and lie together, so that beginnings are sorted, and not paths.
        rising = np.argsort(np.log(self.adjacency.degrees[self.middles]).sum(axis=1), kind="stable")
        paths = np.bincount(self.rows, minlength=len(self.beginnings))
        kept = np.empty_like(paths)
        kept[rising] = np.clip(count - (np.cumsum(paths[rising]) - paths[rising]), 0, paths[rising])
        first = np.cumsum(paths) - paths
        chosen = np.flatnonzero(np.arange(len(self)) - first[self.rows] < kept[self.rows])
        return replace(self, rows=self.rows[chosen], ends=self.ends[chosen])

    def as_paths(self) -> GraphPaths:
        """Name their entities and triples."""
        slots = np.concatenate([self.beginnings[self.rows], self.ends[:, None]], axis=1)
        heads, tails = (np.full((len(self), 1), entity) for entity in (self.head, self.tail))
        entities = np.concatenate([heads, self.middles[self.rows], tails], axis=1)
        return GraphPaths(entities, self.adjacency.positions[slots])


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
    return find_walks(adjacency, head, tail, hops=hops, max_steps=max_steps, max_paths=max_paths).as_paths()


def find_walks(
    adjacency: Adjacency, head: int, tail: int, *, hops: int, max_steps: int, max_paths: int = MAX_PATHS
) -> Walks:
    """Find the same as `find_graph_paths`, whose entities and triples are not looked up yet."""
    if head == tail:
        nothing = np.empty(0, dtype=np.int64)
        return Walks(adjacency, head, tail, np.empty((0, hops - 1), dtype=np.int64), nothing, nothing)
    if hops == 1:
        ends = adjacency.between(tail, head)
        walks = Walks(adjacency, head, tail, np.empty((1, 0), dtype=np.int64), np.zeros_like(ends), ends)
        return walks.fewest(max_paths)
    first = adjacency.around(head)
    beginnings = first[:, None] if hops == 2 else _two_slots(adjacency, head, tail, max_steps)
    return _close(adjacency, beginnings, head, tail).fewest(max_paths)


def _two_slots(adjacency: Adjacency, head: int, tail: int, max_steps: int) -> np.ndarray:
    """Return the first two slots of the paths of three triples: (m, 2)."""
    first = adjacency.around(head)
    first = first[adjacency.neighbours[first] != tail]
    middles = adjacency.neighbours[first]
    reached = adjacency.degrees[middles]
    if reached.sum() > max_steps:
        rising = np.argsort(reached, kind="stable")
        within = np.sort(rising[: np.searchsorted(np.cumsum(reached[rising]), max_steps, side="right")])
        first, middles, reached = first[within], middles[within], reached[within]
    if not len(first):
        return np.empty((0, 2), dtype=np.int64)
    near_tail = np.zeros(len(adjacency.degrees), dtype=bool)
    near_tail[adjacency.neighbours[adjacency.around(tail)]] = True
    near_tail[[head, tail]] = False
    # Few of the triples around the middles lead on: whole ranges are looked at, and slots are given to those alone.
    starts, stops = adjacency.offsets[middles].tolist(), adjacency.offsets[middles + 1].tolist()
    reaches = [adjacency.neighbours[start:stop] for start, stop in zip(starts, stops, strict=True)]
    useful = np.flatnonzero(near_tail[np.concatenate(reaches)])
    before = np.cumsum(reached) - reached
    rows = np.searchsorted(before, useful, side="right") - 1
    return np.stack([first[rows], useful - before[rows] + adjacency.offsets[middles[rows]]], axis=1)


def _close(adjacency: Adjacency, slots: np.ndarray, head: int, tail: int) -> Walks:
    """Add the triples to `tail` to slots (m, k) that began at `head`."""
    ends = adjacency.neighbours[slots[:, -1]]
    slots = slots[(ends != head) & (ends != tail)]
    ends = adjacency.neighbours[slots[:, -1]]
    # The slots around the tail are sorted by where they lead: those to one entity are a range.
    around = adjacency.around(tail)
    leads_to = adjacency.neighbours[around]
    low, high = (np.searchsorted(leads_to, ends, side=side) for side in ("left", "right"))
    rows, places = ranges(low, high - low)
    return Walks(adjacency, head, tail, slots, rows, around[places])

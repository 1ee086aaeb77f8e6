"""Paths of the training graph between a prediction's head and tail, and their order by influence.

The graph itself is searched, not a list of strong influences: what is a path does not depend on the model, and each of
its triples then has its influence, its sign included.
"""

from dataclasses import dataclass

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
    rows, places = ranges(low, high - low)
    return np.concatenate([slots[rows], around[places][:, None]], axis=1)


def _as_paths(slots: np.ndarray, adjacency: Adjacency, head: int) -> GraphPaths:
    # The last slot is one around the tail: it leads back to the entity before.
    starts = np.full((len(slots), 1), head)
    middles = adjacency.neighbours[slots[:, :-1]]
    tails = np.searchsorted(adjacency.offsets, slots[:, -1:], side="right") - 1
    return GraphPaths(np.concatenate([starts, middles, tails], axis=1), adjacency.positions[slots])

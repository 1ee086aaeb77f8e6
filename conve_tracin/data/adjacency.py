"""The triples around each entity of a graph, in either direction, and those of each relation."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from conve_tracin.data.queries import group_by_query
from conve_tracin.data.sorted_queries import as_small, starts_of


@dataclass(frozen=True, eq=False)
class Adjacency:
    """The triples around each entity, in either direction, in CSR form. The arrays may be mapped from files.

    Slot i leads from one entity over a triple to another; those of entity e are `offsets[e]:offsets[e + 1]`, sorted by
    where they lead. A triple has two slots; one from an entity to itself has none.
    """

    offsets: np.ndarray  # (E + 1,): where the slots of each entity start
    neighbours: np.ndarray  # (M,): where a slot leads
    positions: np.ndarray  # (M,): its triple's place in the training set

    @classmethod
    def of(cls, triples: np.ndarray, num_entities: int) -> "Adjacency":
        """Collect the triples (N, 3) around each of the entities."""
        places = np.flatnonzero(triples[:, 0] != triples[:, 2])
        heads, tails = triples[places, 0], triples[places, 2]
        starts, neighbours = np.concatenate([heads, tails]), np.concatenate([tails, heads])
        order = np.argsort(starts * num_entities + neighbours, kind="stable")
        positions = np.concatenate([places, places])[order]
        return cls(starts_of(starts, num_entities), as_small(neighbours[order]), as_small(positions))

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


def triple_weights(triples: np.ndarray) -> np.ndarray:
    """Compute (degree of the head in the relation · degree of the tail in it)^−½ of triples (N, 3): (N,)."""
    product = np.ones(len(triples))
    for columns in ([0, 1, 2], [2, 1, 0]):
        index = group_by_query(triples[:, columns])
        counts = np.diff(index.offsets)
        product[index.order] *= np.repeat(counts, counts)
    return product**-0.5

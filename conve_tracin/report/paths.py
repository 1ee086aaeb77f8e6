"""Chains of influential training triples that lead from a prediction's head to its tail."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from conve_tracin.influence.method import Influence

MAX_HOPS = 3


@dataclass(frozen=True)
class Hop:
    """A step between two entities.

    Attributes:
        influence: the strongest of the triples that join them.
        forward: the step goes from the triple's head to its tail.
        others: how many more of the given triples join the same two entities.
    """

    influence: Influence
    forward: bool
    others: int


@dataclass(frozen=True)
class EvidencePath:
    """A path without repeated entities; `hops[i]` joins `entities[i]` and `entities[i + 1]`."""

    entities: tuple[int, ...]
    hops: tuple[Hop, ...]

    @property
    def strength(self) -> float:
        """The smallest influence on the path: a chain is as strong as its weakest link."""
        return min(hop.influence.influence for hop in self.hops)

    @property
    def mean_strength(self) -> float:
        """The geometric mean of the influences."""
        return math.exp(sum(math.log(hop.influence.influence) for hop in self.hops) / len(self.hops))


def find_paths(
    proponents: Sequence[Influence], head: int, tail: int, *, max_hops: int = MAX_HOPS
) -> list[EvidencePath]:
    """Find all paths of up to `max_hops` triples from `head` to `tail`, walking triples in either direction.

    Args:
        proponents: triples of positive influence, strongest first. Those that join the same two entities, whatever
            their direction and relation, are one hop, which has the strength of the strongest.
        head, tail: where the paths start and end; equal ones have no paths.
        max_hops: the longest paths to look for.

    Returns:
        The paths by strength, then by length (shorter first), then by the geometric mean of their influences.
    """
    neighbours: dict[int, dict[int, list[Influence]]] = defaultdict(lambda: defaultdict(list))
    for influence in proponents:
        if influence.head != influence.tail:
            neighbours[influence.head][influence.tail].append(influence)
            neighbours[influence.tail][influence.head].append(influence)

    def walk(entities: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        reachable = neighbours.get(entities[-1], {})
        if tail in reachable:
            yield (*entities, tail)
        # The last hop can only lead to the tail.
        if len(entities) < max_hops:
            for entity in reachable:
                if entity != tail and entity not in entities:
                    yield from walk((*entities, entity))

    def hop(start: int, end: int) -> Hop:
        strongest, *others = neighbours[start][end]
        return Hop(strongest, forward=strongest.head == start, others=len(others))

    if head == tail:
        return []
    paths = [EvidencePath(entities, tuple(hop(*step) for step in pairwise(entities))) for entities in walk((head,))]
    return sorted(paths, key=lambda path: (-path.strength, len(path.hops), -path.mean_strength, path.entities))

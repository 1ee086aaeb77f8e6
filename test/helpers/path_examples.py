"""Paths to draw, found by walking from entity to entity."""

from collections import defaultdict
from itertools import pairwise

from conve_tracin.influence.paths import GraphPath, Hop


def find_paths(proponents, head, tail, *, max_hops=3) -> list[GraphPath]:
    """Find all paths of up to `max_hops` of the given triples, the one with the strongest weakest triple first."""
    neighbours: dict = defaultdict(lambda: defaultdict(list))
    for influence in proponents:
        if influence.head != influence.tail:
            neighbours[influence.head][influence.tail].append(influence)
            neighbours[influence.tail][influence.head].append(influence)

    def walk(entities):
        reachable = neighbours.get(entities[-1], {})
        if tail in reachable:
            yield (*entities, tail)
        # The last hop can only lead to the tail.
        if len(entities) < max_hops:
            for entity in reachable:
                if entity != tail and entity not in entities:
                    yield from walk((*entities, entity))

    def hop(start, end):
        strongest, *others = neighbours[start][end]
        return Hop(strongest, forward=strongest.head == start, others=len(others))

    if head == tail:
        return []
    paths = [GraphPath(entities, tuple(hop(*step) for step in pairwise(entities)), 0.0) for entities in walk((head,))]
    return sorted(paths, key=lambda path: (-path.weakest, len(path.hops), path.entities))

from itertools import pairwise, permutations, product

import numpy as np
import pytest

from conve_tracin.influence.graph_paths import Adjacency, find_graph_paths


def paths_by_hand(triples, head, tail, hops, num_entities):
    """Every sequence of distinct entities, and for each step every triple that joins the two."""
    found = []
    middles = permutations([e for e in range(num_entities) if e not in (head, tail)], hops - 1)
    for middle in middles:
        entities = (head, *middle, tail)
        steps = [
            [i for i, (h, _, t) in enumerate(triples.tolist()) if {h, t} == {left, right}]
            for left, right in pairwise(entities)
        ]
        found += [(entities, positions) for positions in product(*steps)]
    return sorted(found)


def as_pairs(paths):
    return sorted(zip(map(tuple, paths.entities.tolist()), map(tuple, paths.positions.tolist()), strict=True))


@pytest.mark.parametrize("hops", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_search_finds_what_trying_everything_finds(hops, seed):
    generator = np.random.default_rng(seed)
    triples = generator.integers(0, [8, 3, 8], size=(30, 3))  # self-loops and repeated triples among them
    adjacency = Adjacency.of(triples, 8)
    for head, tail in ((0, 1), (3, 5), (7, 2)):
        assert as_pairs(find_graph_paths(adjacency, head, tail, hops=hops)) == paths_by_hand(
            triples, head, tail, hops, 8
        )


def test_slots_of_an_entity_are_sorted_by_where_they_lead():
    triples = np.array([[0, 0, 3], [2, 1, 0], [0, 1, 1], [0, 0, 0]])
    adjacency = Adjacency.of(triples, 4)
    slots = adjacency.around(0)
    assert adjacency.neighbours[slots].tolist() == [1, 2, 3]
    assert adjacency.positions[slots].tolist() == [2, 1, 0]
    assert adjacency.degrees.tolist() == [3, 1, 1, 1]


def test_equal_ends_and_lonely_entities_have_no_paths():
    adjacency = Adjacency.of(np.array([[0, 0, 1], [1, 0, 2]]), 4)
    assert len(find_graph_paths(adjacency, 0, 0, hops=2)) == 0
    assert len(find_graph_paths(adjacency, 0, 3, hops=3)) == 0
    assert find_graph_paths(adjacency, 0, 3, hops=3).entities.shape == (0, 4)


def test_limits_leave_out_what_leads_through_hubs_first():
    # 0 – 1 – 2 is quiet; 0 – 3 – 2 leads over a hub.
    hub = [[3, 0, e] for e in range(4, 24)]
    triples = np.array([[0, 0, 1], [1, 0, 2], [0, 0, 3], [3, 0, 2], *hub])
    adjacency = Adjacency.of(triples, 24)
    assert len(find_graph_paths(adjacency, 0, 2, hops=2)) == 2
    kept = find_graph_paths(adjacency, 0, 2, hops=2, max_paths=1)
    assert kept.entities.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("max_paths", [1, 5, 17, 1000])
def test_the_paths_kept_are_those_of_the_smallest_products_of_degrees_in_the_order_found(hops, max_paths):
    triples = np.random.default_rng(max_paths).integers(0, [7, 3, 7], size=(60, 3))
    adjacency = Adjacency.of(triples, 7)
    everything = find_graph_paths(adjacency, 0, 1, hops=hops)
    products = [float(np.log(adjacency.degrees[path[1:-1]]).sum()) for path in everything.entities]
    # Python's sort is stable.
    kept = sorted(sorted(range(len(everything)), key=products.__getitem__)[:max_paths])
    found = find_graph_paths(adjacency, 0, 1, hops=hops, max_paths=max_paths)
    assert found.positions.tolist() == everything.positions[kept].tolist()
    assert found.entities.tolist() == everything.entities[kept].tolist()


def test_steps_are_bounded_by_the_smallest_degrees():
    hub = [[3, 0, e] for e in range(5, 25)]
    quiet = [[0, 0, 1], [1, 0, 4], [4, 0, 2]]
    over_hub = [[0, 0, 3], [3, 0, 4]]
    adjacency = Adjacency.of(np.array([*quiet, *over_hub, *hub]), 25)
    assert len(find_graph_paths(adjacency, 0, 2, hops=3)) == 2
    assert find_graph_paths(adjacency, 0, 2, hops=3, max_steps=5).entities.tolist() == [[0, 1, 4, 2]]

"""Paths of evidence against a search through all sequences of entities."""

from itertools import pairwise, permutations

import numpy as np
import pytest

from conve_tracin.influence.method import Influence
from conve_tracin.report.paths import find_paths


def proponents_of(rows):
    """Influences (head, relation, tail, influence), strongest first."""
    influences = [Influence(*row, position=position) for position, row in enumerate(rows)]
    return sorted(influences, key=lambda influence: -influence.influence)


@pytest.fixture(params=range(6))
def random_graph(request):
    """Forty triples among eight entities: parallel ones, both directions, loops."""
    random = np.random.default_rng(request.param)
    triples = random.integers(0, [8, 3, 8], size=(12 + 6 * request.param, 3)).tolist()
    return proponents_of([(*triple, float(value)) for triple, value in zip(triples, random.random(99), strict=False)])


def strongest_between(proponents, a, b):
    joining = [p for p in proponents if {p.head, p.tail} == {a, b} and a != b]
    return (max(joining, key=lambda p: p.influence), len(joining) - 1) if joining else None


def brute_force(proponents, head, tail, max_hops):
    """{entities: influences} of every sequence of distinct entities whose neighbours are joined."""
    inner = [entity for entity in range(8) if entity not in (head, tail)]
    found = {}
    for length in range(max_hops):
        for middle in permutations(inner, length):
            steps = [strongest_between(proponents, *step) for step in pairwise((head, *middle, tail))]
            if all(steps):
                found[(head, *middle, tail)] = steps
    return found


@pytest.mark.parametrize("max_hops", [1, 2, 3, 4])
def test_all_paths_are_found_with_their_strongest_triples(random_graph, max_hops):
    expected = brute_force(random_graph, 0, 1, max_hops)
    paths = find_paths(random_graph, 0, 1, max_hops=max_hops)
    assert {path.entities for path in paths} == expected.keys()
    assert len(paths) == len(expected)
    for path in paths:
        assert [(hop.influence, hop.others) for hop in path.hops] == expected[path.entities]
        for hop, (start, end) in zip(path.hops, pairwise(path.entities), strict=True):
            ends = (start, end) if hop.forward else (end, start)
            assert (hop.influence.head, hop.influence.tail) == ends


def test_paths_come_in_the_order_of_their_weakest_triple(random_graph):
    expected = brute_force(random_graph, 0, 1, 3)

    def key(entities):
        values = [influence.influence for influence, _ in expected[entities]]
        return -min(values), len(values), -(np.prod(values) ** (1 / len(values))), entities

    paths = find_paths(random_graph, 0, 1)
    assert [path.entities for path in paths] == sorted(expected, key=key)
    assert [path.strength for path in paths] == pytest.approx([-key(path.entities)[0] for path in paths], rel=1e-12)


def test_drug_gene_disease():
    drug, gene, disease, other = range(4)
    targets, associated = 0, 1
    proponents = proponents_of(
        [
            (drug, targets, gene, 0.5),
            (disease, associated, gene, 0.3),
            (drug, targets, other, 0.9),
            (gene, 2, gene, 1.0),
        ]
    )
    (path,) = find_paths(proponents, drug, disease)
    assert path.entities == (drug, gene, disease)
    assert [hop.forward for hop in path.hops] == [True, False]
    assert path.strength == 0.3
    assert path.mean_strength == pytest.approx((0.5 * 0.3) ** 0.5)


def test_no_path_where_there_is_none():
    assert find_paths([], 0, 1) == []
    assert find_paths(proponents_of([(0, 0, 2, 0.1), (1, 0, 3, 0.1)]), 0, 1) == []
    assert find_paths(proponents_of([(0, 0, 2, 0.1), (2, 0, 0, 0.1)]), 0, 0) == []


def test_a_star_of_parallel_triples_gives_each_path_once():
    # 250 triples from the head to one entity and 250 from it to the tail: one path, not 62,500.
    rows = [(0, relation, 2, 1.0 + relation) for relation in range(250)]
    rows += [(1, relation, 2, 2.0 + relation) for relation in range(250)]
    (path,) = find_paths(proponents_of(rows), 0, 1)
    assert [hop.others for hop in path.hops] == [249, 249]
    assert path.strength == 250.0

"""Paths of a prediction, against every sequence of entities that triples join."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch

from conve_tracin.data.graph import Graph
from conve_tracin.influence.method import Scores
from conve_tracin.influence.path_ranking import best_first
from conve_tracin.influence.paths import PathFinder

PREDICTION = (0, 2, 1)


@pytest.fixture(params=range(5))
def triples(request):
    """Triples among eight entities: parallel ones, both directions, loops, and the prediction itself."""
    random = np.random.default_rng(request.param)
    return np.concatenate([random.integers(0, [8, 3, 8], size=(14 + 5 * request.param, 3)), [PREDICTION]])


def joining(triples, a, b):
    return [i for i, (h, r, t) in enumerate(triples.tolist()) if {h, t} == {a, b} and a != b]


def every_path(triples, max_hops):
    """The sequences of distinct entities whose neighbours are joined, other than by the prediction alone."""
    head, _, tail = PREDICTION
    inner = [entity for entity in range(8) if entity not in (head, tail)]
    found = set()
    for length in range(max_hops):
        for middle in permutations(inner, length):
            entities = (head, *middle, tail)
            steps = [joining(triples, *step) for step in pairwise(entities)]
            if length == 0:
                steps = [[i for i in steps[0] if tuple(triples[i]) != PREDICTION]]
            if all(steps):
                found.add(entities)
    return found


@pytest.mark.parametrize("max_hops", [1, 2, 3])
def test_each_sequence_of_entities_is_one_path_with_true_triples(triples, max_hops):
    influences = torch.from_numpy(np.random.default_rng(9).normal(size=len(triples)))
    paths = PathFinder(Graph(triples, 8), limit=10_000, max_hops=max_hops)(PREDICTION, influences)
    assert {path.entities for path in paths} == every_path(triples, max_hops)
    assert len(paths) == len(every_path(triples, max_hops))
    for path in paths:
        assert path.weakest == min(hop.influence.influence for hop in path.hops)
        for hop, (start, end) in zip(path.hops, pairwise(path.entities), strict=True):
            own = hop.influence
            assert (own.head, own.relation, own.tail) == tuple(triples[own.position])
            assert own.influence == influences[own.position].item()
            assert (own.head, own.tail) == ((start, end) if hop.forward else (end, start))
            assert hop.others == len(joining(triples, start, end)) - 1


def test_the_best_paths_come_first_and_no_more_than_asked_for(triples):
    influences = torch.from_numpy(np.random.default_rng(3).normal(size=len(triples)))
    everything = PathFinder(Graph(triples, 8), limit=10_000, max_hops=3)
    ranked = everything.ranker.rank(PREDICTION, influences.numpy())
    in_order = dict.fromkeys(tuple(ranked[i].paths.entities[j].tolist()) for i, j in best_first(ranked))
    paths = everything(PREDICTION, influences)
    assert [path.entities for path in paths] == list(in_order)
    assert PathFinder(Graph(triples, 8), limit=3, max_hops=3)(PREDICTION, influences) == paths[:3]


def test_equal_ends_have_no_path(triples):
    assert PathFinder(Graph(triples, 8), limit=5, max_hops=3)((1, 0, 1), torch.zeros(len(triples))) == []


def test_a_relation_without_training_triples_has_paths_all_the_same(triples):
    others = triples[triples[:, 1] != 2]
    paths = PathFinder(Graph(others, 8), limit=10_000, max_hops=3)(PREDICTION, torch.zeros(len(others)))
    assert {path.entities for path in paths} == every_path(others, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_influences_of_some_triples_alone_give_the_same_paths(triples, dtype):
    influences = torch.from_numpy(np.random.default_rng(4).normal(size=len(triples))).to(dtype)
    influences[::2] = 0
    felt = influences.nonzero()[:, 0]
    find = PathFinder(Graph(triples, 8), limit=10_000, max_hops=3)
    expected = find(PREDICTION, influences)
    assert expected
    assert find(PREDICTION, Scores(influences[felt], felt, len(triples))) == expected
    assert find(PREDICTION, Scores.of_all(influences)) == expected
    nothing = Scores(influences[:0], felt[:0], len(triples))
    assert find(PREDICTION, nothing) == find(PREDICTION, torch.zeros(len(triples), dtype=dtype))

import numpy as np
import pytest

from conve_tracin.data.adjacency import Adjacency, triple_weights
from conve_tracin.data.graph import Graph
from conve_tracin.influence import path_ranking
from conve_tracin.influence.graph_paths import find_graph_paths
from conve_tracin.influence.path_ranking import (
    KIND_WEIGHT,
    SUPPORT_WEIGHT,
    PathRanker,
    best_first,
    kind_lifts,
    log_places,
)


@pytest.fixture(params=range(3))
def graph(request):
    """A random graph without repeated triples."""
    generator = np.random.default_rng(request.param)
    return np.unique(generator.integers(0, [9, 3, 9], size=(60, 3)), axis=0)


def own_triples(triples, entity, relation):
    return [i for i, (h, r, t) in enumerate(triples.tolist()) if entity in (h, t) and h != t and r == relation]


def test_weights_are_of_degrees_in_the_relation(graph):
    degrees = [
        sum(h == h2 and r == r2 for h2, r2, _ in graph.tolist())
        * sum(t == t2 and r == r2 for _, r2, t2 in graph.tolist())
        for h, r, t in graph.tolist()
    ]
    np.testing.assert_allclose(triple_weights(graph), np.array(degrees) ** -0.5)


def test_places_are_counted_among_an_entitys_triples_of_the_same_relation(graph):
    scores = np.random.default_rng(0).integers(0, 5, len(graph)).astype(float)
    adjacency = Adjacency.of(graph, 9)
    entity = int(graph[graph[:, 0] != graph[:, 2]][0, 0])
    positions = adjacency.positions[adjacency.around(entity)]
    expected = [
        np.log(1 + sum(scores[j] > scores[i] for j in own_triples(graph, entity, graph[i, 1]))) for i in positions
    ]
    np.testing.assert_allclose(log_places(adjacency, graph, scores, entity, positions), expected)


def test_scores_follow_the_formula(graph):
    influences = np.random.default_rng(1).normal(size=len(graph))
    ranker = PathRanker(Graph(graph, 9), sampled_pairs=5)
    head, tail = 0, 5
    ranked = ranker.rank((head, 1, tail), influences)
    weights = triple_weights(graph)
    support = np.zeros(len(graph))
    for positions in ranked[2].paths.positions:
        support[positions[[0, 2]]] += weights[positions].prod()
    ends = set(graph[graph[:, 1] == 1][:, [0, 2]].ravel().tolist())
    for each in ranked:
        kinds, lifts = ranker.kinds(each.paths), ranker.lifts(1, each.hops)
        for i, positions in enumerate(each.paths.positions.tolist()):
            score = KIND_WEIGHT * lifts.get(int(kinds[i]), 0.0)
            for end, position in ((head, positions[0]), (tail, positions[-1])):
                own = own_triples(graph, end, graph[position, 1])
                score -= np.log(1 + sum(influences[j] > influences[position] for j in own))
                score -= SUPPORT_WEIGHT * np.log(1 + sum(support[j] > support[position] for j in own))
            assert each.scores[i] == pytest.approx(score)
            among_ends = all(e in ends for e in each.paths.entities[i, 1:-1].tolist())
            level = 0 if each.hops == 1 else 2 if among_ends else int((graph[positions, 1] == 1).any())
            assert each.groups[i] == 4 * level + each.hops


def planted_graph():
    """Drugs 0–19 treat (0) diseases 20–39 over genes 40–59: drug i targets (1) gene i, disease i has (2) gene i.

    Every drug also affects (3) gene 60, which every disease has.
    """
    treats = [[i, 0, 20 + i] for i in range(20)]
    targets = [[i, 1, 40 + i] for i in range(20)]
    genes = [[20 + i, 2, 40 + i] for i in range(20)]
    hub = [[i, 3, 60] for i in range(20)] + [[20 + i, 2, 60] for i in range(20)]
    similar = [[i, 4, (i + 1) % 20] for i in range(20)] + [[(i + 1) % 20, 0, 20 + i] for i in range(0, 20, 2)]
    return np.array([*treats, *targets, *genes, *hub, *similar])


def test_kinds_that_join_related_pairs_are_lifted():
    ranker = PathRanker(Graph(planted_graph(), 61))
    paths = ranker.rank((0, 0, 20), np.zeros(len(ranker.triples)))[1].paths
    kinds = dict(zip(paths.entities[:, 1].tolist(), ranker.kinds(paths).tolist(), strict=True))
    lifts = kind_lifts(ranker, 0, 2)
    assert lifts[kinds[40]] > 1
    assert abs(lifts[kinds[60]]) < 0.2


def test_analogies_follow_and_the_own_gene_is_first():
    ranker = PathRanker(Graph(planted_graph(), 61))
    ranked = ranker.rank((0, 0, 20), np.zeros(len(ranker.triples)))
    order = [ranked[i].paths.entities[j].tolist() for i, j in best_first(ranked)]
    assert order[0] == [0, 40, 20]
    assert order.index([0, 60, 20]) < order.index([0, 1, 20])
    assert len(best_first(ranked, 3)) == 3


def test_a_single_triple_comes_first_and_the_prediction_itself_is_left_out():
    triples = np.array([[0, 0, 1], [1, 1, 0], [0, 1, 2], [2, 1, 1]])
    ranked = PathRanker(Graph(triples, 3)).rank((0, 0, 1), np.zeros(4))
    order = [ranked[i].paths.positions[j].tolist() for i, j in best_first(ranked)]
    assert order == [[1], [2, 3]]


def test_no_paths():
    ranker = PathRanker(Graph(np.array([[0, 0, 1], [2, 0, 3]]), 5))
    assert best_first(ranker.rank((0, 0, 4), np.zeros(2))) == []
    assert best_first(ranker.rank((0, 0, 0), np.zeros(2))) == []


def weighed_by_hand(ranker, pairs, hops):
    """The weights of each kind, path by path: {kind: [weight]} and the number of pairs."""
    weights = {}
    for pair in pairs.tolist():
        paths = find_graph_paths(ranker.adjacency, *pair, hops=hops)
        for kind, positions in zip(ranker.kinds(paths).tolist(), paths.positions, strict=True):
            weights.setdefault(kind, []).append(ranker.weights[positions].prod())
    return weights, len(pairs)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_lifts_are_those_of_a_loop_over_all_paths(hops):
    random = np.random.default_rng(hops)
    # Parallel triples, loops, and an entity that most others have a triple with.
    hub = np.stack([np.arange(25), random.integers(0, 4, 25), np.full(25, 3)], axis=1)
    triples = np.unique(np.concatenate([random.integers(0, [25, 4, 25], size=(150, 3)), hub]), axis=0)
    ranker = PathRanker(Graph(triples, 25), sampled_pairs=20)
    draws = np.random.default_rng(0)
    pairs = triples[triples[:, 1] == 2][:, [0, 2]]
    related = pairs[draws.permutation(len(pairs))[:20]]
    mixed = np.stack([draws.permutation(related[:, 0]), draws.permutation(related[:, 1])], axis=1)
    mixed = mixed[[pair not in pairs.tolist() for pair in mixed.tolist()]]
    (one, number), (other, number_of_mixed) = (weighed_by_hand(ranker, each, hops) for each in (related, mixed))
    expected = {}
    for kind in one.keys() | other.keys():
        both = one.get(kind, []), other.get(kind, [])
        mean = sum(map(sum, both)) / sum(map(len, both))
        expected[kind] = np.log((sum(both[0]) + mean) / number / ((sum(both[1]) + mean) / number_of_mixed))
    assert len(expected) > hops
    assert kind_lifts(ranker, 2, hops) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("num_kinds", [7, 10**12])
def test_sums_by_kind_are_those_of_a_loop_however_many_kinds_there_may_be(num_kinds):
    kinds, weights = np.array([5, 2, 5, 2, 6, 5]), np.array([1.0, 2.0, 4.0, 8.0, 0.0, 16.0])
    present, sums, paths = path_ranking.sums_by_kind(kinds, weights, num_kinds)
    assert present.tolist() == [2, 5, 6]
    assert sums.tolist() == [10, 21, 0]
    assert paths.tolist() == [2, 3, 1]

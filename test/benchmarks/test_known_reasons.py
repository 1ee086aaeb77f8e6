import gzip
import json
import sys
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from truth_lib import agreement, graph_rules, path_exam, path_orders
from truth_lib import known_reasons as exam_measures

from conve_tracin.data import reasons as reasons_file
from conve_tracin.data.graph import Graph
from conve_tracin.data.reasons import KnownReasons
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.influence import known_reasons
from conve_tracin.influence.graph_paths import Adjacency
from conve_tracin.influence.path_ranking import PathRanker


def orders(scores):
    """All orders of the triples, highest score first, that ties allow."""
    return [
        order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]


@pytest.fixture(params=range(6))
def tied(request):
    """Seven scores with ties, and which triples are reasons."""
    generator = np.random.default_rng(request.param)
    is_reason = np.zeros(7, dtype=bool)
    is_reason[generator.permutation(7)[: 1 + request.param % 3]] = True
    return generator.integers(0, 4, 7).astype(float), is_reason


def test_first_rank_is_the_mean_over_all_orders_of_ties(tied):
    scores, is_reason = tied
    places = [1 + min(order.index(i) for i in np.flatnonzero(is_reason)) for order in orders(scores)]
    assert known_reasons.first_rank(scores, is_reason) == pytest.approx(np.mean(places))


def test_first_place_is_its_chance_over_all_orders_of_ties(tied):
    scores, is_reason = tied
    chance = np.mean([is_reason[order[0]] for order in orders(scores)])
    assert exam_measures.first_place(scores, is_reason) == pytest.approx(chance)


def test_average_precision_without_ties_is_the_mean_precision_at_each_reason():
    generator = np.random.default_rng(0)
    scores, is_reason = generator.normal(size=50), generator.random(50) < 0.2
    order = np.argsort(-scores)
    precisions = [is_reason[order[: k + 1]].mean() for k in range(50) if is_reason[order[k]]]
    assert known_reasons.average_precision(scores, is_reason) == pytest.approx(np.mean(precisions))


def test_average_precision_of_ties_is_their_share():
    is_reason = np.array([True, False, False, True])
    assert known_reasons.average_precision(np.ones(4), is_reason) == pytest.approx(0.5)


def test_area_is_the_share_of_pairs_in_order(tied):
    scores, is_reason = tied
    pairs = [(a > b) + (a == b) / 2 for a in scores[is_reason] for b in scores[~is_reason]]
    assert known_reasons.area_under_roc(scores, is_reason) == pytest.approx(np.mean(pairs))


def test_jaccard_takes_the_best_explanation():
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    explanations = [np.array([0, 4]), np.array([0, 1, 4])]
    # {0, 1} with {0, 4}: 1/3; {0, 1, 2} with {0, 1, 4}: 2/4.
    assert exam_measures.best_jaccard(scores, explanations) == pytest.approx(0.5)


def test_own_area_compares_triples_of_one_entity_and_relation_in_one_place():
    train = np.array([[0, 0, 5], [0, 0, 6], [0, 0, 7], [0, 1, 5], [8, 0, 0], [9, 2, 1], [9, 2, 3], [1, 2, 9]])
    explained = KnownReasons(np.array([0, 3, 9]), (np.array([0, 5]),), (True,))
    scores = np.array([2.0, 1.0, 3.0, 9.0, 9.0, 1.0, 2.0, 0.0])
    assert known_reasons.own_auc(scores, train, explained, end=0) == pytest.approx(0.5)
    assert known_reasons.own_auc(scores, train, explained, end=2) == pytest.approx(0.0)
    alone = KnownReasons(np.array([0, 3, 9]), (np.array([3]),), (True,))
    assert np.isnan(known_reasons.own_auc(scores, train, alone, end=0))


def test_a_prediction_of_training_takes_no_part():
    train = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3]])
    explained = KnownReasons(train[0], (np.array([1]),), (True,))
    values = exam_measures.measure(np.array([9.0, 2.0, 1.0]), train, explained)
    assert values["reciprocal_rank"] == 1
    assert values["head_auc"] == 1


@pytest.fixture
def graph():
    entities = Vocabulary("entity", ("a", "b", "c", "d"))
    relations = Vocabulary("relation", ("r", "s"))
    train = np.array([[0, 0, 2], [2, 1, 1], [0, 1, 3]])
    return train, entities, relations


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_reasons_are_read_in_both_forms(tmp_path, graph, suffix):
    train, entities, relations = graph
    lines = [
        {"triple": ["a", "r", "b"], "reasons": [["a", "r", "c"], ["d", "r", "d"]]},
        {"triple": ["a", "r", "d"], "explanations": [{"triples": [["a", "r", "c"]]}, {"triples": [["a", "s", "d"]]}]},
        {"triple": ["b", "r", "d"], "reasons": [["d", "r", "d"]]},  # not in training
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = tmp_path / f"reasons{suffix}"
    path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    first, second = reasons_file.read_reasons(path, train, entities=entities, relations=relations)
    assert first.triple.tolist() == [0, 0, 1]
    assert first.reasons.tolist() == [0]
    assert first.complete == (False,)
    assert [each.tolist() for each in second.explanations] == [[0], [2]]
    assert second.complete == (True, True)


def test_a_predicate_stands_for_each_relation_that_has_it(tmp_path, graph):
    train, entities, relations = graph
    edge_map = tmp_path / "edge_map.json"
    keys = [{"predicate": "biolink:affects"}, {"predicate": "biolink:affects", "aspect": "increased"}]
    edge_map.write_text(json.dumps({json.dumps(key): label for key, label in zip(keys, "rs", strict=True)}))
    path = tmp_path / "reasons.jsonl"
    line = {"triple": ["a", "r", "b"], "reasons": [["a", "biolink:affects", "d"], ["c", "biolink:affects", "b"]]}
    path.write_text(json.dumps(line) + "\n")
    found = reasons_file.read_reasons(path, train, entities=entities, relations=relations, edge_map=edge_map)
    assert found[0].reasons.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", ":1: is no"),
        ('{"triple": ["a", "r"]}', ":1: is no"),
        ('{"triple": ["a", "r", 3]}', ":1: is no"),
        ('{"triple": ["a", "r", "x"], "reasons": []}', "lacks|lack"),
        ('{"triple": ["a", "r", "b"], "reasons": []}', "none of its reasons"),
    ],
)
def test_broken_lines_are_named(tmp_path, graph, line, message):
    train, entities, relations = graph
    path = tmp_path / "reasons.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        reasons_file.read_reasons(path, train, entities=entities, relations=relations)


def test_rules_look_at_the_graph():
    train = np.array([[0, 0, 2], [2, 1, 1], [0, 0, 1], [3, 0, 1], [4, 0, 5], [0, 1, 3]])
    triple, adjacency = np.array([0, 0, 1]), Adjacency.of(train, 6)
    scores = {name: rule(triple, train, adjacency).tolist() for name, rule in graph_rules.RULES.items()}
    assert scores["rule: shares (h, r) or (r, t)"] == [1, 0, 1, 1, 0, 0]
    assert scores["rule: joins both ends, or else touches one"] == [1, 1, 2, 1, 0, 1]
    assert scores["rule: on a path of two hops"] == [1, 1, 0, 1, 0, 1]


def test_paths_are_read_from_head_to_tail_and_each_triple_once():
    listed = path_exam.listed_triples([np.array([[4, 2], [4, 7]]), np.array([[1, 2, 9]])])
    assert listed.tolist() == [4, 2, 7, 1, 9]
    is_reason = np.isin(np.arange(10), [7, 8])
    assert path_exam.first_listed_rank(listed, is_reason, np.zeros(10)) == 3
    is_reason[7] = False
    # Five are listed; of the five others, one is a reason and comes second.
    rest = np.array([0, 0, 0, 5, 0, 1, 2, 0, 3, 0.0])
    assert path_exam.first_listed_rank(listed, is_reason, rest) == 7


def test_first_whole_path():
    positions = np.array([[0, 1], [0, 2], [3, 2]])
    is_reason = np.isin(np.arange(4), [0, 2])
    assert path_exam.first_whole_path(np.array([3.0, 2.0, 1.0]), positions, is_reason) == 1 / 2
    assert path_exam.first_whole_path(np.zeros(3), positions, is_reason) == 1 / 2
    assert np.isnan(path_exam.first_whole_path(np.zeros(3), positions, np.isin(np.arange(4), [1, 3])))


def test_paths_of_three_triples_are_held_against_the_reasons_by_their_weakest_triple():
    # 0 → 1 → 2 → 3 and 0 → 4 → 5 → 3; the second is what experts say.
    train = np.array([[0, 0, 1], [1, 0, 2], [2, 0, 3], [0, 0, 4], [4, 0, 5], [5, 0, 3]])
    explained = KnownReasons(np.array([0, 1, 3]), (np.array([3, 4, 5]),), (True,))
    ranked = PathRanker(Graph(train, 6)).rank([0, 1, 3], np.zeros(6))
    for influences, place in (([1, 1, 1, 2, 2, 2.0], 1), ([1, 1, 1, 9, 0, 9.0], 2), ([1, 9, 1, 1, 1, 1.0], 1.5)):
        influences = np.array(influences)
        order = path_orders.by_weakest_influence_of_three(ranked, influences)
        measured = path_orders.measure_order(order, explained, influences, train, is_through=np.ones(6, bool))
        assert measured["first_whole_path_of_three"] == pytest.approx(1 / place)
        assert np.isnan(measured["first_whole_path"])


def test_agreement_of_a_ranking_with_itself_and_with_its_reverse():
    generator = np.random.default_rng(0)
    train = np.stack([np.zeros(30, int), generator.integers(0, 2, 30), np.arange(30)], axis=1)
    triple, relations = np.array([0, 0, 40]), np.array([0, 1])
    scores = generator.normal(size=30)
    same = agreement.agreements(scores, scores, train, triple, relations=relations)
    assert [same[name] for name in ("edges_of_the_pair", "heads_own", "ten_strongest")] == pytest.approx([1, 1, 1])
    assert np.isnan(same["tails_own"])
    reverse = agreement.agreements(scores, -scores, train, triple, relations=relations)
    assert [reverse[name] for name in ("edges_of_the_pair", "heads_own", "ten_strongest")] == pytest.approx([-1, -1, 0])

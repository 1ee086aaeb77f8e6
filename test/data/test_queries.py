"""Queries in CSR form against plain Python dictionaries of sets."""

import numpy as np
import pytest
import torch

from conve_tracin.data import queries as queries_module
from conve_tracin.data.queries import Queries

NUM_RELATIONS = 4


def random_triples(count=200, seed=0):
    return np.random.default_rng(seed).integers(0, (9, NUM_RELATIONS, 9), (count, 3))


def tails_by_query(triples):
    tails = {}
    for head, relation, tail in triples.tolist():
        tails.setdefault((head, relation), []).append(tail)
    return tails


def listed_tails(queries, chosen):
    """Turn the answer of `tails_of` into one list for each place in the batch."""
    rows, tails = queries.tails_of(torch.tensor(chosen, dtype=torch.int64))
    lists = [[] for _ in chosen]
    for row, tail in zip(rows.tolist(), tails.tolist(), strict=True):
        lists[row].append(tail)
    return lists


# Their keys, beside a place each, do not fit into one integer.
LARGE_IDS = random_triples(seed=2) * np.array([2**54, 1, 1])


@pytest.mark.parametrize(
    "triples", [random_triples(), random_triples(3, seed=1), np.zeros((1, 3), dtype=np.int64), LARGE_IDS]
)
def test_distinct_queries_have_all_their_tails_in_order(triples):
    queries = Queries.distinct(triples)
    expected = tails_by_query(triples)
    found = list(zip(queries.heads.tolist(), queries.relations.tolist(), strict=True))
    assert found == sorted(expected)
    assert listed_tails(queries, range(len(queries))) == [expected[query] for query in found]


@pytest.mark.parametrize("tails_per_visit", [1, 2, 3, 1000])
def test_an_epoch_visits_queries_with_many_tails_more_often(tails_per_visit, monkeypatch):
    monkeypatch.setattr(queries_module, "MOST_VISITS", 7)
    queries = Queries.distinct(random_triples()).visited_by_tails(tails_per_visit)
    counts = queries.count_tails(torch.arange(len(queries))).tolist()
    assert max(counts) > 7
    expected = [min(7, -(-count // tails_per_visit)) for count in counts]
    visits = queries.shuffled_visits(torch.Generator().manual_seed(0))
    assert len(visits) == queries.num_visits
    assert not torch.equal(visits, visits.sort().values)
    assert torch.bincount(visits).tolist() == expected
    weights = queries.weights_by_tails(visits)
    assert weights.mean().item() == pytest.approx(1)
    # All visits of a query together count for its tails.
    together = torch.zeros(len(queries), dtype=torch.float64).index_add(0, visits, weights)
    np.testing.assert_allclose(together / together.sum(), np.array(counts) / sum(counts))


def test_one_query_for_each_triple_keeps_order_and_repeats():
    triples = random_triples()
    queries = Queries.one_per_triple(triples)
    assert len(queries) == len(triples)
    assert listed_tails(queries, range(len(triples))) == [[tail] for tail in triples[:, 2]]
    np.testing.assert_array_equal(torch.stack([queries.heads, queries.relations], dim=1), triples[:, :2])


@pytest.mark.parametrize("more_room", [0, 1, 50])
def test_padded_tails_are_the_tails_and_then_what_is_marked(more_room):
    queries = Queries.distinct(random_triples())
    chosen = torch.tensor([5, 0, 0, 3, len(queries) - 1])
    rows, tails = queries.tails_of(chosen)
    counts = torch.bincount(rows)
    assert queries.count_tails(chosen).tolist() == counts.tolist()
    padded_rows, padded_tails, is_tail = queries.padded_tails_of(chosen, len(rows) + more_room)
    assert is_tail.tolist() == [True] * len(rows) + [False] * more_room
    assert torch.equal(padded_rows[is_tail], rows)
    assert torch.equal(padded_tails[is_tail], tails)
    assert padded_rows.max() < len(chosen)


def test_tails_of_a_batch_in_any_order_with_repeats(graph):
    queries = Queries.distinct(graph.train)
    everything = listed_tails(queries, range(len(queries)))
    chosen = [5, 0, 0, 3, 5]
    assert listed_tails(queries, chosen) == [everything[query] for query in chosen]
    assert listed_tails(queries, []) == []


def test_find_returns_the_place_of_each_query(graph):
    queries = Queries.distinct(graph.train)
    order = torch.tensor([4, 0, 2, 2])
    found = queries.find(queries.heads[order], queries.relations[order], num_relations=3)
    assert torch.equal(found, order)


@pytest.mark.parametrize("query", [(0, 2), (5, 0), (8, 3)])
def test_a_query_without_tails_is_not_found(graph, query):
    queries = Queries.distinct(graph.train)
    with pytest.raises(KeyError, match="no known tail"):
        queries.find(*(torch.tensor([part]) for part in query), num_relations=4)


def test_queries_live_on_the_device_that_was_asked_for():
    # "meta" is a device that every machine has; it holds no numbers.
    for queries in (
        Queries.distinct(random_triples(), "meta"),
        Queries.one_per_triple(random_triples(), "meta"),
    ):
        members = (queries.heads, queries.relations, queries.offsets, queries.tails)
        assert {member.device.type for member in members} == {"meta"}


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_tails_stay_on_the_device_of_their_queries(device):
    queries = Queries.distinct(random_triples(), device)
    rows, tails = queries.tails_of(torch.arange(len(queries), device=device))
    assert {rows.device.type, tails.device.type, queries.offsets.device.type} == {device}

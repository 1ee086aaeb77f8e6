"""Filtered ranks and metrics against PyKEEN's evaluator and against counting by hand."""

import numpy as np
import pytest
import torch

from conve_tracin.data.queries import Queries, examples_of
from conve_tracin.ranking import ranks as ranking
from conve_tracin.ranking.ranks import choose_batch_size, filtered_ranks, rank_triples, ranking_metrics

NUM_ENTITIES, NUM_RELATIONS = 23, 3


def make_case(seed=0):
    """Return a score table (head, row of the relation, tail) full of ties, known triples, and some of them to rank."""
    rng = np.random.default_rng(seed)
    table = torch.from_numpy(rng.integers(-3, 4, (NUM_ENTITIES, 2 * NUM_RELATIONS, NUM_ENTITIES)) / 2)
    upper = (NUM_ENTITIES, NUM_RELATIONS, NUM_ENTITIES)
    known = np.unique(rng.integers(0, upper, (150, 3)), axis=0)
    # A query that nearly every entity answers.
    hub = np.array([(4, 1, tail) for tail in range(NUM_ENTITIES - 2)])
    known = rng.permutation(np.unique(np.concatenate([known, hub]), axis=0))
    chosen = rng.choice(len(known), 40, replace=False)
    of_hub = np.flatnonzero((known[:, :2] == (4, 1)).all(axis=1))[:6]
    return table, known, rng.permutation(known[np.unique(np.concatenate([chosen, of_hub]))])


def index_known(known, *, inverse_triples):
    return Queries.distinct(examples_of(known, inverse_triples=inverse_triples))


def pykeen_results(table, known, triples, *, inverse_triples):
    """Rank with PyKEEN's evaluator; returns its result and the realistic ranks, tails first."""
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.evaluation.evaluator import create_sparse_positive_filter_, filter_scores_

    evaluator = RankBasedEvaluator(filtered=True)
    batch, positives = torch.from_numpy(triples), torch.from_numpy(known)
    heads, relations, tails = batch.T
    sides = {"tail": (table[heads, 2 * relations if inverse_triples else relations], tails, 2)}
    if inverse_triples:
        sides["head"] = (table[tails, 2 * relations + 1], heads, 0)
    for side, (scores, targets, column) in sides.items():
        true_scores = scores.gather(1, targets[:, None])
        known_places, _ = create_sparse_positive_filter_(batch, positives, filter_col=column)
        filtered = filter_scores_(scores.clone(), known_places)
        filtered[torch.arange(len(batch)), targets] = true_scores[:, 0]
        evaluator.process_scores_(batch, side, filtered, true_scores=true_scores)
    ranks = np.concatenate([np.concatenate(evaluator.ranks[side, "realistic"]) for side in sides])
    return evaluator.finalize(), torch.from_numpy(ranks).double()


@pytest.mark.parametrize("batch_size", [1, 7, 512])
@pytest.mark.parametrize("inverse_triples", [False, True])
def test_ranks_and_metrics_are_pykeens(inverse_triples, batch_size):
    table, known, triples = make_case()
    queries = {tuple(query) for query in triples[:, :2]}
    assert len(queries) < len(triples), "several test triples must share a query"
    ranks = rank_triples(
        lambda heads, relations: table[heads, relations],
        examples_of(triples, inverse_triples=inverse_triples),
        index_known(known, inverse_triples=inverse_triples),
        num_relations=(2 if inverse_triples else 1) * NUM_RELATIONS,
        batch_size=batch_size,
    )
    result, expected = pykeen_results(table, known, triples, inverse_triples=inverse_triples)
    assert torch.equal(ranks, expected)
    metrics = ranking_metrics(ranks)
    side = "both" if inverse_triples else "tail"
    assert metrics["mean_rank"] == pytest.approx(result.get_metric(f"{side}.realistic.arithmetic_mean_rank"))
    assert metrics["mean_reciprocal_rank"] == pytest.approx(
        result.get_metric(f"{side}.realistic.inverse_harmonic_mean_rank")
    )
    for k in (1, 3, 5, 10):
        assert metrics[f"hits@{k}"] == pytest.approx(result.get_metric(f"{side}.realistic.hits_at_{k}"))


def test_ranks_keep_the_order_of_the_triples():
    table, known, triples = make_case(seed=3)
    queries = index_known(known, inverse_triples=False)

    def rank(chosen):
        score = lambda heads, relations: table[heads, relations]  # noqa: E731
        return rank_triples(score, chosen, queries, num_relations=NUM_RELATIONS, batch_size=4)

    alone = torch.cat([rank(triples[[row]]) for row in range(len(triples))])
    assert torch.equal(rank(triples), alone)
    assert torch.equal(rank(triples[::-1].copy()), alone.flip(0))


@pytest.mark.parametrize(("num_entities", "batch_size"), [(100, 512), (400_000, 167), (10_000_000, 6), (2**40, 1)])
def test_the_scores_at_once_do_not_grow_with_the_entities(num_entities, batch_size):
    assert choose_batch_size(num_entities) == batch_size
    assert choose_batch_size(num_entities, at_most=3) == min(3, batch_size)


def test_batches_that_do_not_fit_into_memory_are_halved():
    table, known, triples = make_case()
    queries = index_known(known, inverse_triples=False)

    def score_few(heads, relations):
        if len(heads) > 3:
            torch.empty(2**58)
        return table[heads, relations]

    ranks = [
        rank_triples(score, triples, queries, num_relations=NUM_RELATIONS)
        for score in (score_few, lambda heads, relations: table[heads, relations])
    ]
    assert torch.equal(*ranks)


def test_scores_are_copied_only_where_triples_share_a_query(monkeypatch):
    table, known, triples = make_case()
    given, ranked = [], []
    rank = ranking.filtered_ranks

    def score(heads, relations):
        given.append(table[heads, relations])
        return given[-1]

    def note(scores, *rest):
        ranked.append(scores)
        return rank(scores, *rest)

    monkeypatch.setattr(ranking, "filtered_ranks", note)
    rank_triples(score, triples, index_known(known, inverse_triples=False), num_relations=NUM_RELATIONS, batch_size=2)
    assert {len(scores) for scores in given} == {1, 2}
    for scores, seen in zip(given, ranked, strict=True):
        assert (seen is scores) == (len(seen) == len(scores))


def rank_of(scores, target, known=()):
    known = torch.tensor(list(known), dtype=torch.int64)
    rows = torch.zeros(len(known), dtype=torch.int64)
    return filtered_ranks(torch.tensor([scores]), torch.tensor([target]), rows, known).item()


def test_ties_take_their_mean_rank():
    assert rank_of([1.0, 1.0, 1.0, 1.0], target=2) == 2.5
    assert rank_of([3.0, 1.0, 1.0, 0.0], target=1) == 2.5


def test_known_tails_do_not_compete_but_the_target_does():
    assert rank_of([3.0, 2.0, 1.0, 0.0], target=2) == 3
    assert rank_of([3.0, 2.0, 1.0, 0.0], target=2, known=[0, 2]) == 2
    assert rank_of([3.0, 2.0, 1.0, 0.0], target=2, known=[0, 1, 2, 3]) == 1
    assert rank_of([1.0, 1.0, 1.0, 0.0], target=0, known=[0, 1]) == 1.5


@pytest.mark.parametrize("scores", [[float("nan")] * 4, [float("nan"), 1.0, 2.0, 0.0]])
def test_a_score_that_is_no_number_ranks_last(scores):
    assert rank_of(scores, target=0) == 4


def test_a_competitor_without_a_score_counts_as_ahead():
    assert rank_of([1.0, float("nan"), 0.0], target=0) == 2
    assert rank_of([1.0, float("nan"), 0.0], target=0, known=[1]) == 1


def test_infinite_scores_keep_their_order():
    assert rank_of([float("inf"), 0.0, float("-inf")], target=1) == 2


def test_metrics_of_given_ranks():
    metrics = ranking_metrics(torch.tensor([1.0, 2.0, 4.0, 11.0], dtype=torch.float64))
    assert metrics == pytest.approx(
        {
            "mean_rank": 4.5,
            "mean_reciprocal_rank": (1 + 1 / 2 + 1 / 4 + 1 / 11) / 4,
            "hits@1": 0.25,
            "hits@3": 0.5,
            "hits@5": 0.75,
            "hits@10": 0.75,
        }
    )

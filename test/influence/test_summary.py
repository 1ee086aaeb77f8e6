"""Summaries of all scores against pandas and sorting, and predictions against a loop over all entities."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TEST, TRAIN, TREATS, VALID, make_small_conve
from pykeen_examples import trained_model, training_factory

from conve_tracin.checkpoint.conversion import convert_pytorch_to_pykeen_state_dict
from conve_tracin.checkpoint.pykeen import build_pykeen_conve
from conve_tracin.data.graph import Graph
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.influence.journal import from_plain
from conve_tracin.influence.scorers import ConvEScorer, PyKEENScorer
from conve_tracin.influence.summary import SummarySettings, concentration, describe_prediction, summarise
from conve_tracin.influence.trace import Trace, TracedCheckpoint, trace

NUM_RELATIONS = 7


@pytest.fixture
def scored():
    """Two thousand triples with scores of both signs, some zero; relation 5 has no triples, relation 6 no influence."""
    random = np.random.default_rng(4)
    triples = random.integers(0, [50, 5, 50], size=(2000, 3))
    triples[:30, 1] = 6
    scores = torch.from_numpy(random.standard_normal(2000) ** 3).float()
    scores[:60] = 0
    return scores, triples


def summary_of(scored):
    scores, triples = scored
    return summarise(scores, Graph(triples, 50, NUM_RELATIONS))


def test_sums_by_relation_are_those_of_pandas(scored):
    scores, triples = scored
    frame = pd.DataFrame({"relation": triples[:, 1], "influence": scores.double().numpy()})
    frame["positive"], frame["negative"] = frame["influence"].clip(lower=0), frame["influence"].clip(upper=0)
    expected = frame.groupby("relation").agg(
        positive=("positive", "sum"), negative=("negative", "sum"), triples=("influence", "size")
    )
    by_relation = summary_of(scored).by_relation
    actual = pd.DataFrame([dataclasses.asdict(entry) for entry in by_relation]).set_index("relation")
    pd.testing.assert_frame_equal(actual.sort_index(), expected, check_index_type=False, rtol=1e-12)
    size = (expected["positive"] - expected["negative"]).sort_values(ascending=False)
    assert [entry.relation for entry in by_relation] == size.index.tolist()
    assert by_relation[-1].relation == 6


def test_totals_and_counts(scored):
    scores, _ = scored
    summary = summary_of(scored)
    assert summary.positive == pytest.approx(scores.double()[scores > 0].sum().item(), rel=1e-12)
    assert summary.negative == pytest.approx(scores.double()[scores < 0].sum().item(), rel=1e-12)
    assert (summary.num_triples, summary.num_positive, summary.num_negative) == (
        2000,
        sum(score > 0 for score in scores.tolist()),
        sum(score < 0 for score in scores.tolist()),
    )


@pytest.mark.parametrize("length", [1, 2, 9, 10, 999, 1000])
def test_concentration_is_the_share_of_the_first_of_a_sorted_list(length):
    scores = torch.from_numpy(np.random.default_rng(length).standard_normal(length))
    sizes = sorted((abs(score) for score in scores.tolist()), reverse=True)
    curve = concentration(scores)
    assert curve.counts[0] == 1
    assert curve.counts[-1] == length
    assert {10**power for power in range(4) if 10**power <= length} <= set(curve.counts)
    expected = [sum(sizes[:count]) / sum(sizes) for count in curve.counts]
    np.testing.assert_allclose(curve.shares, expected, rtol=1e-12)
    assert sum(sizes[: curve.half]) >= sum(sizes) / 2 > sum(sizes[: curve.half - 1])


def test_without_any_influence_there_is_nothing_to_share():
    summary = summarise(torch.zeros(5), Graph(TRAIN[:5], 6, 3))
    assert set(summary.concentration.shares) == {0.0}


# ---------------------------------------------------------------------------------------------------------------
# The prediction itself


def rank_by_hand(score_of, triple, known):
    head, relation, tail = triple
    candidates = [entity for entity in range(6) if entity == tail or (head, relation, entity) not in known]
    scores = {entity: score_of(head, relation, entity) for entity in candidates}
    higher = sum(score > scores[tail] for score in scores.values())
    equal = sum(score == scores[tail] for score in scores.values())
    return scores, higher + (equal + 1) / 2


def ahead_of(place):
    """The answers that are not known and stand before the place's own, best first."""
    return [one.entity for one in place.standing.best if not one.known and one.score > place.score]


class NoConvE(PyKEENScorer):
    """Scores the same model, converted, as one that is no ConvE."""

    conve = None

    def __init__(self, model):
        config = model.config.as_dict()
        converted = build_pykeen_conve(config).double().eval()
        state = convert_pytorch_to_pykeen_state_dict({"model_state_dict": model.state_dict(), "model_config": config})
        converted.load_state_dict(state)
        super().__init__(converted)


@pytest.mark.parametrize("triple", [(0, TREATS, 2), (0, TREATS, 5), (1, TREATS, 4), (3, 2, 3), (5, 1, 0), (5, 2, 4)])
@pytest.mark.parametrize("make_scorer", [ConvEScorer, NoConvE])
@pytest.mark.parametrize("further", [None, np.concatenate([VALID, TEST])])
def test_rank_leaves_out_the_other_known_tails(triple, make_scorer, further):
    model = make_small_conve()
    settings = SummarySettings(graph=Graph(TRAIN, 6, 3), known_triples=further)
    prediction = describe_prediction(make_scorer(model), triple, settings)

    def score_of(*ids):
        return model.score(*torch.tensor(ids)[:, None]).item()

    known = {tuple(row) for part in (TRAIN, further) if part is not None for row in part.tolist()}
    scores, rank = rank_by_hand(score_of, triple, known)
    assert prediction.rank == rank
    assert prediction.score == pytest.approx(score_of(*triple), rel=1e-12)
    assert (prediction.num_candidates, prediction.num_known) == (len(scores), 6 - len(scores))
    ahead = [entity for entity in scores if scores[entity] > scores[triple[2]]]
    assert ahead_of(prediction) == sorted(ahead, key=lambda entity: -scores[entity])[:5]
    assert prediction.in_training == (triple in {tuple(row) for row in TRAIN.tolist()})


@pytest.mark.parametrize("further", [None, np.concatenate([VALID, TEST])])
@pytest.mark.parametrize("side", ["tail", "head"])
def test_the_heads_place_is_that_of_the_tail_of_the_inverse_triple(further, side):
    model = make_small_conve(num_relations=6)
    settings = SummarySettings(graph=Graph(TRAIN, 6, 3), known_triples=further, side=side)
    for head, relation, tail in [(0, TREATS, 2), (1, TREATS, 4), (5, 2, 4), (3, 2, 3)]:
        prediction = describe_prediction(ConvEScorer(model, inverse_triples=True), (head, relation, tail), settings)

        def score_of(first, inverse, second):
            return model.score(*torch.tensor([first, 2 * inverse + 1, second])[:, None]).item()

        known = {(t, r, h) for part in (TRAIN, further) if part is not None for h, r, t in part.tolist()}
        scores, rank = rank_by_hand(score_of, (tail, relation, head), known)
        place = prediction.head
        assert (place.rank, place.num_candidates, place.num_known) == (rank, len(scores), 6 - len(scores))
        assert place.score == pytest.approx(score_of(tail, relation, head), rel=1e-12)
        ahead = [entity for entity in scores if scores[entity] > scores[head]]
        assert ahead_of(place) == sorted(ahead, key=lambda entity: -scores[entity])[:5]
        assert prediction.side == side
    assert describe_prediction(ConvEScorer(make_small_conve()), (0, TREATS, 2), settings).head is None


def test_ties_share_their_mean_rank():
    model = make_small_conve()
    with torch.no_grad():
        # Equal rows may differ in the last bit of their products; products with zeros cannot.
        model.entity_embeddings.weight[2:] = 0
    settings = SummarySettings(graph=Graph(np.array([[0, 0, 1]]), 6, 3))
    prediction = describe_prediction(ConvEScorer(model), (1, 2, 3), settings)
    better = 1 + len(ahead_of(prediction))
    assert prediction.rank == better + 1.5


@pytest.mark.parametrize("name", ["ConvE", "TransE"])
@pytest.mark.parametrize("inverse_triples", [False, True])
def test_tails_of_pykeen_models_have_the_scores_of_pykeen(name, inverse_triples):
    model = trained_model(name, inverse_triples=inverse_triples)
    num_entities = training_factory().num_entities
    scores = PyKEENScorer(model).score_queries(np.array([[3, 5]]), num_entities)[0]
    expected = model.predict_t(torch.tensor([[3, 5]]))[0].detach()
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


# ---------------------------------------------------------------------------------------------------------------
# As part of a trace


def test_traces_carry_the_summary_of_their_own_scores_through_json():
    analyzer = TracInAnalyzerPyTorch(make_small_conve())
    tests = np.array([[1, TREATS, 4], [5, 2, 3]])
    settings = SummarySettings(graph=Graph(TRAIN, 6, 3))
    arguments = (lambda _: TracedCheckpoint(analyzer.scorer, analyzer.method, 0.5), [Path("a")], tests, TRAIN)
    traces = list(trace(*arguments, top_k=3, progress=False, describe=settings, summarised=True))
    for row, traced in zip(0.5 * analyzer.gradient_products(tests, TRAIN), traces, strict=True):
        assert traced.summary == summarise(row, settings.graph)
        assert traced.prediction == describe_prediction(analyzer.scorer, traced.test_triple, settings)
        assert from_plain(Trace, json.loads(json.dumps(dataclasses.asdict(traced)))) == traced
    plain = next(trace(*arguments, top_k=3, progress=False))
    assert plain == dataclasses.replace(traces[0], summary=None, prediction=None)

"""Ranking influences, summing checkpoints, caching, and the analyzers' documented interface."""

from pathlib import Path

import numpy as np
import pytest
import torch
from influence_examples import EVERYTHING, TEST_TRIPLES, TRAINING, assert_close, make_model, products_by_hand

from conve_tracin.influence import trace as trace_module
from conve_tracin.influence.analyzers import CACHED_GRADIENTS, TracInAnalyzerPyTorch
from conve_tracin.influence.method import strongest
from conve_tracin.influence.trace import TracedCheckpoint, trace


def traced(model, weight):
    analyzer = TracInAnalyzerPyTorch(model)
    return TracedCheckpoint(analyzer.scorer, analyzer.method, weight)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 7, 8, 20, None])
def test_strongest_sorts_by_size_with_ties_in_training_order(top_k):
    scores = torch.tensor([1.0, -3.0, 0.0, 3.0, -1.0, 2.0, 1.0, -3.0])
    expected = sorted(range(len(scores)), key=lambda position: (-abs(scores[position].item()), position))
    assert strongest(scores, top_k).tolist() == expected[:top_k]


def test_documented_output_of_one_test_triple():
    model = make_model()
    influences = TracInAnalyzerPyTorch(model).compute_influences_for_test_triple(
        tuple(TEST_TRIPLES[0]), TRAINING.tolist(), learning_rate=0.01, top_k=5, batch_size=3
    )
    products = 0.01 * products_by_hand(model, EVERYTHING)[0].numpy()
    order = np.argsort(-np.abs(products), kind="stable")[:5]
    assert [list(influence.values())[:3] for influence in influences] == TRAINING[order].tolist()
    assert list(influences[0]) == ["train_head", "train_relation", "train_tail", "influence"]
    np.testing.assert_allclose([influence["influence"] for influence in influences], products[order], rtol=1e-10)


def test_checkpoints_add_up_each_with_its_learning_rate():
    models = {Path("a"): make_model(), Path("b"): make_model(dtype=torch.float64)}
    with torch.no_grad():
        models[Path("b")].fc.weight.mul_(-1.5)
    rates = {Path("a"): 0.1, Path("b"): 0.03}
    expected = sum(rates[path] * products_by_hand(model, EVERYTHING) for path, model in models.items())

    def load(path):
        return traced(models[path], rates[path])

    traces = list(trace(load, list(models), TEST_TRIPLES, TRAINING, top_k=len(TRAINING), progress=False))
    for row, result in zip(expected, traces, strict=True):
        actual = torch.zeros(len(TRAINING), dtype=torch.float64)
        for influence in result.influences:
            actual[influence.position] = influence.influence
        assert_close(actual, row, 1e-12)
    assert [list(result.test_triple) for result in traces] == TEST_TRIPLES.tolist()


def test_proponents_and_opponents_are_the_two_ends():
    model = make_model()
    row = products_by_hand(model, EVERYTHING)[1]
    result = next(
        trace(
            lambda _: traced(model, 1.0),
            [Path("a")],
            TEST_TRIPLES[1:2],
            TRAINING,
            top_k=3,
            progress=False,
        )
    )
    ascending = torch.argsort(row, stable=True).tolist()
    assert [opponent.position for opponent in result.opponents] == [p for p in ascending[:3] if row[p] < 0]
    assert result.proponents[0].influence == pytest.approx(row.max().item(), rel=1e-10)
    assert all(proponent.influence > 0 for proponent in result.proponents)


@pytest.mark.parametrize("group_size", [1, 2, 16])
def test_groups_of_test_triples_change_nothing(group_size, monkeypatch):
    model = make_model()
    monkeypatch.setattr(trace_module, "GROUP_SIZE", group_size)
    load = lambda _: traced(model, 1.0)  # noqa: E731
    traces = trace(load, [Path("a")], TEST_TRIPLES, TRAINING, top_k=1, progress=False)
    strongest_by_hand = products_by_hand(model, EVERYTHING).abs().max(dim=1).values
    for result, expected in zip(traces, strongest_by_hand, strict=True):
        assert abs(result.influences[0].influence) == pytest.approx(expected.item(), rel=1e-10)


def test_test_gradients_are_cached_within_a_bound():
    analyzer = TracInAnalyzerPyTorch(make_model(), use_last_layers_only=True, num_last_layers=1)
    first = analyzer.get_or_compute_test_gradient((0, 1, 2))
    assert analyzer.get_or_compute_test_gradient(np.array([0, 1, 2])) is first
    everything = [(head, relation, tail) for head in range(6) for relation in range(3) for tail in range(6)]
    analyzer.precompute_test_gradients(everything + everything[:20])
    assert len(analyzer.test_gradient_cache) == min(CACHED_GRADIENTS, len(everything))
    uncached = TracInAnalyzerPyTorch(make_model(), cache_test_gradients=False)
    uncached.precompute_test_gradients(TEST_TRIPLES)
    assert not uncached.test_gradient_cache


def test_batch_gradients_are_the_single_gradients():
    analyzer = TracInAnalyzerPyTorch(make_model(), last_layer_names=["bn2.bias", "conv1.weight"])
    for triple, gradient in zip(TRAINING, analyzer.compute_batch_gradients(TRAINING), strict=True):
        alone = analyzer.compute_gradient(*triple, label=1.0)
        assert list(gradient) == ["bn2.bias", "conv1.weight"]
        assert all(torch.equal(gradient[name], alone[name]) for name in alone)


def test_label_zero_turns_the_gradient():
    # For binary cross-entropy ∂ℓ/∂s is σ(s) − label, so the two gradients differ by ∇s.
    model = make_model()
    analyzer = TracInAnalyzerPyTorch(model, last_layer_names=["fc.bias"])
    one, zero = (analyzer.compute_gradient(0, 1, 2, label=label)["fc.bias"] for label in (1.0, 0.0))
    score = model.score(*torch.tensor([[0], [1], [2]]))
    by_score = torch.autograd.grad(score.sum(), model.fc.bias)[0]
    assert_close(zero - one, by_score, 1e-12)


def test_several_checkpoints_say_how_many_of_them_list_a_triple():
    models = {Path("a"): make_model(), Path("b"): make_model(dtype=torch.float64), Path("c"): make_model()}
    with torch.no_grad():
        models[Path("b")].fc.weight.mul_(-1.5)
        models[Path("c")].entity_embeddings.weight.mul_(0.2)
    rows = [products_by_hand(model, EVERYTHING)[0] for model in models.values()]
    lists = [set(np.argsort(-row.abs().numpy(), kind="stable")[:3].tolist()) for row in rows]
    (result,) = trace(
        lambda path: traced(models[path], 1.0), list(models), TEST_TRIPLES[:1], TRAINING, top_k=3, progress=False
    )
    assert result.num_models == 3
    for influence in [*result.influences, *result.proponents, *result.opponents]:
        assert influence.models == sum(influence.position in strong for strong in lists)


def test_one_checkpoint_counts_no_models():
    (result,) = trace(
        lambda _: traced(make_model(), 1.0), [Path("a")], TEST_TRIPLES[:1], TRAINING, top_k=3, progress=False
    )
    assert {influence.models for influence in result.influences} == {None}

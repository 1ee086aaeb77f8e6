"""Numbers at the edge: saturated scores, float16's overflow and its scaler, and a loss that is no longer finite."""

import importlib
import json
import math

import numpy as np
import pytest
import torch
from pykeen_examples import TRAINING_TRIPLES, trained_model
from test_influence import NUM_ENTITIES, NUM_RELATIONS, TEST_TRIPLES, TRAINING, make_model

import run_tracin
import tracin_pytorch
from conve_tracin.influence import conve, vectorized
from conve_tracin.influence.analyzer import TracInAnalyzerPyTorch, TracInReferencePyTorch
from conve_tracin.influence.gauss_newton import GaussNewtonMethod, gauss_newton_effects
from conve_tracin.influence.reference import ConvEScorer

# Below these, float32 holds no number in full precision, and so no product of two saturated slopes.
SMALLEST = torch.finfo(torch.float32).tiny
# Of the first test triple, a training triple, too. From 17 on, 1 − σ(s) is 0 in float32; from 37 on in float64.
SATURATED = (-90.0, 20.0, 55.0)


def saturated_model(score, *, dtype, entity_bias=False):
    """The influence tests' model, the first test triple's tail moved so that the triple has the score."""
    model = make_model(entity_bias=entity_bias)
    head, relation, tail = TEST_TRIPLES[0].tolist()
    with torch.no_grad():
        query = model.encode(torch.tensor([head]), torch.tensor([relation]))[0]
        missing = score - model.score(*torch.tensor([[head], [relation], [tail]]))
        model.entity_embeddings.weight[tail] += missing * query / query.square().sum()
        # As float32 rounds them, so that both precisions have one and the same model.
        for parameter in (*model.parameters(), *model.buffers()):
            if parameter.is_floating_point():
                parameter.copy_(parameter.float())
    return model.to(dtype)


def slope(score):
    """dℓ/ds of binary cross-entropy with the label 1, −σ(−s), in Python's own float64."""
    return -1 / (1 + math.exp(score))


def loss_gradients(score_of, model, triples):
    """∇ℓ of each triple (N, 3): the gradient of its score times the loss's slope: (N, P)."""
    parameters = list(model.parameters())
    rows = []
    for triple in triples.tolist():
        score = score_of(torch.tensor([triple])).sum()
        gradients = torch.autograd.grad(score, parameters, allow_unused=True, materialize_grads=True)
        rows.append(slope(score.item()) * torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def conve_gradients(score, triples, **settings):
    model = saturated_model(score, dtype=torch.float64, **settings)
    return loss_gradients(lambda rows: model.score(*rows.T), model, triples)


def assert_right(actual, expected):
    """Compare row by row, each to its own size: rows may differ by ten to the power of thirty."""
    assert torch.isfinite(actual).all()
    for one, other in zip(actual.double(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=max(2e-5 * other.abs().max().item(), SMALLEST))


@pytest.mark.parametrize("entity_bias", [False, True])
@pytest.mark.parametrize("score", SATURATED)
@pytest.mark.parametrize("engine", ["reference", "forward", "factored"])
def test_influence_on_a_saturated_triple_is_that_of_a_float64_loop(engine, score, entity_bias, monkeypatch):
    monkeypatch.setattr(conve, "FACTORED_FROM", 1 if engine == "factored" else 99)
    expected = conve_gradients(score, TEST_TRIPLES, entity_bias=entity_bias)
    expected = expected @ conve_gradients(score, TRAINING, entity_bias=entity_bias).T
    assert (expected[0].abs() > SMALLEST).sum() > 3
    analyzer_type = TracInReferencePyTorch if engine == "reference" else TracInAnalyzerPyTorch
    analyzer = analyzer_type(saturated_model(score, dtype=torch.float32, entity_bias=entity_bias))
    assert_right(analyzer.gradient_products(TEST_TRIPLES, TRAINING), expected)


@pytest.mark.parametrize("score", SATURATED)
@pytest.mark.parametrize("analyzer_type", [TracInReferencePyTorch, TracInAnalyzerPyTorch])
def test_self_influence_of_a_saturated_triple_is_that_of_a_float64_loop(analyzer_type, score):
    expected = conve_gradients(score, TRAINING).square().sum(dim=1)
    analyzer = analyzer_type(saturated_model(score, dtype=torch.float32))
    assert_right(analyzer.self_products(TRAINING)[:, None], expected[:, None])


def test_saturated_gradients_of_a_whole_batch_are_those_of_a_float64_loop():
    model = saturated_model(55.0, dtype=torch.float32)
    gradients = vectorized.per_triple_gradients(ConvEScorer(model), torch.from_numpy(TRAINING))
    flat = torch.cat([gradient.flatten(start_dim=1) for gradient in gradients.values()], dim=1)
    assert_right(flat, conve_gradients(55.0, TRAINING))


@pytest.mark.parametrize("score", [-55.0, 20.0, 55.0])
@pytest.mark.parametrize("kind", ["tracin", "tracin_optimized"])
@pytest.mark.parametrize("name", ["ConvE", "DistMult"])
def test_influence_on_a_saturated_triple_of_pykeen_is_that_of_a_float64_loop(name, kind, score):
    tested, training = TRAINING_TRIPLES[:2], TRAINING_TRIPLES[:12]

    def saturated(dtype):
        model = trained_model(name)
        table = model.entity_representations[0]._embeddings.weight
        before = model.score_hrt(torch.from_numpy(tested[:1]))
        direction = torch.autograd.grad(before, table)[0][tested[0, 2]]
        with torch.no_grad():
            table[tested[0, 2]] += (score - before.item()) * direction / direction.square().sum()
            for parameter in (*model.parameters(), *model.buffers()):
                if parameter.is_floating_point():
                    parameter.copy_(parameter.float())
        return model.to(dtype)

    reference = saturated(torch.float64)
    assert reference.score_hrt(torch.from_numpy(tested[:1])).item() == pytest.approx(score, rel=1e-4)
    test, train = (loss_gradients(reference.score_hrt, reference, triples) for triples in (tested, training))
    analyzer = importlib.import_module(kind).TracInAnalyzer(saturated(torch.float32))
    assert_right(analyzer.gradient_products(tested, training), test @ train.T)
    assert_right(analyzer.self_products(training)[:, None], train.square().sum(dim=1, keepdim=True))


@pytest.mark.parametrize("score", SATURATED)
@pytest.mark.parametrize("approach", ["1vsall", "kvsall"])
def test_gauss_newton_effects_on_a_saturated_triple_are_those_of_float64(approach, score):
    method = GaussNewtonMethod.for_training(approach)
    single, double = (
        gauss_newton_effects(saturated_model(score, dtype=dtype), TEST_TRIPLES, TRAINING, method)
        for dtype in (torch.float32, torch.float64)
    )
    assert double[0].abs().max() > 1e-3
    assert_right(single, double.double())


@pytest.mark.parametrize("score", [60.0, 72.0, 88.5, 1000.0])
def test_gauss_newton_effects_are_finite_where_every_score_of_a_row_is_saturated(score):
    """The curvature of a row that is a tail only vanishes then, and its effects would grow without bound."""
    model = make_model(entity_bias=True, dtype=torch.float32)
    tail = TEST_TRIPLES[0, 2]
    with torch.no_grad():
        model.entity_bias[tail] = -score
    training = TRAINING[TRAINING[:, 0] != tail]
    effects = gauss_newton_effects(model, TEST_TRIPLES[:1], training, GaussNewtonMethod.for_training("kvsall"))
    assert torch.isfinite(effects).all()


@pytest.mark.parametrize(
    "more",
    [["tracin_pytorch"], ["tracin_pytorch", "--engine", "reference"], ["run_tracin"],
     ["run_tracin", "--use-optimized-tracin"]],
    ids=" ".join,
)  # fmt: skip
def test_command_lines_tell_the_influences_on_a_saturated_triple(tmp_path, more):
    script, *engine = more
    model = saturated_model(55.0, dtype=torch.float32)
    content = {"epoch": 3, "model_state_dict": model.state_dict(), "model_config": model.config.as_dict()}
    torch.save(content, tmp_path / "model.pt")
    for name, triples in (("train", TRAINING), ("test", TEST_TRIPLES[:1])):
        (tmp_path / name).write_text("".join(f"e{h}\tr{r}\te{t}\n" for h, r, t in triples))
    for name, count in (("e", NUM_ENTITIES), ("r", NUM_RELATIONS)):
        (tmp_path / name).write_text("".join(f"{name}{i}\t{i}\n" for i in range(count)))
    given = ["--model-path", tmp_path / "model.pt", "--train", tmp_path / "train", "--top-k", "4", *engine]
    given += ["--entity-to-id", tmp_path / "e", "--relation-to-id", tmp_path / "r", "--learning-rate", "0.5"]
    output = tmp_path / "out.json"
    if script == "run_tracin":
        run_tracin.main([str(word) for word in [*given, "--test", tmp_path / "test", "--output", output]])
        (result,) = json.loads(output.read_text())["results"]
    else:
        wanted = [f"e{TEST_TRIPLES[0, 0]}", f"r{TEST_TRIPLES[0, 1]}", f"e{TEST_TRIPLES[0, 2]}"]
        tracin_pytorch.main([str(word) for word in [*given, "--test-triple", *wanted, "--output", output]])
        result = json.loads(output.read_text())
    expected = 0.5 * (conve_gradients(55.0, TEST_TRIPLES[:1]) @ conve_gradients(55.0, TRAINING).T)[0].numpy()
    found = [influence["influence"] for influence in result["influences"]]
    np.testing.assert_allclose(np.abs(found), np.sort(np.abs(expected))[::-1][:4], rtol=1e-3)

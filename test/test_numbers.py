"""Numbers at the edge: saturated scores, float16's overflow and its scaler, and a loss that is no longer finite."""

import importlib
import json
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SMALL_CONVE
from influence_examples import NUM_ENTITIES, NUM_RELATIONS, TEST_TRIPLES, TRAINING, make_model
from pykeen_examples import TRAINING_TRIPLES, trained_model
from training_runs import NO_DROPOUT, QUICK, assert_identical, checkpoint_of, run_main

import run_tracin
import tracin_pytorch
from conve_tracin.checkpoint.native import build_model, load_checkpoint
from conve_tracin.errors import InputError
from conve_tracin.influence import autodiff
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch, TracInReferencePyTorch
from conve_tracin.influence.effects import GaussNewtonMethod, gauss_newton_effects
from conve_tracin.influence.engine import passes
from conve_tracin.influence.scorers import ConvEScorer
from conve_tracin.model.conve import ConvE
from conve_tracin.training import batch_loss, resume, state
from conve_tracin.training import loop as training_loop

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
    monkeypatch.setattr(passes, "FACTORED_FROM", 1 if engine == "factored" else 99)
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
    gradients = autodiff.per_triple_gradients(ConvEScorer(model), torch.from_numpy(TRAINING))
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


# ---------------------------------------------------------------------------------------------------------------
# Float16 and its scaler


@pytest.fixture
def float16(monkeypatch):
    """Make mixed precision float16 on the CPU, with a scaler that begins at the given scale."""

    def begin_at(scale):
        with_float16 = lambda config, _: torch.float16 if config.use_mixed_precision else None  # noqa: E731
        for module in (batch_loss, state):
            monkeypatch.setattr(module, "mixed_precision_dtype", with_float16)
        scaler = partial(torch.amp.GradScaler, init_scale=scale, growth_interval=4)
        monkeypatch.setattr(torch.amp, "GradScaler", scaler)

    return begin_at


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("approach", ["1vsall", "kvsall"])
def test_a_step_that_overflows_in_float16_is_skipped_and_the_scale_is_lowered(
    run, graph, tmp_path, float16, approach, optimizer
):
    settings = {"training_approach": approach, "optimizer": optimizer, "batch_size": 100, "use_mixed_precision": True}
    torch.manual_seed(42)
    start = ConvE(num_entities=6, num_relations=3, **SMALL_CONVE)
    float16(2.0**60)
    run("overflown", num_epochs=1, **settings)
    float16(2.0**10)
    run("fits", num_epochs=1, **settings)
    overflown, fits = (checkpoint_of(tmp_path / name / "final_model.pt") for name in ("overflown", "fits"))
    assert overflown["scaler_state_dict"]["scale"] == 2.0**59
    assert fits["scaler_state_dict"]["scale"] == 2.0**10
    for name, parameter in start.named_parameters():
        assert torch.equal(overflown["model_state_dict"][name], parameter), name
        moved = not torch.equal(fits["model_state_dict"][name], parameter)
        # What comes before a BatchNorm has no gradient but rounding, which float16 may lose.
        assert moved or name.endswith(".bias"), name
    moments = [value for state in overflown["optimizer_state_dict"]["state"].values() for value in state.values()]
    assert all(not moment.any() for moment in moments)


def test_training_in_float16_gets_over_its_overflows_and_resumes_with_its_scale(run, tmp_path, float16):
    settings = {"use_mixed_precision": True, "sizes": NO_DROPOUT, "checkpoint_frequency": 5}
    losses = {}
    for name, scale, mixed in (("float32", 1.0, False), ("fits", 2.0**10, True), ("overflows", 2.0**40, True)):
        float16(scale)
        run(name, num_epochs=10, **settings | {"use_mixed_precision": mixed})
        history = json.loads((tmp_path / name / "training_history.json").read_text())
        losses[name] = [record["loss"] for record in history]
    np.testing.assert_allclose(losses["fits"], losses["float32"], rtol=0.02)
    assert losses["overflows"][-1] < losses["overflows"][0]
    # The scale of the run's middle, not the first one: a resumed run that began with 2⁴⁰ would skip its steps anew.
    middle, end = (checkpoint_of(tmp_path / f"overflows/checkpoints/checkpoint_epoch_{n}.pt") for n in (5, 10))
    assert middle["scaler_state_dict"]["scale"] < 2.0**35
    run("resumed", num_epochs=10, resume=tmp_path / "overflows/checkpoints/checkpoint_epoch_5.pt", **settings)
    resumed = checkpoint_of(tmp_path / "resumed/checkpoints/checkpoint_epoch_10.pt")
    assert resumed["scaler_state_dict"] == end["scaler_state_dict"]
    assert resumed["scaler_state_dict"] != middle["scaler_state_dict"]
    assert_identical(resumed["model_state_dict"], end["model_state_dict"])
    assert_identical(resumed["optimizer_state_dict"], end["optimizer_state_dict"])


# ---------------------------------------------------------------------------------------------------------------
# A loss that is not finite


@pytest.mark.parametrize("looked_at_after", [2, 100])
@pytest.mark.parametrize(("poisoned", "epoch", "batch"), [(4, 2, 1), (5, 2, 2), (9, 3, 3)])
def test_the_batch_whose_loss_is_not_finite_is_named_and_the_last_checkpoint_stays(
    run, tmp_path, monkeypatch, poisoned, epoch, batch, looked_at_after
):
    train_batch, calls = training_loop.train_batch, []

    def train_with_poison(state, *rest, **options):
        calls.append(1)
        if len(calls) == poisoned:
            state.model.fc.weight.data[0, 0] = float("nan")
        return train_batch(state, *rest, **options)

    monkeypatch.setattr(training_loop, "train_batch", train_with_poison)
    monkeypatch.setattr(training_loop, "BATCHES_BETWEEN_LOSS_CHECKS", looked_at_after)
    # Eleven queries in batches of four: three batches an epoch.
    with pytest.raises(InputError, match=f"not finite in epoch {epoch}, batch {batch}; resume"):
        run("a", checkpoint_frequency=1)
    good = tmp_path / f"a/checkpoints/checkpoint_epoch_{epoch - 1}.pt"
    assert resume.newest_checkpoint(good.parent) == good
    build_model(load_checkpoint(good))
    monkeypatch.setattr(training_loop, "train_batch", train_batch)
    assert math.isfinite(run("a", resume=good)["mean_reciprocal_rank"])


def test_a_loss_that_is_not_finite_is_one_line_of_the_command_line(graph_files, tmp_path, monkeypatch, capsys):
    given = [*graph_files.arguments(), "-o", tmp_path / "out", *QUICK, "--checkpoint-frequency", "1"]
    assert run_main(monkeypatch, *given) == 0
    capsys.readouterr()
    more = ["--num-epochs", "9", "--learning-rate", "1e38", "--resume-from-checkpoint", "auto"]
    assert run_main(monkeypatch, *given, *more) == 2
    *progress, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"train_pytorch.py: error: the training loss is not finite in epoch 3, batch \d; .*", last)
    assert not [line for line in progress if "error" in line or "Traceback" in line]
    newest = tmp_path / "out/checkpoints/checkpoint_epoch_2.pt"
    assert resume.newest_checkpoint(newest.parent) == newest
    build_model(load_checkpoint(newest))

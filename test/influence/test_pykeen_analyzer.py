"""Both analyzers for PyKEEN models against a plain backward loop over the models' own score_hrt."""

import importlib

import numpy as np
import pytest
import torch
from pykeen import models
from pykeen_examples import SIZES, gradients_by_hand, trained_model, training_factory
from torch import nn

from conve_tracin.checkpoint.conversion import NATIVE_TO_PYKEEN
from conve_tracin.errors import InputError
from conve_tracin.influence import analyzers as analyzer_module
from conve_tracin.influence import autodiff
from conve_tracin.influence.scorers import LAST_LAYERS, PyKEENScorer

NAMES = list(SIZES)
KINDS = ["tracin", "tracin_optimized"]
TRIPLES = training_factory().mapped_triples.numpy()
# Head, relation, tail or pairs of them are shared with TRAINING; the last has h = t.
TEST_TRIPLES = np.stack([TRIPLES[0], TRIPLES[1], [3, 7, 3]])
TRAINING = np.concatenate([TRIPLES[:40], TRIPLES[:2], [[3, 7, 3], [5, 20, 5]]])


def make_analyzer(kind, model, **settings):
    return importlib.import_module(kind).TracInAnalyzer(model, **settings)


def products_by_hand(model, names=None):
    return gradients_by_hand(model, TEST_TRIPLES, names) @ gradients_by_hand(model, TRAINING, names).T


def assert_close(actual, expected, tolerance):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("inverse_triples", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_products_of_every_model(name, kind, inverse_triples):
    model = trained_model(name, inverse_triples=inverse_triples)
    expected = products_by_hand(model)
    analyzer = make_analyzer(kind, model)
    assert_close(analyzer.gradient_products(TEST_TRIPLES, TRAINING, batch_size=7), expected, 1e-9)
    single = make_analyzer(kind, trained_model(name, inverse_triples=inverse_triples, dtype=torch.float32))
    assert_close(single.gradient_products(TEST_TRIPLES, TRAINING).double(), expected, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_influences_of_a_test_triple(name, kind):
    model = trained_model(name)
    influences = make_analyzer(kind, model).compute_influences_for_test_triple(
        tuple(TEST_TRIPLES[0].tolist()), TRAINING, learning_rate=0.01, top_k=5, batch_size=1
    )
    products = 0.01 * products_by_hand(model)[0].numpy()
    strongest = np.sort(np.abs(products))[::-1][:5]
    np.testing.assert_allclose([abs(influence["influence"]) for influence in influences], strongest, rtol=1e-9)
    assert list(influences[0]) == ["train_head", "train_relation", "train_tail", "influence"]


@pytest.mark.parametrize("inverse_triples", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_self_influence_of_every_model(name, kind, inverse_triples):
    model = trained_model(name, inverse_triples=inverse_triples)
    expected = gradients_by_hand(model, TRAINING).square().sum(dim=1)
    actual = make_analyzer(kind, model).compute_self_influence(TRAINING, learning_rate=0.5, batch_size=7)
    assert_close(torch.from_numpy(actual), 0.5 * expected, 1e-9)


@pytest.mark.parametrize("names", [["interaction.core_tensor"], ["entity_representations.0._embeddings.weight"]])
@pytest.mark.parametrize("kind", KINDS)
def test_named_parameters_alone(kind, names):
    model = trained_model("TuckER")
    analyzer = make_analyzer(kind, model, last_layer_names=names)
    assert_close(analyzer.gradient_products(TEST_TRIPLES, TRAINING), products_by_hand(model, names), 1e-9)
    expected = gradients_by_hand(model, TRAINING, names).square().sum(dim=1)
    assert_close(analyzer.self_products(TRAINING), expected, 1e-9)
    assert list(analyzer.compute_gradient(*TEST_TRIPLES[0])) == names


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_last_layers_of_conve_have_pykeens_names(kind, count):
    model = trained_model("ConvE")
    analyzer = make_analyzer(kind, model, use_last_layers_only=True, num_last_layers=count)
    assert analyzer.names == [NATIVE_TO_PYKEEN[name] for name in LAST_LAYERS[:count]]
    expected = products_by_hand(model, analyzer.names)
    assert_close(analyzer.gradient_products(TEST_TRIPLES, TRAINING), expected, 1e-9)


def test_last_layers_of_other_models_are_the_interaction():
    analyzer = make_analyzer("tracin", trained_model("TuckER"), use_last_layers_only=True, num_last_layers=5)
    assert analyzer.names[-1] == "interaction.core_tensor"
    with pytest.raises(InputError, match="DistMult has no layer between"):
        make_analyzer("tracin", trained_model("DistMult"), use_last_layers_only=True)
    with pytest.raises(InputError, match="1 to 5"):
        make_analyzer("tracin", trained_model("TuckER"), use_last_layers_only=True, num_last_layers=6)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_are_not_trained_take_no_part(kind):
    model = trained_model("ConvE")
    bias = "entity_representations.1._embeddings.weight"
    model.get_parameter(bias).requires_grad_(False)
    tracked = [name for name, _ in model.named_parameters() if name != bias]
    analyzer = make_analyzer(kind, model)
    assert analyzer.names == tracked
    assert_close(analyzer.gradient_products(TEST_TRIPLES, TRAINING), products_by_hand(model, tracked), 1e-9)
    with pytest.raises(InputError, match="requires_grad is off"):
        make_analyzer(kind, model, last_layer_names=[bias])


@pytest.mark.parametrize("name", NAMES)
def test_vectorized_gradients_are_the_single_gradients(name):
    analyzer = make_analyzer("tracin_optimized", trained_model(name))
    batch = TRAINING[-6:]
    together = analyzer.compute_batch_gradients_vectorized(batch)
    flat = torch.cat([gradient.flatten(1) for gradient in together.values()], dim=1)
    assert_close(flat, gradients_by_hand(analyzer.model, batch), 1e-9)
    alone = analyzer.compute_batch_individual_gradients(batch)
    assert list(alone[0]) == list(together)
    assert all(torch.allclose(alone[2][key], together[key][2], atol=1e-12) for key in together)


def test_a_model_in_training_mode_is_put_into_eval_mode():
    # In training mode BatchNorm would refuse a batch of one triple, and dropout would make the gradient random.
    model = trained_model("ConvE")
    expected = gradients_by_hand(model, TEST_TRIPLES[:1])[0]
    gradient = make_analyzer("tracin", model.train()).compute_gradient(*TEST_TRIPLES[0].tolist(), label=1.0)
    assert_close(torch.cat([part.flatten() for part in gradient.values()]), expected, 1e-12)


def test_label_zero_turns_the_gradient():
    # ∂ℓ/∂s is σ(s) − label: the gradients of label 1 and label 0 are in the ratio σ − 1 : σ.
    model = trained_model("DistMult")
    analyzer = make_analyzer("tracin", model)
    one, zero = (analyzer.compute_gradient(*TEST_TRIPLES[0].tolist(), label=label) for label in (1.0, 0.0))
    probability = model.score_hrt(torch.from_numpy(TEST_TRIPLES[:1])).sigmoid().item()
    for name, gradient in one.items():
        assert_close(gradient, zero[name] * (probability - 1) / probability, 1e-9)


def test_large_gradients_are_cached_in_smaller_number(monkeypatch):
    analyzer = make_analyzer("tracin_optimized", trained_model("DistMult"))
    numbers = sum(parameter.numel() for parameter in analyzer.model.parameters())
    monkeypatch.setattr(analyzer_module, "CACHED_NUMBERS", 3 * numbers)
    analyzer.precompute_test_gradients(TRAINING[:5])
    assert list(analyzer.test_gradient_cache) == [tuple(triple) for triple in TRAINING[2:5].tolist()]
    first = analyzer.get_or_compute_test_gradient(TRAINING[2])
    assert analyzer.get_or_compute_test_gradient(TRAINING[2]) is first


def test_self_influence_in_passes_bounded_by_memory(monkeypatch):
    model = trained_model("TuckER")
    monkeypatch.setattr(autodiff, "GRADIENT_NUMBERS", 10)
    expected = gradients_by_hand(model, TRAINING).square().sum(dim=1)
    assert_close(make_analyzer("tracin_optimized", model).self_products(TRAINING), expected, 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_batches_that_do_not_fit_into_memory_are_halved(name, monkeypatch):
    model = trained_model(name)
    score, refused = type(model).score_hrt, []

    def small_batches_only(self, triples, **more):
        if len(triples) > 5:
            refused.append(len(triples))
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return score(self, triples, **more)

    monkeypatch.setattr(type(model), "score_hrt", small_batches_only)
    actual = make_analyzer("tracin_optimized", model).gradient_products(TEST_TRIPLES, TRAINING)
    assert bool(refused) == (name != "ConvE")
    assert_close(actual, products_by_hand(model), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_no_training_triples_have_no_influence(name, kind):
    # A process of many may get an empty share.
    analyzer = make_analyzer(kind, trained_model(name))
    assert analyzer.gradient_products(TEST_TRIPLES, TRAINING[:0]).shape == (3, 0)
    assert analyzer.self_products(TRAINING[:0]).shape == (0,)


def test_representations_that_are_no_tables_use_the_loop():
    # A frozen base with a learned projection: a triple's gradient is not confined to rows of a table.
    model = trained_model("DistMult")
    plain = model.entity_representations[0]

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.factor = plain, nn.Parameter(torch.ones(6, dtype=torch.float64))

        def forward(self, indices):
            return self.base(indices) * self.factor

    model.entity_representations[0] = Scaled()
    assert PyKEENScorer(model).embedding_tables() is None
    expected = gradients_by_hand(model, TRAINING).square().sum(dim=1)
    assert_close(make_analyzer("tracin_optimized", model).self_products(TRAINING), expected, 1e-9)
    analyzer = make_analyzer("tracin_optimized", model)
    assert_close(analyzer.gradient_products(TEST_TRIPLES, TRAINING), products_by_hand(model), 1e-9)


# Entities of shared tokens, entities of a graph network, a parameter without dimensions, and sparse products that have
# no forward-mode derivative.
@pytest.mark.parametrize("name", ["NodePiece", "CompGCN", "ProjE", "RGCN"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_other_kinds(name, kind):
    dtype = torch.float32 if name == "RGCN" else torch.float64
    sizes = {"embedding_dim": 4}
    # NodePiece and CompGCN need inverse triples; RGCN makes its own.
    factory = training_factory(inverse_triples=name != "RGCN")
    model = getattr(models, name)(triples_factory=factory, random_seed=1, **sizes).to(dtype).eval()
    parameters = dict(model.named_parameters())
    test, training = TEST_TRIPLES, TRAINING[-8:]
    by_hand = gradients_by_hand(model, training)
    analyzer = make_analyzer(kind, model)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    actual = analyzer.gradient_products(test, training, batch_size=3)
    assert_close(actual, gradients_by_hand(model, test) @ by_hand.T, tolerance)
    assert_close(analyzer.self_products(training), by_hand.square().sum(dim=1), tolerance)
    # The model is as it was.
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())


@pytest.mark.parametrize(("name", "tolerance"), [("ConvE", 0.2), ("DistMult", 0)])
def test_mixed_precision_rounds_conve_only(name, tolerance):
    # All but the strongest stay rounded.
    exact, rounded = (
        make_analyzer("tracin_optimized", trained_model(name, dtype=torch.float32), use_mixed_precision=low, rescored=1)
        for low in (False, True)
    )
    expected = exact.gradient_products(TEST_TRIPLES, TRAINING)
    actual = rounded.gradient_products(TEST_TRIPLES, TRAINING)
    assert torch.equal(actual, expected) == (tolerance == 0)
    assert_close(actual, expected, tolerance)

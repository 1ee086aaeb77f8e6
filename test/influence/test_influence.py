"""The engines against the definition: a plain backward loop over the model's own scores, in float64 and float32."""

import numpy as np
import pytest
import torch
from influence_examples import (
    EVERYTHING,
    NUM_ENTITIES,
    NUM_RELATIONS,
    TEST_TRIPLES,
    TRAINING,
    assert_close,
    gradients_by_hand,
    make_model,
    products_by_hand,
)

from conve_tracin.errors import InputError
from conve_tracin.influence import autodiff
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch, TracInReferencePyTorch
from conve_tracin.influence.engine import backward, folding, passes, shared_queries, tangent
from conve_tracin.influence.engine.derivatives import ForwardDerivatives
from conve_tracin.influence.scorers import LAST_LAYERS, ConvEScorer
from conve_tracin.model.conve import ConvE


@pytest.fixture(params=["forward", "factored", "factored, whole maps", "factored, whole maps, pair by pair"])
def conve_engine(request, monkeypatch):
    """Run a test with either way of ConvE's engine, whatever the number of test triples."""
    monkeypatch.setattr(passes, "FACTORED_FROM", 99 if request.param == "forward" else 1)
    monkeypatch.setattr(passes, "WHOLE_FROM", 0 if "whole" in request.param else 99)
    if "pair by pair" in request.param:
        monkeypatch.setattr(backward, "COPIED_FEATURES", 0)


@pytest.mark.parametrize("entity_bias", [False, True])
@pytest.mark.parametrize("analyzer_type", [TracInReferencePyTorch, TracInAnalyzerPyTorch])
def test_products_of_all_parameters(analyzer_type, entity_bias, conve_engine):
    model = make_model(entity_bias=entity_bias)
    names = [name for name, _ in model.named_parameters()]
    actual = analyzer_type(model).gradient_products(TEST_TRIPLES, TRAINING)
    assert_close(actual, products_by_hand(model, names), 1e-12)


# Maps that see both embeddings in no row, in some, in all but two, and in all; embeddings are images of three rows.
@pytest.mark.parametrize("kernel_height", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("features_at_once", [1, 10**6])
def test_kernels_of_every_height(kernel_height, features_at_once, conve_engine, monkeypatch):
    monkeypatch.setattr(shared_queries, "CPU_BATCH_FEATURES", features_at_once)
    model = make_model(kernel_height=kernel_height)
    actual = TracInAnalyzerPyTorch(model).gradient_products(TEST_TRIPLES, TRAINING)
    assert_close(actual, products_by_hand(model, EVERYTHING), 1e-12)
    norms = gradients_by_hand(model, TRAINING, EVERYTHING).square().sum(dim=1)
    assert_close(TracInAnalyzerPyTorch(model).self_products(TRAINING), norms, 1e-12)


@pytest.mark.parametrize("features_at_once", [1, 10**6])
@pytest.mark.parametrize("factored_from", [1, 99])
def test_only_the_rows_between_head_and_relation_are_convolved_for_each_pair(
    factored_from, features_at_once, monkeypatch
):
    monkeypatch.setattr(passes, "FACTORED_FROM", factored_from)
    monkeypatch.setattr(shared_queries, "CPU_BATCH_FEATURES", features_at_once)
    convolve, convolved = folding.Convolution.__call__, []

    def counting(self, images):
        convolved.append(images.shape)
        return convolve(self, images)

    monkeypatch.setattr(folding.Convolution, "__call__", counting)
    triples = TRAINING[TRAINING[:, 1] > 0]
    TracInAnalyzerPyTorch(make_model()).gradient_products(TEST_TRIPLES[:1], triples)
    heads, relations, pairs = (len(np.unique(triples[:, columns], axis=0)) for columns in ([0], [1], [0, 1]))
    if features_at_once > 1:
        assert sorted(convolved) == sorted([(relations, 1, 3, 4), (heads, 1, 3, 4), (pairs, 1, 2, 4)])
    else:
        # One pair in each batch, and its head again.
        assert sorted(convolved) == sorted([(1, 1, 3, 4)] * (relations + pairs) + [(1, 1, 2, 4)] * pairs)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_forward_engine_at_every_batch_size(batch_size, dtype, tolerance, conve_engine):
    model = make_model(dtype=dtype)
    actual = TracInAnalyzerPyTorch(model).gradient_products(TEST_TRIPLES, TRAINING, batch_size=batch_size)
    assert actual.dtype == dtype
    assert_close(actual.double(), products_by_hand(make_model(), EVERYTHING), tolerance)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("analyzer_type", [TracInReferencePyTorch, TracInAnalyzerPyTorch])
def test_last_layers(analyzer_type, count, conve_engine):
    model = make_model()
    analyzer = analyzer_type(model, use_last_layers_only=True, num_last_layers=count)
    documented = ["fc.bias", "fc.weight", "bn1.bias", "bn1.weight", "conv1.bias", "conv1.weight"]
    assert analyzer.names[:6] == documented[:count]
    expected = products_by_hand(model, LAST_LAYERS[:count])
    assert_close(analyzer.gradient_products(TEST_TRIPLES, TRAINING, batch_size=5), expected, 1e-12)


@pytest.mark.parametrize(
    "names",
    [
        ["bn2.weight", "bn2.bias"],
        ["bn2.weight"],
        ["fc.weight"],
        ["entity_embeddings.weight"],
        ["relation_embeddings.weight"],
        ["conv1.weight", "entity_embeddings.weight"],
        ["bn0.bias", "relation_embeddings.weight"],
    ],
)
def test_named_layers(names, conve_engine):
    model = make_model()
    analyzer = TracInAnalyzerPyTorch(model, last_layer_names=names)
    assert_close(analyzer.gradient_products(TEST_TRIPLES, TRAINING), products_by_hand(model, names), 1e-12)


def test_unknown_layer_and_count_are_refused():
    with pytest.raises(InputError, match=r"fc\.wieght"):
        TracInAnalyzerPyTorch(make_model(), last_layer_names=["fc.wieght"])
    with pytest.raises(InputError, match="1 to 8"):
        TracInAnalyzerPyTorch(make_model(), use_last_layers_only=True, num_last_layers=9)


@pytest.mark.parametrize("analyzer_type", [TracInReferencePyTorch, TracInAnalyzerPyTorch])
def test_custom_loss(analyzer_type, conve_engine):
    model = make_model()

    def squared_hinge(score, label):
        return ((2 * label - score).clamp(min=0) ** 2).mean()

    expected = products_by_hand(model, EVERYTHING, lambda score: squared_hinge(score, torch.ones_like(score)))
    actual = analyzer_type(model, loss_fn=squared_hinge).gradient_products(TEST_TRIPLES, TRAINING)
    assert_close(actual, expected, 1e-12)


def test_inverse_triples_use_the_even_rows():
    torch.manual_seed(0)
    sizes = {"embedding_dim": 12, "embedding_height": 3, "embedding_width": 4, "output_channels": 2}
    model = ConvE(num_entities=NUM_ENTITIES, num_relations=2 * NUM_RELATIONS, **sizes).double().eval()
    in_rows = TracInAnalyzerPyTorch(model).gradient_products(TEST_TRIPLES * [1, 2, 1], TRAINING * [1, 2, 1])
    in_files = TracInAnalyzerPyTorch(model, inverse_triples=True).gradient_products(TEST_TRIPLES, TRAINING)
    assert torch.equal(in_rows, in_files)


def test_vectorized_gradients_equal_backward_passes():
    model = make_model()
    scorer = ConvEScorer(model)
    gradients = autodiff.per_triple_gradients(scorer, torch.from_numpy(TRAINING))
    flat = torch.cat([gradients[name].flatten(1) for name in EVERYTHING], dim=1)
    assert_close(flat, gradients_by_hand(model, TRAINING, EVERYTHING), 1e-12)


def test_generic_forward_pass_along_any_tangent():
    model = make_model()
    torch.manual_seed(1)
    direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    triples = torch.from_numpy(TRAINING)
    scores, derivatives = autodiff.directional_derivatives(ConvEScorer(model), direction, triples, batch_size=5)
    by_score = gradients_by_hand(model, TRAINING, EVERYTHING, loss_of=lambda score: score)
    assert_close(derivatives, by_score @ torch.cat([direction[name].flatten() for name in EVERYTHING]), 1e-12)
    assert_close(scores, model(triples[:, 0], triples[:, 1]).gather(1, triples[:, 2:])[:, 0], 1e-12)


def draw_tangent(model, *, rank=0, names=(), entities=(), relations=(), biases=()):
    """A direction whose parts come and go independently of each other."""

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64)

    return tangent.ConvETangent(
        entity_rows={row: draw(12) for row in entities},
        relation_rows={row: draw(12) for row in relations},
        entity_bias={row: draw() for row in biases},
        linear_weight=(draw(rank, 12), draw(rank, model.config.feature_map_size)) if rank else None,
        dense={name: torch.randn_like(model.get_parameter(name)) for name in names},
    )


@pytest.mark.parametrize("relation_numbers", [0, 2**26])
def test_conve_engine_along_any_tangents(relation_numbers, conve_engine, monkeypatch):
    monkeypatch.setattr(shared_queries, "RELATION_NUMBERS", relation_numbers)
    model = make_model(entity_bias=True)
    torch.manual_seed(2)
    kinds = [
        {"rank": 3, "names": (*tangent.CONVOLUTION, *tangent.COORDINATES), "entities": (1, 3), "relations": (0,)},
        {"names": ("fc.bias",), "biases": (2, 4)},
        {"entities": (0,), "relations": (1, 2)},
        {"rank": 1, "names": ("bn2.weight",)},
        {},
        {"rank": 2, "names": ("conv1.bias",), "entities": (5,)},
    ]
    names = [name for name, _ in model.named_parameters()]
    by_score = gradients_by_hand(model, TRAINING, names, loss_of=lambda score: score)
    for chosen in (kinds, kinds[:1], kinds[1:3], kinds[2:5]):
        directions = [draw_tangent(model, **kind) for kind in chosen]
        written_out = [direction.as_dict(model) for direction in directions]
        columns = torch.stack([torch.cat([each[name].flatten() for name in names]) for each in written_out])
        actual = torch.zeros(len(chosen), len(TRAINING), dtype=torch.float64)
        for positions, _, derivatives in passes.iterate_derivatives(model, directions, TRAINING, batch_size=4):
            actual[:, positions] = derivatives
        assert_close(actual, columns @ by_score.T, 1e-12)


@pytest.mark.parametrize(
    "names", [EVERYTHING, LAST_LAYERS[:2], LAST_LAYERS[:6], *([name] for name in EVERYTHING), ["bn1.bias", "bn2.bias"]]
)
@pytest.mark.parametrize("analyzer_type", [TracInReferencePyTorch, TracInAnalyzerPyTorch])
def test_self_influence_is_the_squared_norm(analyzer_type, names):
    model = make_model()
    norms = gradients_by_hand(model, TRAINING, names).square().sum(dim=1)
    analyzer = analyzer_type(model, last_layer_names=names)
    assert_close(torch.from_numpy(analyzer.compute_self_influence(TRAINING, learning_rate=0.5)), 0.5 * norms, 1e-12)


def test_self_influence_with_entity_bias_in_float32():
    model = make_model(entity_bias=True)
    names = [name for name, _ in model.named_parameters()]
    norms = gradients_by_hand(model, TRAINING, names).square().sum(dim=1)
    actual = TracInAnalyzerPyTorch(model.float()).compute_self_influence(TRAINING, learning_rate=1.0, batch_size=3)
    assert_close(torch.from_numpy(actual).double(), norms, 1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads):
    model = make_model()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        actual = TracInAnalyzerPyTorch(model).gradient_products(TEST_TRIPLES, TRAINING, batch_size=1)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_close(actual, products_by_hand(model, EVERYTHING), 1e-12)


@pytest.mark.usefixtures("conve_engine")
def test_mixed_precision_rounds_the_weak_and_rescores_the_strong_of_each_sign():
    model = make_model(dtype=torch.float32)
    exact = TracInAnalyzerPyTorch(model).gradient_products(TEST_TRIPLES[2:], TRAINING)[0]
    mixed = TracInAnalyzerPyTorch(model, use_mixed_precision=True, rescored=2)
    rounded = mixed.gradient_products(TEST_TRIPLES[2:], TRAINING)[0]
    assert rounded.dtype == torch.float32
    assert_close(rounded, exact, 0.05)
    proponents, opponents = exact.topk(2).indices, (-exact).topk(2).indices
    assert (exact[proponents] > 0).all()
    assert (exact[opponents] < 0).all()
    # By size alone, one sign would get less than its share.
    assert set(exact.abs().topk(4).indices.tolist()) != set(torch.cat([proponents, opponents]).tolist())
    weak = torch.ones(len(TRAINING), dtype=torch.bool)
    for strong in (proponents, opponents):
        torch.testing.assert_close(rounded[strong], exact[strong], rtol=1e-5, atol=0)
        weak[strong] = False
    assert not torch.equal(rounded[weak], exact[weak])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_batches_that_do_not_fit_are_halved(error, monkeypatch):
    model = make_model()
    monkeypatch.setattr(passes, "FACTORED_FROM", 99)
    whole = ForwardDerivatives.__call__

    def cramped(self, batch):
        if len(batch.tails) > 2:
            raise error
        return whole(self, batch)

    monkeypatch.setattr(ForwardDerivatives, "__call__", cramped)
    actual = TracInAnalyzerPyTorch(model).gradient_products(TEST_TRIPLES, TRAINING)
    assert_close(actual, products_by_hand(model, EVERYTHING), 1e-12)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(passes, "FACTORED_FROM", 99)
    monkeypatch.setattr(ForwardDerivatives, "__call__", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        TracInAnalyzerPyTorch(make_model()).gradient_products(TEST_TRIPLES, TRAINING)


def test_captum_agrees_on_linear_and_convolution():
    captum = pytest.importorskip("captum.influence")
    model = make_model().float()
    scorer = ConvEScorer(model)
    names = ["fc.weight", "fc.bias", "conv1.weight", "conv1.bias"]
    data = torch.utils.data.TensorDataset(torch.from_numpy(TRAINING), torch.ones(len(TRAINING)))
    tracer = captum.TracInCP(
        scorer,
        data,
        checkpoints=["unused"],
        checkpoints_load_func=lambda *_: 1.0,
        layers=["model.fc", "model.conv1"],
        loss_fn=torch.nn.BCEWithLogitsLoss(reduction="none"),
        batch_size=4,
        sample_wise_grads_per_batch=False,
    )
    expected = tracer.influence((torch.from_numpy(TEST_TRIPLES), torch.ones(len(TEST_TRIPLES))))
    actual = TracInAnalyzerPyTorch(model, last_layer_names=names).gradient_products(TEST_TRIPLES, TRAINING)
    assert_close(actual, expected, 1e-4)

import pytest
import torch
from conve_examples import SIZES, random_triples, trained_conve

from conve_tracin.checkpoint.conversion import convert_pytorch_to_pykeen_state_dict
from conve_tracin.checkpoint.native import build_model, take_model
from conve_tracin.checkpoint.pykeen import build_pykeen_conve
from conve_tracin.checkpoint.schema import require_sound_weights
from conve_tracin.errors import InputError
from conve_tracin.model.conve import ConvE, ConvEConfig, is_statistic, weight_shapes


@pytest.mark.parametrize("entity_bias", [False, True])
@pytest.mark.parametrize("inverse_triples", [False, True])
@pytest.mark.parametrize("setting", SIZES)
def test_scores_are_those_of_pykeens_conve_with_the_same_weights(setting, inverse_triples, entity_bias):
    model, _ = trained_conve(setting, entity_bias=entity_bias)
    for norm in (model.bn0, model.bn1, model.bn2):
        assert (norm.running_mean.abs() > 0.01).any()
        assert ((norm.running_var - 1).abs() > 0.05).any()
    pykeen_model = build_pykeen_conve(model.config.as_dict(), inverse_triples=inverse_triples).eval()
    pykeen_model.load_state_dict(
        convert_pytorch_to_pykeen_state_dict({"model_state_dict": model.state_dict()}), strict=True
    )
    triples = random_triples(1000)
    with torch.no_grad():
        expected = pykeen_model.score_hrt(triples)[:, 0]
        assert expected.std() > 0.1
        torch.testing.assert_close(model.score(*triples.T), expected, atol=1e-5, rtol=0)
        all_tails = pykeen_model.score_t(triples[:, :2])
        torch.testing.assert_close(model(triples[:, 0], triples[:, 1]), all_tails, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (200, 10368)),
        ({"embedding_height": 20, "embedding_width": 10}, (200, 32 * 38 * 8)),
        ({"embedding_dim": 24, "embedding_height": 2, "embedding_width": 12, "kernel_width": 5, "output_channels": 7},
         (24, 7 * 2 * 8)),
        ({"kernel_height": 20, "kernel_width": 20}, (200, 32)),
    ],
)  # fmt: skip
def test_linear_layer_has_the_size_of_the_flattened_feature_maps(sizes, expected):
    model = ConvE(num_entities=3, num_relations=2, **sizes).eval()
    assert tuple(model.fc.weight.shape) == expected
    assert model(torch.tensor([0, 2]), torch.tensor([1, 0])).shape == (2, 3)


def test_head_is_stacked_above_relation():
    model = ConvE(num_entities=2, num_relations=1, embedding_dim=6, embedding_height=2, embedding_width=3)
    with torch.no_grad():
        model.entity_embeddings.weight[0] = torch.arange(6.0)
        model.relation_embeddings.weight[0] = torch.arange(6.0, 12.0)
    seen = []
    model.eval().bn0.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.encode(torch.tensor([0]), torch.tensor([0]))
    assert torch.equal(seen[0], torch.arange(12.0).view(1, 1, 4, 3))


def test_score_of_triples_is_the_entry_of_the_scores_of_all_tails():
    model, _ = trained_conve(entity_bias=True)
    heads, relations, tails = random_triples(50).T
    all_scores = model(heads, relations)
    torch.testing.assert_close(model.score(heads, relations, tails), all_scores[torch.arange(50), tails])


def test_scores_in_eval_mode_do_not_depend_on_the_batch():
    model, _ = trained_conve()
    triples = random_triples(9)
    alone = torch.cat([model.score(*row[:, None]) for row in triples])
    torch.testing.assert_close(model.score(*triples.T), alone)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"embedding_height": 10, "embedding_width": 21}, r"10 × 21 = 210, not embedding_dim 200"),
        ({"kernel_width": 21}, r"3 × 21 kernel does not fit on the 20 × 20 image"),
        ({"kernel_height": 21}, r"21 × 3 kernel does not fit on the 20 × 20 image"),
        ({"output_channels": 0}, r"output_channels is 0; it must be a whole number of at least 1"),
        ({"num_entities": 0}, r"num_entities is 0"),
        ({"input_dropout": 1.0}, r"input_dropout is 1.0; it must be at least 0 and below 1"),
        ({"output_dropout": -0.1}, r"output_dropout is -0.1"),
    ],
)
def test_impossible_sizes_are_a_clear_error(sizes, message):
    with pytest.raises(InputError, match=message):
        ConvEConfig(**{"num_entities": 5, "num_relations": 2, **sizes})


def test_config_rebuilds_the_model():
    model, _ = trained_conve("tall-kernel", entity_bias=True)
    again = ConvE(**model.config.as_dict())
    again.load_state_dict(model.state_dict(), strict=True)
    assert again.config == model.config


@pytest.mark.parametrize("entity_bias", [False, True])
@pytest.mark.parametrize("setting", SIZES)
def test_shapes_without_a_model_are_those_of_the_model(setting, entity_bias):
    model, _ = trained_conve(setting, entity_bias=entity_bias)
    assert list(weight_shapes(model.config).items()) == [
        (name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()
    ]
    trained = [name for name, _ in model.named_parameters()]
    assert [name for name in weight_shapes(model.config) if not is_statistic(name)] == trained


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("entity_bias", [False, True])
def test_a_built_model_has_a_checkpoints_weights_and_its_own_memory(entity_bias, dtype):
    model, _ = trained_conve(entity_bias=entity_bias)
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    checkpoint = {"model_state_dict": state, "model_config": model.config.as_dict()}
    built = build_model(checkpoint)
    assert built.config == model.config
    assert [name for name, _ in built.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(parameter.requires_grad for parameter in built.parameters())
    assert not built.training
    for name, weight in built.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=0, atol=0)
        assert weight.data_ptr() != state[name].data_ptr()
    triples = random_triples(20)
    torch.testing.assert_close(built.score(*triples.T), model.score(*triples.T), rtol=0, atol=0)


def test_a_taken_model_is_the_built_one_in_the_checkpoints_memory():
    model, _ = trained_conve()
    state = {name: weight.double() if name == "fc.weight" else weight for name, weight in model.state_dict().items()}
    checkpoint = {"model_state_dict": state, "model_config": model.config.as_dict()}
    taken, built = take_model(checkpoint), build_model(checkpoint)
    assert not taken.training
    assert all(parameter.requires_grad for parameter in taken.parameters())
    for name, weight in taken.state_dict().items():
        torch.testing.assert_close(weight, built.state_dict()[name], rtol=0, atol=0)
        assert (weight.data_ptr() == state[name].data_ptr()) == (name != "fc.weight")


def test_finite_weights_whose_sum_is_not_are_sound():
    largest = torch.finfo(torch.float32).max
    require_sound_weights({"weight": torch.tensor([largest, largest])}, source="model.pt")
    for bad in (torch.nan, torch.inf):
        with pytest.raises(InputError, match=r"NaN or infinite"):
            require_sound_weights({"weight": torch.tensor([largest, largest, bad, -largest])}, source="model.pt")

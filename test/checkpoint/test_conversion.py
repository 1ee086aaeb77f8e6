import copy
import subprocess
import sys

import pytest
import torch
from conve_examples import SIZES, assert_same, native_checkpoint, train_step, trained_conve

from conve_tracin.checkpoint.conversion import (
    ENTITY_BIAS,
    NATIVE_TO_PYKEEN,
    convert_pykeen_to_native_state_dict,
    convert_pytorch_to_pykeen_state_dict,
    infer_conve_config,
    pykeen_parameter_names,
    renumber_optimizer_state,
    to_native_checkpoint,
    to_pykeen_checkpoint,
)
from conve_tracin.checkpoint.pykeen import build_pykeen_conve
from conve_tracin.errors import InputError
from conve_tracin.model.conve import ConvE


def pykeen_state(model):
    return convert_pytorch_to_pykeen_state_dict({"model_state_dict": model.state_dict()})


@pytest.mark.parametrize("entity_bias", [False, True])
@pytest.mark.parametrize("setting", SIZES)
def test_weights_come_back_identical(setting, entity_bias):
    model, _ = trained_conve(setting, entity_bias=entity_bias)
    back = convert_pykeen_to_native_state_dict(pykeen_state(model), has_entity_bias=entity_bias)
    assert_same(back, dict(model.state_dict()))


def test_names_and_their_order_are_those_of_pykeens_model():
    model, _ = trained_conve(entity_bias=True, steps=0)
    pykeen_model = build_pykeen_conve(model.config.as_dict())
    assert list(NATIVE_TO_PYKEEN.values()) == list(pykeen_model.state_dict())
    names = [NATIVE_TO_PYKEEN[name] for name in pykeen_parameter_names()]
    assert names == [name for name, _ in pykeen_model.named_parameters()]
    assert {name: tensor.shape for name, tensor in pykeen_state(model).items()} == {
        name: tensor.shape for name, tensor in pykeen_model.state_dict().items()
    }


def test_bias_is_dropped_only_where_there_was_none_and_it_is_zero():
    state = pykeen_state(trained_conve()[0])
    assert not state[ENTITY_BIAS].any()
    assert "entity_bias" not in convert_pykeen_to_native_state_dict(state, has_entity_bias=False)
    assert convert_pykeen_to_native_state_dict(state)["entity_bias"].shape == (30,)
    trained = {**state, ENTITY_BIAS: torch.eye(30)[:, 3:4]}
    kept = convert_pykeen_to_native_state_dict(trained, has_entity_bias=False)["entity_bias"]
    assert torch.equal(kept, torch.eye(30)[3])


def test_trained_weights_without_the_bias_that_pykeen_trained_stay_behind():
    checkpoint = native_checkpoint(*trained_conve())
    checkpoint |= {"trained_state_dict": checkpoint["model_state_dict"], "num_averaged": 7}
    there = to_pykeen_checkpoint(checkpoint)
    assert to_native_checkpoint(there).keys() >= {"trained_state_dict", "num_averaged"}
    there["model_state_dict"][ENTITY_BIAS] = torch.ones(30, 1)
    back = to_native_checkpoint(there)
    assert "entity_bias" in back["model_state_dict"]
    assert not {"trained_state_dict", "num_averaged"} & back.keys()
    # A file can lack one of the two.
    del there["num_averaged"]
    assert to_native_checkpoint(there).keys() == back.keys()


@pytest.mark.parametrize("entity_bias", [False, True])
def test_checkpoint_comes_back_identical_with_all_it_holds(entity_bias):
    checkpoint = native_checkpoint(*trained_conve(entity_bias=entity_bias))
    converted = to_pykeen_checkpoint(checkpoint)
    assert converted["source_format"] == "native"
    assert converted["inverse_triples"] is False
    for key in ("epoch", "metrics", "learning_rate", "training_config", "mapping_digest"):
        assert converted[key] == checkpoint[key]
    back = to_native_checkpoint(converted)
    back["model_state_dict"] = dict(back["model_state_dict"])
    checkpoint["model_state_dict"] = dict(checkpoint["model_state_dict"])
    assert_same(back, checkpoint)


NO_DROPOUT = {"input_dropout": 0.0, "feature_map_dropout": 0.0, "output_dropout": 0.0}


def weights_after_another_step(model, content, score_all_tails):
    """Resume in float64: several biases stand before a BatchNorm, where Adam makes steps of float32's rounding."""
    model = model.double().train()
    model.load_state_dict(content["model_state_dict"], strict=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    # torch takes over the tensors as they are, where a file would have given copies.
    optimizer.load_state_dict(copy.deepcopy(content["optimizer_state_dict"]))
    torch.manual_seed(11)
    train_step(model, optimizer, lambda batch: score_all_tails(model, batch))
    return dict(model.state_dict())


def native_scores(model, batch):
    return model(*batch.T)


def pykeen_scores(model, batch):
    return model.score_t(batch)


@pytest.mark.parametrize("entity_bias", [False, True])
def test_pykeen_goes_on_training_as_the_native_model_would(entity_bias):
    checkpoint = native_checkpoint(*trained_conve(entity_bias=entity_bias, **NO_DROPOUT))
    converted = to_pykeen_checkpoint(checkpoint)
    expected = weights_after_another_step(ConvE(**checkpoint["model_config"]), checkpoint, native_scores)
    pykeen_model = build_pykeen_conve(converted["model_config"])
    after = convert_pykeen_to_native_state_dict(weights_after_another_step(pykeen_model, converted, pykeen_scores))
    for name, tensor in expected.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-9, rtol=0)
        assert not torch.equal(tensor, checkpoint["model_state_dict"][name])


def test_native_training_goes_on_as_pykeens_would():
    sizes = {**trained_conve(steps=0)[0].config.as_dict(), **NO_DROPOUT}
    pykeen_model = build_pykeen_conve(sizes)
    optimizer = torch.optim.Adam(pykeen_model.parameters(), lr=0.02)
    for _ in range(5):
        train_step(pykeen_model, optimizer, pykeen_model.score_t)
    content = copy.deepcopy(
        {
            "epoch": 5,
            "model_state_dict": pykeen_model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "relation_to_id_dict": {f"r{number}": number for number in range(8)},
            "entity_to_id_dict": {f"e{number}": number for number in range(30)},
        }
    )
    native = to_native_checkpoint(content)
    assert native["epoch"] == 5
    assert native["learning_rate"] == 0.02
    assert native["training_config"] == {"inverse_triples": False, "training_approach": "kvsall"}
    model = ConvE(**{**native["model_config"], **NO_DROPOUT})
    after = weights_after_another_step(model, native, native_scores)
    expected = weights_after_another_step(build_pykeen_conve(sizes), content, pykeen_scores)
    for name, tensor in convert_pykeen_to_native_state_dict(expected).items():
        torch.testing.assert_close(after[name], tensor, atol=1e-9, rtol=0)


def test_inverse_relations_are_told_by_the_relation_mapping():
    state = pykeen_state(trained_conve(num_relations=8)[0])
    relations = {f"r{number}": number for number in range(4)}
    content = {"epoch": 1, "model_state_dict": state, "relation_to_id_dict": relations}
    assert to_native_checkpoint(content)["training_config"] == {"inverse_triples": True, "training_approach": "kvsall"}


def test_optimizer_state_that_cannot_be_numbered_is_left_out_with_a_statement(caplog):
    model, optimizer = trained_conve()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    converted = to_pykeen_checkpoint(native_checkpoint(model, optimizer))
    assert "optimizer_state_dict" not in converted
    assert "optimizer state is left out" in caplog.text


def test_optimizer_state_is_renumbered_by_name():
    state = {"state": {0: {"step": 1}, 2: {"step": 3}}, "param_groups": [{"lr": 0.1, "params": [0, 1, 2]}]}
    assert renumber_optimizer_state(state, ["a", "b", "c"], ["c", "d", "b", "a"]) == {
        "state": {0: {"step": 3}, 3: {"step": 1}},
        "param_groups": [{"lr": 0.1, "params": [0, 1, 2, 3]}],
    }
    assert renumber_optimizer_state(state, ["a", "b"], ["b", "a"]) is None


@pytest.mark.parametrize("setting", SIZES)
def test_sizes_are_read_off_the_weights(setting):
    model, _ = trained_conve(setting, entity_bias=True, steps=0)
    assert infer_conve_config(pykeen_state(model)) == model.config.as_dict()


def test_sizes_that_several_images_fit_need_a_hint():
    sizes = {"embedding_dim": 16, "embedding_height": 2, "embedding_width": 8, "entity_bias": True}
    model = ConvE(num_entities=5, num_relations=2, **sizes)
    state = pykeen_state(model)
    with pytest.raises(InputError, match=r"2 × 8, 4 × 4; give --embedding-height"):
        infer_conve_config(state)
    assert infer_conve_config(state, embedding_height=2) == model.config.as_dict()
    assert infer_conve_config(state, embedding_width=8) == model.config.as_dict()
    with pytest.raises(InputError, match=r"no embedding height × width = 16 fits"):
        infer_conve_config(state, embedding_height=8)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: without(state, "bn2.running_var"), r"lacks bn2\.running_var"),
        (lambda state: {**state, "extra.weight": torch.ones(1)}, r"also has extra\.weight"),
        (lambda state: {**state, "fc.bias": [1.0]}, r"fc\.bias is no tensor"),
        (lambda state: {**state, "fc.bias": torch.ones(3)}, r"fc\.bias has the shape \(3,\)"),
        (lambda state: {**state, "bn1.weight": torch.full((5,), torch.nan)}, r"NaN or infinite"),
    ],
)
def test_damaged_weights_are_an_input_error_in_both_directions(change, message):
    checkpoint = native_checkpoint(*trained_conve())
    damaged = change(checkpoint["model_state_dict"])
    with pytest.raises(InputError, match=message):
        to_pykeen_checkpoint({**checkpoint, "model_state_dict": damaged})
    converted = to_pykeen_checkpoint(checkpoint)
    renamed = {NATIVE_TO_PYKEEN.get(name, name): tensor for name, tensor in damaged.items()}
    renamed[ENTITY_BIAS] = converted["model_state_dict"][ENTITY_BIAS]
    with pytest.raises(InputError, match=r"shapes|shape|lacks|also has|no tensor|NaN"):
        to_native_checkpoint({**converted, "model_state_dict": renamed})


def test_other_content_is_an_input_error():
    checkpoint = native_checkpoint(*trained_conve())
    with pytest.raises(InputError, match="is a native checkpoint already"):
        to_native_checkpoint(checkpoint)
    with pytest.raises(InputError, match="holds no weights of a PyKEEN model"):
        to_native_checkpoint({"epoch": 1})
    with pytest.raises(InputError, match="not those of a ConvE with batch normalisation"):
        to_native_checkpoint({"entity_representations.0._embeddings.weight": torch.ones(2, 3)})
    with pytest.raises(InputError, match="model_config is not that of a ConvE"):
        to_pykeen_checkpoint({**checkpoint, "model_config": {**checkpoint["model_config"], "heads": 2}})


def test_conversion_needs_no_pykeen():
    program = "import sys; sys.modules['pykeen'] = None; import conve_tracin.checkpoint.conversion"
    program += ", conve_tracin.checkpoint.pykeen"
    subprocess.run([sys.executable, "-c", program], check=True)

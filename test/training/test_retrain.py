"""Training again gives the weights of train_pytorch.py, and takes its settings from the checkpoint."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL_CONVE, TRAIN

from conve_tracin.checkpoint.native import load_checkpoint
from conve_tracin.errors import InputError
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.retrain import (
    epochs_until_nearly_best,
    retrain,
    seconds_of_an_epoch,
    settings_of,
    with_fixed_schedule,
)

RECOMMENDED = {"training_approach": "kvsall", "inverse_triples": True, "loss": "ce", "query_weights": "tails"}
SETTINGS = {
    "documented": {"training_approach": "1vsall"},
    "recommended": RECOMMENDED | {"eval_frequency": 2},
    "averaged": RECOMMENDED | {"weight_averaging": 0.9, "weight_decay": 0.01},
    "adagrad": {"optimizer": "adagrad", "training_approach": "kvsall"},
}


def assert_same_weights(model, checkpoint):
    state = model.state_dict()
    assert state.keys() == checkpoint["model_state_dict"].keys()
    for name, weight in checkpoint["model_state_dict"].items():
        assert torch.equal(state[name], weight), name


@pytest.mark.parametrize("name", SETTINGS)
def test_training_again_on_fewer_triples_gives_the_weights_of_a_run_on_them_bit_for_bit(run, tmp_path, name):
    fewer = np.delete(TRAIN, [2, 7], axis=0)
    run("whole", random_seed=1, **SETTINGS[name])
    run("fewer", random_seed=5, splits={"train": fewer}, **SETTINGS[name])
    explained = load_checkpoint(tmp_path / "whole/final_model.pt")
    config = settings_of(explained | {"training_config": explained["training_config"] | {"random_seed": 5}}, source="m")
    model = retrain(fewer, config, model_config=explained["model_config"])
    assert not model.training
    assert_same_weights(model, load_checkpoint(tmp_path / "fewer/final_model.pt"))


def test_a_schedule_that_followed_the_validation_is_repeated_without_it(run, tmp_path):
    run("model", lr_scheduler="plateau", lr_decay=0.5, lr_patience=0, num_epochs=12, **RECOMMENDED)
    checkpoint = load_checkpoint(tmp_path / "model/final_model.pt")
    config, rates = with_fixed_schedule(settings_of(checkpoint, source="m"), checkpoint, source="m")
    assert len(set(rates)) > 2
    model = retrain(TRAIN, config, model_config=checkpoint["model_config"], learning_rates=rates)
    assert_same_weights(model, checkpoint)
    with pytest.raises(InputError, match="m: was trained with --lr-scheduler plateau and lacks its history"):
        with_fixed_schedule(settings_of(checkpoint, source="m"), checkpoint | {"history": []}, source="m")


def test_each_epoch_is_told():
    told = []
    config = TrainingConfig(num_epochs=4, batch_size=4, training_approach="kvsall")
    sizes = {"num_entities": 6, "num_relations": 3, **SMALL_CONVE}
    retrain(TRAIN, config, model_config=sizes, on_epoch=lambda: told.append(1))
    assert len(told) == 4
    assert 0 < seconds_of_an_epoch(TRAIN, config, model_config=sizes) < 60


def test_settings_are_those_of_the_checkpoint_and_old_ones_have_what_was_usual_then():
    stored = {"learning_rate": 0.02, "training_approach": "kvsall", "query_weights": "tails", "random_seed": 9}
    config = settings_of({"training_config": stored}, source="m")
    assert (config.learning_rate, config.random_seed, config.tails_per_visit) == (0.02, 9, 0)
    for content, message in (
        ({}, "m: does not tell how it was trained"),
        ({"training_config": {"inverse_triples": True}}, "m: does not tell how it was trained"),
        ({"training_config": stored | {"moons": 3}}, "m: was trained with moons, which is no setting of this version"),
        ({"training_config": stored | {"batch_size": 0}}, "m: batch_size is 0"),
    ):
        with pytest.raises(InputError, match=message):
            settings_of(content, source="m")


@pytest.mark.parametrize(
    ("rates", "epochs"),
    [({2: 0.5, 4: 0.891, 6: 0.85, 8: 0.9, 10: 0.89}, 4), ({1: 0.1}, 1), ({}, 10), ({2: 0.0, 4: 0.0}, 10)],
)
def test_training_again_ends_where_the_validation_was_nearly_as_good_as_ever(rates, epochs):
    history = [
        {"epoch": epoch, "loss": 1.0} | ({"valid": {"mean_reciprocal_rank": rates[epoch]}} if epoch in rates else {})
        for epoch in range(1, 11)
    ]
    assert json.dumps(history)
    assert epochs_until_nearly_best({"epoch": 10, "history": history}, TrainingConfig()) == epochs
    assert epochs_until_nearly_best({}, TrainingConfig(num_epochs=7)) == 7

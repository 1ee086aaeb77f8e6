"""What runs on another device than the CPU ends with the CPU's results, and never mixes tensors of both."""

import numpy as np
import pytest
import torch
from conftest import TRAIN, make_small_conve
from device_examples import METHODS, TRAININGS, train_on
from influence_examples import TRAINING, make_model
from other_device import DEVICE, OtherDevice, TensorElsewhere, make_usable

from conve_tracin.data.queries import Queries
from conve_tracin.ranking.ranks import rank_triples

pytestmark = pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter:UserWarning")


@pytest.fixture
def other_device(monkeypatch):
    make_usable(monkeypatch)
    with OtherDevice():
        yield DEVICE


@pytest.mark.usefixtures("other_device")
def test_the_device_refuses_the_tensors_of_the_cpu():
    elsewhere = torch.arange(6.0).view(2, 3).to(DEVICE)
    assert elsewhere.device == DEVICE
    assert (elsewhere * 2 + 1).cpu().tolist() == [[1, 3, 5], [7, 9, 11]]
    elsewhere[1] += torch.ones(3, device=DEVICE)
    assert elsewhere.sum().item() == 18
    for mixed in (lambda: elsewhere + torch.ones(3), lambda: torch.ones(3) @ elsewhere.T, elsewhere.numpy):
        with pytest.raises((RuntimeError, TypeError)):
            mixed()


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", METHODS)
def test_influences_are_those_of_the_cpu(name, count, request):
    expected = METHODS[name](make_model(entity_bias=True)).products(TRAINING[:count], TRAINING)
    device = request.getfixturevalue("other_device")
    model = make_model(entity_bias=True).to(device)
    assert model.fc.weight.device == device
    found = METHODS[name](model).products(TRAINING[:count], TRAINING)
    assert not isinstance(found, TensorElsewhere)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["reference", "fast", "last layers", "gauss-newton, kvsall", "gauss-newton, 1vsall"])
def test_self_influences_are_those_of_the_cpu(name, request):
    expected = METHODS[name](make_model()).self_products(TRAINING)
    device = request.getfixturevalue("other_device")
    found = METHODS[name](make_model().to(device)).self_products(TRAINING)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_ranks_are_those_of_the_cpu(request):
    def rank(device):
        known = Queries.distinct(np.unique(TRAIN, axis=0), device)
        return rank_triples(make_small_conve().to(device), TRAIN, known, num_relations=3)

    expected = rank(torch.device("cpu"))
    assert len(expected.unique()) > 2
    assert rank(request.getfixturevalue("other_device")).tolist() == expected.tolist()


@pytest.mark.parametrize("name", TRAININGS)
def test_training_resumes_and_ends_with_the_weights_of_the_cpu(name, tmp_path, request, monkeypatch):
    # Four epochs of Adam make much of another rounding.
    monkeypatch.setattr("conve_tracin.model.loss._takes_tiles", lambda *_, **__: False)
    expected = train_on("cpu", tmp_path / "cpu", TRAININGS[name])
    device = request.getfixturevalue("other_device")
    for place, checkpoint in (("whole", None), ("resumed", tmp_path / "whole/checkpoints/checkpoint_epoch_2.pt")):
        found = train_on(device, tmp_path / place, TRAININGS[name], checkpoint)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

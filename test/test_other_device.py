"""What runs on another device than the CPU ends with the CPU's results, and never mixes tensors of both."""

import numpy as np
import pytest
import torch
from conftest import TRAIN, make_small_conve
from other_device import DEVICE, OtherDevice, TensorElsewhere, make_usable
from test_influence import TRAINING, make_model

from conve_tracin.data.queries import Queries, group_by_query
from conve_tracin.influence.analyzer import TracInAnalyzerPyTorch, TracInReferencePyTorch
from conve_tracin.influence.gauss_newton_analyzer import GaussNewtonAnalyzer
from conve_tracin.influence.training_loss import Objective, TrainingLossReference
from conve_tracin.ranking import rank_triples
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.loop import TrainingData, train

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


ANALYZERS = {
    "reference": TracInReferencePyTorch,
    "fast": TracInAnalyzerPyTorch,
    "last layers": lambda model: TracInAnalyzerPyTorch(model, use_last_layers_only=True),
    "training loss, reference": lambda model: TrainingLossReference(
        model, objective=Objective.of({"training_approach": "kvsall"}), training_triples=TRAINING
    ),
    "bfloat16": lambda model: TracInAnalyzerPyTorch(model, use_mixed_precision=True, rescored=20),
    "gauss-newton, kvsall": lambda model: GaussNewtonAnalyzer(model, training_approach="kvsall"),
    "gauss-newton, 1vsall": lambda model: GaussNewtonAnalyzer(model, training_approach="1vsall"),
}


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", ANALYZERS)
def test_influences_are_those_of_the_cpu(name, count, request):
    expected = ANALYZERS[name](make_model(entity_bias=True)).gradient_products(TRAINING[:count], TRAINING)
    device = request.getfixturevalue("other_device")
    analyzer = ANALYZERS[name](make_model(entity_bias=True).to(device))
    assert analyzer.device == device
    found = analyzer.gradient_products(TRAINING[:count], TRAINING)
    assert not isinstance(found, TensorElsewhere)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["reference", "fast", "last layers", "gauss-newton, kvsall", "gauss-newton, 1vsall"])
def test_self_influences_are_those_of_the_cpu(name, request):
    expected = ANALYZERS[name](make_model()).self_products(TRAINING)
    device = request.getfixturevalue("other_device")
    found = ANALYZERS[name](make_model().to(device)).self_products(TRAINING)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_ranks_are_those_of_the_cpu(request):
    def rank(device):
        known = Queries.distinct(group_by_query(np.unique(TRAIN, axis=0)), device)
        return rank_triples(make_small_conve().to(device), TRAIN, known, num_relations=3)

    expected = rank(torch.device("cpu"))
    assert len(expected.unique()) > 2
    assert rank(request.getfixturevalue("other_device")).tolist() == expected.tolist()


# A BatchNorm behind them takes these away again, so that their gradients are rounding alone.
IDLE = ("bn0.weight", "bn0.bias", "conv1.bias", "fc.bias", "bn1.running_mean", "bn2.running_mean")

TRAININGS = {
    "kvsall, inverse triples": {"training_approach": "kvsall", "inverse_triples": True},
    "weighted cross-entropy": {
        "training_approach": "kvsall",
        "loss": "ce",
        "query_weights": "tails",
        "tails_per_visit": 1,
    },
    "moving average": {"weight_averaging": 0.7},
    "1vsall, adagrad, plateau": {"optimizer": "adagrad", "lr_scheduler": "plateau", "lr_decay": 0.5},
    "gradient checkpointing": {"use_gradient_checkpointing": True, "auto_batch_size": True},
}


def train_on(device, directory, settings, resume_from=None):
    """Train a small model without dropout; return its weights, but for the idle ones."""
    sizes = {"embedding_dim": 8, "embedding_height": 2, "embedding_width": 4, "output_channels": 3}
    sizes |= {"kernel_height": 2, "kernel_width": 2, "entity_bias": True}
    # The CPU has an encoder of its own, which drops other numbers out.
    sizes |= {"input_dropout": 0.0, "feature_map_dropout": 0.0, "output_dropout": 0.0}
    config = TrainingConfig(num_epochs=4, batch_size=5, learning_rate=0.01, **settings)
    data = TrainingData(TRAIN, TRAIN[:3], TRAIN[3:6], 6, 3, {})
    train(data, config, model_sizes=sizes, output_dir=directory, device=device, resume_from=resume_from)
    weights = torch.load(directory / "final_model.pt", weights_only=True)["model_state_dict"]
    return {name: weight for name, weight in weights.items() if not name.endswith(IDLE)}


@pytest.mark.parametrize("name", TRAININGS)
def test_training_resumes_and_ends_with_the_weights_of_the_cpu(name, tmp_path, request):
    expected = train_on("cpu", tmp_path / "cpu", TRAININGS[name])
    device = request.getfixturevalue("other_device")
    for place, checkpoint in (("whole", None), ("resumed", tmp_path / "whole/checkpoints/checkpoint_epoch_2.pt")):
        found = train_on(device, tmp_path / place, TRAININGS[name], checkpoint)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

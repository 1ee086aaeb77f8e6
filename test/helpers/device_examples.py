"""Methods and trainings that every device must run alike."""

from dataclasses import replace

import torch
from conftest import TRAIN
from influence_examples import TRAINING

from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch, TracInReferencePyTorch
from conve_tracin.influence.gauss_newton import GaussNewton
from conve_tracin.influence.scorers import ConvEScorer
from conve_tracin.influence.training_loss import Objective, TrainingLoss
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.run import TrainingData, train


def with_sampled_entities(method):
    """Estimate the method's curvature as on a graph of many entities."""
    curvature = replace(method.method.curvature, max_entities=4)
    method.method = replace(method.method, curvature=curvature)
    return method


METHODS = {
    "reference": lambda model: TracInReferencePyTorch(model).method,
    "fast": lambda model: TracInAnalyzerPyTorch(model).method,
    "last layers": lambda model: TracInAnalyzerPyTorch(model, use_last_layers_only=True).method,
    "training loss, reference": lambda model: (
        TrainingLoss(
            ConvEScorer(model), objective=Objective.of({"training_approach": "kvsall"}), training_triples=TRAINING
        ).loop
    ),
    "bfloat16": lambda model: TracInAnalyzerPyTorch(model, use_mixed_precision=True, rescored=20).method,
    "gauss-newton, kvsall": lambda model: GaussNewton(model, training_approach="kvsall"),
    "gauss-newton, cross-entropy": lambda model: GaussNewton(model, training_approach="1vsall", loss="ce"),
    "gauss-newton, sampled entities": lambda model: with_sampled_entities(
        GaussNewton(model, training_approach="1vsall", loss="ce")
    ),
    "gauss-newton, 1vsall": lambda model: GaussNewton(model, training_approach="1vsall"),
}

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

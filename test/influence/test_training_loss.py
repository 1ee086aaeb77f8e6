"""TracIn with the objective of training as ℓ, against autograd on dense labels and on training's own loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TRAIN, make_small_conve

from conve_tracin.data.queries import with_inverse_triples
from conve_tracin.errors import InputError
from conve_tracin.influence.scorers import ConvEScorer
from conve_tracin.influence.training_loss import Objective, TrainingLoss
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.batch_loss import BatchLoss
from conve_tracin.training.loop import training_queries

SETTINGS = {
    "1vsall": {},
    "1vsall, ce, inverse": {"loss": "ce", "inverse_triples": True},
    "kvsall": {"training_approach": "kvsall", "label_smoothing": 0.0},
    "kvsall, inverse": {"training_approach": "kvsall", "inverse_triples": True, "label_smoothing": 0.2},
    "kvsall, ce, tails": {"training_approach": "kvsall", "loss": "ce", "query_weights": "tails"},
    "kvsall, ce": {"training_approach": "kvsall", "loss": "ce", "inverse_triples": True},
}
TEST = np.array([[0, 1, 2], [4, 0, 4], [5, 2, 1]])
# Of the inverse relations, too, so that the same model serves with and without.
NUM_RELATIONS = 6


def make(name, engine="forward", **settings):
    config = TrainingConfig(**SETTINGS[name])
    model = make_small_conve(num_relations=NUM_RELATIONS, entity_bias=True)
    method = TrainingLoss(
        ConvEScorer(model, inverse_triples=config.inverse_triples),
        objective=Objective.of({key: getattr(config, key) for key in Objective.__dataclass_fields__}),
        training_triples=TRAIN,
        **settings,
    )
    return config, model, method if engine == "forward" else method.loop


def dense_loss(model, config, triple):
    """Write ℓ of one triple out with a row of labels for each query that it belongs to."""
    triples, known = triple[None], TRAIN
    if config.inverse_triples:
        triples, known = with_inverse_triples(triples), with_inverse_triples(known)
    total = 0.0
    for head, relation, tail in triples.tolist():
        tails = {tail}
        if config.training_approach == "kvsall":
            tails |= {t for h, r, t in known.tolist() if (h, r) == (head, relation)}
        labels = torch.zeros(1, 6, dtype=torch.float64)
        labels[0, list(tails)] = 1 / len(tails) if config.loss == "ce" else 1
        labels = (1 - config.label_smoothing) * labels + config.label_smoothing / 6
        scores = model(torch.tensor([head]), torch.tensor([relation]))
        loss = F.cross_entropy if config.loss == "ce" else F.binary_cross_entropy_with_logits
        total = total + loss(scores, labels) / (1 if config.query_weights == "tails" else len(tails))
    return total


def flat_gradient(model, loss):
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("engine", ["reference", "forward"])
@pytest.mark.parametrize("name", SETTINGS)
def test_products_are_those_of_dense_gradients(name, engine):
    config, model, method = make(name, engine)
    gradients = {
        which: torch.stack([flat_gradient(model, dense_loss(model, config, row)) for row in triples])
        for which, triples in (("test", TEST), ("train", TRAIN))
    }
    expected = gradients["test"] @ gradients["train"].T
    assert len(expected[0].unique()) > 5
    torch.testing.assert_close(method.products(TEST, TRAIN, batch_size=2), expected, rtol=1e-10, atol=1e-13)
    norms = gradients["train"].square().sum(dim=1)
    torch.testing.assert_close(method.self_products(TRAIN), norms, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_triples_share_what_training_minimises(name):
    config, model, method = make(name)
    queries = training_queries(TRAIN, config, torch.device("cpu"))
    loss = BatchLoss(model, config)(queries, torch.arange(len(queries)))
    total = flat_gradient(model, loss)
    shared = sum(
        torch.cat([part.flatten() for part in method.gradient(triple).values()])
        for triple in (np.unique(TRAIN, axis=0) if config.training_approach == "kvsall" else TRAIN)
    )
    torch.testing.assert_close(shared / shared.norm(), total / total.norm(), rtol=0, atol=1e-10)


def test_some_parameters():
    *_, method = make("kvsall, inverse", names=["fc.bias", "conv1.weight"])
    assert method.gradient((0, 1, 2)).keys() == {"fc.bias", "conv1.weight"}
    expected = method.loop.products(TEST, TRAIN)
    torch.testing.assert_close(method.products(TEST, TRAIN), expected, rtol=1e-10, atol=1e-13)


def test_no_training_triples_have_no_products():
    """A process among several may get none."""
    for name in ("1vsall", "kvsall, inverse"):
        assert make(name)[-1].products(TEST, TRAIN[:0]).shape == (len(TEST), 0)


def test_other_triples_than_those_of_training():
    """With KvsAll they would be targets of each other."""
    others = np.array([[0, 0, 5], [0, 0, 1], [3, 1, 1]])
    with pytest.raises(InputError, match="the training triples alone"):
        make("kvsall")[-1].products(TEST, others)
    fast, reference = (make("1vsall", engine)[-1] for engine in ("forward", "reference"))
    expected = reference.products(TEST, others)
    torch.testing.assert_close(fast.products(TEST, others), expected, rtol=1e-10, atol=1e-13)


def test_settings_that_a_checkpoint_does_not_hold_are_the_documented_ones():
    assert Objective.of({}) == Objective("1vsall", "bce", 0.1, "equal")
    assert Objective.of({"loss": "ce", "learning_rate": 0.1}) == Objective("1vsall", "ce", 0.1, "equal")

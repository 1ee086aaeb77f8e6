"""Inputs of the losses, and the same losses on dense labels."""

import torch
import torch.nn.functional as F

from conve_tracin.model.loss import Targets

NUM_ENTITIES, DIM = 53, 12

TARGETS = {
    "1vsall": [[3], [52], [3], [0], [17]],
    "1vsall, batch 1": [[7]],
    "kvsall": [[3, 4, 5], [52], list(range(0, 53, 2)), [9], [0, 52]],
    "kvsall, every entity": [list(range(53)), [0]],
}


def make_inputs(batch_size, *, spread=1.0, bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    return draw(batch_size, DIM), draw(NUM_ENTITIES, DIM), draw(NUM_ENTITIES) if bias else None


def dense_loss(kind, queries, entities, bias, targets, label_smoothing, weights=None):
    scores = queries @ entities.T + (0 if bias is None else bias)
    labels = torch.zeros_like(scores)
    for row, tails in enumerate(targets):
        labels[row, tails] = 1 if kind == "bce" else 1 / len(tails)
    labels = (1 - label_smoothing) * labels + label_smoothing / NUM_ENTITIES
    if kind == "bce":
        losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(dim=1)
    else:
        losses = F.cross_entropy(scores, labels, reduction="none")
    return losses.mean() if weights is None else (weights * losses).mean()


def as_targets(targets):
    rows = torch.tensor([row for row, tails in enumerate(targets) for _ in tails])
    return Targets(rows, torch.tensor([tail for tails in targets for tail in tails]))


def value_and_gradients(loss, inputs):
    inputs = [one for one in inputs if one is not None]
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other.double()).abs().max() <= tolerance * other.double().abs().max()

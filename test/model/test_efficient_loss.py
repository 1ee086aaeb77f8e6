"""The sparse-label loss against PyTorch's dense binary cross-entropy, in value and gradient.

Runs under pytest, and on its own: `python test/test_efficient_loss.py` prints what it compares.
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from conve_tracin.model.loss import compute_loss_efficient, sparse_bce_with_logits

NUM_ENTITIES = 101


def dense_labels(targets, *, num_entities=NUM_ENTITIES, label_smoothing, dtype=torch.float64):
    """Build the label matrix, shape (B, K), from one list of targets a row."""
    labels = torch.zeros(len(targets), num_entities, dtype=dtype)
    for row, tails in enumerate(targets):
        labels[row, list(tails)] = 1
    return (1 - label_smoothing) * labels + label_smoothing / num_entities


def value_and_gradient(loss_of, scores):
    """Return the loss and its gradient with respect to the scores."""
    scores = scores.detach().clone().requires_grad_()
    loss = loss_of(scores)
    (gradient,) = torch.autograd.grad(loss, scores)
    return loss.detach(), gradient


def sparse_and_dense(scores, targets, label_smoothing):
    """Return (value, gradient) of the loss under test and of the dense loss in float64."""
    labels = dense_labels(targets, num_entities=scores.shape[1], label_smoothing=label_smoothing)
    expected = value_and_gradient(lambda s: F.binary_cross_entropy_with_logits(s, labels), scores.double())
    if all(len(tails) == 1 for tails in targets):
        tail = torch.tensor([tails[0] for tails in targets])
        found = value_and_gradient(lambda s: compute_loss_efficient(s, tail, label_smoothing), scores)
    else:
        rows = torch.tensor([row for row, tails in enumerate(targets) for _ in tails], dtype=torch.int64)
        tails = torch.tensor([tail for tails in targets for tail in tails], dtype=torch.int64)
        found = value_and_gradient(
            lambda s: sparse_bce_with_logits(s, rows, tails, label_smoothing=label_smoothing), scores
        )
    return found, expected


def relative_differences(found, expected):
    """Return the largest differences of value and gradient, relative to the largest expected entry."""
    return [
        ((one.double() - other).abs().max() / other.abs().max()).item()
        for one, other in zip(found, expected, strict=True)
    ]


TARGETS = {
    "1vsall": [[3], [100], [0], [57], [8]],
    "1vsall, batch 1": [[42]],
    "1vsall, a target in several rows": [[7], [7], [7], [0]],
    "kvsall": [[3, 4, 5], [100], list(range(0, 101, 2)), [], [0, 99]],
    "kvsall, batch 1": [[5, 17, 2]],
    "kvsall, a target in several rows": [[7, 1], [7], [7, 2, 3]],
    "kvsall, every entity is a target": [list(range(101)), [1, 2]],
}
SMOOTHING = (0.0, 0.1, 0.9)


@pytest.mark.parametrize("label_smoothing", SMOOTHING)
@pytest.mark.parametrize("case", TARGETS)
def test_equals_dense_loss_in_float64(case, label_smoothing):
    targets = TARGETS[case]
    torch.manual_seed(1)
    scores = 5 * torch.randn(len(targets), NUM_ENTITIES, dtype=torch.float64)
    found, expected = sparse_and_dense(scores, targets, label_smoothing)
    assert max(relative_differences(found, expected)) < 1e-6


@pytest.mark.parametrize("label_smoothing", SMOOTHING)
@pytest.mark.parametrize("size", [-1e4, 1e4, 30.0, -30.0])
def test_extreme_logits_stay_finite_and_right(size, label_smoothing):
    targets = [[0], [1], [2]]
    scores = torch.zeros(3, NUM_ENTITIES, dtype=torch.float64)
    scores[:, 1:] = size
    scores[0, 0] = -size
    found, expected = sparse_and_dense(scores, targets, label_smoothing)
    assert torch.isfinite(found[0])
    assert torch.isfinite(found[1]).all()
    assert max(relative_differences(found, expected)) < 1e-6


@pytest.mark.parametrize("case", ["1vsall", "kvsall"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_lower_precisions_stay_close(case, dtype, tolerance):
    targets = TARGETS[case]
    torch.manual_seed(1)
    scores = (5 * torch.randn(len(targets), NUM_ENTITIES)).to(dtype)
    (value, gradient), expected = sparse_and_dense(scores, targets, 0.1)
    # The loss is summed in float32 whatever the scores are; only the gradient is rounded to their precision.
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    value_difference, gradient_difference = relative_differences((value, gradient), expected)
    assert value_difference < 1e-5
    assert gradient_difference < tolerance


def test_extreme_logits_in_low_precision_are_finite():
    scores = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.bfloat16)
    value, gradient = value_and_gradient(lambda s: compute_loss_efficient(s, torch.tensor([1]), 0.1), scores)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


def main() -> None:
    """Print the differences from the dense loss in float64."""
    torch.manual_seed(1)
    print(f"sparse labels against F.binary_cross_entropy_with_logits, float64, {NUM_ENTITIES} entities")
    print(f"{'targets':<36} smoothing   value     gradient   (largest relative difference)")
    worst = 0.0
    for case, targets in TARGETS.items():
        for label_smoothing in SMOOTHING:
            scores = 5 * torch.randn(len(targets), NUM_ENTITIES, dtype=torch.float64)
            value, gradient = relative_differences(*sparse_and_dense(scores, targets, label_smoothing))
            worst = max(worst, value, gradient)
            print(f"{case:<36} {label_smoothing:<11} {value:.1e}   {gradient:.1e}")
    if worst >= 1e-6:
        sys.exit(f"FAILED: {worst:.1e} is not below 1e-6")
    print(f"passed: the largest difference is {worst:.1e}, below 1e-6")


if __name__ == "__main__":
    main()

import itertools

import pytest
import torch
import torch.nn.functional as F

from conve_tracin.model.loss import Targets, streamed_loss
from conve_tracin.model.sampled_loss import SampledEntities, sampled_loss

K, B, D = 7, 4, 3
# Of each query: one target, two, three.
ROWS = torch.tensor([0, 1, 1, 2, 2, 2, 3])
TAILS = torch.tensor([2, 0, 5, 1, 3, 6, 2])
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=torch.float64)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, D), (K, D), (K,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def estimate(kind, inputs, entities, **settings):
    queries, table, bias = inputs
    sampled = SampledEntities.of(torch.as_tensor(entities), ROWS, TAILS, num_entities=K)
    return sampled_loss(
        kind, queries, table[sampled.entities], table[TAILS], sampled, sample_bias=bias[sampled.entities],
        target_bias=bias[TAILS], weights=WEIGHTS, **settings,
    )  # fmt: skip


def full(kind, inputs, **settings):
    queries, table, bias = inputs
    return streamed_loss(kind, queries, table, Targets(ROWS, TAILS), bias=bias, weights=WEIGHTS, **settings)


def dense(kind, inputs, entities, label_smoothing):
    """The estimate by its formula, one query after the other, for autograd."""
    queries, table, bias = inputs
    total = 0.0
    for row in range(B):
        scores = queries[row] @ table.T + bias
        targets = TAILS[row == ROWS].tolist()
        others = [k for k in entities if k not in targets]
        c = (K - len(targets)) / len(others)

        def over_all(values, targets=targets, others=others, c=c):
            return values[targets].sum() + c * values[others].sum()

        labels = (1 - label_smoothing) * scores[targets].sum()
        if kind == "bce":
            loss = (over_all(F.softplus(scores)) - label_smoothing / K * over_all(scores) - labels) / K
        else:
            loss = over_all(scores.exp()).log() - label_smoothing / K * over_all(scores) - labels / len(targets)
        total = total + WEIGHTS[row] * loss / B
    return total


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("kind", ["bce", "ce"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_estimate_is_its_formula(inputs, kind, label_smoothing):
    entities = [5, 0, 4, 2]
    estimated = estimate(kind, inputs, entities, label_smoothing=label_smoothing)
    expected = dense(kind, inputs, entities, label_smoothing)
    torch.testing.assert_close(estimated, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(estimated, inputs), gradients(expected, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_a_sample_of_all_entities_is_the_full_loss(inputs, kind):
    estimated = estimate(kind, inputs, torch.randperm(K), label_smoothing=0.1)
    expected = full(kind, inputs, label_smoothing=0.1)
    torch.testing.assert_close(estimated, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(estimated, inputs), gradients(expected, inputs), rtol=1e-12, atol=1e-12)


def test_binary_estimates_have_the_full_loss_and_gradient_as_their_mean(inputs):
    """Over all samples of four of the seven entities, each as likely as the others."""
    samples = list(itertools.combinations(range(K), 4))
    losses = [estimate("bce", inputs, sample, label_smoothing=0.1) for sample in samples]
    expected = full("bce", inputs, label_smoothing=0.1)
    torch.testing.assert_close(torch.stack(losses).mean(), expected, rtol=1e-12, atol=1e-12)
    of_samples = zip(*(gradients(loss, inputs) for loss in losses), strict=True)
    means = tuple(torch.stack(each).mean(dim=0) for each in of_samples)
    torch.testing.assert_close(means, gradients(expected, inputs), rtol=1e-12, atol=1e-12)


def test_softmax_estimates_are_too_low_by_what_the_docstring_says():
    generator = torch.Generator().manual_seed(1)
    entities, size = 400, 100
    table = torch.randn(entities, D, generator=generator, dtype=torch.float64)
    queries = 0.3 * torch.randn(1, D, generator=generator, dtype=torch.float64)
    row, tail = torch.tensor([0]), torch.tensor([0])
    scores = (queries @ table.T)[0].exp()
    variance = (entities - 1) ** 2 / size * (1 - size / (entities - 1)) * scores[1:].var()
    expected = -variance / (2 * scores.sum() ** 2)
    estimates = []
    for _ in range(4000):
        drawn = 1 + torch.randperm(entities - 1, generator=generator)[:size]
        sampled = SampledEntities.of(drawn, row, tail, num_entities=entities)
        estimates.append(sampled_loss("ce", queries, table[drawn], table[tail], sampled))
    estimates = torch.stack(estimates)
    difference = estimates.mean() - streamed_loss("ce", queries, table, Targets(row, tail))
    assert abs(difference - expected) < 4 * estimates.std() / len(estimates) ** 0.5
    assert difference < 0


def test_a_sample_of_nothing_but_targets_counts_them_alone(inputs):
    queries, table, bias = inputs
    rows, tails = torch.tensor([0, 0]), torch.tensor([1, 3])
    sampled = SampledEntities.of(torch.tensor([3]), rows, tails, num_entities=K)
    loss = sampled_loss(
        "ce",
        queries[:1],
        table[sampled.entities],
        table[tails],
        sampled,
        sample_bias=bias[[3]],
        target_bias=bias[tails],
    )
    scores = (queries[:1] @ table.T + bias)[0, tails]
    torch.testing.assert_close(loss, scores.logsumexp(dim=0) - scores.mean())


def test_queries_in_pieces_give_the_same(inputs, monkeypatch):
    whole = estimate("ce", inputs, [5, 0, 4, 2], label_smoothing=0.1)
    monkeypatch.setattr("conve_tracin.model.sampled_loss.CPU_CHUNK_SCORES_OF_A_THREAD", 1)
    pieces = estimate("ce", inputs, [5, 0, 4, 2], label_smoothing=0.1)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(pieces, inputs), gradients(whole, inputs), rtol=1e-12, atol=1e-12)


def test_scores_far_apart_stay_finite():
    queries = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    table = torch.tensor([[1.0], [-1.0], [3.0]], requires_grad=True)
    rows, tails = torch.tensor([0, 1]), torch.tensor([1, 2])
    sampled = SampledEntities.of(torch.tensor([2, 0, 1]), rows, tails, num_entities=3)
    for kind in ("bce", "ce"):
        loss = sampled_loss(kind, queries, table[sampled.entities], table[tails], sampled)
        expected = streamed_loss(kind, queries, table, Targets(rows, tails))
        torch.testing.assert_close(loss, expected)
        for gradient in torch.autograd.grad(loss, [queries, table]):
            assert gradient.isfinite().all()

"""A graph, a small ConvE for it, and influences computed by hand with a backward loop."""

import numpy as np
import torch
import torch.nn.functional as F

from conve_tracin.model.conve import ConvE

NUM_ENTITIES, NUM_RELATIONS = 6, 3

# Shares each single part with TRAINING below, is itself a training triple, and has h = t.
TEST_TRIPLES = np.array([[0, 1, 2], [3, 1, 3], [4, 2, 0]])

TRAINING = np.array(
    [
        [0, 1, 2],  # the test triple itself
        [0, 1, 3],  # its head and relation
        [0, 2, 5],  # its head
        [5, 1, 4],  # its relation
        [1, 0, 2],  # its tail
        [2, 0, 1],  # its tail as head
        [1, 2, 0],  # its head as tail
        [3, 1, 3],  # head equal to tail
        [2, 1, 2],
        [5, 0, 4],  # nothing in common
        [0, 1, 2],  # a duplicate
        [4, 2, 0],
    ]
)

EVERYTHING = tuple(name for name, _ in ConvE(num_entities=2, num_relations=1).named_parameters())


def make_model(*, entity_bias=False, dtype=torch.float64, kernel_height=2) -> ConvE:
    """A model with BatchNorm statistics and weights far from their start."""
    torch.manual_seed(7)
    model = ConvE(
        num_entities=NUM_ENTITIES,
        num_relations=NUM_RELATIONS,
        embedding_dim=12,
        embedding_height=3,
        embedding_width=4,
        output_channels=5,
        kernel_height=kernel_height,
        entity_bias=entity_bias,
    ).to(dtype)
    model.train()
    for _ in range(20):
        model(torch.randint(0, NUM_ENTITIES, (32,)), torch.randint(0, NUM_RELATIONS, (32,)))
    with torch.no_grad():
        for norm in (model.bn0, model.bn1, model.bn2):
            norm.weight.normal_(1, 0.3)
            norm.bias.normal_(0, 0.3)
        model.entity_embeddings.weight.mul_(2)
        if entity_bias:
            model.entity_bias.normal_()
    return model.eval()


def gradients_by_hand(model, triples, names, loss_of=None):
    """∇ℓ of each triple from the scores of all entities: shares no code with the package's influence modules."""
    loss_of = loss_of or (lambda score: F.binary_cross_entropy_with_logits(score, torch.ones_like(score)))
    rows = []
    for head, relation, tail in triples.tolist():
        model.zero_grad()
        loss_of(model(torch.tensor([head]), torch.tensor([relation]))[0, tail]).backward()
        parameters = dict(model.named_parameters())
        rows.append(torch.cat([_flat_gradient(parameters[name]) for name in names]))
    model.zero_grad()
    return torch.stack(rows)


def _flat_gradient(parameter):
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.flatten().clone()


def products_by_hand(model, names, loss_of=None):
    test = gradients_by_hand(model, TEST_TRIPLES, names, loss_of)
    return test @ gradients_by_hand(model, TRAINING, names, loss_of).T


def assert_close(actual, expected, tolerance):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def once_each(training, influences):
    """Return the distinct rows of training triples (N, 3) by their first places, their influences, and their counts."""
    _, first, counts = np.unique(training, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    return training[first[order]], np.asarray(influences)[first[order]], counts[order]

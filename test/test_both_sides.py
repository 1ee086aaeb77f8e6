import numpy as np
import pytest
import torch

from conve_tracin.influence.both_sides import both_sides_effects
from conve_tracin.influence.gauss_newton import (
    CurvatureConfig,
    GaussNewtonMethod,
    gauss_newton_effects,
    gauss_newton_tangents,
    label_effects,
    training_curvature,
)
from conve_tracin.model import ConvE
from conve_tracin.triples import with_inverse_triples


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    sizes = {"embedding_dim": 8, "embedding_height": 2, "embedding_width": 4, "kernel_height": 2}
    model = ConvE(num_entities=9, num_relations=6, output_channels=5, **sizes).double().eval()
    triples = np.unique(np.random.default_rng(0).integers(0, [9, 3, 9], size=(40, 3)), axis=0)
    return model, triples, training_curvature(model, triples, CurvatureConfig(), inverse_triples=True)


def test_both_sides_are_the_sum_of_the_two(case):
    model, triples, curvature = case
    test = triples[[0, 7, 20]]
    effects = both_sides_effects(model, test, triples, curvature=curvature).numpy()
    method = GaussNewtonMethod(curvature=curvature.config, competition=0.0, same_tail_share=0.0, same_query_share=0.0)
    as_tail = gauss_newton_effects(model, test, triples, method, inverse_triples=True, curvature=curvature).numpy()
    inverse = test[:, [2, 1, 0]] * np.array([1, 2, 1]) + np.array([0, 1, 0])
    both_queries = label_effects(
        model, gauss_newton_tangents(model, inverse, curvature), with_inverse_triples(triples)
    ).numpy()
    as_head = both_queries[:, : len(triples)] + both_queries[:, len(triples) :]
    np.testing.assert_allclose(effects, as_tail + as_head, rtol=1e-9, atol=1e-12)


def test_a_prediction_and_its_reverse_reading_are_one(case):
    """A graph that is read backwards has the same two scores, and the same effects."""
    model, triples, curvature = case
    one = both_sides_effects(model, triples[:4], triples, curvature=curvature)
    four = torch.cat([both_sides_effects(model, triples[i : i + 1], triples, curvature=curvature) for i in range(4)])
    torch.testing.assert_close(one, four)

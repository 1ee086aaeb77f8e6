import numpy as np
import pytest
import torch
from torch.func import functional_call, hessian, jacrev

from conve_tracin.data.queries import Queries, with_inverse_triples
from conve_tracin.errors import InputError
from conve_tracin.influence.curvature import CurvatureConfig, RowCurvature
from conve_tracin.influence.effects import (
    GaussNewtonMethod,
    gauss_newton_effects,
    gauss_newton_tangents,
    label_effects,
    leverages,
)
from conve_tracin.model.conve import ConvE

ENTITIES, RELATIONS, DIM = 9, 3, 8


@pytest.fixture(scope="module")
def triples():
    generator = np.random.default_rng(0)
    every = np.stack(np.unravel_index(np.arange(ENTITIES * RELATIONS * ENTITIES), (ENTITIES, RELATIONS, ENTITIES)), 1)
    return generator.permutation(every)[:40]


def make_model(num_relations, *, entity_bias=False):
    torch.manual_seed(0)
    model = ConvE(
        num_entities=ENTITIES,
        num_relations=num_relations,
        embedding_dim=DIM,
        embedding_height=2,
        embedding_width=4,
        output_channels=5,
        kernel_height=2,
        entity_bias=entity_bias,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
        for norm in (model.bn0, model.bn1, model.bn2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model.eval()


def moved_row(model, side, row, value):
    name = "relation_embeddings.weight" if side == "relation" else "entity_embeddings.weight"
    table = dict(model.named_parameters())[name]
    return {name: torch.where(torch.arange(len(table))[:, None] == row, value, table)}


def all_scores(model, queries, values):
    return functional_call(model, values, (queries.heads, queries.relations))  # (Q, K)


def explicit_curvature(model, queries, *, side, row, importance):
    """Jᵀ diag(c) J with the Jacobian of every score of every query by the row: the definition of Gauss–Newton.

    An entity's second-order share through q and e_t of the same triple (h = t) is left out, as the module says.
    """
    table = model.relation_embeddings.weight if side == "relation" else model.entity_embeddings.weight

    def scores_of(value):
        values = moved_row(model, side, row, value)
        if side != "relation":
            vectors = functional_call(HeadsOnly(model), {f"model.{k}": v for k, v in values.items()}, (queries,))
            fixed = model.entity_embeddings.weight.detach()
            by_query = vectors @ fixed.T
            return by_query if model.entity_bias is None else by_query + model.entity_bias
        return all_scores(model, queries, values)

    jacobian = jacrev(scores_of)(table[row].detach())  # (Q, K, d)
    scores = all_scores(model, queries, {})
    weights = torch.sigmoid(scores) * (1 - torch.sigmoid(scores)) * importance[:, None]
    return torch.einsum("qk,qki,qkj->ij", weights, jacobian, jacobian).detach()


class HeadsOnly(torch.nn.Module):
    """Query vectors alone, so that a moved entity row acts as head and not as tail."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, queries):
        return self.model.encode(queries.heads, queries.relations)


def explicit_tail_curvature(model, queries, *, row, importance):
    """The Hessian of an entity's own logistic regression on the query vectors, by autograd."""
    vectors = model.encode(queries.heads, queries.relations).detach()
    bias = 0 if model.entity_bias is None else model.entity_bias[row].detach()

    def loss(value):
        return (importance * torch.nn.functional.softplus(vectors @ value + bias)).sum()

    return hessian(loss)(model.entity_embeddings.weight[row].detach())


@pytest.fixture(scope="module", params=["kvsall with inverses", "1vsall", "1vsall with inverses and bias"])
def case(request, triples):
    inverse = "inverses" in request.param
    weighted = "1vsall" in request.param
    model = make_model(RELATIONS * (2 if inverse else 1), entity_bias="bias" in request.param)
    model_triples = with_inverse_triples(triples) if inverse else triples
    queries = Queries.distinct(model_triples)
    importance = queries.offsets.diff().double() if weighted else torch.ones(len(queries), dtype=torch.float64)
    return model, model_triples, queries, importance, CurvatureConfig(weighted_by_triples=weighted, damping=0.3)


def test_curvatures_are_those_of_autograd(case):
    model, _, queries, importance, config = case
    curvature = RowCurvature(model, queries, config)
    for entity in (0, 4):
        as_tail = explicit_tail_curvature(model, queries, row=entity, importance=importance)
        as_head = explicit_curvature(model, queries, side="head", row=entity, importance=importance)
        torch.testing.assert_close(curvature.as_tail(entity), as_tail, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(curvature.entity(entity), as_tail + as_head, rtol=1e-10, atol=1e-12)
    relation = explicit_curvature(model, queries, side="relation", row=1, importance=importance)
    torch.testing.assert_close(curvature.relation(1), relation, rtol=1e-10, atol=1e-12)


def test_label_effects_are_gradient_times_inverse_curvature_times_gradient(case, triples):
    model, model_triples, queries, importance, config = case
    test_triples = np.array([[0, 1, 4], [4, 0, 4]])  # the second one's head is its tail
    tangents = gauss_newton_tangents(model, test_triples, RowCurvature(model, queries, config))
    effects = label_effects(model, tangents, model_triples, batch_size=7)

    for test_triple, row_of_effects in zip(test_triples, effects, strict=True):
        head, relation, tail = test_triple.tolist()
        gradient = score_gradients(model, test_triple)
        expected = torch.zeros(len(model_triples), dtype=torch.float64)
        for side, row in {("entity", head), ("entity", tail), ("relation", relation)}:
            if side == "entity":
                curvature = explicit_tail_curvature(model, queries, row=row, importance=importance)
                curvature = curvature + explicit_curvature(model, queries, side="head", row=row, importance=importance)
            else:
                curvature = explicit_curvature(model, queries, side="relation", row=row, importance=importance)
            damping = config.damping * torch.linalg.eigvalsh(curvature).mean()
            direction = torch.linalg.inv(curvature + damping * torch.eye(DIM).double()) @ gradient[side][row]
            for position, triple in enumerate(model_triples):
                expected[position] += score_gradients(model, triple)[side][row] @ direction
        torch.testing.assert_close(row_of_effects.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("approach", ["1vsall", "kvsall"])
def test_effects_follow_the_formula_triple_by_triple(triples, inverse, approach):
    model = make_model(RELATIONS * (2 if inverse else 1))
    # Shares head and relation with a training triple, relation and tail with another.
    test_triple = np.array([triples[1, 0], triples[1, 1], 0])
    triples = np.concatenate([triples, [[(triples[1, 0] + 1) % ENTITIES, triples[1, 1], 0]]])
    triples = np.unique(triples, axis=0)
    model_triples = with_inverse_triples(triples) if inverse else triples
    model_test = test_triple * [1, 2 if inverse else 1, 1]
    method = GaussNewtonMethod.for_training(approach, damping=0.3)
    queries = Queries.distinct(model_triples)
    tangents = gauss_newton_tangents(model, model_test[None], RowCurvature(model, queries, method.curvature))
    labels = label_effects(model, tangents, model_triples)[0].tolist()
    own = label_effects(model, tangents, model_test[None])[0, 0].item()

    rows = [tuple(row) for row in model_triples.tolist()]
    single = []
    for row, label in zip(rows, labels, strict=True):
        competitors = [other for mate, other in zip(rows, labels, strict=True) if mate[:2] == row[:2]]
        single.append(label - method.competition * sum(competitors) / len(competitors))
    expected = []
    for position, (head, relation, tail) in enumerate(triples.tolist()):
        value = single[position] + (single[len(triples) + position] if inverse else 0)
        if relation == test_triple[1] and tail == test_triple[2]:
            value += (0.4 if approach == "kvsall" else 0.8) * own
        if relation == test_triple[1] and head == test_triple[0] and approach == "kvsall":
            value += 0.2 * own
        expected.append(value)

    effects = gauss_newton_effects(model, test_triple[None], triples, method, inverse_triples=inverse)
    assert method.competition == (0.7 if approach == "1vsall" else 0)
    torch.testing.assert_close(effects[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_removing_a_label_and_training_on_moves_the_score_as_the_effect_says(triples):
    """One Newton step of the tail's own regression, by autograd, against the label effect of its tangent."""
    model = make_model(RELATIONS)
    queries = Queries.distinct(triples)
    importance = torch.ones(len(queries), dtype=torch.float64)
    head, relation, tail = 3, 1, int(triples[0, 2])
    curvature = RowCurvature(model, queries, CurvatureConfig(damping=0.2))
    (tangent,) = gauss_newton_tangents(model, np.array([[head, relation, tail]]), curvature)
    tangent.entity_rows.pop(head, None)
    tangent.relation_rows.clear()
    effect = label_effects(model, [tangent], triples[:1])[0, 0].item()

    hessian_of_row = explicit_tail_curvature(model, queries, row=tail, importance=importance)
    hessian_of_row = hessian_of_row + explicit_curvature(model, queries, side="head", row=tail, importance=importance)
    damped = hessian_of_row + 0.2 * hessian_of_row.diagonal().mean() * torch.eye(DIM).double()
    # Without the label the objective has one more +s in it: the step goes against s's gradient.
    without = model.encode(*torch.tensor(triples[:1, :2]).T)[0].detach()
    step = -torch.linalg.solve(damped, without)
    before = model.encode(torch.tensor([head]), torch.tensor([relation]))[0].detach()
    assert (before @ step).item() == pytest.approx(-effect, rel=1e-4)


def score_gradients(model, triple):
    score = model.score(*torch.tensor(triple)[:, None])[0]
    by_entity, by_relation = torch.autograd.grad(
        score, [model.entity_embeddings.weight, model.relation_embeddings.weight]
    )
    return {"entity": by_entity, "relation": by_relation}


def test_random_signs_are_unbiased_for_the_entity_sum(case):
    model, _, queries, _, config = case
    exact = RowCurvature(model, queries, config).relation(0)
    many = CurvatureConfig(weighted_by_triples=config.weighted_by_triples, exact_jacobian_rows=0, probes=10_000)
    estimate = RowCurvature(model, queries, many).relation(0)
    assert (estimate - exact).norm() < 0.03 * exact.norm()


def test_sampled_queries_are_unbiased(case):
    model, _, queries, _, config = case
    settings = {"weighted_by_triples": config.weighted_by_triples, "max_tail_queries": 5, "max_encoded_queries": 3}
    exact = RowCurvature(model, queries, config)
    samples = [RowCurvature(model, queries, CurvatureConfig(**settings, seed=seed)) for seed in range(200)]
    for traces, expected in (
        (torch.stack([sample.as_tail(3).trace() for sample in samples]), exact.as_tail(3).trace()),
        (torch.stack([sample.relation(0).trace() for sample in samples]), exact.relation(0).trace()),
    ):
        standard_error = traces.std() / len(traces) ** 0.5
        assert standard_error > 0  # it is a sample indeed
        assert abs(traces.mean() - expected) < 4 * standard_error


def test_a_row_is_the_same_whatever_was_asked_before(case):
    model, _, queries, _, _ = case
    config = CurvatureConfig(max_tail_queries=5, max_encoded_queries=3, exact_jacobian_rows=0, probes=4)
    first, second = RowCurvature(model, queries, config), RowCurvature(model, queries, config)
    second.entity(1)
    second.relation(1)
    torch.testing.assert_close(first.entity(3), second.entity(3), rtol=0, atol=0)
    torch.testing.assert_close(first.relation(0), second.relation(0), rtol=0, atol=0)


def test_a_relation_without_training_triples_does_not_move(triples):
    model = make_model(RELATIONS + 1)
    queries = Queries.distinct(triples)
    curvature = RowCurvature(model, queries, CurvatureConfig())
    (tangent,) = gauss_newton_tangents(model, np.array([[0, RELATIONS, 1]]), curvature)
    assert not tangent.relation_rows[RELATIONS].any()
    assert tangent.entity_rows[1].any()


def test_damping_must_be_positive():
    with pytest.raises(InputError, match="damping"):
        CurvatureConfig(damping=0.0)


@pytest.mark.parametrize(
    ("damping", "curvature"),
    [
        pytest.param(1e-6, torch.tensor([[1.0, 1.001], [1.001, 1.0]]), id="a negative eigenvalue"),
        pytest.param(1e-8, torch.eye(2), id="nothing beside 1 in float32"),
        pytest.param(1e-17, torch.eye(2).double(), id="nothing beside 1 in float64"),
    ],
)
def test_damping_that_rounding_swallows_is_refused(case, damping, curvature):
    _, _, queries, _, _ = case
    rows = RowCurvature(make_model(2 * RELATIONS), queries, CurvatureConfig(damping=damping))
    with pytest.raises(InputError, match=rf"damping {damping:g} is lost .* larger --damping"):
        rows.precondition(curvature, torch.ones(2).to(curvature))


def test_damping_that_the_curvatures_precision_holds_is_used(case):
    _, _, queries, _, _ = case
    rows = RowCurvature(make_model(2 * RELATIONS), queries, CurvatureConfig(damping=1e-8))
    half = torch.ones(2, 2).double()  # eigenvalues 0 and 2, the mean is 1
    solved = rows.precondition(half, torch.tensor([1.0, -1.0]).double())
    torch.testing.assert_close(solved, torch.tensor([1e8, -1e8]).double(), rtol=1e-6, atol=0)


def test_a_curvature_that_is_not_finite_is_refused(case):
    _, _, queries, _, _ = case
    rows = RowCurvature(make_model(2 * RELATIONS), queries, CurvatureConfig())
    with pytest.raises(InputError, match="not finite"):
        rows.precondition(torch.full((2, 2), torch.inf), torch.ones(2))


def test_leverage_is_a_triples_label_effect_on_itself(case):
    model, model_triples, queries, _, config = case
    curvature = RowCurvature(model, queries, config)
    triples = model_triples[model_triples[:, 0] != model_triples[:, 2]][:6]
    tangents = gauss_newton_tangents(model, triples, curvature)
    expected = label_effects(model, tangents, triples).diagonal()
    torch.testing.assert_close(leverages(model, triples, curvature), expected, rtol=1e-9, atol=1e-12)

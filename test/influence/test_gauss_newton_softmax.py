"""The curvature and the label effects of models trained with softmax cross-entropy, against the objective itself."""

import numpy as np
import pytest
import torch
from test_gauss_newton import DIM, ENTITIES, RELATIONS, explicit_curvature, make_model, moved_row
from torch.func import functional_call, hessian, jacrev

from conve_tracin.data.keys import distinct_triples
from conve_tracin.data.queries import Queries, with_inverse_triples
from conve_tracin.errors import InputError
from conve_tracin.influence.beliefs import Entities, log_normalizers
from conve_tracin.influence.curvature import CurvatureConfig, RowCurvature
from conve_tracin.influence.effects import (
    GaussNewtonMethod,
    gauss_newton_effects,
    gauss_newton_tangents,
    label_weights,
    training_curvature,
)
from conve_tracin.influence.expectations import expected_derivatives
from conve_tracin.model.loss import Targets, streamed_loss

SMOOTHING = 0.1


@pytest.fixture(scope="module")
def triples():
    """Forty triples, some of them loops and one of them listed twice."""
    generator = np.random.default_rng(1)
    every = np.stack(np.unravel_index(np.arange(ENTITIES * RELATIONS * ENTITIES), (ENTITIES, RELATIONS, ENTITIES)), 1)
    drawn = generator.permutation(every)[:38]
    return np.concatenate([drawn, drawn[:1], [[4, 0, 4]]])


CASES = {
    "kvsall, equal": ("kvsall", "equal", False, False),
    "kvsall, tails, inverses": ("kvsall", "tails", True, False),
    "1vsall, bias": ("1vsall", "equal", False, True),
    "1vsall, inverses": ("1vsall", "equal", True, False),
}


@pytest.fixture(scope="module", params=[(loss, name) for loss in ("ce", "bce") for name in CASES], ids=str)
def case(request, triples):
    """A model, its training queries as training arranges them, their weights, and the curvature's settings."""
    loss, name = request.param
    approach, query_weights, inverse, bias = CASES[name]
    model = make_model(RELATIONS * (2 if inverse else 1), entity_bias=bias)
    model_triples = with_inverse_triples(triples) if inverse else triples
    if approach == "kvsall":
        trained = Queries.distinct(distinct_triples(model_triples))
        weights = trained.offsets.diff().double() if query_weights == "tails" else None
    else:
        trained, weights = Queries.one_per_triple(model_triples), None
    weighted = approach == "1vsall" or query_weights == "tails"
    listed = distinct_triples(model_triples) if approach == "kvsall" else model_triples
    queries = Queries.distinct(listed)
    return model, trained, weights, queries, CurvatureConfig(loss=loss, weighted_by_triples=weighted, damping=0.3)


def training_objective(model, trained, weights, loss, values, *, head_table=None, smoothing=SMOOTHING):
    """The sum over an epoch of the loss that training takes, with other values for some parameters.

    With `head_table` the heads' rows come from it, and the tails' rows from `values`.
    """
    rows, tails = trained.tails_of(torch.arange(len(trained)))
    heads = dict(values)
    if head_table is not None:
        heads["entity_embeddings.weight"] = head_table
    vectors = functional_call(Encoder(model), {f"model.{k}": v for k, v in heads.items()}, (trained,))
    # `streamed_loss` has no second derivative: this is its formula, held against it below.
    scores = vectors @ values.get("entity_embeddings.weight", model.entity_embeddings.weight).T
    if model.entity_bias is not None:
        scores = scores + model.entity_bias
    num_entities = scores.shape[1]
    labels = torch.zeros_like(scores)
    labels[rows, tails] = 1 - smoothing
    if loss == "ce":
        labels = labels / trained.offsets.diff()[:, None]
    labels = labels + smoothing / num_entities
    if loss == "bce":
        by_query = (torch.nn.functional.softplus(scores) - labels * scores).sum(dim=1)
    else:
        by_query = scores.logsumexp(dim=1) - (labels * scores).sum(dim=1)
    return (by_query if weights is None else weights * by_query).sum()


class Encoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, queries):
        return self.model.encode(queries.heads, queries.relations)


def test_the_objective_here_is_that_of_training(case):
    model, trained, weights, _, config = case
    vectors = model.encode(trained.heads, trained.relations)
    expected = streamed_loss(
        config.loss,
        vectors,
        model.entity_embeddings.weight,
        Targets(*trained.tails_of(torch.arange(len(trained)))),
        bias=model.entity_bias,
        weights=weights,
        label_smoothing=SMOOTHING,
    )
    scale = len(trained) * (ENTITIES if config.loss == "bce" else 1)
    torch.testing.assert_close(training_objective(model, trained, weights, config.loss, {}), expected * scale)


@pytest.mark.parametrize("row", [1, 4])
def test_curvatures_are_hessians_of_the_training_objective(case, row):
    model, trained, weights, queries, config = case
    curvature = RowCurvature(model, queries, config)
    table = model.entity_embeddings.weight.detach()

    def as_relation(value):
        return training_objective(model, trained, weights, config.loss, moved_row(model, "relation", 1, value))

    def as_head(value):
        moved = moved_row(model, "entity", row, value)["entity_embeddings.weight"]
        resting = {"entity_embeddings.weight": table}
        return training_objective(model, trained, weights, config.loss, resting, head_table=moved)

    def as_tail(value):
        return training_objective(
            model, trained, weights, config.loss, moved_row(model, "entity", row, value), head_table=table
        )

    relation_row, entity_row = model.relation_embeddings.weight[1].detach(), table[row]
    tolerance = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(curvature.relation(1), hessian(as_relation)(relation_row), **tolerance)
    tail_part = hessian(as_tail)(entity_row)
    torch.testing.assert_close(curvature.as_tail(row), tail_part, **tolerance)
    torch.testing.assert_close(curvature.entity(row), tail_part + hessian(as_head)(entity_row), **tolerance)


@pytest.mark.parametrize("row", [1, 4])
def test_what_is_left_out_is_an_entity_as_tail_of_its_own_queries(case, row):
    """The objective's Hessian by a whole entity row is H plus the terms in which its two parts multiply."""
    model, trained, weights, queries, config = case
    table = model.entity_embeddings.weight.detach()

    def as_both(value):
        return training_objective(model, trained, weights, config.loss, moved_row(model, "entity", row, value))

    own = (trained.heads == row).nonzero()[:, 0]
    own_queries = Queries(*(trained.heads[own], trained.relations[own], trained.offsets[:1], trained.tails[:0]))
    vectors = model.encode(own_queries.heads, own_queries.relations).detach()

    def encode(value):
        values = {f"model.{k}": v for k, v in moved_row(model, "entity", row, value).items()}
        return functional_call(Encoder(model), values, (own_queries,))

    jacobians = jacrev(encode)(table[row])  # (B, d, d)
    scores = vectors @ table.T
    if model.entity_bias is not None:
        scores = scores + model.entity_bias.detach()
    counts = trained.offsets.diff().double()
    importance = torch.ones(len(own)).double() if weights is None else weights[own]
    expected = RowCurvature(model, queries, config).entity(row)
    for place, query in enumerate(own.tolist()):
        tails = trained.tails[trained.offsets[query] : trained.offsets[query + 1]]
        label = (1 - SMOOTHING) * (tails == row).double().sum() / (counts[query] if config.loss == "ce" else 1)
        label = label + SMOOTHING / ENTITIES
        if config.loss == "ce":
            share = scores[place].softmax(dim=0)
            belief, direction = share[row], share[row] * (table[row] - share @ table)
        else:
            belief = torch.sigmoid(scores[place, row])
            direction = belief * (1 - belief) * table[row]
        pulled = jacobians[place].T @ direction
        both = torch.outer(vectors[place], pulled) + (belief - label) * jacobians[place]
        expected = expected + importance[place] * (both + both.T)
    torch.testing.assert_close(hessian(as_both)(table[row]), expected.detach(), rtol=1e-8, atol=1e-9)


def test_random_signs_are_unbiased_for_the_centred_sum(case):
    model, _, _, queries, config = case
    exact = RowCurvature(model, queries, config).relation(0)
    settings = {"loss": config.loss, "weighted_by_triples": config.weighted_by_triples}
    many = CurvatureConfig(**settings, exact_jacobian_rows=0, probes=10_000)
    assert (RowCurvature(model, queries, many).relation(0) - exact).norm() < 0.03 * exact.norm()


def test_sampled_queries_are_unbiased(case):
    model, _, _, queries, config = case
    settings = {"loss": config.loss, "weighted_by_triples": config.weighted_by_triples}
    settings |= {"max_tail_queries": 5, "max_encoded_queries": 3}
    exact = RowCurvature(model, queries, config)
    samples = [RowCurvature(model, queries, CurvatureConfig(**settings, seed=seed)) for seed in range(200)]
    traces = torch.stack([sample.as_tail(3).trace() for sample in samples])
    standard_error = traces.std() / len(traces) ** 0.5
    assert abs(traces.mean() - exact.as_tail(3).trace()) < 4 * standard_error


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("num_large", [0, 2, None])
def test_moments_are_those_of_the_softmax_whatever_the_chunk(case, size, num_large):
    model, _, _, queries, _ = case
    vectors = model.encode(queries.heads, queries.relations).detach()
    vectors[:num_large] *= 30  # exponentials beyond every float
    normalizers, means = Entities.of(model).softmax_moments(vectors, size=size)
    scores = model.score_queries(vectors).detach()
    torch.testing.assert_close(normalizers, scores.logsumexp(dim=1))
    torch.testing.assert_close(log_normalizers(Entities.of(model), vectors), scores.logsumexp(dim=1))
    torch.testing.assert_close(means, scores.softmax(dim=1) @ model.entity_embeddings.weight.detach())


def test_a_binary_curvature_is_not_that_of_the_softmax(case):
    model, _, _, queries, config = case
    importance = queries.offsets.diff().double() if config.weighted_by_triples else torch.ones(len(queries)).double()
    binary = explicit_curvature(model, queries, side="relation", row=0, importance=importance)
    same = torch.allclose(RowCurvature(model, queries, config).relation(0), binary, rtol=1e-6)
    assert same == (config.loss == "bce")
    assert binary.shape == (DIM, DIM)


def test_other_losses_are_refused():
    with pytest.raises(InputError, match="'bce' and 'ce'"):
        CurvatureConfig(loss="margin")


def moved_along(model, tangent, step):
    names = (("entity_embeddings.weight", tangent.entity_rows), ("relation_embeddings.weight", tangent.relation_rows))
    values = {}
    for name, rows in names:
        table = model.get_parameter(name).detach().clone()
        for row, direction in rows.items():
            table[row] = table[row] + step * direction
        values[name] = table
    return values


def test_expected_derivatives_are_those_of_the_log_sum(case, triples):
    model, _, _, queries, config = case
    curvature = RowCurvature(model, queries, config)
    (tangent,) = gauss_newton_tangents(model, triples[:1], curvature, relation_moves=False)

    def log_sums(step):
        return functional_call(model, moved_along(model, tangent, step), (queries.heads, queries.relations)).logsumexp(
            1
        )

    derivatives = jacrev(log_sums)(torch.tensor(0.0).double()).detach()
    entities = set(tangent.entity_rows)
    everything = torch.arange(len(queries))
    expected = expected_derivatives(tangent, curvature.beliefs, everything, batch_size=4)
    for query, value in enumerate(expected.tolist()):
        tails = queries.tails[queries.offsets[query] : queries.offsets[query + 1]].tolist()
        concerned = int(queries.heads[query]) in entities or entities & set(tails)
        assert value == (pytest.approx(derivatives[query].item(), abs=1e-10) if concerned else 0)


def repeats_in_query(triples, place):
    of_query = triples[(triples[:, :2] == triples[place, :2]).all(axis=1)]
    return len(np.unique(of_query, axis=0)) < len(of_query)


@pytest.mark.parametrize("ends", [(4, 4), (2, 5)])
@pytest.mark.parametrize("name", CASES)
def test_effects_are_what_the_training_objective_loses_with_a_triple(triples, name, ends):
    """Along the tangent, the objective without a triple less the objective with it, by its own derivative."""
    approach, query_weights, inverse, bias = CASES[name]
    model = make_model(RELATIONS * (2 if inverse else 1), entity_bias=bias)
    test_triple = np.array([[ends[0], 1, ends[1]]])
    method = GaussNewtonMethod.for_training(approach, damping=0.03, loss="ce", query_weights=query_weights)
    effects = gauss_newton_effects(model, test_triple, triples, method, inverse_triples=inverse)[0]
    curvature = training_curvature(model, triples, method.curvature, inverse_triples=inverse)
    model_test = test_triple * [1, 2 if inverse else 1, 1]
    (tangent,) = method.tangents(model, model_test, curvature, inverse_triples=inverse)
    assert set(tangent.entity_rows) == set(ends)
    assert not tangent.relation_rows

    def objective(kept, step):
        listed = with_inverse_triples(kept) if inverse else kept
        if approach == "kvsall":
            queries = Queries.distinct(distinct_triples(listed))
            weights = queries.offsets.diff().double() if query_weights == "tails" else None
        else:
            queries, weights = Queries.one_per_triple(listed), None
        values = moved_along(model, tangent, step)
        return training_objective(model, queries, weights, "ce", values, smoothing=0.0)

    start = torch.tensor(0.0).double()
    whole = jacrev(lambda step: objective(triples, step))(start)
    touching = np.flatnonzero(np.isin(triples[:, [0, 2]], ends).any(axis=1))
    assert len(touching) > 5
    for place in touching:
        if (triples == triples[place]).all(axis=1).sum() > 1 and approach == "kvsall":
            continue  # training has it once, and goes on having it
        if (approach, query_weights) == ("kvsall", "equal") and repeats_in_query(triples, place):
            continue  # the mean over a query's tails is of what is listed, unless the method drops repeats (`scores`)
        without = jacrev(lambda step, place=place: objective(np.delete(triples, place, axis=0), step))(start)
        assert effects[place].item() == pytest.approx((without - whole).item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("kvsall", "bce", "equal"), (False, 0.0, "tails", "one", False, True)),
        (("kvsall", "bce", "tails"), (True, 0.0, "tails", "counts", False, True)),
        (("1vsall", "bce", "tails"), (True, 0.7, "tails", "one", False, True)),
        (("kvsall", "ce", "equal"), (False, 1.0, "either", "shares", True, False)),
        (("kvsall", "ce", "tails"), (True, 1.0, "beliefs", "one", True, False)),
        (("1vsall", "ce", "equal"), (True, 1.0, "beliefs", "one", True, False)),
    ],
)
def test_the_constants_are_those_of_the_training(settings, expected):
    approach, loss, query_weights = settings
    method = GaussNewtonMethod.for_training(approach, loss=loss, query_weights=query_weights)
    constants = (method.competition, method.rivals, method.label_weights, method.both_sides, method.relation_moves)
    assert (method.curvature.weighted_by_triples, *constants) == expected
    assert method.curvature.loss == loss


def test_label_weights_count_distinct_tails():
    triples = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 2], [0, 0, 3], [1, 0, 2], [1, 1, 2], [1, 1, 2]])
    assert label_weights(triples, "counts").tolist() == [2, 2, 2, 2, 1, 1, 1]
    assert label_weights(triples, "shares").tolist() == [0.5, 0.5, 0.5, 0.5, 1, 1, 1]


def test_a_triple_that_is_listed_twice_counts_once_with_kvsall(triples):
    model = make_model(RELATIONS)
    once = np.unique(triples, axis=0)
    by_tails = GaussNewtonMethod.for_training("kvsall", loss="ce", query_weights="tails").curvature
    matrices = [training_curvature(model, listed, by_tails, inverse_triples=False) for listed in (once, triples)]
    torch.testing.assert_close(matrices[0].relation(1), matrices[1].relation(1))
    one_target = GaussNewtonMethod.for_training("1vsall", loss="ce").curvature
    rows = [training_curvature(model, listed, one_target, inverse_triples=False) for listed in (once, triples)]
    relation = int(triples[-2, 1])
    assert rows[1].relation(relation).trace() > rows[0].relation(relation).trace()

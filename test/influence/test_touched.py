"""Effects of the touched triples alone, against the formula written out over all of them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_gauss_newton import make_model
from torch import Tensor
from torch.func import jacrev, jvp, vmap

from conve_tracin.data.graph import Graph
from conve_tracin.data.queries import Queries, examples_of
from conve_tracin.influence import beliefs as beliefs_module
from conve_tracin.influence import curvature as curvature_module
from conve_tracin.influence.beliefs import Draws, Entities
from conve_tracin.influence.curvature import CurvatureConfig, RowCurvature
from conve_tracin.influence.effects import GaussNewtonMethod, gauss_newton_effects
from conve_tracin.influence.engine.jacobians import HEAD, RELATION, RowJacobians, moved_query_vectors
from conve_tracin.influence.engine.passes import encode_queries
from conve_tracin.influence.gauss_newton import GaussNewton
from conve_tracin.influence.method import Scores, rank_influences
from conve_tracin.influence.trace import make_trace
from conve_tracin.model.conve import ConvE

ENTITIES, RELATIONS = 9, 3


@pytest.fixture(scope="module", params=range(2))
def triples(request):
    """Random triples around a hub, some with one entity at both ends, and some listed several times."""
    generator = np.random.default_rng(request.param)
    drawn = generator.integers(0, [ENTITIES, RELATIONS, ENTITIES], size=(30, 3))
    drawn[:12, 2] = 1
    return np.concatenate([drawn, drawn[:6], drawn[:2], [[1, 0, 1], [4, 2, 4]]])


TRAINED = [
    {"training_approach": approach, "loss": loss, "query_weights": weights, "inverse_triples": inverse}
    for approach, loss, weights, inverse in itertools.product(
        ("1vsall", "kvsall"), ("bce", "ce"), ("equal", "tails"), (False, True)
    )
    if approach == "kvsall" or weights == "equal"
]


@pytest.mark.parametrize("trained", TRAINED, ids=lambda trained: " ".join(map(str, trained.values())))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_effects_are_those_of_all_triples(triples, trained, dtype, tolerance):
    inverse = trained["inverse_triples"]
    model = make_model(RELATIONS * (2 if inverse else 1)).to(dtype)
    method = GaussNewtonMethod.for_training(
        trained["training_approach"], loss=trained["loss"], query_weights=trained["query_weights"]
    )
    graph = Graph.of_listed(triples, ENTITIES, RELATIONS)
    listed = triples if method.curvature.repeated_triples_count else graph.triples
    tests = np.array([[1, 0, 1], [0, 1, 4], triples[0], triples[-1]])
    expected = gauss_newton_effects(model, tests, listed, method, inverse_triples=inverse)
    if listed is triples:
        places = graph.first_places
        torch.testing.assert_close(GaussNewton(model, **trained).products(tests, triples), expected)
        expected = expected[:, places]
    found = GaussNewton(model, **trained, graph=graph)
    rows = found.scores(tests, graph.triples)
    for scores, row in zip(rows, expected, strict=True):
        torch.testing.assert_close(scores.dense(), row, rtol=0, atol=tolerance * row.abs().max().item())


def test_a_triple_that_shares_nothing_is_not_looked_at():
    triples = np.array([[0, 0, 1], [0, 1, 2], [3, 1, 4], [5, 2, 6], [3, 1, 1]])
    (scores,) = GaussNewton(make_model(RELATIONS), training_approach="1vsall").scores([[0, 0, 1]], triples)
    assert scores.positions.tolist() == [0, 1, 2, 4]  # the third one competes with the last
    assert scores.total == 5


@pytest.mark.parametrize("max_entities", [4, 100])
def test_an_entity_that_training_has_at_one_end_only_is_no_error(max_entities):
    triples = np.array([[0, 0, 1], [0, 1, 2], [3, 1, 1], [5, 2, 6], [3, 1, 2]])
    found = GaussNewton(make_model(RELATIONS), training_approach="1vsall", loss="ce")
    curvature = replace(found.method.curvature, max_entities=max_entities, max_tail_queries=2)
    found.method = replace(found.method, curvature=curvature)
    never_a_tail, never_seen, seen = found.products([[0, 0, 2], [7, 0, 8], [3, 1, 1]], triples)
    assert never_a_tail[[0, 1]].all()
    assert not never_seen.any()
    assert seen[[2, 4]].all()


@pytest.mark.parametrize("inverse", [False, True])
def test_sorted_queries_find_what_a_search_finds(triples, inverse):
    graph = Graph.of_listed(triples, ENTITIES, RELATIONS)
    found = graph.queries(inverse_triples=inverse)
    searched = Queries.distinct(examples_of(graph.triples, inverse_triples=inverse))
    every = torch.arange(len(searched))
    assert len(found) == len(searched)
    for mine, expected in zip(found.pairs(every), searched.pairs(every), strict=True):
        assert torch.equal(mine, expected)
    assert torch.equal(found.count_tails(every), searched.count_tails(every))
    assert torch.equal(found.known_tails(every[3:5]), searched.known_tails(every[3:5]))
    for entity in range(ENTITIES):
        assert torch.equal(found.of_head(entity), searched.of_head(entity))
        assert torch.equal(found.with_tail(entity), searched.with_tail(entity))
    for row in range(found.num_rows):
        assert torch.equal(found.of_relation(row).sort().values, searched.of_relation(row))


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_sampled_curvatures_do_not_depend_on_how_queries_are_found(triples, loss):
    config = CurvatureConfig(loss=loss, max_tail_queries=4, max_encoded_queries=3, max_entities=5)
    graph, model = Graph.of_listed(triples, ENTITIES, RELATIONS), make_model(2 * RELATIONS)
    examples = examples_of(graph.triples, inverse_triples=True)
    rows = [
        RowCurvature(model, queries, config)
        for queries in (graph.queries(inverse_triples=True), Queries.distinct(examples))
    ]
    torch.testing.assert_close(rows[0].entity(1), rows[1].entity(1))
    torch.testing.assert_close(rows[0].relation(2), rows[1].relation(2))


@pytest.mark.parametrize("exact_jacobian_rows", [0, 1000])
def test_sampled_entities_are_unbiased(triples, exact_jacobian_rows):
    queries, model = Queries.distinct(triples), make_model(RELATIONS)
    exact = RowCurvature(model, queries, CurvatureConfig()).relation(0).trace()
    sampled = {"max_entities": 8, "exact_jacobian_rows": exact_jacobian_rows, "sampled_per_dimension": 100}
    traces = torch.stack(
        [RowCurvature(model, queries, CurvatureConfig(seed=s, **sampled)).relation(0).trace() for s in range(150)]
    )
    standard_error = traces.std() / len(traces) ** 0.5
    assert standard_error > 0
    assert abs(traces.mean() - exact) < 4 * standard_error


def test_a_curvature_from_drawn_entities_is_unbiased(triples):
    queries, model = Queries.distinct(triples), make_model(RELATIONS)
    head = int(queries.heads.mode().values)
    assert len(queries.of_head(head)) > 2
    exact = RowCurvature(model, queries, CurvatureConfig(loss="ce")).as_head(head)
    sampled = {"loss": "ce", "max_entities": 5, "max_encoded_queries": 2, "probes": 6}
    drawn = torch.stack(
        [RowCurvature(model, queries, CurvatureConfig(seed=seed, **sampled)).as_head(head) for seed in range(400)]
    )
    standard_error = drawn.std(dim=0) / len(drawn) ** 0.5
    assert (standard_error.diagonal() > 0).all()
    assert ((drawn.mean(dim=0) - exact).abs() < 4.5 * standard_error + 1e-12).all()


@pytest.mark.parametrize("block_size", [1, 2, 64])
@pytest.mark.parametrize("size", [3, 100])
@pytest.mark.parametrize("counted", [False, True])
def test_entities_are_drawn_as_the_softmax_believes(size, block_size, counted):
    model = make_model(RELATIONS, entity_bias=counted)
    vectors = model.encode(torch.tensor([0, 1]), torch.tensor([0, 1])).detach() * 3
    draws = Draws(20_000, torch.Generator().manual_seed(0), block_size=block_size)
    factors = torch.arange(1.0, ENTITIES + 1) if counted else torch.ones(ENTITIES)
    entities = Entities.of(model)
    entities = entities.take(torch.arange(ENTITIES), factors.double()) if counted else entities
    entities.softmax_moments(vectors, size=size, draws=draws)
    shares = torch.stack([row.bincount(minlength=ENTITIES) for row in draws.entities]) / 20_000
    expected = (model.score_queries(vectors).detach() + factors.log()).softmax(dim=1)
    assert ((shares - expected).abs() < 4.5 * (expected * (1 - expected) / 20_000).sqrt() + 1e-12).all()


def test_normalizers_of_a_hub_run_over_known_tails_and_a_sample():
    hub, known = 1, [1, 3]
    queries = Queries.distinct(np.array([[head, 0, hub] for head in range(ENTITIES)] + [[2, 0, 3]]))
    model = make_model(RELATIONS)
    ids = queries.with_tail(hub)
    exponentials = model.score_queries(encode_queries(model, *queries.pairs(ids))).detach().exp()

    def of_hub(**config) -> Tensor:
        return RowCurvature(model, queries, CurvatureConfig(loss="ce", **config)).beliefs.of_tail(hub)

    exact = exponentials.sum(dim=1)
    torch.testing.assert_close(of_hub(max_entities=4, max_exact_tail_queries=len(ids)).exp(), exact)
    torch.testing.assert_close(of_hub(max_exact_tail_queries=0).exp(), exact)
    # Of four entities in the sample two at least are none of the known tails, and stand for all seven of these.
    others = [entity for entity in range(ENTITIES) if entity not in known]
    of_known = exponentials[:, known].sum(dim=1)
    possible = [
        of_known + exponentials[:, list(drawn)].sum(dim=1) * len(others) / count
        for count in (2, 3, 4)
        for drawn in itertools.combinations(others, count)
    ]
    for seed in range(20):
        sampled = of_hub(max_entities=4, max_exact_tail_queries=0, seed=seed).exp()
        assert min((sampled - each).abs().max() for each in possible) < 1e-4 * exact.max()


def test_curvatures_that_are_kept_are_not_computed_again(triples, monkeypatch):
    for module in (curvature_module, beliefs_module):
        monkeypatch.setattr(module, "KEPT_FROM", 1)
    queries, kept = Queries.distinct(triples), {}

    def keep(name, make):
        return kept[name] if name in kept else kept.setdefault(name, make())

    first = RowCurvature(make_model(RELATIONS), queries, CurvatureConfig(loss="ce"), keep=keep)
    expected = first.relation(0), first.entity(1)
    entity = int(queries.tails[0])
    believed, normalizers = first.beliefs.of_head(1), first.beliefs.of_tail(entity)
    assert set(kept) == {"relation-0", "head-1", "sample", "beliefs-1", f"normalizers-{entity}"}
    kept["relation-0"] = {"curvature": 2 * kept["relation-0"]["curvature"]}
    kept[f"normalizers-{entity}"] = {"normalizers": 2 * kept[f"normalizers-{entity}"]["normalizers"]}
    later = RowCurvature(make_model(RELATIONS), queries, CurvatureConfig(loss="ce"), keep=keep)
    torch.testing.assert_close(later.relation(0), 2 * expected[0])
    torch.testing.assert_close(later.entity(1), expected[1])
    torch.testing.assert_close(later.beliefs.of_tail(entity), 2 * normalizers)
    for mine, before in zip(later.beliefs.of_head(1), believed, strict=True):
        torch.testing.assert_close(mine, before)


SIZES = [
    {"embedding_height": 2, "embedding_width": 6, "kernel_height": 2},
    {"embedding_height": 3, "embedding_width": 4, "kernel_height": 3, "kernel_width": 2},
    {"embedding_height": 2, "embedding_width": 6, "kernel_height": 4, "kernel_width": 1},  # sees both rows everywhere
    {"embedding_height": 4, "embedding_width": 3, "kernel_height": 1, "kernel_width": 3},  # sees both rows nowhere
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_jacobians_are_those_of_autograd(sizes):
    torch.manual_seed(0)
    model = ConvE(num_entities=7, num_relations=7, embedding_dim=12, output_channels=4, **sizes).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        for norm in (model.bn0, model.bn1, model.bn2):
            norm.running_mean.normal_()
    rows = model.entity_embeddings.weight.detach(), model.relation_embeddings.weight.detach()
    for side in (HEAD, RELATION):
        expected = vmap(jacrev(lambda h, r: model.encode_rows(h[None], r[None])[0], argnums=side))(*rows).detach()
        activations = RowJacobians(model, side)(*rows)
        torch.testing.assert_close(activations.vectors, model.encode_rows(*rows).detach())
        torch.testing.assert_close(activations.jacobians(), expected)
        directions = torch.randn(3, 7, 12).double()
        torch.testing.assert_close(
            activations.pull_back(directions), torch.einsum("pbi,bij->pbj", directions, expected)
        )
    directions = torch.randn_like(rows[0]), torch.randn_like(rows[1])
    with torch.no_grad():
        expected = jvp(model.encode_rows, rows, directions)
    for mine, by_autograd in zip(moved_query_vectors(model, rows, directions), expected, strict=True):
        torch.testing.assert_close(mine, by_autograd)
    heads, relations = torch.tensor([3, 1, 3, 0]), torch.tensor([2, 2, 5, 0])
    torch.testing.assert_close(encode_queries(model, heads, relations), model.encode(heads, relations).detach())


def test_sparse_scores_rank_as_dense_ones_do():
    generator = torch.Generator().manual_seed(0)
    dense = torch.zeros(40).index_add_(0, torch.tensor([3, 7, 8, 20, 39]), torch.tensor([1.0, -1.0, 0.0, 2.0, 1.0]))
    positions = torch.tensor([3, 7, 8, 20, 30, 39])
    sparse = Scores(dense[positions], positions, 40)
    triples = torch.randint(0, 5, (40, 3), generator=generator).numpy()
    assert torch.equal(sparse.dense(), dense)
    for top_k in (1, 3, 4, 6, 12, 40, 100, None):
        assert rank_influences(sparse, triples, top_k) == rank_influences(dense, triples, top_k)
        if top_k:
            assert make_trace(triples[0], sparse, triples, top_k=top_k) == make_trace(
                triples[0], dense, triples, top_k=top_k
            )
    other = Scores(torch.tensor([5.0, -2.0]), torch.tensor([0, 7]), 40)
    assert torch.equal(sparse.plus(other).dense(), dense + other.dense())
    assert torch.equal(sparse.scaled(3.0).dense(), dense * 3)
    assert torch.equal(sparse.plus(Scores.of_all(dense)).dense(), 2 * dense)

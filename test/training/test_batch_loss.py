"""Loss and gradients of a batch: those of dense labels, whether one process computes them or two share the batch."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from batch_gradients import CASES, SMOOTHING, batches_of, gradients_of_batches, make_model, make_queries
from compiling import TRACING_ALONE, compiling_by
from conftest import TRAIN
from several_processes import ROOT, run_processes
from torch.utils._python_dispatch import TorchDispatchMode

from conve_tracin.compute import parallel
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.batch_loss import BatchLoss, compiled_for, new_batch_loss, try_encoder
from conve_tracin.training.loop import training_queries


def dense_results(approach, loss, query_weights):
    """The same from scores of all entities and a matrix of labels, without any code of training."""
    _, queries = make_queries(approach)
    known = [(h, 2 * r, t) for h, r, t in TRAIN.tolist()] + [(t, 2 * r + 1, h) for h, r, t in TRAIN.tolist()]
    for chosen in batches_of(queries):
        model = make_model()
        labels = torch.zeros(len(chosen), 6, dtype=torch.float64)
        for row, query in enumerate(chosen.tolist()):
            if approach == "1vsall":
                labels[row, known[query][2]] = 1
            else:
                head, relation = queries.heads[query].item(), queries.relations[query].item()
                labels[row, [t for h, r, t in known if (h, r) == (head, relation)]] = 1
        scores = model(queries.heads[chosen], queries.relations[chosen])
        # The mean number of tails is that of all queries, not of the batch.
        weights = labels.sum(dim=1) / (len(known) / len({(h, r) for h, r, _ in known}))
        if loss == "ce":
            labels = labels / labels.sum(dim=1, keepdim=True)
        labels = (1 - SMOOTHING) * labels + SMOOTHING / 6
        dense = F.cross_entropy if loss == "ce" else F.binary_cross_entropy_with_logits
        losses = dense(scores, labels, reduction="none").view(len(chosen), -1).mean(dim=1)
        value = (losses * weights).mean() if query_weights == "tails" else losses.mean()
        value.backward()
        yield value.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    output = tmp_path_factory.mktemp("gradients") / "gradients.pt"
    done = run_processes(2, ROOT / "test/helpers/batch_gradients.py", output)
    assert done.returncode == 0, done.stderr
    return torch.load(output, weights_only=True)


def assert_same_results(found, expected):
    assert len(found) == len(expected) > 2
    for (loss, gradients), (expected_loss, expected_gradients) in zip(found, expected, strict=True):
        torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-12)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-12)
            assert gradient.abs().max() > 1e-4, f"{name} has no gradient to compare"


@pytest.mark.parametrize("case", CASES)
def test_one_process_has_the_dense_loss_and_gradients(case):
    assert_same_results(gradients_of_batches(*case), list(dense_results(*case)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_dense_loss_and_gradients(of_two_processes, case, compiled):
    assert_same_results(of_two_processes[case, compiled], list(dense_results(*case)))


def test_cross_entropy_of_queries_weighted_by_tails_is_that_of_their_triples():
    values = {}
    for case in (("kvsall", "ce", "tails"), ("1vsall", "ce", "equal"), ("kvsall", "ce", "equal")):
        config, queries = make_queries(*case)
        values[case] = BatchLoss(make_model(), config)(queries, torch.arange(len(queries))).item()
    by_tails, of_triples, equal = values.values()
    assert by_tails == pytest.approx(of_triples, rel=1e-12)
    assert abs(equal - of_triples) > 1e-3


def visits_of(queries):
    return queries.shuffled_visits(torch.Generator().manual_seed(4))


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_an_epoch_of_many_visits_has_the_loss_and_gradients_of_one_visit_each(loss):
    found = []
    for tails_per_visit in (0, 2, 1):
        config, queries = make_queries("kvsall", loss, "tails", tails_per_visit)
        model = make_model()
        value = BatchLoss(model, config)(queries, visits_of(queries))
        value.backward()
        found.append((queries.num_visits, value.item(), [parameter.grad for parameter in model.parameters()]))
    (once, value, gradients), *more = found
    assert once < more[0][0] < more[1][0] == 2 * len(TRAIN)
    for _, value_of_visits, gradients_of_visits in more:
        assert value_of_visits == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(gradients_of_visits, gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{"query_weights": "equal"}, {"training_approach": "1vsall"}])
def test_queries_that_count_alike_are_visited_once(settings):
    config = TrainingConfig(
        **{"training_approach": "kvsall", "query_weights": "tails", "tails_per_visit": 1} | settings
    )
    queries = training_queries(TRAIN, config, torch.device("cpu"))
    assert torch.equal(visits_of(queries).sort().values, torch.arange(len(queries)))


@pytest.mark.parametrize(("approach", "sizes"), [("1vsall", [5, 5, 5, 7]), ("kvsall", [5, 5, 5])])
def test_the_batches_are_such_that_two_processes_have_different_numbers_of_queries(approach, sizes):
    assert [len(chosen) for chosen in batches_of(make_queries(approach)[1])] == sizes


@pytest.fixture
def compiler():
    """What makes compiled functions: torch's own tracing alone."""
    with compiling_by(TRACING_ALONE):
        yield


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_what_training_compiles_has_the_plain_loss_and_gradients(loss):
    config, queries = make_queries("kvsall", loss)
    found = []
    for compiled in (False, True):
        model = make_model()
        batch_loss = new_batch_loss(model, dataclasses.replace(config, use_torch_compile=compiled))
        assert batch_loss.compiled is compiled
        assert all(parameter.grad is None for parameter in model.parameters())
        torch.manual_seed(5)  # of dropout
        value = batch_loss(queries, torch.arange(len(queries)))
        value.backward()
        found.append((value.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    (loss, gradients), (expected_loss, expected_gradients) = found
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-12)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-12)
    assert gradients["entity_embeddings.weight"].abs().max() > 1e-4


@pytest.mark.usefixtures("compiler")
def test_trying_a_compiled_encoder_leaves_no_trace():
    model, (config, _) = make_model().train(), make_queries("kvsall")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    used = []
    try_encoder(torch.compile(lambda *rows: used.append(1) or model.encode_rows(*rows)), model, config)
    assert used
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_encoder_is_compiled_once_and_for_batches_of_one_size(monkeypatch):
    """Compiling takes longer than an epoch of many graphs."""
    graphs = []

    def note(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=note))
    torch._dynamo.reset()
    model, (config, _) = make_model().train(), make_queries("kvsall")
    encode_rows = compiled_for(config.batch_size, model.encode_rows)
    try_encoder(encode_rows, model, config)
    assert len(graphs) == 1
    for batch_size in (config.batch_size, config.batch_size - 2, config.batch_size):
        chosen = torch.arange(batch_size)
        rows = model.entity_embeddings(chosen), model.relation_embeddings(chosen)
        found = []
        for encode in (encode_rows, model.encode_rows):
            torch.manual_seed(4)  # of dropout
            found.append(encode(*rows))
        assert torch.equal(*found)
    assert len(graphs) == 1


@pytest.mark.usefixtures("compiler")
def test_all_processes_compile_or_none_does(monkeypatch, caplog):
    """Else one would add up its sums in another order."""
    monkeypatch.setattr(parallel, "all_gather", lambda own: [own, "no C++ compiler"])
    config, _ = make_queries("kvsall")
    assert not new_batch_loss(make_model(), dataclasses.replace(config, use_torch_compile=True)).compiled
    assert "--use-torch-compile has no effect on the loss: no C++ compiler" in caplog.text


def test_the_gradient_of_the_table_is_made_once():
    """Heads and tails have shares in it; a second table beside it would be as large as the model."""
    made = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            if isinstance(result, torch.Tensor) and result.shape == table.shape:
                made.add(result.untyped_storage().data_ptr())
            return result

    config, queries = make_queries("kvsall")
    model = make_model()
    table, relations = model.entity_embeddings.weight, model.relation_embeddings.weight
    assert table.shape == relations.shape
    with Watch():
        BatchLoss(model, config)(queries, torch.arange(len(queries))).backward()
    assert made - {table.data_ptr()} == {table.grad.data_ptr(), relations.grad.data_ptr()}

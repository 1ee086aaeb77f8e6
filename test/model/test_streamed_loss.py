"""The streamed losses against PyTorch's dense ones, in value and in the gradients of queries, entities and bias."""

import weakref

import pytest
import torch
from compiling import TRACING_ALONE, compiling_by
from loss_examples import TARGETS, as_targets, assert_close, dense_loss, make_inputs, value_and_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from conve_tracin.model.loss import Targets, _Batch, _ChunkScorer, binary_terms, streamed_loss
from conve_tracin.model.tiles import LARGE_SCORE, cut_into_chunks

# One entity, chunks that do and do not divide the entities, all at once, and the size chosen by itself.
CHUNK_SIZES = (1, 7, 53, 1000, None)


@pytest.fixture(params=["kept", "made again"])
def between_the_passes(request, monkeypatch):
    """What cross-entropy's second pass over the entities starts from: kept exponentials, or scores made again."""
    if request.param == "made again":
        monkeypatch.setattr("conve_tracin.model.loss.MAX_KEPT_SCORES", 0)


@pytest.fixture(params=["tiles", "chunks"])
def tiles_or_chunks(request, monkeypatch):
    """What a CPU takes, and what a GPU takes."""
    if request.param == "chunks":
        monkeypatch.setattr("conve_tracin.model.loss._takes_tiles", lambda *_, **__: False)


@pytest.mark.parametrize("low_precision", [torch.float64, torch.float32])
def test_a_chunk_carries_all_that_its_gradient_needs(low_precision):
    queries, entities, bias = (one.detach() for one in make_inputs(5))
    batch = _Batch(queries, entities, bias, scale=0.5)
    scorer = _ChunkScorer(batch, low_precision=low_precision, chunk_size=7)
    for chunk in reversed(list(scorer.chunks())):
        scores = scorer.products(chunk).to(torch.float64) + chunk.bias
        scorer.accumulate(chunk, scores, scores.to(low_precision))
    scores = queries @ entities.T + bias
    # The queries' gradient is scaled with that of the targets.
    expected = (scores @ entities, 0.5 * scores.T @ queries, 0.5 * scores.sum(dim=0))
    tolerance = 1e-12 if low_precision == torch.float64 else 1e-6
    assert_close((batch.query_grad, batch.entity_grad, batch.bias_grad), expected, tolerance)


@pytest.mark.usefixtures("between_the_passes", "tiles_or_chunks")
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_equals_dense_loss_in_float64(kind, case, label_smoothing, chunk_size):
    targets = TARGETS[case]
    inputs = make_inputs(len(targets))
    streamed = streamed_loss(
        kind, *inputs[:2], as_targets(targets), bias=inputs[2], label_smoothing=label_smoothing, chunk_size=chunk_size
    )
    dense = dense_loss(kind, *inputs, targets, label_smoothing)
    assert_close(value_and_gradients(streamed, inputs), value_and_gradients(dense, inputs), 1e-10)


@pytest.mark.usefixtures("tiles_or_chunks")
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_what_is_marked_as_no_target_does_not_count(kind):
    inputs, targets = make_inputs(5), TARGETS["kvsall"]
    plain = as_targets(targets)
    more = torch.tensor([0, 4, 2])
    padded = Targets(
        torch.cat([plain.rows, more]),
        torch.cat([plain.tails, more]),
        torch.tensor([True] * len(plain.rows) + [False] * len(more)),
    )
    weights = torch.tensor([0.3, 0.1, 2.7, 0.0, 1.0], dtype=torch.float64)
    streamed = streamed_loss(kind, *inputs[:2], padded, bias=inputs[2], weights=weights, label_smoothing=0.1)
    dense = dense_loss(kind, *inputs, targets, 0.1, weights)
    assert_close(value_and_gradients(streamed, inputs), value_and_gradients(dense, inputs), 1e-10)


@pytest.mark.usefixtures("between_the_passes", "tiles_or_chunks")
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_weighted_queries(kind, label_smoothing):
    inputs, targets = make_inputs(5), TARGETS["kvsall"]
    weights = torch.tensor([0.3, 0.1, 2.7, 0.0, 1.0], dtype=torch.float64)
    streamed = streamed_loss(
        kind, *inputs[:2], as_targets(targets), bias=inputs[2], weights=weights, label_smoothing=label_smoothing,
        chunk_size=7,
    )  # fmt: skip
    dense = dense_loss(kind, *inputs, targets, label_smoothing, weights)
    assert_close(value_and_gradients(streamed, inputs), value_and_gradients(dense, inputs), 1e-10)


@pytest.mark.usefixtures("tiles_or_chunks")
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_without_bias_and_with_a_factor_behind_it(kind):
    inputs = make_inputs(5, bias=False)
    targets = TARGETS["kvsall"]
    streamed = 3.5 * streamed_loss(kind, *inputs[:2], as_targets(targets), label_smoothing=0.2, chunk_size=9)
    dense = 3.5 * dense_loss(kind, *inputs, targets, 0.2)
    assert_close(value_and_gradients(streamed, inputs), value_and_gradients(dense, inputs), 1e-10)


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_many_targets_are_taken_in_pieces(kind, monkeypatch):
    monkeypatch.setattr("conve_tracin.model.loss.TARGETS_AT_ONCE", 4)
    inputs, targets = make_inputs(5), TARGETS["kvsall"]
    streamed = streamed_loss(kind, *inputs[:2], as_targets(targets), bias=inputs[2], label_smoothing=0.1)
    dense = dense_loss(kind, *inputs, targets, 0.1)
    assert_close(value_and_gradients(streamed, inputs), value_and_gradients(dense, inputs), 1e-10)


@pytest.mark.usefixtures("between_the_passes", "tiles_or_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_extreme_scores_stay_finite_and_right(kind, dtype):
    inputs = make_inputs(5, spread=60.0, dtype=dtype)
    with torch.no_grad():
        scores = inputs[0] @ inputs[1].T
    assert scores.max() > 1e4
    assert scores.min() < -1e4
    targets = TARGETS["kvsall"]
    streamed = streamed_loss(kind, *inputs[:2], as_targets(targets), bias=inputs[2], label_smoothing=0.1, chunk_size=7)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    dense = dense_loss(kind, *exact, targets, 0.1)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert_close(value_and_gradients(streamed, inputs), value_and_gradients(dense, exact), tolerance)


@pytest.mark.usefixtures("between_the_passes")
@pytest.mark.parametrize(("low_precision", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_low_precision_products_stay_close(kind, low_precision, tolerance):
    inputs, targets = make_inputs(5, dtype=torch.float32), TARGETS["kvsall"]
    streamed = streamed_loss(
        kind, *inputs[:2], as_targets(targets), bias=inputs[2], label_smoothing=0.1, chunk_size=7,
        low_precision=low_precision,
    )  # fmt: skip
    dense = dense_loss(kind, *inputs, targets, 0.1)
    found = value_and_gradients(streamed, inputs)
    assert {gradient.dtype for gradient in found} == {torch.float32}
    assert_close(found, value_and_gradients(dense, inputs), tolerance)


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_large_weights_fit_into_float16(kind):
    generator = torch.Generator().manual_seed(5)
    queries = torch.rand(4, 200, generator=generator).requires_grad_()
    entities = (torch.randn(5000, 200, generator=generator) / 14 + 0.05).requires_grad_()
    targets, weights = as_targets([[3], [4, 5], [0], [4999]]), torch.tensor([1000.0, 0.3, 0.3, 0.3])
    found, expected = (
        value_and_gradients(
            streamed_loss(kind, queries, entities, targets, weights=weights, low_precision=precision),
            (queries, entities),
        )
        for precision in (torch.float16, None)
    )
    assert_close(found, expected, 1e-2)


def test_queries_of_low_precision_get_a_gradient_of_theirs():
    queries, entities, _ = make_inputs(5, dtype=torch.float32)
    low_queries = queries.detach().bfloat16().requires_grad_()
    streamed_loss("bce", low_queries, entities, as_targets(TARGETS["1vsall"]), low_precision=torch.bfloat16).backward()
    assert low_queries.grad.dtype == torch.bfloat16
    assert entities.grad.dtype == torch.float32


def test_gradients_are_handed_out_once():
    queries, entities, _ = make_inputs(5)
    loss = streamed_loss("bce", queries, entities, as_targets(TARGETS["1vsall"]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be had once"):
        loss.backward()


@pytest.fixture(params=[TRACING_ALONE, pytest.param("inductor", marks=pytest.mark.slow)])
def compiler(request):
    """What makes compiled functions: torch's own tracing alone, or with its C++ compiler."""
    with compiling_by(request.param) as compiled:
        yield
    assert len(compiled) == 4


@pytest.mark.usefixtures("between_the_passes", "compiler")
@pytest.mark.parametrize("low_precision", [None, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_compiled_passes_give_the_same(kind, bias, low_precision):
    targets = as_targets(TARGETS["kvsall"])
    found = []
    for compiled in (False, True):
        # Scores beyond LARGE_SCORE, and a last chunk of another width.
        inputs = make_inputs(5, spread=8.0, dtype=torch.float32, bias=bias)
        loss = streamed_loss(
            kind, *inputs[:2], targets, bias=inputs[2], label_smoothing=0.1, low_precision=low_precision, chunk_size=7,
            compiled=compiled,
        )  # fmt: skip
        found.append(value_and_gradients(loss, inputs))
    with torch.no_grad():
        assert (inputs[0] @ inputs[1].T).max() > LARGE_SCORE
    # A gradient on the border of two numbers of low precision may fall to either side.
    assert_close(found[1], found[0], 1e-6 if low_precision is None else 2e-3)


@pytest.mark.parametrize("count", [1, 7, 8, 40, 41, 53])
@pytest.mark.parametrize("chunk_size", [8, 16, 64])
def test_chunks_hold_each_entity_once_and_begin_where_rows_are_fast(count, chunk_size):
    chunks = cut_into_chunks(count, chunk_size, alignment=8)
    assert [place for chunk in chunks for place in range(count)[chunk]] == list(range(count))
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert all(size % 8 == 0 and size <= chunk_size for size in sizes[:-1])
    assert sizes[-1] % 8 == 0 or sizes[-1] < 8
    assert cut_into_chunks(count, chunk_size) == [
        slice(start, min(start + chunk_size, count)) for start in range(0, count, chunk_size)
    ]


def test_one_exponential_gives_softplus_and_sigmoid():
    scores = torch.tensor([-1e4, -100.0, -30.0, -1.0, 0.0, 1.0, 30.0, 59.0, 61.0, 100.0, 1e4, 7.0], dtype=torch.float64)
    scores = scores.view(3, 4)
    total, derivative, low_derivative = binary_terms(
        scores.clone(), None, everywhere=0.01, dtype=torch.float64, low_precision=torch.bfloat16
    )
    expected = (torch.nn.functional.softplus(scores, threshold=500) - 0.01 * scores).sum(dim=1)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(derivative, torch.sigmoid(scores) - 0.01, rtol=1e-12, atol=1e-16)
    assert torch.equal(low_derivative, derivative.to(torch.bfloat16))


@pytest.mark.usefixtures("tiles_or_chunks")
@pytest.mark.parametrize("low_precision", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_the_scores_of_all_entities_are_never_there(kind, low_precision, monkeypatch):
    """Add up what is alive after each operation: without what is kept, it is far less than (batch, entities) values."""
    shape = (40, 500)
    queries, entities = (torch.randn(rows, 4, requires_grad=True) for rows in shape)
    targets = Targets(torch.arange(40), torch.arange(40))
    most_bytes = {}
    for most_kept in (20_000, 20_000 - 1):
        monkeypatch.setattr("conve_tracin.model.loss.MAX_KEPT_SCORES", most_kept)
        with AliveBytes() as alive:
            streamed_loss(
                kind, queries, entities, targets, label_smoothing=0.1, chunk_size=20, low_precision=low_precision
            ).backward()
        most_bytes[most_kept] = alive.most
    scores, table = 4 * 20_000, 4 * 500 * 4
    kept = {"bce": 0, "ce": scores}[kind]
    assert most_bytes[19_999] < scores / 5 + 2 * table
    assert kept < most_bytes[20_000] < kept + scores / 5 + 2 * table


class AliveBytes(TorchDispatchMode):
    """The most bytes that results of torch's operations have held at once."""

    def __init__(self):
        super().__init__()
        self.most = 0
        self.storages = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = storage
        self.most = max(self.most, sum(storage.nbytes() for storage in self.storages.values()))
        return result

"""The CPU's passes in tiles and threads, against the dense losses in float64."""

import time

import pytest
import torch
from loss_examples import TARGETS, as_targets, assert_close, dense_loss, make_inputs, value_and_gradients

from conve_tracin.compute.workers import torch_threads
from conve_tracin.model import tiles
from conve_tracin.model.loss import streamed_loss
from conve_tracin.model.tiles import TiledPasses, compute_in_threads

WEIGHTS = torch.tensor([0.3, 0.1, 2.7, 0.0, 1.0], dtype=torch.float64)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of two queries and eight entities; the last ones have one query, and five entities."""
    monkeypatch.setattr(tiles, "TILE_QUERIES", 2)
    monkeypatch.setattr(tiles, "TILE_SCORES", 16)


@pytest.fixture
def three_threads():
    with torch_threads(3):
        yield


@pytest.fixture(params=["kept", "made again"])
def between_the_passes(request, monkeypatch):
    if request.param == "made again":
        monkeypatch.setattr("conve_tracin.model.loss.MAX_KEPT_SCORES", 0)


def streamed_and_dense(kind, inputs, label_smoothing=0.1, weights=WEIGHTS):
    """Value and gradients by tiles, and of the dense loss in float64."""
    targets = TARGETS["kvsall"]
    exact = [None if one is None else one.detach().double().requires_grad_() for one in inputs]
    loss = streamed_loss(
        kind, *inputs[:2], as_targets(targets), bias=inputs[2], weights=weights, label_smoothing=label_smoothing
    )
    dense = dense_loss(kind, *exact, targets, label_smoothing, weights)
    return value_and_gradients(loss, inputs), value_and_gradients(dense, exact)


@pytest.mark.usefixtures("small_tiles", "three_threads", "between_the_passes")
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_tiles_in_threads_give_the_dense_loss(kind, bias, weights, label_smoothing):
    assert_close(*streamed_and_dense(kind, make_inputs(5, bias=bias), label_smoothing, weights), 1e-10)


@pytest.mark.usefixtures("small_tiles", "between_the_passes")
@pytest.mark.parametrize("shift", [-100.0, -12.0, 0.0, 12.0, 50.0, 100.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_scores_that_are_all_large_or_small_are_as_exact(kind, dtype, tolerance, shift):
    """Products of 1 + exp(s), and sums of exp(s), leave the range of float32."""
    queries, entities, bias = (one.detach() for one in make_inputs(5, spread=0.5))
    inputs = [one.to(dtype).requires_grad_() for one in (queries, entities, bias + shift)]
    found, expected = streamed_and_dense(kind, inputs)
    assert_close(found, expected, tolerance)


@pytest.mark.usefixtures("small_tiles", "three_threads", "between_the_passes")
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_no_result_depends_on_which_thread_is_faster(kind, monkeypatch):
    inputs = make_inputs(5, dtype=torch.float32)
    expected, _ = streamed_and_dense(kind, inputs)
    scores_of_tile = TiledPasses._log2_scores
    for slow in (0, 40):

        def delayed(self, rows, chunk, buffer, slow=slow):
            if chunk.start == slow:
                time.sleep(0.01)
            return scores_of_tile(self, rows, chunk, buffer)

        monkeypatch.setattr(TiledPasses, "_log2_scores", delayed)
        found, _ = streamed_and_dense(kind, inputs)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.usefixtures("three_threads")
def test_threads_work_alone_and_in_order():
    def work(part):
        time.sleep(0.01 * (part == 0))
        return part, torch.get_num_threads()

    assert compute_in_threads(work, range(5)) == [(part, 1) for part in range(5)]
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError):
        compute_in_threads(lambda part: 1 / part, range(5))
    assert torch.get_num_threads() == 3


def test_blocks_sums_stay_small(monkeypatch):
    """Many blocks balance the threads; with large batches each thread has one."""
    queries, entities = torch.zeros(40, 8), torch.zeros(1000, 8)
    monkeypatch.setattr(tiles, "TILE_SCORES", 40)
    counts = []
    for threads, most in ((1, 2**24), (3, 2**24), (3, 320 * 5), (3, 320)):
        monkeypatch.setattr(tiles, "MAX_BLOCK_SUMS", most)
        with torch_threads(threads):
            passes = TiledPasses(
                queries, entities, None, factors=queries[:, 0], everywhere=0.0, entity_grad=entities, bias_grad=None
            )
        assert [chunk.start for block in passes._blocks for chunk in block] == list(range(1000))
        counts.append(len(passes._blocks))
    assert counts == [1, 12, 5, 3]


@pytest.mark.parametrize("batch_size", [100, 256, 1500])
@pytest.mark.parametrize("num_entities", [14_541, 18_503, 5_000])
def test_all_threads_have_blocks_of_like_sizes(batch_size, num_entities):
    queries, entities = torch.zeros(batch_size, 2), torch.zeros(num_entities, 2)
    for threads in (2, 16):
        with torch_threads(threads):
            passes = TiledPasses(
                queries, entities, None, factors=queries[:, 0], everywhere=0.0, entity_grad=entities, bias_grad=None
            )
        sizes = [sum(chunk.stop - chunk.start for chunk in block) for block in passes._blocks]
        assert sum(sizes) == num_entities
        assert len(sizes) >= threads
        assert min(sizes[:-1]) == max(sizes)

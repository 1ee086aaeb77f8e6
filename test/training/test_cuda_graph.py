"""Recorded losses and gradients against plain ones; without a GPU, what is recorded is computed again in its place."""

import pytest
import torch
from batch_gradients import CASES, make_model, make_queries
from recorder import Recorder

from conve_tracin.compute import parallel
from conve_tracin.data.queries import Queries
from conve_tracin.settings import TrainingConfig
from conve_tracin.training import cuda_graph
from conve_tracin.training.batch_loss import BatchLoss
from conve_tracin.training.cuda_graph import BATCHES_BEFORE_RECORDING, CUDAGraphLoss, can_replay, room_of_most_batches
from conve_tracin.training.loop import next_batch

BATCH_SIZE = 4
EPOCHS = 4


def train(case, wrap):
    """Take steps with whole batches and one smaller batch in each epoch; return losses and weights."""
    config, queries = make_queries(*case)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch_loss = wrap(BatchLoss(model, config))
    losses = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(EPOCHS):
        order, start = torch.randperm(len(queries), generator=generator), 0
        while start < len(queries):
            batch = next_batch(start, len(queries), BATCH_SIZE)
            optimizer.zero_grad(set_to_none=True)
            loss = batch_loss(queries, order[batch])
            if loss.requires_grad:
                loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            start = batch.stop
    return torch.stack(losses), model.state_dict(), len(queries) // BATCH_SIZE


@pytest.mark.parametrize("case", CASES)
def test_replayed_batches_train_the_same_weights(case):
    recorder = Recorder()
    losses, weights, _ = train(case, lambda batch_loss: batch_loss)
    replayed_losses, replayed_weights, whole_batches = train(
        case, lambda batch_loss: CUDAGraphLoss(batch_loss, batch_size=BATCH_SIZE, record=recorder)
    )
    assert recorder.recordings == 1
    assert EPOCHS * whole_batches - BATCHES_BEFORE_RECORDING >= recorder.replays > whole_batches
    torch.testing.assert_close(replayed_losses, losses, rtol=0, atol=1e-12)
    torch.testing.assert_close(replayed_weights, weights, rtol=0, atol=1e-12)


def test_a_batch_with_very_many_tails_is_computed_plainly(monkeypatch):
    monkeypatch.setattr(cuda_graph, "SHARE_OF_BATCHES", 0.0)
    config, queries = make_queries("kvsall")
    by_tails = queries.count_tails(torch.arange(len(queries))).argsort()
    few, many = by_tails[:BATCH_SIZE], by_tails[-BATCH_SIZE:]
    model = make_model()
    replayed = CUDAGraphLoss(BatchLoss(model, config), batch_size=BATCH_SIZE, record=Recorder())
    for number, (chosen, is_replayed) in enumerate([(few, True)] * 4 + [(many, False), (few, True), (many, False)]):
        loss = replayed(queries, chosen)
        assert loss.requires_grad is not (is_replayed and number >= BATCHES_BEFORE_RECORDING)
        expected = BatchLoss(model, config)(queries, chosen)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_most_batches_have_room():
    tails_of_each = torch.ones(1000, dtype=torch.int64)
    assert room_of_most_batches(tails_of_each, 64) == 64
    tails_of_each[:100] = 7
    room = room_of_most_batches(tails_of_each, 64)
    drawn = tails_of_each[torch.randint(1000, (5000, 64), generator=torch.Generator().manual_seed(5))].sum(dim=1)
    assert 0.95 < (drawn <= room).double().mean() < 1
    # One query with the tails of a thousand others is in few batches.
    tails_of_each[3] = 10_000
    assert room_of_most_batches(tails_of_each, 4) < 100


def test_most_batches_of_visits_have_room():
    # One query of 40 tails, which is visited as often, among 50 with a tail each.
    offsets = torch.cat([torch.arange(51), torch.tensor([90])])
    ids = torch.arange(51)
    queries = Queries(ids % 6, ids % 3, offsets, torch.arange(90) % 6).visited_by_tails(1)
    config, _ = make_queries("kvsall", "ce", "tails")
    recorder = Recorder()
    replayed = CUDAGraphLoss(BatchLoss(make_model(), config), batch_size=BATCH_SIZE, record=recorder)
    visits = torch.cat([queries.shuffled_visits(torch.Generator().manual_seed(seed))[:88] for seed in range(5)])
    batches = visits.split(BATCH_SIZE)
    for batch in batches:
        replayed(queries, batch)
    assert (visits == 50).double().mean() > 0.4
    assert recorder.replays > 0.9 * len(batches)


def test_training_goes_on_where_nothing_can_be_recorded(caplog):
    def fail(compute):
        raise RuntimeError("no graphs here\nand more")

    case = ("kvsall", "bce", "equal")
    losses, weights, _ = train(case, lambda batch_loss: batch_loss)
    found_losses, found_weights, _ = train(case, lambda one: CUDAGraphLoss(one, batch_size=BATCH_SIZE, record=fail))
    assert torch.equal(found_losses, losses)
    assert all(torch.equal(found_weights[name], weight) for name, weight in weights.items())
    assert [record.getMessage() for record in caplog.records] == [
        "training goes on without CUDA graphs, and more slowly: no graphs here"
    ]


def test_only_one_gpu_without_scaled_gradients_has_recordings(monkeypatch):
    gpu = torch.device("cuda")
    assert not can_replay(TrainingConfig(), torch.device("cpu"))
    assert can_replay(TrainingConfig(), gpu)
    assert not can_replay(TrainingConfig(use_gradient_checkpointing=True), gpu)
    for dtype in (torch.bfloat16, torch.float16):
        monkeypatch.setattr(cuda_graph, "mixed_precision_dtype", lambda *_, dtype=dtype: dtype)
        assert can_replay(TrainingConfig(use_mixed_precision=True), gpu) is (dtype is torch.bfloat16)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    assert not can_replay(TrainingConfig(), gpu)

"""On a CUDA GPU: the CPU's results in float64, recorded training, compiled losses and influences among them.

`test_other_device.py` checks without a GPU that nothing mixes the tensors of two devices.
"""

import dataclasses

import numpy as np
import pytest
import torch
from batch_gradients import CASES, make_queries
from conftest import TRAIN, make_small_conve
from device_examples import METHODS, TRAININGS, train_on
from influence_examples import TRAINING, make_model
from loss_examples import TARGETS, as_targets, assert_close, dense_loss, make_inputs, value_and_gradients
from recorder import Recorder
from scipy.stats import spearmanr

from conve_tracin.data.queries import Queries
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.model.conve import ConvE
from conve_tracin.model.loss import Targets, streamed_loss
from conve_tracin.ranking.ranks import rank_triples
from conve_tracin.settings import TrainingConfig
from conve_tracin.training import cuda_graph
from conve_tracin.training.batch_loss import BatchLoss
from conve_tracin.training.cuda_graph import BATCHES_BEFORE_RECORDING, CUDAGraphLoss
from conve_tracin.training.loop import train_batch, training_queries
from conve_tracin.training.run import TrainingData, train
from conve_tracin.training.state import new_state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

GPU = torch.device("cuda")
NUM_STEPS = 8


def on_gpu(inputs):
    return [None if one is None else one.detach().to(GPU).requires_grad_() for one in inputs]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("chunk_size", [7, None])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_the_streamed_loss_is_the_dense_loss_of_the_cpu(kind, chunk_size, compiled):
    inputs, targets = make_inputs(5), TARGETS["kvsall"]
    dense = value_and_gradients(dense_loss(kind, *inputs, targets, 0.1), inputs)
    there = on_gpu(inputs)
    plain = as_targets(targets)
    streamed = streamed_loss(
        kind, *there[:2], Targets(plain.rows.to(GPU), plain.tails.to(GPU)), bias=there[2], label_smoothing=0.1,
        chunk_size=chunk_size, compiled=compiled,
    )  # fmt: skip
    assert_close([one.cpu() for one in value_and_gradients(streamed, there)], dense, 1e-10)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_the_loss_in_bfloat16_is_near_the_dense_loss(kind, compiled):
    inputs, targets = make_inputs(5, dtype=torch.float32), TARGETS["kvsall"]
    exact = value_and_gradients(dense_loss(kind, *(one.double() for one in inputs), targets, 0.1), inputs)
    there = on_gpu(inputs)
    plain = as_targets(targets)
    streamed = streamed_loss(
        kind, *there[:2], Targets(plain.rows.to(GPU), plain.tails.to(GPU)), bias=there[2], label_smoothing=0.1,
        low_precision=torch.bfloat16, compiled=compiled,
    )  # fmt: skip
    assert_close([one.cpu() for one in value_and_gradients(streamed, there)], exact, 0.03)


def take_steps(case, *, replay):
    """Train a float64 model with dropout and moving statistics; return losses, weights and random numbers."""
    config, _ = make_queries(*case)
    queries = training_queries(TRAIN, config, GPU)
    model = make_small_conve(num_relations=6, entity_bias=True).to(GPU).train()
    state = dataclasses.replace(new_state(model.config.as_dict(), config, GPU), model=model)
    state.optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batch_loss = BatchLoss(model, config)
    if replay:
        batch_loss = CUDAGraphLoss(batch_loss, batch_size=config.batch_size)
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(NUM_STEPS):
        chosen = torch.randint(len(queries), (config.batch_size,), generator=generator)
        losses.append(train_batch(state, queries, chosen, batch_loss))
    return torch.stack(losses).cpu(), model.state_dict(), torch.cuda.get_rng_state()


@pytest.fixture
def recorded(monkeypatch):
    """What has been recorded without an error."""
    done = []

    def record(compute):
        results = cuda_graph.record_graph(compute)
        done.append(compute)
        return results

    monkeypatch.setattr(CUDAGraphLoss.__init__, "__kwdefaults__", {"record": record})
    return done


@pytest.mark.parametrize("case", CASES)
def test_replayed_batches_train_the_same_weights_with_the_same_dropout(case, recorded, caplog):
    assert NUM_STEPS > BATCHES_BEFORE_RECORDING
    losses, weights, numbers = take_steps(case, replay=False)
    replayed_losses, replayed_weights, replayed_numbers = take_steps(case, replay=True)
    assert recorded
    assert not caplog.records
    torch.testing.assert_close(replayed_losses, losses, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(replayed_weights, weights, rtol=1e-9, atol=1e-9)
    assert torch.equal(replayed_numbers, numbers)


def test_training_goes_on_where_a_recording_breaks_off(caplog, monkeypatch):
    """What a recording has begun to change is as before it, so that dropout goes on."""
    case = ("kvsall", "bce", "equal")
    losses, weights, numbers = take_steps(case, replay=False)

    def break_off(compute):
        # A number cannot be read from a GPU in a recording.
        return cuda_graph.record_graph(lambda: [*compute(), torch.ones(1, device=GPU).sum().item()])

    monkeypatch.setattr(CUDAGraphLoss.__init__, "__kwdefaults__", {"record": break_off})
    found_losses, found_weights, found_numbers = take_steps(case, replay=True)
    assert "training goes on without CUDA graphs" in caplog.text
    torch.testing.assert_close(found_losses, losses, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found_weights, weights, rtol=1e-9, atol=1e-9)
    assert torch.equal(found_numbers, numbers)


def assert_nothing_was_left_out(caplog):
    told = [record.getMessage() for record in caplog.records]
    assert not [message for message in told if "no effect" in message or "without CUDA graphs" in message]


@pytest.mark.parametrize("name", [*TRAININGS, "compiled"])
def test_training_ends_with_the_weights_of_the_cpu_and_resumes(name, tmp_path, caplog):
    settings = TRAININGS.get(name, {"use_torch_compile": True})
    expected = train_on("cpu", tmp_path / "cpu", settings)
    for place, checkpoint in (("whole", None), ("resumed", tmp_path / "whole/checkpoints/checkpoint_epoch_2.pt")):
        torch.testing.assert_close(
            train_on(GPU, tmp_path / place, settings, checkpoint), expected, rtol=1e-3, atol=1e-4
        )
    assert_nothing_was_left_out(caplog)


def test_mixed_precision_and_compiled_code_are_recorded(tmp_path, recorded, caplog):
    config = TrainingConfig(
        num_epochs=30, batch_size=5, learning_rate=0.01, training_approach="kvsall", inverse_triples=True, loss="ce",
        use_mixed_precision=True, use_torch_compile=True, eval_frequency=30, checkpoint_frequency=30,
    )  # fmt: skip
    sizes = {"embedding_dim": 16, "embedding_height": 4, "embedding_width": 4, "output_channels": 4}
    data = TrainingData(TRAIN, TRAIN[:3], TRAIN, 6, 3, {})
    results = train(data, config, model_sizes=sizes, output_dir=tmp_path, device=GPU)
    assert recorded
    assert_nothing_was_left_out(caplog)
    assert results["mean_reciprocal_rank"] > 0.8


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "bfloat16"])
def test_influences_are_those_of_the_cpu(name, count):
    expected = METHODS[name](make_model(entity_bias=True)).products(TRAINING[:count], TRAINING)
    found = METHODS[name](make_model(entity_bias=True).to(GPU)).products(TRAINING[:count], TRAINING)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_self_influences_are_those_of_the_cpu():
    expected = METHODS["reference"](make_model()).self_products(TRAINING)
    found = TracInAnalyzerPyTorch(make_model().to(GPU)).self_products(TRAINING)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_influences_in_bfloat16_rank_as_those_in_float32():
    torch.manual_seed(0)
    model = ConvE(num_entities=200, num_relations=5).eval().to(GPU)
    triples = np.random.default_rng(0).integers(0, (200, 5, 200), (4000, 3))
    exact = TracInAnalyzerPyTorch(model).gradient_products(triples[:2], triples)
    rounded = TracInAnalyzerPyTorch(model, use_mixed_precision=True).gradient_products(triples[:2], triples)
    assert not torch.equal(exact, rounded)
    for one, other in zip(exact, rounded, strict=True):
        assert spearmanr(one.numpy(), other.numpy()).statistic > 0.999


def test_ranks_are_those_of_the_cpu():
    def rank(device):
        known = Queries.distinct(np.unique(TRAIN, axis=0), device)
        return rank_triples(make_small_conve().to(device), TRAIN, known, num_relations=3)

    assert rank(GPU).tolist() == rank(torch.device("cpu")).tolist()


@pytest.mark.parametrize("record", [Recorder(), cuda_graph.record_graph])
def test_the_stand_in_for_recordings_records_as_a_gpu_does(record):
    start = torch.arange(6.0, device=GPU)
    replay, (result,) = record(lambda: [start * 2])
    start += 1
    replay()
    assert torch.equal(result, start * 2)

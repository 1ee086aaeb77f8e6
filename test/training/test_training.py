"""Training: exact resumption, the best model, the files written, and what stops a run."""

import json
import math
import os
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DIGEST, SMALL_CONVE
from recorder import Recorder
from training_runs import NO_DROPOUT, assert_identical, assert_same_training, checkpoint_of

from conve_tracin.checkpoint.native import build_model, load_checkpoint
from conve_tracin.data.queries import Queries, with_inverse_triples
from conve_tracin.errors import InputError
from conve_tracin.influence.load import find_checkpoints
from conve_tracin.model.conve import ConvE
from conve_tracin.model.loss import choose_score_terms
from conve_tracin.ranking import ranks as ranking
from conve_tracin.settings import TrainingConfig
from conve_tracin.training import loop as training_loop
from conve_tracin.training import run as training_run
from conve_tracin.training.cuda_graph import CUDAGraphLoss
from conve_tracin.training.loop import next_batch, training_queries
from conve_tracin.training.resume import newest_checkpoint

METRICS = {"mean_rank", "mean_reciprocal_rank", "hits@1", "hits@3", "hits@5", "hits@10"}


@pytest.fixture
def float64():
    """Make models of float64, so that a gradient that is zero but for rounding stays without effect in Adam."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def scripted_mrr(monkeypatch):
    """Replace the evaluation: epoch n gets the n-th of the given MRRs."""

    def script(*values):
        left = iter(values)
        monkeypatch.setattr(
            training_run,
            "evaluate_model",
            lambda *_, **__: {"mean_reciprocal_rank": next(left, 0.0), "ranked": "scripted"},
        )

    return script


# ---------------------------------------------------------------------------------------------------------------
# Resumption


@pytest.mark.parametrize(
    "settings",
    [
        {"training_approach": "1vsall"},
        {"training_approach": "kvsall", "inverse_triples": True},
        {"training_approach": "1vsall", "use_mixed_precision": True},
        {"training_approach": "kvsall", "use_mixed_precision": True, "use_gradient_checkpointing": True},
        {"training_approach": "kvsall", "loss": "ce", "optimizer": "adagrad", "sizes": {"entity_bias": True}},
        {"lr_scheduler": "plateau", "lr_decay": 0.5, "lr_patience": 0, "weight_decay": 0.01, "num_epochs": 7},
        {"training_approach": "kvsall", "eval_frequency": 2, "checkpoint_frequency": 2, "early_stopping_patience": 9},
        {"lr_scheduler": "plateau", "lr_decay": 0.5, "lr_patience": 0, "eval_frequency": 2},
        {"training_approach": "kvsall", "query_weights": "tails", "tails_per_visit": 1, "weight_averaging": 0.8},
    ],
    ids=lambda settings: ", ".join(f"{name}={value}" for name, value in settings.items()),
)
def test_three_epochs_and_three_more_are_six(run, tmp_path, settings):
    run("six", **settings)
    run("three", **settings | {"num_epochs": 3})
    torch.manual_seed(999)
    run("three", resume=tmp_path / "three/checkpoints/checkpoint_epoch_3.pt", **settings)
    assert_same_training(tmp_path / "six/final_model.pt", tmp_path / "three/final_model.pt")
    assert_same_training(tmp_path / "six/best_model.pt", tmp_path / "three/best_model.pt")
    assert_same_training(
        tmp_path / "six/checkpoints/checkpoint_epoch_6.pt", tmp_path / "three/checkpoints/checkpoint_epoch_6.pt"
    )
    results = [json.loads((tmp_path / name / "test_results.json").read_text()) for name in ("six", "three")]
    assert results[0] == results[1]


@pytest.mark.parametrize("due", [(0.5, 0.3, 0.1), (0.2, 0.3, 0.1), (0.5, 0.4, 0.6)])
@pytest.mark.parametrize("in_between", [0.1, 0.9])
def test_a_resumed_run_knows_nothing_of_the_evaluation_at_its_former_end(run, tmp_path, scripted_mrr, due, in_between):
    settings = {"eval_frequency": 2, "lr_scheduler": "plateau", "lr_decay": 0.5, "lr_patience": 0}
    settings |= {"early_stopping_patience": 2}
    scripted_mrr(*due)
    run("six", **settings)
    scripted_mrr(due[0], in_between)
    assert run("three", num_epochs=3, **settings)["epoch"] == (3 if in_between > due[0] else 2)
    scripted_mrr(*due[1:])
    run("three", resume=tmp_path / "three/checkpoints/checkpoint_epoch_3.pt", **settings)
    for name in ("best_model.pt", "final_model.pt", "checkpoints/checkpoint_epoch_6.pt"):
        assert_same_training(tmp_path / "six" / name, tmp_path / "three" / name)


def test_the_checkpoints_of_a_run_that_went_on_after_its_end_agree_on_their_history(run, tmp_path):
    run("a", num_epochs=3, eval_frequency=2)
    directory = tmp_path / "a/checkpoints"
    three = checkpoint_of(directory / "checkpoint_epoch_3.pt")
    assert three["metrics"].keys() > METRICS
    run("a", eval_frequency=2, resume=directory / "checkpoint_epoch_3.pt")
    assert checkpoint_of(directory / "checkpoint_epoch_6.pt")["history"][:3] == three["history"]
    assert find_checkpoints([directory])[-2:] == [directory / f"checkpoint_epoch_{epoch}.pt" for epoch in (3, 6)]


def test_the_last_epoch_is_the_best_model_again_where_a_finished_run_is_resumed(run, tmp_path, scripted_mrr):
    scripted_mrr(0.5, 0.9)
    run("a", num_epochs=3, eval_frequency=2)
    last = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    assert newest_checkpoint(last.parent) == last
    assert run("b", num_epochs=3, eval_frequency=2, resume=last)["epoch"] == 3
    assert_identical(*(checkpoint_of(path)["metrics"] for path in (last, tmp_path / "b/final_model.pt")))


def test_a_resumed_run_has_moved_on(run, tmp_path):
    run("a")
    three, six = (checkpoint_of(tmp_path / f"a/checkpoints/checkpoint_epoch_{epoch}.pt") for epoch in (3, 6))
    weights = "fc.weight"
    assert not torch.equal(three["model_state_dict"][weights], six["model_state_dict"][weights])
    assert not torch.equal(three["random_state"]["cpu"], six["random_state"]["cpu"])
    assert six["learning_rate"] == pytest.approx(0.01 * 0.9**5)


def test_resuming_a_finished_run_changes_no_weight(run, tmp_path):
    run("a")
    before = checkpoint_of(tmp_path / "a/final_model.pt")
    results = run("a", resume=tmp_path / "a/checkpoints/checkpoint_epoch_6.pt")
    assert_identical(before["model_state_dict"], checkpoint_of(tmp_path / "a/final_model.pt")["model_state_dict"])
    assert results == json.loads((tmp_path / "a/test_results.json").read_text())


def test_nothing_is_compiled_where_no_epoch_is_left(run, tmp_path, monkeypatch):
    run("a", checkpoint_frequency=3)

    def compile_nothing(*_):
        raise AssertionError("no batch will come")

    monkeypatch.setattr(training_loop, "choose_batch_loss", compile_nothing)
    run("a", resume=tmp_path / "a/checkpoints/checkpoint_epoch_6.pt")
    with pytest.raises(AssertionError, match="no batch will come"):
        run("a", resume=tmp_path / "a/checkpoints/checkpoint_epoch_3.pt")


def test_learning_rate_given_on_resumption_takes_effect(run, tmp_path):
    run("a", num_epochs=3)
    run("a", resume=tmp_path / "a/checkpoints/checkpoint_epoch_3.pt", learning_rate=0.005, lr_decay=0.5)
    rates = [record["learning_rate"] for record in json.loads((tmp_path / "a/training_history.json").read_text())]
    assert rates == pytest.approx([0.01, 0.009, 0.0081, 0.005 * 0.9**3, 0.005 * 0.9**3 / 2, 0.005 * 0.9**3 / 4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": {"output_channels": 5}}, "has output_channels 4, this run has 5"),
        ({"inverse_triples": True}, "was trained without --inverse-triples; resume it without them"),
        ({"digest": {**DIGEST, "entity": "x"}}, "trained with another entity mapping"),
        ({"digest": {**DIGEST, "relation": "x"}}, "trained with another relation mapping"),
        ({"num_epochs": 2}, "has 3 epochs behind it, --num-epochs is 2"),
        ({"optimizer": "adagrad"}, "was trained with --optimizer adam; resume it with the same"),
        ({"sizes": {"entity_bias": True}}, "has entity_bias False, this run has True"),
    ],
)
def test_resumption_is_refused_with_the_reason(run, tmp_path, changes, message):
    run("a", num_epochs=3)
    with pytest.raises(InputError, match=message):
        run("b", resume=tmp_path / "a/checkpoints/checkpoint_epoch_3.pt", **changes)
    assert not (tmp_path / "b").exists()


def test_dropouts_given_on_resumption_take_effect_and_are_said(run, tmp_path, caplog):
    caplog.set_level("INFO")
    run("a", num_epochs=3)
    last = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    run("b", resume=last, sizes=NO_DROPOUT)
    assert "resuming with input_dropout 0.0; the checkpoint was trained with 0.2" in caplog.text
    caplog.clear()
    content = checkpoint_of(last)
    torch.save(content | {"model_config": content["model_config"] | NO_DROPOUT}, last)
    run("c", resume=last, sizes=NO_DROPOUT)
    assert "resuming with" not in caplog.text
    run("d", resume=last)
    assert_same_training(tmp_path / "b/final_model.pt", tmp_path / "c/final_model.pt")
    weights = [checkpoint_of(tmp_path / name / "final_model.pt")["model_state_dict"]["fc.weight"] for name in "cd"]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("member", ["optimizer_state_dict", "random_state", "history", "training_config"])
def test_a_checkpoint_without_what_resumption_needs_is_refused(run, tmp_path, member):
    run("a", num_epochs=3)
    path = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    torch.save({key: value for key, value in checkpoint_of(path).items() if key != member}, path)
    with pytest.raises(InputError, match=f"checkpoint_epoch_3.pt: lacks {member}"):
        run("a", resume=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": torch.full((12,), math.nan)}, r"trained_state_dict: fc\.bias holds NaN"),
        (
            {"fc.bias": torch.full((12,), 1e300, dtype=torch.float64)},
            r"trained_state_dict: fc\.bias holds NaN or infinite",
        ),
        ({"fc.bias": torch.zeros(5)}, r"fc\.bias has the shape \(5,\)"),
        ({"fc.bias": torch.zeros(12, dtype=torch.int64)}, r"fc\.bias does not hold the numbers"),
        ({"more": torch.zeros(5)}, "it also has more"),
    ],
)
def test_trained_weights_that_are_broken_are_refused(run, tmp_path, change, message):
    run("a", num_epochs=3, weight_averaging=0.9)
    path = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    content = checkpoint_of(path)
    torch.save(content | {"trained_state_dict": content["trained_state_dict"] | change}, path)
    with pytest.raises(InputError, match=rf"checkpoint_epoch_3\.pt: .*{message}"):
        run("a", resume=path, weight_averaging=0.9)


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.9), (0.9, 0.0)])
def test_averaging_can_begin_and_end_on_resumption(run, tmp_path, before, after, caplog):
    caplog.set_level("INFO")
    run("a", num_epochs=3, weight_averaging=before)
    first = checkpoint_of(tmp_path / "a/final_model.pt")
    run("a", num_epochs=3, weight_averaging=after, resume=tmp_path / "a/final_model.pt")
    last = checkpoint_of(tmp_path / "a/final_model.pt")
    # No batch was trained on in between: an average begins with the weights, and after its end those are left.
    trained = first.get("trained_state_dict", first["model_state_dict"])
    assert_identical(last.get("trained_state_dict", last["model_state_dict"]), trained)
    assert_identical(last["model_state_dict"], trained)
    assert ("trained_state_dict" in last) == (after > 0)
    assert f"resuming with weight_averaging {after}; the checkpoint was trained with {before}" in caplog.text


def test_queries_that_were_visited_once_before_it_could_be_chosen_are_said(run, tmp_path, caplog):
    run("a", num_epochs=3, tails_per_visit=0)
    path = tmp_path / "a/final_model.pt"
    content = checkpoint_of(path)
    del content["training_config"]["tails_per_visit"]
    torch.save(content, path)
    caplog.set_level("INFO")
    run("a", resume=path, tails_per_visit=0)
    assert "tails_per_visit" not in caplog.text
    run("a", resume=path)
    assert "resuming with tails_per_visit 16; the checkpoint was trained with 0" in caplog.text


def test_an_optimizer_state_of_another_model_is_refused(run, tmp_path):
    run("a", num_epochs=3)
    path = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    content = checkpoint_of(path)
    content["optimizer_state_dict"]["param_groups"][0]["params"].pop()
    torch.save(content, path)
    with pytest.raises(InputError, match="cannot be resumed"):
        run("a", resume=path)


def test_starting_anew_among_the_checkpoints_of_another_run_is_said(run, tmp_path, caplog):
    run("a")
    run("a", num_epochs=9, resume=tmp_path / "a/checkpoints/checkpoint_epoch_6.pt")
    assert not caplog.messages
    run("a")
    (message,) = caplog.messages
    assert f"{tmp_path / 'a/checkpoints'} holds 3 checkpoints of another run, up to epoch 9" in message
    assert "--checkpoint-dir" in message


def test_the_newest_whole_checkpoint_is_found(run, tmp_path, caplog):
    directory = tmp_path / "a/checkpoints"
    assert newest_checkpoint(directory) is None
    run("a", checkpoint_frequency=2)
    newest = directory / "checkpoint_epoch_6.pt"
    assert newest_checkpoint(directory) == newest
    newest.write_bytes(newest.read_bytes()[:1000])
    (directory / ".checkpoint_epoch_8.pt.123.part").write_bytes(b"half")
    assert newest_checkpoint(directory) == directory / "checkpoint_epoch_4.pt"
    assert "checkpoint_epoch_6.pt" in caplog.text


def test_the_last_epoch_is_found_in_a_copied_directory_and_no_later_one_of_an_earlier_run(run, tmp_path):
    directory = tmp_path / "a/checkpoints"
    run("a", checkpoint_frequency=2)
    for age, epoch in enumerate((2, 6, 4)):  # as `cp -r` may have written them
        os.utime(directory / f"checkpoint_epoch_{epoch}.pt", (1e9 - age, 1e9 - age))
    assert newest_checkpoint(directory) == directory / "checkpoint_epoch_6.pt"
    run("a", checkpoint_frequency=2, num_epochs=4, resume=directory / "checkpoint_epoch_2.pt", learning_rate=0.02)
    assert newest_checkpoint(directory) == directory / "checkpoint_epoch_4.pt"


# ---------------------------------------------------------------------------------------------------------------
# The loop


def plain_epochs(triples, *, kvsall, inverse_triples, cross_entropy=False, num_epochs=2, batch_size=4):
    """Train with a label matrix and a loop over the triples: what the loop under test must equal."""
    torch.manual_seed(42)
    num_relations = 6 if inverse_triples else 3
    model = ConvE(num_entities=6, num_relations=num_relations, **SMALL_CONVE, **NO_DROPOUT, entity_bias=cross_entropy)
    if cross_entropy:
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if inverse_triples:
        triples = [(h, 2 * r, t) for h, r, t in triples] + [(t, 2 * r + 1, h) for h, r, t in triples]
    known = {}
    for h, r, t in triples:
        known.setdefault((h, r), torch.zeros(6))[t] = 1
    queries = sorted(known) if kvsall else [(h, r) for h, r, _ in triples]
    targets = [known[q] for q in queries] if kvsall else [F.one_hot(torch.tensor(t), 6).float() for _, _, t in triples]
    order_generator = torch.Generator().manual_seed(42)
    for epoch in range(num_epochs):
        order = torch.randperm(len(queries), generator=order_generator).tolist()
        for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
            heads, relations = torch.tensor([queries[i] for i in batch]).T
            labels = torch.stack([targets[i] for i in batch])
            optimizer.zero_grad()
            scores = model(heads, relations)
            if cross_entropy:
                labels = labels / labels.sum(dim=1, keepdim=True)
                F.cross_entropy(scores, 0.9 * labels + 0.1 / 6).backward()
            else:
                F.binary_cross_entropy_with_logits(scores, 0.9 * labels + 0.1 / 6).backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * 0.9 ** (epoch + 1)
    return model.state_dict()


@pytest.mark.parametrize("inverse_triples", [False, True])
@pytest.mark.parametrize("approach", ["1vsall", "kvsall"])
def test_weights_are_those_of_a_plain_loop_with_dense_labels(run, graph, tmp_path, approach, inverse_triples, float64):
    run("a", num_epochs=2, training_approach=approach, inverse_triples=inverse_triples, sizes=NO_DROPOUT)
    expected = plain_epochs(graph.train.tolist(), kvsall=approach == "kvsall", inverse_triples=inverse_triples)
    assert_weights_close(tmp_path / "a/final_model.pt", expected)


@pytest.mark.parametrize("approach", ["1vsall", "kvsall"])
def test_cross_entropy_with_adagrad_and_bias_is_that_of_a_plain_loop(run, graph, tmp_path, approach, float64):
    run(
        "a", num_epochs=2, training_approach=approach, loss="ce", optimizer="adagrad",
        sizes=NO_DROPOUT | {"entity_bias": True},
    )  # fmt: skip
    expected = plain_epochs(
        graph.train.tolist(), kvsall=approach == "kvsall", inverse_triples=False, cross_entropy=True
    )
    assert "entity_bias" in expected
    # Adagrad magnifies the rounding in gradients that are zero but for it.
    assert_weights_close(tmp_path / "a/final_model.pt", expected, tolerance=2e-5)


def assert_weights_close(path, expected, *, tolerance=1e-6):
    found = checkpoint_of(path)["model_state_dict"]
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_kept_model_is_the_moving_average_of_the_weights(run, tmp_path, monkeypatch):
    train_batch, states = training_loop.train_batch, []

    def remember(state, *rest):
        loss = train_batch(state, *rest)
        states.append({name: value.clone() for name, value in state.model.state_dict().items()})
        return loss

    monkeypatch.setattr(training_loop, "train_batch", remember)
    torch.manual_seed(42)
    average = ConvE(num_entities=6, num_relations=3, **SMALL_CONVE).state_dict()
    run("a", num_epochs=3, weight_averaging=0.4)
    steps = [max(0.6, 10 / (number + 10)) for number in range(1, len(states) + 1)]
    assert steps[0] > steps[1] > steps[-2] == steps[-1] == 0.6
    for step, weights in zip(steps, states, strict=True):
        average = {name: (1 - step) * value + step * weights[name] for name, value in average.items()}
    content = checkpoint_of(tmp_path / "a/final_model.pt")
    assert_identical(dict(content["trained_state_dict"]), states[-1])
    for name, value in content["model_state_dict"].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name], rtol=0, atol=1e-6)
    assert (average["fc.weight"] - states[-1]["fc.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("approach", ["1vsall", "kvsall"])
def test_gradient_checkpointing_changes_no_bit(run, tmp_path, approach, mixed):
    settings = {"num_epochs": 3, "training_approach": approach, "use_mixed_precision": mixed}
    run("stored", **settings)
    run("recomputed", **settings, use_gradient_checkpointing=True)
    stored, recomputed = (
        checkpoint_of(tmp_path / name / "final_model.pt")["model_state_dict"] for name in ("stored", "recomputed")
    )
    assert stored["bn0.num_batches_tracked"] == 3 * (3 if approach == "1vsall" else 2)
    assert_identical(stored, recomputed)


def test_mixed_precision_stays_close(run, tmp_path):
    losses = []
    for mixed in (False, True):
        run(f"mixed-{mixed}", use_mixed_precision=mixed, sizes=NO_DROPOUT, learning_rate=0.001)
        history = json.loads((tmp_path / f"mixed-{mixed}/training_history.json").read_text())
        losses.append([record["loss"] for record in history])
        state = checkpoint_of(tmp_path / f"mixed-{mixed}/final_model.pt")["model_state_dict"]
        assert all(weight.dtype in (torch.float32, torch.int64) for weight in state.values())
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_mixed_precision_changes_no_bit_on_a_processor_without_bfloat16(run, tmp_path, monkeypatch):
    monkeypatch.setattr("conve_tracin.training.state.supports_bfloat16", lambda _: False)
    for mixed in (False, True):
        run(f"mixed-{mixed}", use_mixed_precision=mixed)
    assert_identical(
        *(checkpoint_of(tmp_path / f"mixed-{mixed}/final_model.pt")["model_state_dict"] for mixed in (False, True))
    )


@pytest.mark.parametrize("num_queries", [2, 3, 7, 10, 11])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 10, 100])
def test_batches_cover_all_queries_and_none_has_a_single_one(num_queries, batch_size):
    batches = [next_batch(0, num_queries, batch_size)]
    while batches[-1].stop < num_queries:
        batches.append(next_batch(batches[-1].stop, num_queries, batch_size))
    covered = [index for batch in batches for index in range(num_queries)[batch]]
    assert covered == list(range(num_queries))
    sizes = [batch.stop - batch.start for batch in batches]
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 2) + 1


def test_an_epoch_makes_all_visits_in_random_order(run, graph, tmp_path, monkeypatch):
    train_batch, chosen = training_loop.train_batch, []

    def remember(state, queries, batch, *rest):
        chosen.append(batch)
        return train_batch(state, queries, batch, *rest)

    monkeypatch.setattr(training_loop, "train_batch", remember)
    settings = {"training_approach": "kvsall", "loss": "ce", "query_weights": "tails", "tails_per_visit": 1}
    run("a", num_epochs=1, **settings)
    order = torch.cat(chosen)
    queries = training_queries(graph.train, TrainingConfig(**settings), torch.device("cpu"))
    assert len(order) == len(graph.train) > len(queries)
    assert torch.equal(torch.bincount(order), queries.offsets.diff())
    assert not torch.equal(order, order.sort().values)


@pytest.mark.parametrize("batch_size", [1, 5, 10])
def test_a_last_batch_of_one_trains(run, graph, batch_size):
    assert len(graph.train) == 11
    assert math.isfinite(run("a", num_epochs=2, batch_size=batch_size)["mean_reciprocal_rank"])


def test_a_single_query_is_refused_before_anything_is_written(run, graph, tmp_path):
    with pytest.raises(InputError, match="at least two queries"):
        run("a", splits={"train": graph.train[:1]})
    assert not (tmp_path / "a").exists()


def test_a_repeated_triple_is_one_label(run, graph, tmp_path):
    run("once", training_approach="kvsall", num_epochs=2)
    twice = np.concatenate([graph.train, graph.train[::-1]])
    run("twice", training_approach="kvsall", num_epochs=2, splits={"train": twice})
    assert_same_training(tmp_path / "once/final_model.pt", tmp_path / "twice/final_model.pt")


def test_a_repeated_triple_is_trained_each_time_with_one_target_per_triple(graph):
    twice = np.concatenate([graph.train, graph.train])
    queries = training_queries(twice, TrainingConfig(inverse_triples=True), torch.device("cpu"))
    expected = with_inverse_triples(twice)
    np.testing.assert_array_equal(torch.stack([queries.heads, queries.relations, queries.tails], dim=1), expected)


# ---------------------------------------------------------------------------------------------------------------
# The best model, early stopping


def test_best_model_is_the_best_epoch_of_the_history(run, tmp_path):
    results = run("a", num_epochs=8, learning_rate=0.03)
    history = json.loads((tmp_path / "a/training_history.json").read_text())
    mrr = [record["valid"]["mean_reciprocal_rank"] for record in history]
    assert len(set(mrr)) > 2
    best = load_checkpoint(tmp_path / "a/best_model.pt")
    assert best["epoch"] == results["epoch"] == 1 + int(np.argmax(mrr))
    assert best["metrics"]["mean_reciprocal_rank"] == max(mrr)


def test_early_stopping_counts_evaluations(run, tmp_path, scripted_mrr):
    scripted_mrr(0.2, 0.5, 0.4, 0.5, 0.9, 0.9)
    run("a", num_epochs=20, early_stopping_patience=2)
    history = json.loads((tmp_path / "a/training_history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert load_checkpoint(tmp_path / "a/best_model.pt")["epoch"] == 2
    assert load_checkpoint(tmp_path / "a/final_model.pt")["epoch"] == 4
    assert (tmp_path / "a/checkpoints/checkpoint_epoch_4.pt").is_file()


def test_a_run_that_stopped_early_goes_on_with_more_patience_only(run, tmp_path, scripted_mrr):
    scripted_mrr(0.5, 0.4, 0.3)
    run("a", num_epochs=9, early_stopping_patience=2)
    stopped = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    run("a", num_epochs=9, early_stopping_patience=2, resume=stopped)
    assert load_checkpoint(tmp_path / "a/final_model.pt")["epoch"] == 3
    scripted_mrr(0.6, 0.4, 0.4, 0.4)
    run("a", num_epochs=9, early_stopping_patience=3, resume=stopped)
    assert load_checkpoint(tmp_path / "a/final_model.pt")["epoch"] == 7
    assert load_checkpoint(tmp_path / "a/best_model.pt")["epoch"] == 4


def test_epochs_between_evaluations_have_no_metrics_but_the_last_has(run, tmp_path):
    run("a", num_epochs=5, eval_frequency=3)
    history = json.loads((tmp_path / "a/training_history.json").read_text())
    assert [record["epoch"] for record in history if "valid" in record] == [3, 5]
    run("b", num_epochs=2, eval_frequency=50)
    assert load_checkpoint(tmp_path / "b/best_model.pt")["epoch"] == 2


def test_best_model_of_a_later_epoch_is_not_kept_on_resumption(run, tmp_path, scripted_mrr):
    scripted_mrr(0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    run("a", checkpoint_frequency=1)
    assert load_checkpoint(tmp_path / "a/best_model.pt")["epoch"] == 6
    scripted_mrr(0.1, 0.1)
    results = run("a", num_epochs=5, resume=tmp_path / "a/checkpoints/checkpoint_epoch_3.pt")
    assert results["epoch"] == 3
    assert load_checkpoint(tmp_path / "a/best_model.pt")["metrics"]["mean_reciprocal_rank"] == 0.3


def test_best_model_is_taken_from_its_checkpoint_where_it_is_missing(run, tmp_path, scripted_mrr):
    scripted_mrr(0.1, 0.6, 0.3, 0.2, 0.2)
    run("a", num_epochs=4, checkpoint_frequency=1)
    (tmp_path / "a/best_model.pt").unlink()
    results = run("a", num_epochs=5, resume=tmp_path / "a/checkpoints/checkpoint_epoch_4.pt")
    assert results["epoch"] == 2


def test_the_resumed_epoch_stands_in_for_a_best_model_that_is_lost(run, tmp_path, scripted_mrr, caplog):
    scripted_mrr(0.1, 0.6, 0.3)
    run("a", num_epochs=3)
    checkpoint = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    scripted_mrr(0.2, 0.1)
    with caplog.at_level("INFO"):
        results = run("b", num_epochs=4, resume=checkpoint)
    assert results["epoch"] == 3
    assert "no model of the best epoch, 2, is left" in caplog.text
    scripted_mrr(0.4, 0.1)
    assert run("c", num_epochs=4, resume=checkpoint)["epoch"] == 4


def test_the_rate_falls_when_the_validation_mrr_no_longer_rises(run, tmp_path, scripted_mrr):
    scripted_mrr(0.2, 0.3, 0.3, 0.1, 0.4, 0.1)
    run("a", lr_scheduler="plateau", lr_decay=0.5, lr_patience=1)
    rates = [record["learning_rate"] for record in json.loads((tmp_path / "a/training_history.json").read_text())]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.005, 0.005])


def test_a_plateau_without_a_factor_is_refused():
    with pytest.raises(InputError, match=r"--lr-scheduler plateau with --lr-decay 1\.0 changes nothing"):
        TrainingConfig(lr_scheduler="plateau")


def test_weight_decay_reaches_the_optimizer_and_can_change_on_resumption(run, tmp_path):
    run("a", num_epochs=3, weight_decay=0.01)
    checkpoint = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    run("a", weight_decay=0.02, resume=checkpoint)
    groups = [
        checkpoint_of(path)["optimizer_state_dict"]["param_groups"][0]
        for path in (checkpoint, tmp_path / "a/final_model.pt")
    ]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.02]


def test_no_schedule_keeps_the_rate(run, tmp_path):
    run("a", lr_scheduler="none", lr_decay=0.5, num_epochs=3)
    rates = [record["learning_rate"] for record in json.loads((tmp_path / "a/training_history.json").read_text())]
    assert rates == [0.01, 0.01, 0.01]


# ---------------------------------------------------------------------------------------------------------------
# Files


def test_output_files_have_the_documented_members(run, tmp_path):
    results = run("a", num_epochs=5, checkpoint_frequency=2)
    written = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file()}
    checkpoints = {f"checkpoints/checkpoint_epoch_{epoch}.pt" for epoch in (2, 4, 5)}
    assert written == checkpoints | {
        "best_model.pt", "final_model.pt", "config.json", "training_history.json", "training_curves.svg",
        "test_results.json",
    }  # fmt: skip
    assert results == json.loads((tmp_path / "a/test_results.json").read_text())
    assert results.keys() > METRICS
    assert "tails only" in results["ranked"]
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["model_config"]["num_entities"] == 6
    assert config["training_config"]["batch_size"] == 4
    history = json.loads((tmp_path / "a/training_history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5]
    assert all({"loss", "learning_rate", "seconds", "valid"} <= record.keys() for record in history)


def test_checkpoint_has_the_documented_members(run, tmp_path):
    run("a", num_epochs=3)
    content = checkpoint_of(tmp_path / "a/checkpoints/checkpoint_epoch_3.pt")
    assert content["epoch"] == 3
    assert content["learning_rate"] == pytest.approx(0.01 * 0.9**2)
    assert content["mapping_digest"] == DIGEST
    assert content["metrics"].keys() > METRICS
    sizes = {
        "num_entities", "num_relations", "embedding_dim", "embedding_height", "embedding_width", "output_channels",
        "kernel_height", "kernel_width", "input_dropout", "feature_map_dropout", "output_dropout",
    }  # fmt: skip
    assert sizes <= content["model_config"].keys()
    assert list(content["model_state_dict"])[:2] == ["entity_embeddings.weight", "relation_embeddings.weight"]
    assert "entity_bias" not in content["model_state_dict"]
    assert {"optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "random_state"} <= content.keys()


def test_inverse_triples_rank_both_sides_with_twice_the_relations(run, tmp_path):
    results = run("a", num_epochs=2, inverse_triples=True)
    assert results["ranked"] == "heads and tails"
    assert results["num_ranks"] == 6
    assert checkpoint_of(tmp_path / "a/final_model.pt")["model_config"]["num_relations"] == 6


@pytest.mark.parametrize("weight_averaging", [0.0, 0.9])
def test_test_results_are_those_of_the_best_model_ranked_by_hand(run, graph, tmp_path, weight_averaging):
    results = run("a", num_epochs=5, learning_rate=0.03, weight_averaging=weight_averaging)
    model = build_model(load_checkpoint(tmp_path / "a/best_model.pt"))
    known = {tuple(triple) for split in (graph.train, graph.valid, graph.test) for triple in split.tolist()}
    ranks = []
    for h, r, t in graph.test.tolist():
        scores = model(torch.tensor([h]), torch.tensor([r]))[0].tolist()
        others = [scores[e] for e in range(6) if e == t or (h, r, e) not in known]
        ranks.append(1 + sum(s > scores[t] for s in others) + (sum(s == scores[t] for s in others) - 1) / 2)
    assert results["mean_rank"] == pytest.approx(np.mean(ranks))
    assert results["mean_reciprocal_rank"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert results["hits@1"] == pytest.approx(np.mean([rank <= 1 for rank in ranks]))


def test_an_evaluation_holds_few_scores_at_once(graph, small_conve, monkeypatch):
    triples = np.concatenate([graph.train, graph.valid, graph.test])
    known = Queries.distinct(triples)
    whole = training_run.evaluate_model(small_conve, triples, known, inverse_triples=False)
    batches = []
    small_conve.register_forward_hook(lambda model, inputs, scores: batches.append(scores.numel()))
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", 3 * 6)
    assert training_run.evaluate_model(small_conve, triples, known, inverse_triples=False) == whole
    assert max(batches) <= 3 * 6


# ---------------------------------------------------------------------------------------------------------------
# What stops a run


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(run, tmp_path, monkeypatch):
    run("a", num_epochs=3)
    good = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    with pytest.raises(InputError, match=r"not finite in epoch 4, batch \d; resume from the last checkpoint") as stop:
        run("a", resume=good, learning_rate=1e38, checkpoint_frequency=1)
    assert "\n" not in str(stop.value)
    assert newest_checkpoint(tmp_path / "a/checkpoints") == good
    build_model(load_checkpoint(good))
    build_model(load_checkpoint(tmp_path / "a/best_model.pt"))


def test_weights_that_the_last_step_broke_are_not_saved(run, tmp_path, monkeypatch):
    train_batch = training_loop.train_batch

    def overflow_after(state, *rest, **options):
        loss = train_batch(state, *rest, **options)
        state.model.fc.weight.data[0, 0] = float("inf")
        return loss

    # One batch an epoch: its loss is taken before the step that overflows.
    monkeypatch.setattr(training_loop, "train_batch", overflow_after)
    with pytest.raises(InputError, match=r"fc.weight is not finite after epoch 1; resume"):
        run("a", batch_size=100, checkpoint_frequency=1)
    assert not list(tmp_path.rglob("*.pt"))


def fill_the_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def fill_the_machine():
    torch.empty(2**58)  # an exbibyte: the allocator's own error, in the words of this system


@pytest.fixture(params=[fill_the_gpu, fill_the_machine])
def little_memory(request, monkeypatch):
    """Make batches of more than three queries run out of memory."""
    train_batch = training_loop.train_batch

    def train_if_small(state, queries, chosen, *rest, **options):
        if len(chosen) > 3:
            request.param()
        return train_batch(state, queries, chosen, *rest, **options)

    monkeypatch.setattr(training_loop, "train_batch", train_if_small)


def test_batches_that_do_not_fit_into_memory_are_halved_for_good(run, tmp_path, little_memory, caplog):
    run("a", batch_size=8, auto_batch_size=True, num_epochs=3)
    assert "going on with batches of 4 queries" in caplog.text
    assert "going on with batches of 2 queries" in caplog.text
    checkpoint = tmp_path / "a/checkpoints/checkpoint_epoch_3.pt"
    assert checkpoint_of(checkpoint)["batch_size"] == 2
    # Four batches of two queries and one of three, which a single one would have been left over from.
    assert checkpoint_of(checkpoint)["model_state_dict"]["bn0.num_batches_tracked"] == 3 * 5
    caplog.clear()
    run("a", batch_size=8, auto_batch_size=True, num_epochs=4, resume=checkpoint)
    assert "out of memory" not in caplog.text


def test_memory_is_given_back_when_the_failed_batch_no_longer_holds_any(run, monkeypatch):
    train_batch, release_memory = training_loop.train_batch, training_loop.release_memory
    held, alive_at_release = [], []

    def fail_once(*arguments, **options):
        if held:
            return train_batch(*arguments, **options)
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def release(device):
        alive_at_release.append(held[0]() is not None)
        release_memory(device)

    monkeypatch.setattr(training_loop, "train_batch", fail_once)
    monkeypatch.setattr(training_loop, "release_memory", release)
    run("a", auto_batch_size=True, num_epochs=1)
    assert alive_at_release[0] is False


def test_a_lack_of_memory_is_said_with_the_remedy(run, little_memory):
    with pytest.raises(InputError, match=r"out of memory with batches of 8 queries; lower --batch-size, or add --auto"):
        run("a", batch_size=8)


@pytest.mark.parametrize("auto_batch_size", [False, True])
def test_a_recorded_batch_is_let_go_before_batches_are_halved(run, tmp_path, monkeypatch, caplog, auto_batch_size):
    train_batch, losses = training_loop.train_batch, set()

    def fail_beside_a_recording(state, queries, chosen, batch_loss):
        losses.add(batch_loss)
        if batch_loss.is_recorded and len(chosen) == 3:
            fill_the_gpu()
        return train_batch(state, queries, chosen, batch_loss)

    monkeypatch.setattr(training_loop, "train_batch", fail_beside_a_recording)
    monkeypatch.setattr(training_loop, "can_replay", lambda *_: True)
    monkeypatch.setattr(CUDAGraphLoss.__init__, "__kwdefaults__", {"record": Recorder()})
    # Eleven triples: the last batch of an epoch has three, and the recording is there in the second epoch.
    run("a", batch_size=4, auto_batch_size=auto_batch_size, num_epochs=4)
    told = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert told == ["out of memory: going on without CUDA graphs, and more slowly"]
    assert [loss.is_recorded for loss in losses] == [False]
    final = checkpoint_of(tmp_path / "a/final_model.pt")
    assert (final["epoch"], final["batch_size"]) == (4, 4)


def test_other_errors_are_not_taken_for_a_lack_of_memory(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(training_loop, "train_batch", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run("a", auto_batch_size=True)


def test_where_compiling_fails_training_goes_on_unchanged(run, request, tmp_path, monkeypatch, caplog):
    run("plain", num_epochs=2)

    def refuse(*_, **__):
        raise RuntimeError("no C++ compiler\nand more lines")

    monkeypatch.setattr(torch, "compile", lambda function, **_: refuse)
    choose_score_terms.cache_clear()
    request.addfinalizer(choose_score_terms.cache_clear)
    run("compiled", num_epochs=2, use_torch_compile=True)
    assert "--use-torch-compile has no effect on the loss: no C++ compiler" in caplog.text
    plain, compiled = (checkpoint_of(tmp_path / name / "final_model.pt") for name in ("plain", "compiled"))
    for member in ("model_state_dict", "optimizer_state_dict", "random_state"):
        assert_identical(plain[member], compiled[member])


@pytest.mark.slow
def test_compiled_training_stays_close(run, tmp_path, caplog):
    losses = []
    for compiled in (False, True):
        name = f"compiled-{compiled}"
        run(name, num_epochs=2, learning_rate=0.001, use_torch_compile=compiled, sizes=NO_DROPOUT)
        losses.append([r["loss"] for r in json.loads((tmp_path / name / "training_history.json").read_text())])
    assert "no effect" not in caplog.text
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

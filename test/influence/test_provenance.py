"""What is known of checkpoints: their metrics, and what speaks against relying on them."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_small_conve

from conve_tracin.influence.provenance import Provenance, doubts_about, provenance_of

RECOMMENDED = {"loss": "ce", "training_approach": "kvsall", "query_weights": "tails", "random_seed": 1}
STORED = {"mean_reciprocal_rank": 0.25, "hits@1": 0.125, "hits@10": 0.5, "mean_rank": 7.0, "ranked": "heads and tails"}
TESTED = STORED | {"mean_reciprocal_rank": 0.75}


@pytest.fixture
def run(tmp_path):
    """A training run's directory with a checkpoint of epoch 3 among its checkpoints."""
    model = make_small_conve().float()
    content = {
        "model_state_dict": model.state_dict(), "model_config": model.config.as_dict(), "epoch": 3,
        "training_config": {"num_epochs": 5, "training_approach": "kvsall"}, "metrics": STORED,
    }  # fmt: skip
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "checkpoint_epoch_3.pt")
    torch.save(content, tmp_path / "best_model.pt")
    config = {name: content[name] for name in ("model_config", "training_config")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "test_results.json").write_text(json.dumps(TESTED | {"epoch": 3}))
    return tmp_path


@pytest.mark.parametrize("name", ["best_model.pt", "checkpoints/checkpoint_epoch_3.pt"])
def test_the_test_metrics_of_the_checkpoints_own_run_are_taken(run, name):
    found = provenance_of(run / name)
    assert found.as_json() == {
        "split": "test", "ranked": "heads and tails", "epoch": 3, "mean_reciprocal_rank": 0.75, "hits@1": 0.125,
        "hits@10": 0.5,
    }  # fmt: skip
    assert found.training_config["num_epochs"] == 5


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("test_results.json", TESTED | {"epoch": 4}),
        ("test_results.json", [1]),
        ("test_results.json", TESTED | {"epoch": 3, "mean_reciprocal_rank": "high", "hits@1": None, "hits@10": []}),
        ("config.json", {"training_config": {"num_epochs": 9, "training_approach": "kvsall"}}),
    ],
)
def test_otherwise_those_of_its_validation_are(run, file, content):
    (run / file).write_text(json.dumps(content))
    found = provenance_of(run / "best_model.pt")
    assert (found.split, found.metrics["mean_reciprocal_rank"]) == ("validation", 0.25)


def test_of_a_pykeen_pipeline_the_results_are_read(tmp_path):
    (tmp_path / "trained_model.pkl").write_bytes(b"\x80\x04no checkpoint")
    assert provenance_of(tmp_path / "trained_model.pkl").as_json() == {}
    metrics = {"inverse_harmonic_mean_rank": 0.5, "hits_at_1": 0.25, "hits_at_10": 0.75, "z": 1.0}
    (tmp_path / "results.json").write_text(json.dumps({"metrics": {"both": {"realistic": metrics}}}))
    found = provenance_of(tmp_path / "trained_model.pkl")
    assert found.split == "test"
    assert found.metrics == {"mean_reciprocal_rank": 0.5, "hits@1": 0.25, "hits@10": 0.75}


def doubts(*checkpoints, method="gauss-newton"):
    return " ".join(
        doubts_about([Provenance(Path("m.pt"), epoch, config, {}) for epoch, config in checkpoints], method=method)
    )


def test_doubts():
    planned = RECOMMENDED | {"num_epochs": 20}
    sure = [(20, planned), (20, planned | {"random_seed": 2})]
    assert doubts(*sure) == ""
    assert "one model's view" in doubts(sure[0])
    assert "with one seed" in doubts(sure[0], sure[0])
    assert "epoch 9 of 20" in doubts(sure[1], (9, planned))
    assert doubts(sure[1], (10, planned)) == ""
    assert doubts(sure[1], (9, planned | {"early_stopping_patience": 3})) == ""
    for other in ({"query_weights": "equal"}, {"training_approach": "1vsall"}):
        assert "not measured" in doubts(sure[1], (20, planned | other))
        assert "not measured" not in doubts(sure[1], (20, planned | other), method="tracin")
    assert doubts(sure[1], (20, planned | {"loss": "bce", "query_weights": "equal"})) == ""

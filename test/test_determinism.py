"""The same seed, data and settings give the same bits, in processes of their own and across a resumption."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_injection import ROOT, finish
from training_runs import SMALL_MODEL, assert_same_training, checkpoint_of

SETTINGS = {
    "1vsall": "--lr-decay 0.9",
    "1vsall, entities sampled": "--lr-decay 0.9 --entity-sample 3",
    "kvsall, inverses, plateau, adagrad": (
        "--training-approach kvsall --inverse-triples --optimizer adagrad --lr-scheduler plateau --lr-decay 0.5"
    ),
    "kvsall, bfloat16, cross-entropy": (
        "--training-approach kvsall --use-mixed-precision --loss ce --entity-bias --query-weights tails"
    ),
}
TRIPLE = ("aspirin", "treats", "fièvre")


def run_anew(script, *words, directory, hash_seed):
    """Run a script in a fresh Python, with an order of its own in sets."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, ROOT / script, *map(str, words)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_forked(script, *words, directory, hash_seed):
    """Run a script in a process that shares its imports with others: soon done, but with one order in sets."""
    log = Path(directory) / f"log {hash_seed}.txt"
    assert finish(script, *words, log=log, faults=[(os.chdir, directory)]) == 0, log.read_text()
    log.unlink()


def trained_and_traced(run, graph_files, output, settings, *, seed, resumed=False):
    """Train with a checkpoint at epochs 3 and 6, at once or in two parts, and trace a triple with both methods."""
    output.mkdir()
    words = [*graph_files.arguments(), *SMALL_MODEL, "--batch-size", "4", "--no-gpu", "--learning-rate", "0.01"]
    words += ["--checkpoint-frequency", "3", "-o", output, *settings.split(), "--resume-from-checkpoint", "auto"]
    for epochs in ("3", "6") if resumed else ("6",):
        run("train_pytorch.py", *words, "--num-epochs", epochs, directory=output, hash_seed=seed)
    wanted = ["--train", graph_files.train, "--entity-to-id", graph_files.entity_to_id]
    wanted += ["--relation-to-id", graph_files.relation_to_id, "--test-triple", *TRIPLE]
    for name in ("tracin", "gauss-newton"):
        # From the directory itself, as the outputs name the checkpoints.
        more = ["--model-path", "checkpoints", "--method", name, "--output", f"{name}.json"]
        run("tracin_pytorch.py", *more, *wanted, directory=output, hash_seed=seed)
    return output


def assert_same_run(one, other):
    checkpoints = sorted(path.relative_to(one) for path in one.rglob("*.pt"))
    assert len(checkpoints) == 4
    for name in checkpoints:
        assert_same_training(one / name, other / name)
        # Byte by byte, and not only equal as numbers.
        for weight, value in checkpoint_of(one / name)["model_state_dict"].items():
            assert value.numpy().tobytes() == checkpoint_of(other / name)["model_state_dict"][weight].numpy().tobytes()
    for name in ("test_results.json", "config.json", "tracin.json", "gauss-newton.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("name", ["1vsall, entities sampled", "kvsall, bfloat16, cross-entropy"])
def test_two_processes_give_the_same_checkpoints_and_scores_and_so_do_two_parts_of_a_run(graph_files, tmp_path, name):
    compare_runs(run_forked, graph_files, tmp_path, SETTINGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_order_of_sets_changes_neither_checkpoints_nor_scores(graph_files, tmp_path, name):
    compare_runs(run_anew, graph_files, tmp_path, SETTINGS[name])


def compare_runs(run, graph_files, tmp_path, settings):
    first = trained_and_traced(run, graph_files, tmp_path / "first", settings, seed=1)
    second = trained_and_traced(run, graph_files, tmp_path / "second", settings, seed=2)
    parts = trained_and_traced(run, graph_files, tmp_path / "parts", settings, seed=3, resumed=True)
    assert_same_run(first, second)
    assert_same_run(first, parts)
    influences = json.loads((first / "gauss-newton.json").read_text())["influences"]
    assert len({influence["influence"] for influence in influences}) > 5
    another = trained_and_traced(run, graph_files, tmp_path / "another", f"{settings} --random-seed 43", seed=1)
    assert (another / "tracin.json").read_bytes() != (first / "tracin.json").read_bytes()

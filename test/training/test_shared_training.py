"""Training on several processes: one process's results, its files, exact resumption, and one line when one fails."""

import json
import re
import subprocess
import sys

import pytest
import torch
from several_processes import ROOT, launch_processes, run_processes
from training_runs import NO_DROPOUT, QUICK, SMALL_MODEL, assert_same_training, checkpoint_of, files_below, run_main

from conve_tracin.checkpoint.native import build_model, load_checkpoint
from conve_tracin.compute import parallel
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.state import seed_own_dropout

SCRIPT = ROOT / "train_pytorch.py"
CHANGED = ROOT / "test/helpers/changed_training.py"
KVSALL = ("--training-approach", "kvsall", "--inverse-triples")


def train_on(number, graph_files, output, *flags, script=SCRIPT, run=run_processes):
    """Train the small model on the CPU in `number` processes; later flags count."""
    return run(
        number, script, *graph_files.arguments(), "-o", output, *SMALL_MODEL, "--no-gpu",
        "--num-epochs", "4", "--batch-size", "6", "--learning-rate", "0.01", *flags,
    )  # fmt: skip


def history_of(directory):
    records = json.loads((directory / "training_history.json").read_text())
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def error_lines(done):
    """List the lines on stderr, without the progress bars between them."""
    without_bars = re.sub(r"[^\r\n]*\d%\|[^\r\n\]]*\]", "", done.stderr)
    return [line for line in re.split(r"[\r\n]+", without_bars) if line.strip()]


def test_with_frozen_statistics_two_processes_train_the_weights_of_one(graph_files, tmp_path, monkeypatch):
    monkeypatch.setenv("CHANGE", "freeze")
    dropout = [part for name in NO_DROPOUT for part in (f"--{name.replace('_', '-')}", "0")]
    for number, name in ((1, "one"), (2, "two")):
        # Fifteen queries in batches of five: of two processes, one takes three of them and the other two.
        flags = (*KVSALL, *dropout, "--batch-size", "5", "--lr-scheduler", "plateau", "--lr-decay", "0.5")
        flags += ("--weight-averaging", "0.5")
        done = train_on(number, graph_files, tmp_path / name, *flags, "--lr-patience", "0", script=CHANGED)
        assert done.returncode == 0, done.stderr
    one, two = (checkpoint_of(tmp_path / name / "final_model.pt") for name in ("one", "two"))
    assert one["model_state_dict"].keys() == two["model_state_dict"].keys()
    for name, weight in one["model_state_dict"].items():
        torch.testing.assert_close(two["model_state_dict"][name], weight, rtol=0, atol=1e-10)
    for record, expected in zip(history_of(tmp_path / "two"), history_of(tmp_path / "one"), strict=True):
        assert record.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-12)
        assert record == expected
    results = [json.loads((tmp_path / name / "test_results.json").read_text()) for name in ("one", "two")]
    assert results[0] == results[1]
    assert results[0]["epoch"] < 4, "the best model must be another than the last, which all processes have anyway"


def test_torchrun_writes_and_prints_once_what_one_process_would(graph_files, tmp_path, monkeypatch):
    flags = [*KVSALL, "--checkpoint-frequency", "1", "--auto-batch-size"]
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "one", *QUICK, *flags) == 0
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT),
        *(*graph_files.arguments(), "-o", tmp_path / "two", *QUICK, *flags),
    ]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean_reciprocal_rank") == 1
    assert done.stderr.count("--auto-batch-size has no effect with several processes") == 1
    assert "Warning" not in done.stderr
    assert files_below(tmp_path / "two") == files_below(tmp_path / "one")
    one, two = (load_checkpoint(tmp_path / name / "checkpoints/checkpoint_epoch_2.pt") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert list(one["model_state_dict"]) == list(two["model_state_dict"])
    build_model(two)


@pytest.mark.parametrize("flags", [(), ("--weight-averaging", "0.5")])
def test_a_checkpoint_has_the_mean_of_the_statistics(graph_files, tmp_path, monkeypatch, flags):
    monkeypatch.setenv("CHANGE", "note_statistics")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    done = train_on(2, graph_files, tmp_path / "out", "--num-epochs", "1", *flags, script=CHANGED)
    assert done.returncode == 0, done.stderr
    written, *noted = (checkpoint_of(tmp_path / name) for name in ("out/final_model.pt", "notes.0", "notes.1"))
    for name in ("bn0.running_mean", "bn1.running_var", "bn2.running_mean"):
        assert not torch.equal(noted[0][name], noted[1][name])
        torch.testing.assert_close(written["model_state_dict"][name], (noted[0][name] + noted[1][name]) / 2)
    assert torch.equal(noted[0]["fc.weight"], noted[1]["fc.weight"])


@pytest.fixture
def of_three(graph_files, tmp_path):
    """Two epochs, and from there on four, by three processes, one of which has no validation triple to rank."""
    flags = ("--checkpoint-frequency", "2", "--early-stopping-patience", "9", "--lr-decay", "0.9")
    flags += ("--weight-averaging", "0.5")

    def train(name, *more):
        done = train_on(3, graph_files, tmp_path / name, *flags, *more)
        assert done.returncode == 0, done.stderr
        return done

    train("apart", "--num-epochs", "2")
    return train


def test_resuming_with_as_many_processes_changes_no_bit(of_three, tmp_path):
    of_three("whole")
    assert "going on after epoch 2" in of_three("apart", "--resume-from-checkpoint", "auto").stderr
    assert_same_training(tmp_path / "whole/final_model.pt", tmp_path / "apart/final_model.pt")
    assert_same_training(tmp_path / "whole/best_model.pt", tmp_path / "apart/best_model.pt")
    other_processes = checkpoint_of(tmp_path / "apart/final_model.pt")["random_state"]["other_processes"]
    assert len(other_processes) == 2
    assert not torch.equal(*(process["cpu"] for process in other_processes))


def test_resuming_with_another_number_of_processes_goes_on(of_three, graph_files, tmp_path, monkeypatch):
    checkpoint = tmp_path / "apart/checkpoints/checkpoint_epoch_2.pt"
    resume = ("--resume-from-checkpoint", checkpoint, "--learning-rate", "0.01", "--lr-decay", "0.9")
    flags = ("--num-epochs", "3", "--batch-size", "6", *resume)
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "one", *QUICK, *flags) == 0
    alone = checkpoint_of(tmp_path / "one/checkpoints/checkpoint_epoch_3.pt")
    assert "other_processes" not in alone["random_state"]
    done = train_on(
        2, graph_files, tmp_path / "two", "--resume-from-checkpoint", tmp_path / "one/checkpoints/checkpoint_epoch_3.pt"
    )
    assert done.returncode == 0, done.stderr
    history = history_of(tmp_path / "two")
    assert history[:3] == history_of(tmp_path / "one")
    assert history[:2] == history_of(tmp_path / "apart")
    assert history[3]["loss"] < history[0]["loss"]


def test_all_processes_agree_on_what_stands_in_for_a_lost_best_model(graph_files, tmp_path, monkeypatch):
    assert run_main(monkeypatch, *graph_files.arguments(), "-o", tmp_path / "out", *QUICK) == 0
    path = tmp_path / "out/checkpoints/checkpoint_epoch_2.pt"
    content = checkpoint_of(path)
    for record, mrr in zip(content["history"], (0.99, 0.01), strict=True):
        record["valid"]["mean_reciprocal_rank"] = mrr
    torch.save(content | {"best_mrr": 0.99}, path)
    (tmp_path / "out/best_model.pt").unlink()
    # Each epoch is better than 0.01: a process that still had 0.99 in mind would wait for the others in another place.
    done = train_on(2, graph_files, tmp_path / "out", "--resume-from-checkpoint", path, "--num-epochs", "3")
    assert done.returncode == 0, done.stderr
    assert "no model of the best epoch, 1, is left" in done.stderr
    assert load_checkpoint(tmp_path / "out/best_model.pt")["epoch"] == 3


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("refuse", 2, "train_pytorch.py: error: process 1 has had enough"),
        ("spoil", 2, "train_pytorch.py: error: the training loss is not finite in epoch 2, batch 1; resume from"),
        ("fill_memory", 2, "train_pytorch.py: error: out of memory with batches of 6 queries; lower --batch-size, or"),
        pytest.param("be_killed", 137, "process 1 of 2 was ended by SIGKILL", marks=pytest.mark.slow),
        pytest.param("vanish", 2, "another process of this run has vanished", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_what_ends_one_process_ends_all_with_one_line(graph_files, tmp_path, monkeypatch, change, code, message):
    monkeypatch.setenv("CHANGE", change)
    flags = ("--checkpoint-frequency", "1", "--auto-batch-size")
    done = train_on(2, graph_files, tmp_path / "out", *flags, script=CHANGED, run=launch_processes)
    assert done.returncode == code, done.stderr
    (line,) = [line for line in error_lines(done) if "--auto-batch-size has no effect" not in line]
    assert message in line
    assert done.stdout == ""
    assert files_below(tmp_path / "out/checkpoints") == {"checkpoint_epoch_1.pt"}


def test_bad_input_is_one_line_of_all_processes(graph_files, tmp_path):
    graph_files.train.write_text("aspirin\ttreats\n")
    done = train_on(2, graph_files, tmp_path / "out", run=launch_processes)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert "train.tsv:1: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_too_few_queries_for_the_processes_are_refused(graph_files, tmp_path):
    done = train_on(4, graph_files, tmp_path / "out", "--training-approach", "kvsall")
    assert done.returncode == 0, done.stderr
    graph_files.train.write_text("".join(graph_files.train.read_text(encoding="utf-8").splitlines(True)[:7]))
    done = train_on(4, graph_files, tmp_path / "other", "--training-approach", "kvsall")
    assert done.returncode == 2
    assert "at least two queries (head, relation) for BatchNorm in each process" in done.stderr


def test_each_process_drops_out_others_and_always_the_same(monkeypatch):
    def first_numbers(rank, **place):
        torch.manual_seed(42)
        monkeypatch.setattr(parallel, "rank", lambda: rank)
        seed_own_dropout(TrainingConfig(), **place)
        return torch.rand(4)

    torch.manual_seed(42)
    assert torch.equal(first_numbers(0), torch.rand(4)) is False  # drawn after the first ones
    torch.manual_seed(42)
    alone = torch.rand(4)
    assert torch.equal(first_numbers(0), alone)
    numbers = [first_numbers(1), first_numbers(2), first_numbers(1, epoch=3), alone]
    assert len({tuple(drawn.tolist()) for drawn in numbers}) == 4
    assert torch.equal(first_numbers(1), numbers[0])

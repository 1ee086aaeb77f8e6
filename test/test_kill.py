"""Killed at any moment: every file is whole, and the run that goes on ends as one that was never disturbed."""

import json
import os
import random
import signal
import time

import pytest
from fault_injection import finish, kill_at_step, signal_at_call, start, train_in_float16
from tracin_runs import arguments as tracin_arguments
from tracin_runs import content_of, files  # noqa: F401 - `files` is a fixture
from training_runs import SMALL_MODEL, assert_same_training
from whole_files import assert_all_whole

from conve_tracin.checkpoint.native import load_checkpoint

# An overflow in the first batches, so that the scaler has a history of its own.
FLOAT16 = (train_in_float16, 2.0**45, 3)
SETTINGS = {
    "1vsall, decay": ("--num-epochs 14 --lr-decay 0.9", ()),
    "kvsall, plateau, early stopping": (
        "--training-approach kvsall --inverse-triples --lr-scheduler plateau --lr-decay 0.5 --lr-patience 1 "
        "--early-stopping-patience 4 --num-epochs 60 --learning-rate 0.03 --checkpoint-frequency 3",
        (),
    ),
    "kvsall, bfloat16, rare evaluation": (
        "--training-approach kvsall --use-mixed-precision --eval-frequency 3 --num-epochs 14",
        (),
    ),
    "1vsall, float16 with its scaler": (
        "--use-mixed-precision --loss ce --num-epochs 14 --checkpoint-frequency 3",
        (FLOAT16,),
    ),
}


class Job:
    """Runs of a script, and the outputs of one that nothing disturbed."""

    script: str
    faults = ()

    def __init__(self, directory):
        self.directory, self.log, self.whole = directory, directory / "log.txt", directory / "undisturbed"
        started = time.monotonic()
        assert self.run(self.whole) == 0, self.log.read_text()
        self.seconds = time.monotonic() - started

    def run(self, output, *faults):
        return finish(self.script, *self.words(output), log=self.log, faults=(*self.faults, *faults))

    def run_and_kill(self, output, after_seconds):
        return kill_after(start(self.script, *self.words(output), log=self.log, faults=self.faults), after_seconds)


class Training(Job):
    """Runs of train_pytorch.py with one of the settings."""

    script = "train_pytorch.py"

    def __init__(self, graph_files, directory, name):
        settings, self.faults = SETTINGS[name]
        self.arguments = [*graph_files.arguments(), *SMALL_MODEL, "--batch-size", "4", "--no-gpu"]
        self.arguments += ["--learning-rate", "0.01", *settings.split()]
        super().__init__(directory)

    def words(self, output):
        return [*self.arguments, "-o", output, "--resume-from-checkpoint", "auto"]

    def assert_same(self, output):
        """Compare all files with the undisturbed run's."""
        names = {path.relative_to(self.whole) for path in self.whole.rglob("*") if path.is_file()}
        assert {path.relative_to(output) for path in output.rglob("*") if path.is_file()} == names
        for name in names:
            if name.suffix == ".pt":
                assert_same_training(self.whole / name, output / name)
        for name in ("test_results.json", "config.json"):
            assert (output / name).read_bytes() == (self.whole / name).read_bytes()
        histories = [json.loads((place / "training_history.json").read_text()) for place in (self.whole, output)]
        for record in (record for history in histories for record in history):
            del record["seconds"]
        assert histories[0] == histories[1]


class Tracing(Job):
    """Runs of one of the influence scripts."""

    def __init__(self, files, directory, script):
        self.script, self.files = script, files
        super().__init__(directory)

    def words(self, output):
        report = ["--report", output / "report.html"]
        if self.script == "tracin_pytorch.py":
            wanted = ["--test-triples", self.files["test.txt"], "--output-dir", output, "--engine", "reference"]
        else:
            wanted = ["--test", self.files["test.txt"], "--output", output / "out.json", "--csv-output"]
        return tracin_arguments(self.files, *wanted, *report)

    def assert_same(self, output):
        assert content_of(output) == content_of(self.whole)


def kill_after(process, seconds):
    """Kill a process without warning, unless it has ended before; returns its exit code."""
    process.join(timeout=seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode


def newest_epoch(output):
    checkpoints = (output / "checkpoints").glob("checkpoint_epoch_*.pt")
    return max((int(path.stem.rpartition("_")[2]) for path in checkpoints), default=0)


def kill_at_random(job, *, kills, seed):
    """Kill runs at random moments until there were so many; each has to end with the undisturbed run's output."""
    choice, counted, run = random.Random(seed), 0, 0
    while counted < kills:
        run += 1
        output, code = job.directory / f"killed {run}", None
        while counted < kills and code != 0:
            code = job.run_and_kill(output, choice.uniform(0, job.seconds))
            counted += code != 0
            assert_all_whole(output)
        assert code == 0 or job.run(output) == 0
        job.assert_same(output)


def kill_at_steps(job, *, steps):
    """Kill a run at each of the chosen steps of writing files; `steps` gets their number in an undisturbed run."""
    count_file = job.directory / "steps.txt"
    assert job.run(job.directory / "counted", (kill_at_step, 0, count_file)) == 0
    for step in steps(int(count_file.read_text())):
        kill_and_go_on(job, job.directory / f"killed at step {step}", (kill_at_step, step))


def kill_and_go_on(job, output, fault):
    assert job.run(output, fault) == -signal.SIGKILL
    assert_all_whole(output)
    assert job.run(output) == 0
    job.assert_same(output)


# ---------------------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize(
    ("name", "kills"), [("kvsall, plateau, early stopping", 3), ("1vsall, float16 with its scaler", 2)]
)
def test_training_killed_at_random_ends_with_the_same_bits(graph_files, tmp_path, name, kills):
    kill_at_random(Training(graph_files, tmp_path, name), kills=kills, seed=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_training_killed_fifty_times_at_random_ends_with_the_same_bits(graph_files, tmp_path, name):
    kill_at_random(Training(graph_files, tmp_path, name), kills=50, seed=f"fifty, {name}")


def test_training_killed_while_it_writes_ends_with_the_same_bits(graph_files, tmp_path):
    training = Training(graph_files, tmp_path, "kvsall, plateau, early stopping")
    stopped = load_checkpoint(training.whole / "final_model.pt")
    assert stopped["evaluations_without_improvement"] == 4
    assert stopped["epoch"] < 60
    # Half a file in the middle, and the last step before the test triples are ranked; the slow tests take every step.
    kill_at_steps(training, steps=lambda total: [total // 8 * 4 + 1, total - 4])


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_training_killed_at_every_step_of_writing_ends_with_the_same_bits(graph_files, tmp_path, name):
    kill_at_steps(Training(graph_files, tmp_path, name), steps=lambda total: range(1, total + 1))


def test_training_killed_within_its_work_ends_with_the_same_bits(graph_files, tmp_path):
    training = Training(graph_files, tmp_path, "kvsall, bfloat16, rare evaluation")
    for module, name, call in (("run", "evaluate_model", 3), ("loop", "train_batch", 23)):
        kill_and_go_on(
            training, tmp_path / f"killed in {name}", (signal_at_call, f"conve_tracin.training.{module}", name, call)
        )


def test_a_truncated_newest_checkpoint_is_passed_over_with_a_line(graph_files, tmp_path):
    training = Training(graph_files, tmp_path, "1vsall, float16 with its scaler")
    assert 0 < load_checkpoint(training.whole / "final_model.pt")["scaler_state_dict"]["scale"] < 2.0**45
    output = tmp_path / "killed"
    assert training.run(output, (signal_at_call, "conve_tracin.training.run", "evaluate_model", 8)) == -signal.SIGKILL
    assert newest_epoch(output) == 6
    newest = output / "checkpoints" / "checkpoint_epoch_6.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    training.log.unlink()
    assert training.run(output) == 0
    told = training.log.read_text()
    assert f"passed over: {newest}: is damaged" in told
    assert "going on after epoch 3" in told
    training.assert_same(output)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_stopped_training_says_so_and_goes_on(graph_files, tmp_path, number, code, word):
    training = Training(graph_files, tmp_path, "1vsall, decay")
    output = tmp_path / "stopped"
    endless = [*training.words(output), "--num-epochs", "100000"]
    process = start("train_pytorch.py", *endless, log=tmp_path / "stopped.txt", faults=training.faults)
    while newest_epoch(output) < 6 and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode == code
    told = (tmp_path / "stopped.txt").read_text()
    assert told.splitlines()[-1] == f"train_pytorch.py: {word}"
    assert "Traceback" not in told
    assert not list(output.rglob(".*"))
    assert_all_whole(output)
    training.arguments += ["--num-epochs", str(newest_epoch(output) + 3)]
    assert training.run(tmp_path / "longer") == training.run(output) == 0
    training.whole = tmp_path / "longer"
    training.assert_same(output)


# ---------------------------------------------------------------------------------------------------------------
# Influence


def test_an_influence_run_killed_at_random_ends_with_the_same_output(files, tmp_path):
    kill_at_random(Tracing(files, tmp_path, "run_tracin.py"), kills=3, seed="influence")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run_tracin.py", "tracin_pytorch.py"])
def test_an_influence_run_killed_fifty_times_ends_with_the_same_output(files, tmp_path, script):
    kill_at_random(Tracing(files, tmp_path, script), kills=50, seed=f"fifty, {script}")


def test_an_influence_run_killed_while_it_writes_ends_with_the_same_output(files, tmp_path):
    # The end of the journal missing, then among the last files.
    kill_at_steps(Tracing(files, tmp_path, "tracin_pytorch.py"), steps=lambda total: [4, total - 2])


@pytest.mark.slow
@pytest.mark.parametrize("script", ["run_tracin.py", "tracin_pytorch.py"])
def test_an_influence_run_killed_at_every_step_ends_with_the_same_output(files, tmp_path, script):
    kill_at_steps(Tracing(files, tmp_path, script), steps=lambda total: range(1, total + 1))


def test_a_stopped_influence_run_says_so_and_goes_on(files, tmp_path):
    tracing = Tracing(files, tmp_path, "run_tracin.py")
    output = tmp_path / "stopped"
    fault = (signal_at_call, "conve_tracin.influence.reference", "products_with", 3, signal.SIGTERM)
    assert tracing.run(output, fault) == 143
    assert tracing.log.read_text().splitlines()[-1] == "run_tracin.py: terminated"
    assert [path.name for path in output.iterdir()] == ["out.json.unfinished"]
    assert tracing.run(output) == 0
    assert "goes on, 32 of 36" in tracing.log.read_text()
    tracing.assert_same(output)

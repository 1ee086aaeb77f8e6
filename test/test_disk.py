"""Disks that are full, places that cannot be written, and inputs that vanish: one line, and nothing half-written."""

import json
import os
import subprocess
import sys

import pytest
import torch
from fault_injection import finish, limit_file_size, print_into, remove_at_call
from tracin_runs import arguments as tracin_arguments
from tracin_runs import content_of, files  # noqa: F401 - `files` is a fixture
from training_runs import QUICK, run_main
from whole_files import assert_all_whole

import train_pytorch
from conve_tracin import cli
from conve_tracin.checkpoint.native import build_model, load_checkpoint
from conve_tracin.files import write_together
from conve_tracin.training.resume import newest_checkpoint
from conve_tracin.training.run import OUTPUT_FILES

# Every script that writes, and what it is to write below the directory that stands for OUT. A full disk stops each at
# a file of its own: the limit is below the size of the last one named.
WRITERS = {
    "train_pytorch.py": ("--output-dir OUT", 4000),
    "run_tracin.py": ("--test TEST --output OUT/out.json --csv-output --report OUT/report.html", 9000),
    "run_tracin.py --output-per-triple": ("--test TEST --output OUT --output-per-triple", 900),
    "run_tracin.py --mode self": ("--mode self --output OUT/out.json --csv-output", 900),
    "tracin_pytorch.py": ("--test-triple e0 r0 e1 --output OUT/out.json --report OUT/report.html", 4000),
    "tracin_pytorch.py --output-dir": ("--test-triples TEST --output-dir OUT", 900),
    "convert_checkpoint.py": ("--input MODEL --output OUT/converted.pt", 4000),
    "prepare_data.py": ("--triples TRAIN --output-dir OUT", 60),
    "rank_pytorch.py": ("--output OUT/ranks.tsv --best-output OUT/best.tsv --best 2", 900),
}  # fmt: skip


@pytest.fixture
def words(files, graph_files):
    """The arguments of a script with OUT replaced by a directory."""

    def words(name, output):
        script = name.split()[0]
        if script == "train_pytorch.py":
            return [*graph_files.arguments(), *QUICK, "--output-dir", output]
        places = {"TEST": files["test.txt"], "MODEL": files["model.pt"], "TRAIN": files["train.txt"]}
        chosen = [str(places.get(word, word)).replace("OUT", str(output)) for word in WRITERS[name][0].split()]
        if script == "rank_pytorch.py":
            chosen += ["--valid", files["test.txt"], "--test", files["test.txt"]]
        return chosen if script in ("convert_checkpoint.py", "prepare_data.py") else tracin_arguments(files, *chosen)

    return words


def run_on_full_disk(script, *given, log, limit):
    """Run a script that can write no file larger than `limit` bytes; its own output goes through a pipe."""
    pipe = log.with_suffix(f".{limit}")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        code = finish(script, *given, log=pipe, faults=[(limit_file_size, limit)])
        log.write_bytes(os.read(reader, 2**16))
    finally:
        os.close(reader)
    return code


def assert_one_line(log, name):
    """Return the error, which is the last line; none before it is of Python."""
    told = log.read_text()
    assert "Traceback" not in told
    assert "Exception ignored" not in told
    last = told.splitlines()[-1]
    assert last.startswith(f"{os.path.basename(name.split()[0])}: error: "), told  # noqa: PTH119
    assert told.count(": error: ") == 1
    return last


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there_and_whole_files(tmp_path, words, name):
    script, log = name.split()[0], tmp_path / "log.txt"
    written, new = tmp_path / "written", tmp_path / "new"
    assert finish(script, *words(name, written), log=log) == 0
    before = content_of(written)
    force = ["--force"] if script == "convert_checkpoint.py" else []
    for place, limit in ((written, 20), (new, WRITERS[name][1])):
        assert run_on_full_disk(script, *words(name, place), *force, log=log, limit=limit) == 2
        error = assert_one_line(log, name)
        assert "cannot be written (File too large); free the disk or choose another place" in error
    assert content_of(written) == before
    assert not list(new.rglob(".*"))
    assert_all_whole(new)
    assert content_of(new).keys() != before.keys()


def mounted(directory, size):
    """Mount a file system of some bytes, where this user may."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_disk_that_fills_up_while_training_costs_no_checkpoint(graph_files, tmp_path):
    disk, log = tmp_path / "disk", tmp_path / "log.txt"
    disk.mkdir()
    if not mounted(disk, 300_000):
        pytest.skip("only root can mount a small file system; the limit on file sizes above runs everywhere")
    try:
        given = [*graph_files.arguments(), *QUICK, "--num-epochs", "15", "--checkpoint-frequency", "1"]
        given += ["--resume-from-checkpoint", "auto", "--output-dir"]
        assert finish("train_pytorch.py", *given, disk / "out", log=log) == 2
        error = assert_one_line(log, "train_pytorch.py")
        assert "cannot be written (No space left on device); free the disk or choose another place" in error
        assert not list(disk.rglob(".*"))
        assert_all_whole(disk)
        newest = newest_checkpoint(disk / "out" / "checkpoints")
        assert 2 <= load_checkpoint(newest)["epoch"] < 15
        subprocess.run(["mount", "-o", "remount,size=50000000", str(disk)], check=True)
        assert finish("train_pytorch.py", *given, disk / "out", log=log) == 0
        assert finish("train_pytorch.py", *given, tmp_path / "undisturbed", log=log) == 0
        resumed, undisturbed = (
            load_checkpoint(place / "final_model.pt") for place in (disk / "out", tmp_path / "undisturbed")
        )
        for weight, value in undisturbed["model_state_dict"].items():
            assert torch.equal(resumed["model_state_dict"][weight], value)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_even_root_cannot_write_is_one_line(tmp_path, words, name):
    (tmp_path / "file").write_text("occupied")
    for number, place in enumerate((tmp_path / "file" / "deep", "/proc/nowhere")):
        log = tmp_path / f"log {number}.txt"
        assert finish(name.split()[0], *words(name, place), log=log) == 2
        assert "cannot be written" in (line := assert_one_line(log, name))
        assert str(place) in line
    assert (tmp_path / "file").read_text() == "occupied"


@pytest.mark.parametrize("name", WRITERS)
def test_a_directory_in_the_place_of_each_output_is_one_line_and_stays(tmp_path, words, name):
    script, log = name.split()[0], tmp_path / "log.txt"
    assert finish(script, *words(name, tmp_path / "out"), log=log) == 0
    written = sorted(content_of(tmp_path / "out"))
    assert written
    several = ("checkpoints/", "triple_", "test_0", "test_1", "test_2", "test_3")
    chosen = [path for path in written if not path.startswith(several)] or written[:1]
    for number, path in enumerate(chosen):
        out, log = tmp_path / f"out {number}", tmp_path / f"log {number}.txt"
        (out / path).mkdir(parents=True)
        assert finish(script, *words(name, out), log=log) == 2, path
        assert "is a directory" in (line := assert_one_line(log, name))
        assert str(out / path) in line
        assert (out / path).is_dir()
        # Names that depend on the triples are met one after the other.
        assert name.endswith(("--output-per-triple", "--output-dir")) or not content_of(out)
        assert_all_whole(out)


# ---------------------------------------------------------------------------------------------------------------
# Inputs that vanish


def test_inputs_that_vanish_while_training_are_no_longer_needed(graph_files, tmp_path):
    faults = [
        (remove_at_call, "conve_tracin.training.loop", "train_batch", 2, path)
        for path in (graph_files.train, graph_files.valid, graph_files.test, graph_files.entity_to_id)
    ]
    given = [*graph_files.arguments(), *QUICK, "--output-dir", tmp_path / "out"]
    assert finish("train_pytorch.py", *given, log=tmp_path / "log.txt", faults=faults) == 0
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == set(OUTPUT_FILES)


def test_a_best_model_that_vanishes_while_training_is_one_line_and_comes_back(graph_files, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.txt"
    given = [*graph_files.arguments(), *QUICK, "--output-dir", out, "--resume-from-checkpoint", "auto"]
    fault = (remove_at_call, "conve_tracin.training.run", "rank_test_triples", 1, out / "best_model.pt")
    assert finish("train_pytorch.py", *given, log=log, faults=[fault]) == 2
    assert "best_model.pt: no such file" in assert_one_line(log, "train_pytorch.py")
    assert not (out / "test_results.json").exists()
    assert finish("train_pytorch.py", *given, log=log) == 0
    build_model(load_checkpoint(out / "best_model.pt"))


@pytest.mark.parametrize("script", ["run_tracin.py", "tracin_pytorch.py"])
def test_a_checkpoint_that_vanishes_while_tracing_is_one_line_and_the_run_goes_on_later(files, tmp_path, script):
    second, log = tmp_path / "second.pt", tmp_path / "log.txt"
    kept = files["model.pt"].read_bytes()
    second.write_bytes(kept)

    def given(out):
        wanted = ["--test", files["test.txt"], "--output", out / "out.json"]
        if script == "tracin_pytorch.py":
            wanted = ["--test-triples", files["test.txt"], "--output-dir", out]
        words = tracin_arguments(files, *wanted, "--report", out / "report.html")
        words[2:2] = [str(second)]
        return words

    # Loaded anew for each group of test triples, and digested for the report.
    for number, call in enumerate((2, 4)):
        out, log = tmp_path / f"out {number}", tmp_path / f"log {number}.txt"
        fault = (remove_at_call, "conve_tracin.influence.load", "take_model", call, second)
        assert finish(script, *given(out), log=log, faults=[fault]) == 2
        assert f"{second}: " in assert_one_line(log, script)
        assert_all_whole(out)
        assert list(out.glob("*.unfinished"))
        assert not list(out.rglob(".*"))
        second.write_bytes(kept)
        assert finish(script, *given(out), log=log) == 0
        assert "goes on, " in log.read_text()
    assert finish(script, *given(tmp_path / "undisturbed"), log=log) == 0
    assert content_of(tmp_path / "out 0") == content_of(tmp_path / "out 1") == content_of(tmp_path / "undisturbed")


def test_a_checkpoint_that_vanishes_before_the_report_is_one_line(files, tmp_path):
    fault = (remove_at_call, "conve_tracin.report.page", "describe_computation", 1, files["model.pt"])
    given = [
        "--test-triple",
        "e0",
        "r0",
        "e1",
        "--output",
        tmp_path / "out/a.json",
        "--report",
        tmp_path / "out/a.html",
    ]
    log = tmp_path / "log.txt"
    assert finish("tracin_pytorch.py", *tracin_arguments(files, *given), log=log, faults=[fault]) == 2
    assert "model.pt: cannot be read (No such file or directory)" in assert_one_line(log, "tracin_pytorch.py")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.json"]
    json.loads((tmp_path / "out/a.json").read_text())


@pytest.mark.parametrize(
    ("script", "given", "fault", "message"),
    [
        ("convert_checkpoint.py", ("--input", "model.pt", "--output"), ("torch", "load"), "model.pt: "),
        ("prepare_data.py", ("--triples", "train.txt", "--output-dir"),
         ("conve_tracin.data.prepare", "graph_from_file"), "train.txt: no such file"),
    ],
)  # fmt: skip
def test_an_input_that_vanishes_while_it_is_read_is_one_line(files, tmp_path, script, given, fault, message):
    flag, name, output_flag = given
    words, log = [flag, files[name], output_flag, tmp_path / "out" / "made"], tmp_path / "log.txt"
    assert finish(script, *words, log=log, faults=[(remove_at_call, *fault, 1, files[name])]) == 2
    assert message in assert_one_line(log, script)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------
# The rest


def test_files_are_written_together_or_not_at_all(tmp_path):
    def fails():
        yield "half"
        raise OSError(28, os.strerror(28))

    (tmp_path / "a").write_text("old")
    with pytest.raises(cli.InputError, match=r"b: cannot be written \(No space left on device\)"):
        write_together({tmp_path / "a": ["new"], tmp_path / "b": fails(), tmp_path / "c": ["new"]})
    assert content_of(tmp_path) == {"a": b"old"}
    write_together({tmp_path / "a": ["new"], tmp_path / "b": ["b", "b\n"]})
    assert content_of(tmp_path) == {"a": b"new", "b": b"bb\n"}


@pytest.mark.parametrize("script", ["convert_checkpoint.py", "tracin_pytorch.py"])
def test_a_full_standard_output_is_one_line_once_the_files_are_written(files, tmp_path, script):
    output = tmp_path / "out"
    given = ["--input", files["model.pt"], "--output", output]
    if script == "tracin_pytorch.py":
        given = tracin_arguments(files, "--test-triple", "e0", "r0", "e1", "--output", output)
    log = tmp_path / "log.txt"
    assert finish(script, *given, log=log, faults=[(print_into, "/dev/full")]) == 2
    assert assert_one_line(log, script) == f"{script}: error: No space left on device; --debug shows where"
    assert output.stat().st_size > 0


def test_other_errors_of_the_system_are_one_line_too(graph_files, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(5, os.strerror(5), "somewhere")

    monkeypatch.setattr(train_pytorch, "read_data", fail)
    given = [*graph_files.arguments(), *QUICK, "--output-dir", tmp_path / "out"]
    assert run_main(monkeypatch, *given) == 2
    error = capsys.readouterr().err
    assert error == "train_pytorch.py: error: somewhere: Input/output error; check the path\n"
    with pytest.raises(OSError, match="somewhere"):
        raise_with_debug(monkeypatch, given)


def raise_with_debug(monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["train_pytorch.py", *map(str, given), "--debug"])
    cli.run(train_pytorch.main)

"""Killed runs go on where they stopped and end with the output of an undisturbed run."""

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_injection import finish, signal_at_call
from influence_examples import NUM_ENTITIES, NUM_RELATIONS, TEST_TRIPLES, TRAINING, make_model
from tracin_runs import (
    WANTED,
    arguments,
    content_of,
    files,  # noqa: F401
)

import run_tracin
import tracin_pytorch
from conve_tracin.data.graph import Graph
from conve_tracin.errors import InputError
from conve_tracin.influence import trace as trace_module
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.influence.journal import Journal, digest_of, from_plain
from conve_tracin.influence.reference import BackwardLoop
from conve_tracin.influence.summary import SummarySettings
from conve_tracin.influence.trace import Trace, TracedCheckpoint, trace


def killed(script, *given, group, log):
    """Run a script, and kill the process without warning when a given group of test triples is about to be traced."""
    fault = (signal_at_call, "conve_tracin.influence.reference", "products_with", group)
    assert finish(script, *given, log=log, faults=[fault]) == -signal.SIGKILL, log.read_text()


@pytest.mark.parametrize(("more", "cut_bytes", "groups"), [([], 0, 2), (["--output-per-triple"], 10, 1)])
def test_killed_run_tracin_ends_with_the_same_output(files, tmp_path, more, cut_bytes, groups, caplog):
    def given(folder):
        output = tmp_path / folder if more else tmp_path / folder / "out.json"
        csv = tmp_path / folder / "out.csv"
        return arguments(files, "--test", files["test.txt"], "--output", output, "--csv-output", csv, *more)

    run_tracin.main(given("undisturbed"))
    killed("run_tracin.py", *given("killed"), group=3, log=tmp_path / "log.txt")
    (journal,) = (path for path in (tmp_path / "killed").iterdir() if path.suffix != ".json")
    assert journal.name.endswith(".unfinished")
    # As if the machine had failed amid the second group: the whole group is traced again.
    journal.write_bytes(journal.read_bytes()[: journal.stat().st_size - cut_bytes])
    caplog.set_level("INFO")
    run_tracin.main(given("killed"))
    assert f"goes on, {groups * trace_module.GROUP_SIZE} of {len(WANTED)} test triples are finished" in caplog.text
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "undisturbed")


def test_killed_tracin_pytorch_ends_with_the_same_output(files, tmp_path, caplog):
    def given(folder):
        more = ["--test-triples", files["test.txt"], "--output-dir", tmp_path / folder, "--engine", "reference"]
        return arguments(files, *more)

    tracin_pytorch.main(given("undisturbed"))
    killed("tracin_pytorch.py", *given("killed"), group=2, log=tmp_path / "log.txt")
    assert len(list((tmp_path / "killed").glob("tracin.*.unfinished"))) == 1
    assert len(content_of(tmp_path / "killed")) <= trace_module.GROUP_SIZE + 1
    caplog.set_level("INFO")
    tracin_pytorch.main(given("killed"))
    assert f"goes on, {trace_module.GROUP_SIZE} of {len(WANTED)}" in caplog.text
    assert len(content_of(tmp_path / "undisturbed")) == len(set(WANTED))
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("script", ["run_tracin.py", "tracin_pytorch.py"])
def test_runs_that_share_a_directory_leave_each_others_journals(files, tmp_path, script, caplog):
    tested = ["--test", files["test.txt"], "--output-per-triple", "--output", tmp_path / "out"]
    if script == "tracin_pytorch.py":
        tested = ["--test-triples", files["test.txt"], "--engine", "reference", "--output-dir", tmp_path / "out"]
    first, second = (arguments(files, *tested, "--top-k", number) for number in (3, 4))
    killed(script, *first, group=2, log=tmp_path / "log.txt")
    killed(script, *second, group=2, log=tmp_path / "log.txt")
    caplog.set_level("INFO")
    for given in (first, second):
        (run_tracin if script == "run_tracin.py" else tracin_pytorch).main(given)
    assert caplog.text.count(f"goes on, {trace_module.GROUP_SIZE} of {len(WANTED)}") == 2
    assert not list((tmp_path / "out").glob("*.unfinished"))


@pytest.mark.parametrize("change", ["settings", "checkpoint", "training file", "test file"])
def test_what_another_run_left_is_not_used(files, tmp_path, change, caplog, monkeypatch):
    given = arguments(files, "--test", files["test.txt"], "--output", tmp_path / "out" / "out.json")
    products, calls = BackwardLoop.products, []

    def interrupted(*args, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return products(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(BackwardLoop, "products", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_tracin.main(given)
    assert (tmp_path / "out" / "out.json.unfinished").exists()
    if change == "settings":
        given += ["--top-k", "3"]
    elif change == "checkpoint":
        content = torch.load(files["model.pt"], weights_only=True)
        content["model_state_dict"]["fc.bias"] += 0.5
        torch.save(content, files["model.pt"])
    else:
        path = files["train.txt" if change == "training file" else "test.txt"]
        path.write_text(path.read_text() + "e0\tr0\te5\n")
    caplog.set_level("INFO")
    run_tracin.main(given)
    assert "starts afresh" in caplog.text
    assert "goes on" not in caplog.text
    resumed = (tmp_path / "out" / "out.json").read_bytes()
    run_tracin.main(given)
    assert (tmp_path / "out" / "out.json").read_bytes() == resumed


# ---------------------------------------------------------------------------------------------------------------
# The journal


RECORDS = [{"score": 0.1 + 0.2, "ids": [1, 2]}, {"score": -1e-300}, {"score": 3.0}]


def write_records(path, digest, records):
    with Journal(path, digest) as journal:
        journal.add(records)


def records_in(path, digest):
    with Journal(path, digest) as journal:
        records = list(journal.records)
        assert len(journal) == len(records)
        return records


def test_journal_gives_back_what_was_added(tmp_path):
    path = tmp_path / "deep" / "run.unfinished"
    write_records(path, "a", RECORDS[:2])
    with Journal(path, "a") as again:
        assert list(again.records) == RECORDS[:2]
        again.add(RECORDS[2:])
        assert list(again.records) == RECORDS
    assert records_in(path, "a") == RECORDS
    with Journal(path, "a") as again:
        again.remove()
    assert not path.exists()
    assert records_in(path, "a") == []


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_journal_drops_a_line_that_was_cut_off(tmp_path, cut):
    path = tmp_path / "run.unfinished"
    write_records(path, "a", RECORDS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path, "a") as journal:
        left = list(journal.records)
        assert left == RECORDS[: len(left)]
        assert len(left) < len(RECORDS)
        journal.add(RECORDS[len(left) :])
    assert path.read_bytes() == whole


def test_journal_of_another_run_is_replaced(tmp_path):
    path = tmp_path / "run.unfinished"
    write_records(path, "a", RECORDS)
    assert records_in(path, "b") == []
    write_records(path, "b", RECORDS[:1])
    assert records_in(path, "b") == RECORDS[:1]
    path.write_bytes(b"")
    assert records_in(path, "b") == []


def test_journal_keeps_the_first_records(tmp_path):
    path = tmp_path / "run.unfinished"
    write_records(path, "a", RECORDS)
    with Journal(path, "a") as journal:
        journal.keep(1)
        journal.add([{"new": 1}])
        assert list(journal.records) == [RECORDS[0], {"new": 1}]
    assert records_in(path, "a") == [RECORDS[0], {"new": 1}]


@pytest.mark.parametrize("digest", ["a", "b"])
def test_journal_that_another_process_writes_is_left_alone(tmp_path, digest, caplog):
    pytest.importorskip("fcntl")
    path = tmp_path / "run.unfinished"
    caplog.set_level("INFO")
    with Journal(path, "a") as writer:
        writer.add(RECORDS[:1])
        with Journal(path, digest) as other:
            assert other.has_other_writer
            assert list(other.records) == []
            other.add(RECORDS[1:])
            other.remove()
        writer.add(RECORDS[1:2])
    assert caplog.text.count("another process writes it") == 1
    assert records_in(path, "a") == RECORDS[:2]


def test_journal_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        Journal(tmp_path / "file" / "run.unfinished", "a").add(RECORDS)


def test_digest_depends_on_settings_files_and_arrays(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    triples = np.arange(6).reshape(2, 3)

    def digest(settings=None, file="a", array=triples):
        return digest_of(settings=settings or {"top_k": 1}, files=[tmp_path / file], arrays=[array])

    assert digest() == digest()
    others = {digest({"top_k": 2}), digest(file="b"), digest(array=triples + 1), digest(array=triples.reshape(3, 2))}
    assert len(others | {digest()}) == 5
    with pytest.raises(InputError, match=r"nowhere: cannot be read"):
        digest(file="nowhere")


def test_traces_survive_the_journal():
    analyzer = TracInAnalyzerPyTorch(make_model())
    settings = SummarySettings(graph=Graph(TRAINING, NUM_ENTITIES, NUM_RELATIONS))
    load = lambda _: TracedCheckpoint(analyzer.scorer, analyzer.method, 1.0)  # noqa: E731
    traces = trace(
        load, [Path("a")], TEST_TRIPLES, TRAINING, top_k=4, progress=False, describe=settings, summarised=True
    )
    for traced in traces:
        kept = json.loads(json.dumps(dataclasses.asdict(traced)))
        assert from_plain(Trace, kept) == traced
    plain = dataclasses.replace(traced, summary=None, prediction=None)
    assert from_plain(Trace, json.loads(json.dumps(dataclasses.asdict(plain)))) == plain

"""Hostile files: nothing in them runs, reports and tables show labels as text, and nothing listens for anybody."""

import ast
import csv
import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import assert_refused, run
from conftest import make_small_conve
from page_content import Page
from pipeline_runs import TINY, needs_snakemake, snakemake, write_config
from project_files import COMMANDS, MAPPINGS, NAMES, clean, project, write, write_graph  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[1]
RANK = (
    "rank_pytorch", "--model-path", "model.pt", "--train", "train.tsv", "--valid", "valid.tsv",
    "--test", "test.tsv", *MAPPINGS, "-o", "out/ranks.tsv",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Nothing in a file runs


class Payload:
    """Makes the directory `ran` when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(Path("ran").absolute()),)


# What a hostile file looks like: {kind: how it is written}.
HOSTILE_FILES = {
    "archive": lambda path: torch.save({"model_state_dict": {"fc.weight": Payload()}}, path),
    "archive of PyKEEN's protocol": lambda path: torch.save({"epoch": Payload()}, path, pickle_protocol=5),
    "old format": lambda path: torch.save(Payload(), path, _use_new_zipfile_serialization=False),
    "bare pickle": lambda path: Path(path).write_bytes(pickle.dumps(Payload())),
    "compressed pickle": lambda path: Path(path).write_bytes(gzip.compress(pickle.dumps(Payload()))),
}
# Where a file is read as a checkpoint: {place: (what is run, the file)}.
CHECKPOINTS = {
    "resume": (COMMANDS["resume"], "model.pt"),
    "tracin": (COMMANDS["tracin"], "model.pt"),
    "run": (COMMANDS["run"], "model.pt"),
    "run, reference engine": ([part for part in COMMANDS["run"] if part != "--use-optimized-tracin"], "model.pt"),
    "run, Gauss-Newton": ((*COMMANDS["run"], "--method", "gauss-newton"), "model.pt"),
    "run self": (COMMANDS["run self"], "model.pt"),
    "the second of two": ((*COMMANDS["run"], "--model-path", "converted.pt", "model.pt"), "model.pt"),
    "a directory": ((*COMMANDS["tracin"], "--model-path", "epochs"), "epochs/checkpoint_epoch_2.pt"),
    "the directory of a pipeline": ((*COMMANDS["run"], "--model-path", "epochs"), "epochs/trained_model.pkl"),
    "rank": (RANK, "model.pt"),
    "predict": (COMMANDS["predict"], "model.pt"),
    "verify": (COMMANDS["verify"], "model.pt"),
    "convert": (COMMANDS["convert"], "model.pt"),
    "convert back": (COMMANDS["convert back"], "converted.pt"),
}
SIDE_FILES = {
    "triples": (COMMANDS["run"], "train.tsv"),
    "a list": (COMMANDS["tracin many"], "listed.txt"),
    "a mapping": (COMMANDS["train"], "entity_to_id.tsv"),
    "names": (COMMANDS["run"], "names.txt"),
    "an edge map": (COMMANDS["tracin"], "edge_map.json"),
    "queries": (COMMANDS["predict"], "queries.tsv"),
    "evidence": ((*COMMANDS["tracin"], "--evidence", "evidence.tsv.gz"), "evidence.tsv.gz"),
    "known reasons": ((*COMMANDS["run"], "--reasons", "reasons.jsonl"), "reasons.jsonl"),
    "influences to verify": (COMMANDS["verify"], "influences.json"),
    "triples to prepare": (COMMANDS["prepare"], "valid.tsv"),
    "nodes": (COMMANDS["prepare KGX"], "nodes.jsonl"),
    "edges": (COMMANDS["prepare KGX"], "edges.jsonl"),
}


def unpickle(path):
    """Read a hostile file as a program would that trusts it."""
    content = Path(path).read_bytes()
    if content.startswith(b"\x1f\x8b"):
        pickle.loads(gzip.decompress(content))
    elif content.startswith(b"PK"):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(content)


@pytest.mark.parametrize("kind", ["archive", "archive of PyKEEN's protocol", "bare pickle", "compressed pickle"])
def test_the_payload_is_one(project, kind):
    HOSTILE_FILES[kind]("file")
    unpickle("file")
    assert Path("ran").is_dir()


@pytest.mark.parametrize("kind", HOSTILE_FILES)
@pytest.mark.parametrize("place", [*CHECKPOINTS, *SIDE_FILES])
def test_no_file_runs_anything_in_any_script(project, place, kind):
    command, name = (CHECKPOINTS | SIDE_FILES)[place]
    Path("epochs").mkdir()
    HOSTILE_FILES[kind](name)
    message = assert_refused(run(*command))
    assert name in message
    assert not Path("ran").exists()
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_hostile_checkpoints_beside_the_one_that_is_wanted_run_nothing(project, kind):
    """Training looks at checkpoints that nobody named: the newest one, and that of the best epoch."""
    Path("out/checkpoints").mkdir(parents=True)
    for name in ("out/checkpoints/checkpoint_epoch_9.pt", "out/checkpoints/checkpoint_epoch_1.pt", "out/best_model.pt"):
        HOSTILE_FILES[kind](name)
    for checkpoint in ("auto", "model.pt"):
        done = run(*COMMANDS["resume"], "--resume-from-checkpoint", checkpoint)
        assert done.code == 0, done
        assert not Path("ran").exists()


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_hostile_mappings_beside_a_pipelines_model_run_nothing(project, kind):
    Path("epochs/training_triples").mkdir(parents=True)
    shutil.copy("converted.pt", "epochs/trained_model.pkl")
    for name in ("entity_to_id.tsv.gz", "relation_to_id.tsv.gz"):
        HOSTILE_FILES[kind](Path("epochs/training_triples") / name)
    arguments = [part for part in COMMANDS["run"] if part not in MAPPINGS]
    message = assert_refused(run(*arguments, "--model-path", "epochs"))
    assert "entity_to_id.tsv.gz" in message
    assert not Path("ran").exists()


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_a_directory_of_hostile_checkpoints_converts_without_them(project, kind):
    Path("epochs").mkdir()
    shutil.copy("model.pt", "epochs/checkpoint_epoch_1.pt")
    HOSTILE_FILES[kind]("epochs/checkpoint_epoch_2.pt")
    done = run("convert_checkpoint", "--input-dir", "epochs", "--output-dir", "out")
    assert (done.code, done.trouble) == (1, None)
    assert "1 converted, 0 kept, 1 failed" in done.out
    assert [path.name for path in Path("out").iterdir()] == ["checkpoint_epoch_1_pykeen.pt"]
    assert not Path("ran").exists()


def test_trust_is_needed_and_enough(project):
    """The one flag that lets a file run: this test shows that the ones above could have failed."""
    HOSTILE_FILES["archive"]("model.pt")
    assert_refused(run(*COMMANDS["run"]))
    assert not Path("ran").exists()
    assert_refused(run(*COMMANDS["run"], "--trust-pickle"))
    assert Path("ran").is_dir()


def calls_in(path):
    """Yield (name, call) of each call in a source file, the name with its dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


SOURCES = [*ROOT.glob("*.py"), *(ROOT / "conve_tracin").rglob("*.py")]


def test_no_source_unpickles_evaluates_or_calls_a_shell():
    trusting = []
    for path in SOURCES:
        for name, call in calls_in(path):
            assert name not in {"eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads"}, path
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("shell", "False") == "False", path
            assert given.get("allow_pickle", "False") == "False", path
            if name == "torch.load" and given.get("weights_only") != "True":
                trusting.append((path.name, given.get("weights_only")))
    # Behind --trust-pickle.
    assert trusting == [("pykeen.py", "False")]
    assert not re.search(r"^\s*shell:", (ROOT / "Snakefile_pytorch_conve").read_text(encoding="utf-8"), re.MULTILINE)


# ---------------------------------------------------------------------------------------------------------------
# Labels are text

HOSTILE_LABELS = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "javascript:alert(1)",
    "</style></script><script>alert(1)//", "<!--", "]]>", "&lt;b&gt;", '=HYPERLINK("http://x.example","y")', "+1+1",
    "-2+3", "@SUM(A1)", "'=already", "\x1b[2J\x1b]0;title\x07", "%00", "${HOME}", "{{7*7}}",
)  # fmt: skip
HOSTILE_RELATIONS = ("<img src=x onerror=alert(1)>", "@relation")


@pytest.fixture
def hostile_project(project):
    """A graph whose labels, names and files are hostile, and a model of it."""
    number = len(HOSTILE_LABELS)
    triples = np.array([(place, place % 2, (5 * place + 1) % number) for place in range(number)])
    write_graph(triples, HOSTILE_LABELS, HOSTILE_RELATIONS)
    names = ("\r=1+1\r-2", *HOSTILE_LABELS[1:])
    write("names.txt", "".join(f"{name}\t{(place + 1) % number}\n" for place, name in enumerate(names)))
    predicates = {json.dumps({"predicate": "\t=1<script>alert(1)</script>\n"}): HOSTILE_RELATIONS[0]}
    write("edge_map.json", json.dumps(predicates))
    model = make_small_conve(num_entities=number, num_relations=2).float()
    hostile_path = Path("'\"><img src=x onerror=alert(1)>.pt")
    content = {"model_state_dict": model.state_dict(), "model_config": model.config.as_dict(), "epoch": 1}
    torch.save(content, hostile_path)
    return hostile_path, len(triples)


@pytest.mark.parametrize("command", ["run", "tracin"])
def test_reports_show_hostile_labels_as_text(hostile_project, command):
    model, _ = hostile_project
    done = run(*COMMANDS[command], "--model-path", model, "--report", "out/report.html", "--top-k", "99")
    assert done.code == 0, done
    page = Page(Path("out/report.html").read_text(encoding="utf-8"))
    assert len(page.attributes("script")) == 1
    assert "alert(" not in page.texts("script")[0] + page.texts("style")[0]
    assert {name for name, _ in page.elements}.isdisjoint({"img", "iframe", "object", "embed", "base", "form"})
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    whole = page.texts("html")[0]
    assert "'\"><img src=x onerror=alert(1)>.pt" in whole
    shown = [label for label in HOSTILE_LABELS if " ".join(label.split()) in " ".join(whole.split())]
    assert len(shown) > 10


def test_tables_hold_no_formula(hostile_project):
    model, number = hostile_project
    done = run(*COMMANDS["run"], "--model-path", model, "--csv-output", "--top-k", "99")
    assert done.code == 0, done
    with Path("out/influences.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert len(rows) == number**2
    texts = [cell for row in rows for cell in row[:12]]
    assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    column = header.index("TrainHead")
    assert {re.sub(r"^'(?='*[=+\-@\t\r])", "", row[column]) for row in rows} == set(HOSTILE_LABELS)


@pytest.mark.parametrize("command", ["run", "run self", "tracin"])
def test_the_terminal_gets_no_control_characters(hostile_project, command):
    model, _ = hostile_project
    done = run(*COMMANDS[command], *NAMES, "--model-path", model, "--top-k", "99")
    assert done.code == 0, done
    assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f]", done.out)
    assert "<script>" in done.out


# ---------------------------------------------------------------------------------------------------------------
# Nothing listens

# Runs commands in one process and tells of all that the network could notice. Probing whether the loopback has IPv6 is
# what a package does when it is imported.
WATCHED = """
import importlib, json, socket, sys

def watch(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")) and event != "socket.__new__":
        if not (event == "socket.bind" and arguments[1][0] in ("127.0.0.1", "::1")):
            print("NETWORK", event, arguments, file=sys.stderr)

def listen(self, *arguments):
    print("NETWORK listen", self, file=sys.stderr)

sys.addaudithook(watch)
socket.socket.listen = listen
for script, *arguments in json.loads(sys.argv[1]):
    importlib.import_module(script).main(arguments)
"""


def listening(process_marker):
    """The TCP sockets on which processes with a variable in their environment listen: {(address, is torchrun's)}."""
    owners = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if process_marker not in (directory / "environ").read_bytes():
                continue
            of_torchrun = b"torch.distributed.run" in (directory / "cmdline").read_bytes()
            for descriptor in (directory / "fd").iterdir():
                owners[descriptor.readlink().name] = of_torchrun
        except OSError:
            continue  # it has ended meanwhile
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            name = f"socket:[{columns[9]}]"
            if columns[3] == "0A" and name in owners:
                found.add((columns[1].partition(":")[0], owners[name]))
    return found


def watched(*commands):
    return subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(commands)],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stderr  # fmt: skip


def test_no_script_uses_the_network(project):
    names = ("prepare one file", "train", "tracin", "run", "predict", "convert")
    assert "NETWORK" not in watched(*(COMMANDS[name] for name in names))
    Path("server.py").write_text("import socket\ndef main(_): socket.create_server(('127.0.0.1', 0)).close()\n")
    assert "NETWORK listen" in watched(["server"])


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the system has no /proc/net")
def test_under_torchrun_the_scripts_processes_listen_on_the_loopback_only(project):
    """Torchrun itself listens for its processes while they run, wherever torch has it listen."""
    script, *arguments = COMMANDS["run"]
    marker = f"WATCHED_BY={os.getpid()}_{time.monotonic_ns()}"
    running = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(ROOT / f"{script}.py"), *arguments],
        env=os.environ | dict([marker.split("=")]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    seen = set()
    while running.poll() is None:
        seen |= listening(marker.encode())
        time.sleep(0.02)
    assert running.returncode == 0
    loopback = {"0100007F", "0" * 24 + "01000000"}
    of_the_script = {address for address, of_torchrun in seen if not of_torchrun}
    assert of_the_script <= loopback
    assert any(of_torchrun for _, of_torchrun in seen), "nothing was seen at all, so this test shows nothing"


# ---------------------------------------------------------------------------------------------------------------
# Nothing reaches a shell


@needs_snakemake
@pytest.mark.slow
def test_the_pipeline_runs_in_a_directory_whose_name_is_a_command(tmp_path):
    directory = tmp_path / "a b'c\"d $HOME $(touch pwned) `touch pwned`; touch pwned & #"
    directory.mkdir()
    entities = [f"e{place}" for place in range(8)]
    lines = [
        f"{one}\tr{n % 2}\t{entities[(3 * n + step) % 8]}\n" for n, one in enumerate(entities) for step in (1, 2, 4)
    ]
    source = directory / "my $(touch pwned) 'graph'.tsv"
    source.write_text("".join(lines))
    config = write_config(directory, **TINY, base="out $(touch pwned)", dataset=None, triples=str(source), top_k=3)
    done = snakemake(directory, config)
    assert done.returncode == 0, done.stderr
    root = directory / "out $(touch pwned)" / "keepall"
    assert (root / "report.html").is_file()
    assert len(json.loads((root / "explanations/1.json").read_text(encoding="utf-8"))["influences"]) == 3
    assert not list(tmp_path.rglob("pwned"))
    assert not (Path.cwd() / "pwned").exists()

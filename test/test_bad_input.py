"""Bad input through the command lines: one clear line and nothing written, or the results of the clean files.

Every case spoils one thing in a directory that holds a whole small project, and runs a script in it.
"""

import csv
import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import conftest
import numpy as np
import pytest
import torch
from command_lines import assert_refused, contents_below, run
from test_influence import gradients_by_hand

from conve_tracin.checkpoint import build_model, load_checkpoint

MAPPINGS = ("--entity-to-id", "entity_to_id.tsv", "--relation-to-id", "relation_to_id.tsv")
SIZES = (
    "--embedding-dim", "12", "--embedding-height", "3", "--embedding-width", "4", "--output-channels", "4",
    "--kernel-height", "2", "--kernel-width", "3", "--no-gpu", "--learning-rate", "0.01",
)  # fmt: skip
SPLITS = ("--train", "train.tsv", "--valid", "valid.tsv", "--test", "test.tsv")
TRACED = ("--model-path", "model.pt", "--train", "train.tsv", *MAPPINGS, "--device", "cpu")
NAMES = ("--node-name-dict", "names.txt", "--edge-map", "edge_map.json")

# What a script is run with; what a case adds comes behind it, and the last of two equal flags holds.
COMMANDS = {
    "prepare": ("prepare_data", "--triples", "train.tsv", "valid.tsv", "test.tsv", "-o", "out"),
    "prepare one file": ("prepare_data", "--triples", "train.tsv", "-o", "out"),
    "prepare KGX": ("prepare_data", "--nodes", "nodes.jsonl", "--edges", "edges.jsonl", "-o", "out"),
    "train": ("train_pytorch", *SPLITS, *MAPPINGS, "-o", "out", *SIZES, "--num-epochs", "1", "--batch-size", "4"),
    "resume": (
        "train_pytorch", *SPLITS, *MAPPINGS, "-o", "out", *SIZES, "--num-epochs", "3", "--batch-size", "4",
        "--resume-from-checkpoint", "model.pt",
    ),
    "tracin": ("tracin_pytorch", *TRACED, *NAMES, "--test-triple", "0", "1", "2", "--output", "out/influences.json"),
    "tracin many": ("tracin_pytorch", *TRACED, "--test-triples", "listed.txt", "--output-dir", "out"),
    "run": ("run_tracin", *TRACED, *NAMES, "--use-optimized-tracin", "--test", "test.tsv", "-o", "out/influences.json"),
    "run listed": ("run_tracin", *TRACED, "--test-triples", "listed.txt", "-o", "out/influences.json"),
    "run self": ("run_tracin", *TRACED, "--mode", "self", "-o", "out/influences.json"),
    "run converted": (
        "run_tracin", *TRACED, "--model-path", "converted.pt", "--use-optimized-tracin", "--test", "test.tsv",
        "-o", "out/influences.json",
    ),
    "convert": ("convert_checkpoint", "--input", "model.pt", "--output", "out/other.pt", "--verify"),
    "convert back": ("convert_checkpoint", "--input", "converted.pt", "--output", "out/other.pt", "--to", "native"),
}  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A directory with all files that the scripts read, a trained model among them."""
    directory = tmp_path_factory.mktemp("clean")
    graph = conftest.Graph(conftest.TRAIN, conftest.VALID, conftest.TEST)
    for split in ("train", "valid", "test"):
        write(directory / f"{split}.tsv", "".join(conftest.triple_lines(graph, getattr(graph, split))))
    write(directory / "entity_to_id.tsv", "".join(conftest.mapping_lines(graph.entities)))
    write(directory / "relation_to_id.tsv", "".join(conftest.mapping_lines(graph.relations)))
    write(directory / "names.txt", "Aspirin (drug)\t0\nHeadache\t2\n")
    write(directory / "edge_map.json", json.dumps({json.dumps({"predicate": "biolink:treats"}): "treats"}))
    write(directory / "listed.txt", "0 1 2\nibuprofen\ttreats\tfièvre\n")
    for name in ("nodes.jsonl", "edges.jsonl"):
        shutil.copy(Path(__file__).parent / "data/kgx" / name, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert run(*COMMANDS["train"], "--num-epochs", "2").code == 0
        shutil.copy("out/final_model.pt", "model.pt")
        assert run(*COMMANDS["convert"]).code == 0
        shutil.copy("out/other.pt", "converted.pt")
        shutil.rmtree("out")
    return directory


@pytest.fixture
def project(clean, tmp_path, monkeypatch):
    """A copy of it, as the working directory."""
    directory = tmp_path / "project"
    shutil.copytree(clean, directory)
    monkeypatch.chdir(directory)
    return directory


# ---------------------------------------------------------------------------------------------------------------
# Ways to spoil a file


def write(path, text, encoding="utf-8"):
    Path(path).write_bytes(text.encode(encoding))


def content(name, new):
    """Replace a file's content."""
    return lambda: Path(name).write_bytes(new if isinstance(new, bytes) else new.encode())


def added(name, text):
    """Put lines at the end."""
    return lambda: Path(name).write_bytes(Path(name).read_bytes() + text.encode())


def edited(name, change):
    """Change a file's bytes by a function."""
    return lambda: Path(name).write_bytes(change(Path(name).read_bytes()))


def line_edited(name, number, new):
    """Replace a line, counted from 1."""

    def change(old):
        lines = old.decode().split("\n")
        lines[number - 1] = new
        return "\n".join(lines).encode()

    return edited(name, change)


def reencoded(name, encoding):
    return edited(name, lambda old: old.decode().encode(encoding))


def swapped_labels(name):
    """Give two labels each other's ids: another graph's mapping, of the same size."""

    def change(old):
        labels = [line.split("\t")[0] for line in old.decode().splitlines()]
        labels[0], labels[1] = labels[1], labels[0]
        return "".join(conftest.mapping_lines(labels)).encode()

    return edited(name, change)


def stored(name, change):
    """Load a checkpoint, change what it holds, and save it again."""

    def spoil():
        loaded = torch.load(name, weights_only=True)
        torch.save(change(loaded) or loaded, name)

    return spoil


def weight(name, change):
    """Change one weight of model.pt."""

    def change_content(loaded):
        state = loaded["model_state_dict"]
        state[name] = change(state[name])

    return stored("model.pt", change_content)


def with_value(value):
    """Put a value into the middle of a tensor."""

    def change(tensor):
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return change


def member(*names, value):
    """Set a member of model.pt, at any depth."""

    def change(loaded):
        for name in names[:-1]:
            loaded = loaded[name]
        loaded[names[-1]] = value

    return stored("model.pt", change)


def bit_flipped(name):
    """Flip one bit of a weight on the disk, behind the back of torch.save."""

    def change(old):
        start = old.index(torch.load(name, weights_only=True)["model_state_dict"]["fc.weight"].numpy().tobytes())
        return old[: start + 42] + bytes([old[start + 42] ^ 8]) + old[start + 43 :]

    return edited(name, change)


def pykeen_weights_of_another_model():
    torch.save({"entity_representations.0._embeddings.weight": torch.ones(6, 12)}, "converted.pt")


def nothing():
    """Spoil no file: the settings are the case."""


# ---------------------------------------------------------------------------------------------------------------
# Refused: (case, command, what is spoiled, what the one line must say, further arguments)

LONG = "x" * 10 * 2**20

REFUSED = [
    # Triples
    ("empty training file", "train", content("train.tsv", b""), r"train\.tsv: is empty; give a file with at least one"),
    ("empty validation file", "train", content("valid.tsv", b""), r"valid\.tsv: is empty; give a file with"),
    ("empty test file", "train", content("test.tsv", b""), r"test\.tsv: is empty; give a file with"),
    ("empty gzip", "train", content("train.tsv", gzip.compress(b"")), r"train\.tsv: is empty; give a file with"),
]

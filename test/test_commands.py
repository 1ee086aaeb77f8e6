"""The commands that are printed as the next step."""

import os
import shlex
from pathlib import Path

import pytest

import run_tracin
import train_pytorch
from conve_tracin import commands
from conve_tracin.cli import let_waiting_threads_sleep

FILES = {name: Path(f"my data/{name}.txt") for name in ("train", "valid", "test", "entity_to_id", "relation_to_id")}


@pytest.mark.parametrize(
    ("num_triples", "dim", "epochs"), [(5_000, 200, 90), (150_000, 200, 30), (1_000_000, 64, 25), (16_000_000, 32, 25)]
)
def test_training_is_advised_by_the_size_of_the_graph(num_triples, dim, epochs):
    command = commands.train_command(FILES, output_dir=Path("out"), num_triples=num_triples, num_entities=1_000)
    args = train_pytorch.build_parser().parse_args(shlex.split(command)[2:])
    assert (args.embedding_dim, args.num_epochs) == (dim, epochs)
    assert args.embedding_height * args.embedding_width == dim
    assert (args.training_approach, args.loss, args.query_weights) == ("kvsall", "ce", "tails")
    assert args.inverse_triples
    assert args.train == FILES["train"]
    assert not args.entity_sample


def test_of_very_many_entities_a_sample_is_scored():
    assert commands.advised_training(1_000_000, num_entities=400_000)["entity_sample"] == 4096


def test_a_path_with_blanks_stays_one_word():
    files = {name: FILES[name] for name in ("train", "entity_to_id", "relation_to_id")}
    command = commands.explain_command(
        Path("a model.pt"), {**files, "edge_map": None}, ranks=Path("it's/ranks.tsv"), known=[FILES["valid"]], number=3
    )
    args = run_tracin.parse_args(shlex.split(command)[2:])
    assert (args.model_path, args.max_test_triples) == ([Path("a model.pt")], 3)
    assert args.report == Path("it's/ranks_explained.html")
    assert args.known == [FILES["valid"]]
    assert args.edge_map is None


def test_names_beside_the_mapping_are_given(tmp_path):
    (tmp_path / "node_name_dict.txt").touch()
    found = commands.name_files_beside(tmp_path / "entity_to_id.tsv")
    assert found == {"node_name_dict": tmp_path / "node_name_dict.txt"}


def test_a_user_decides_how_threads_wait(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    let_waiting_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    let_waiting_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"

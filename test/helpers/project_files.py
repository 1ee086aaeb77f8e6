"""A whole project on disk, all commands on it, and the results that are right."""

import json
import shutil
from collections import Counter
from pathlib import Path

import conftest
import pytest
from command_lines import run
from influence_examples import gradients_by_hand

from conve_tracin.checkpoint.native import build_model, load_checkpoint

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
    "predict": (
        "predict_pytorch", "--model-path", "model.pt", *MAPPINGS, *NAMES, "--device", "cpu", "--queries", "queries.tsv",
        "--known", "train.tsv", "-o", "out/candidates.tsv",
    ),
    "verify": (
        "verify_tracin", *TRACED, *NAMES, "--influences", "influences.json", "--known", "valid.tsv", "--seeds", "1",
        "--num-workers", "1", "--num-epochs", "1", "-o", "out/verified.json", "--report", "out/page.html",
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
    write(directory / "queries.tsv", "aspirin\ttreats\t?\n")
    for name in ("nodes.jsonl", "edges.jsonl"):
        shutil.copy(Path(__file__).parents[1] / "data/kgx" / name, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert run(*COMMANDS["train"], "--num-epochs", "2").code == 0
        shutil.copy("out/final_model.pt", "model.pt")
        assert run(*COMMANDS["convert"]).code == 0
        assert run(*COMMANDS["tracin"], "--output", "influences.json").code == 0
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


def write(path, text, encoding="utf-8"):
    Path(path).write_bytes(text.encode(encoding))


def influences_by_hand(model_path, test, train):
    """η∇ℓ(z)·∇ℓ(z′) of test (n, 3) and training (N, 3) triples with η = 0.001, by backward passes in float64."""
    model = build_model(load_checkpoint(model_path)).double()
    names = [name for name, _ in model.named_parameters()]
    return 0.001 * gradients_by_hand(model, test, names) @ gradients_by_hand(model, train, names).T


def assert_right(results, by_hand, train):
    """Each result lists all distinct training triples, with their counts and the influences (n, N) computed by hand."""
    for result, expected in zip(results, by_hand, strict=True):
        listed = [tuple(row[f"train_{part}"] for part in ("head", "relation", "tail")) for row in result["influences"]]
        counts = {triple: row.get("count", 1) for triple, row in zip(listed, result["influences"], strict=True)}
        assert len(listed) == len(counts)
        assert counts == Counter(map(tuple, train.tolist()))
        value_of = dict(zip(map(tuple, train.tolist()), expected.tolist(), strict=True))
        found = [row["influence"] for row in result["influences"]]
        tolerance = 1e-5 * expected.abs().max().item()
        assert found == pytest.approx([value_of[triple] for triple in listed], rel=1e-5, abs=tolerance)


def write_graph(triples, entities, relations):
    """Write a graph's ids (N, 3) and labels as the files of the project, every triple in every split."""
    graph = conftest.Graph(triples, triples, triples, entities, relations)
    for name in ("train.tsv", "valid.tsv", "test.tsv"):
        write(name, "".join(conftest.triple_lines(graph, triples)))
    write("entity_to_id.tsv", "".join(conftest.mapping_lines(entities)))
    write("relation_to_id.tsv", "".join(conftest.mapping_lines(relations)))

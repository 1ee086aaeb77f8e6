"""prepare_data.py: from datasets and files of triples to the files that training reads."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from conve_tracin.data import prepare as preparation
from conve_tracin.data.names import read_names
from conve_tracin.data.splits import SplitGraph, hold_out
from conve_tracin.data.triples import read_triples
from conve_tracin.data.vocabulary import read_vocabulary
from conve_tracin.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def label_triples(path):
    return [tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]


def write_label_triples(path, triples):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(triple) + "\n" for triple in triples), encoding="utf-8")
    return path


def random_graph(count=400, entities=30, relations=5, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, [entities, relations, entities], size=(count, 3)).tolist()
    return list(dict.fromkeys((f"node_{h}", f"rel {r}", f"node_{t}") for h, r, t in rows))


def labels_in(triples):
    return {end for head, _, tail in triples for end in (head, tail)}, {relation for _, relation, _ in triples}


def prepare(*arguments):
    prepare_data.main([str(argument) for argument in arguments])


@pytest.fixture
def stub_dataset(monkeypatch):
    from conve_tracin.data import datasets

    graph = random_graph()
    splits = {"train": graph[:300], "valid": graph[300:340], "test": graph[340:]}
    monkeypatch.setattr(datasets, "load_dataset_triples", lambda name: splits)
    return splits


def read_everything(directory):
    entities = read_vocabulary(directory / "entity_to_id.tsv", "entity")
    relations = read_vocabulary(directory / "relation_to_id.tsv", "relation")
    splits = {
        split: [
            (entities.label_of(h), relations.label_of(r), entities.label_of(t))
            for h, r, t in read_triples(directory / f"{split}.txt", entities, relations).tolist()
        ]
        for split in ("train", "valid", "test")
    }
    return entities, relations, splits


def test_dataset_keeps_its_splits(tmp_path, stub_dataset, capsys):
    prepare("--dataset", "Stub", "-o", tmp_path / "out dir")
    entities, relations, splits = read_everything(tmp_path / "out dir")
    assert splits == stub_dataset
    all_entities, all_relations = labels_in([triple for triples in stub_dataset.values() for triple in triples])
    assert list(entities.labels) == sorted(all_entities)
    assert list(relations.labels) == sorted(all_relations)
    names = read_names(tmp_path / "out dir" / "node_name_dict.txt", entities)
    assert [names[position] for position in range(len(entities))] == [
        label.replace("_", " ") for label in entities.labels
    ]
    assert {path.name for path in (tmp_path / "out dir").iterdir()} == set(preparation.OUTPUT_FILES)
    printed = capsys.readouterr().out
    assert f"{len(entities)} entities, {len(relations)} relations" in printed
    assert f"--train '{tmp_path}/out dir/train.txt'" in printed


def test_dataset_without_validation_triples(tmp_path, stub_dataset):
    train = list(stub_dataset["train"])
    stub_dataset["valid"] = []
    prepare("--dataset", "Stub", "-o", tmp_path)
    _, _, splits = read_everything(tmp_path)
    assert splits["test"] == stub_dataset["test"]
    assert len(splits["valid"]) == 30
    assert sorted(splits["train"] + splits["valid"]) == sorted(train)


def test_bundled_dataset(tmp_path):
    datasets = pytest.importorskip("pykeen.datasets")
    nations = datasets.Nations()
    prepare("--dataset", "NATIONS", "-o", tmp_path)
    entities, relations, splits = read_everything(tmp_path)
    assert entities.index == nations.entity_to_id
    assert relations.index == nations.relation_to_id
    for split, factory in zip(
        ("train", "valid", "test"), (nations.training, nations.validation, nations.testing), strict=True
    ):
        assert sorted(splits[split]) == sorted(map(tuple, factory.triples.tolist()))


def test_labels_with_blanks_around_them_are_told(tmp_path, capsys):
    graph = random_graph()
    given = {"train": [*graph[:200], ("d ", " new", "d")], "valid": graph[200:220], "test": graph[220:]}
    paths = [write_label_triples(tmp_path / "in" / f"{split}.txt", given[split]) for split in given]
    prepare("--triples", *paths, "-o", tmp_path / "out")
    assert "2 labels begin or end with a blank (first: ' new')" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["files", "directory", "gz"])
def test_given_splits_stay_as_they_are(tmp_path, layout, capsys):
    graph = random_graph()
    given = {"train": graph[:200], "valid": [*graph[200:220], graph[0]], "test": [*graph[220:], ("ä ö", "new", "ü")]}
    paths = [write_label_triples(tmp_path / "in" / f"{split}.txt", given[split]) for split in given]
    if layout == "gz":
        for path in paths:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    prepare("--triples", *(paths if layout == "files" else [tmp_path / "in"]), "-o", tmp_path / "out")
    entities, _, splits = read_everything(tmp_path / "out")
    assert splits == given
    printed = capsys.readouterr().out
    unseen = labels_in(given["valid"] + given["test"])[0] - labels_in(given["train"])[0]
    assert f"{len(unseen)} entities occur in valid or test only" in printed
    assert "1 relations occur in valid or test only" in printed
    assert "1 valid or test triples are training triples too" in printed
    assert {"ä ö", "ü"} <= set(entities.labels)


def test_one_file_is_split(tmp_path, caplog, capsys):
    graph = random_graph()
    path = write_label_triples(tmp_path / "graph.txt", [*graph, graph[3], graph[3], graph[7]])
    with caplog.at_level("INFO"):
        prepare("--triples", path, "-o", tmp_path / "out")
    assert "3 triples occur more than once" in caplog.text
    _, _, splits = read_everything(tmp_path / "out")
    assert sorted(splits["train"] + splits["valid"] + splits["test"]) == sorted(graph)
    assert len(splits["valid"]) == len(splits["test"]) == round(len(graph) / 10)
    assert labels_in(splits["train"]) == labels_in(graph)
    for triples in splits.values():
        assert triples == sorted(triples, key=graph.index)
    assert "valid or test" not in capsys.readouterr().out


def test_split_depends_on_the_seed_alone(tmp_path):
    path = write_label_triples(tmp_path / "graph.txt", random_graph())
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare("--triples", path, "-o", tmp_path / name, "--random-seed", seed, "--valid-fraction", 0.05)
    contents = {name: (tmp_path / name / "valid.txt").read_bytes() for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]
    assert len(label_triples(tmp_path / "a" / "valid.txt")) == round(len(random_graph()) * 0.05)


@pytest.mark.parametrize("seed", range(20))
def test_hold_out_keeps_every_entity_and_relation_in_training(seed):
    rng = np.random.default_rng(seed)
    triples = np.unique(rng.integers(0, [12, 4, 12], size=(40, 3)), axis=0)
    splits = hold_out(triples, {"valid": 0.2, "test": 0.3}, random_seed=seed)
    for column in ([0, 2], [1]):
        assert set(splits["train"][:, column].ravel()) == set(triples[:, column].ravel())
    rows = np.concatenate([splits["train"], splits["valid"], splits["test"]])
    np.testing.assert_array_equal(np.unique(rows, axis=0), triples)
    assert len(rows) == len(triples)


def test_sparse_graph_gives_less_and_says_so(tmp_path, caplog):
    ring = [(f"e{i}", "r", f"e{(i + 1) % 60}") for i in range(60)]
    chords = [(f"e{i}", "r", f"e{i + 2}") for i in range(6)]
    path = write_label_triples(tmp_path / "graph.txt", ring + chords)
    prepare("--triples", path, "-o", tmp_path / "out", "--valid-fraction", 0.4, "--test-fraction", 0.4)
    _, _, splits = read_everything(tmp_path / "out")
    assert "can be held out" in caplog.text
    assert labels_in(splits["train"]) == labels_in(ring)
    assert len(splits["valid"]) == len(splits["test"]) > 0


def test_names():
    assert preparation.readable_name("__dog_NN_1") == "dog NN 1"
    assert preparation.readable_name("MONDO:0005148") == "MONDO:0005148"
    assert preparation.readable_name("_") == "_"


def test_names_of_the_source_come_first(tmp_path):
    one_triple = np.array([[0, 0, 1]])
    graph = SplitGraph(
        ["a_1", "b_1", "c_1"],
        ["r"],
        {"train": one_triple, "valid": one_triple, "test": one_triple},
        names={"a_1": "A name\twith a tab\n", "b_1": " "},
    )
    preparation.write_graph(graph, tmp_path)
    names = read_names(tmp_path / "node_name_dict.txt")
    assert names == {0: "A name with a tab", 1: "b 1", 2: "c 1"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["in/graph.txt", "in/graph.txt"], "got 2 files; give one, or TRAIN VALID TEST"),
        (["in/none.txt"], "in/none.txt: no such file"),
        (["in"], "in: has no train.txt"),
        (["in/bad.txt"], "in/bad.txt:2: 2 columns instead of 3"),
        (["in/graph.txt", "in/graph.txt", "in/bad.txt"], "in/bad.txt:2: 2 columns instead of 3"),
        (["in/tree.txt"], "only 0 of 3 triples can be held out"),
        (["in/graph.txt", "--valid-fraction", "0"], "each must be above 0"),
        (["in/graph.txt", "--valid-fraction", "0.5", "--test-fraction", "0.5"], "their sum below 1"),
        (["out/train.txt"], "out/train.txt: would be overwritten"),
        (["out/../out/test.txt", "in/graph.txt", "in/graph.txt"], "test.txt: would be overwritten"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    graph = random_graph()
    for name in ("in/graph.txt", "out/train.txt", "out/test.txt"):
        write_label_triples(Path(name), graph)
    write_label_triples(Path("in/bad.txt"), [graph[0], ("a", "b")])
    write_label_triples(Path("in/tree.txt"), [("a", "r", "b"), ("a", "r", "c"), ("a", "r", "d")])
    with pytest.raises(InputError, match=r"\A[^\n]*\Z") as caught:
        prepare("--triples", *arguments, "-o", "out")
    assert expected in str(caught.value)
    assert sorted(path.name for path in Path("out").iterdir()) == ["test.txt", "train.txt"]
    assert label_triples(Path("out/train.txt")) == graph


def run_script(*arguments, cwd):
    command = [sys.executable, str(ROOT / "prepare_data.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_place_is_looked_at_before_anything_is_read(tmp_path):
    (tmp_path / "occupied").write_text("a file")
    with pytest.raises(InputError, match="is a file; --output-dir needs a directory"):
        prepare("--triples", tmp_path / "missing.txt", "--output-dir", tmp_path / "occupied")


def test_command_line_errors_are_one_line(tmp_path):
    (tmp_path / "t.txt").write_text("a\tb\n")
    finished = run_script("--triples", "t.txt", "-o", "out", cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("prepare_data.py: error: t.txt:1: 2 columns instead of 3")
    assert finished.stderr.count("\n") == 1
    finished = run_script("-o", "out", cwd=tmp_path)
    assert finished.returncode == 2
    assert "--dataset --triples --nodes is required" in finished.stderr


def test_help_needs_no_heavy_package(tmp_path):
    blocked = "import sys, runpy; sys.modules.update(dict.fromkeys(['torch', 'pykeen', 'pandas']));"
    command = f"{blocked} sys.argv = ['prepare_data.py', '--help']; runpy.run_path(sys.path[0], run_name='__main__')"
    command = command.replace("sys.path[0]", repr(str(ROOT / "prepare_data.py")))
    command = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {command}"
    finished = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "--output-dir" in finished.stdout

"""Files of triples that are something else than they are read as, and test triples that training gives away."""

import gzip
import json
from pathlib import Path

import pytest
from command_lines import assert_refused, run
from project_files import COMMANDS, clean, project, write  # noqa: F401

LABELS = [
    ("aspirin", "treats", "headache"), ("aspirin", "inhibits", "PTGS2"), ("ibuprofen", "treats", "headache"),
    ("ibuprofen", "inhibits", "PTGS2"), ("PTGS2", "causes", "headache"), ("aspirin", "causes", "PTGS2"),
]  # fmt: skip
ENTITIES, RELATIONS = ("headache", "aspirin", "PTGS2", "ibuprofen"), ("causes", "treats", "inhibits")


def lines(rows, separator="\t"):
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def openke(triples, separator=" "):
    """OpenKE's file of triples: a count, then head, tail, relation."""
    rows = [(ENTITIES.index(head), ENTITIES.index(tail), RELATIONS.index(label)) for head, label, tail in triples]
    return f"{len(rows)}\n{lines(rows, separator)}"


def write_openke(directory, separator=" "):
    directory.mkdir()
    for split, triples in (("train", LABELS[:4]), ("valid", LABELS[4:5]), ("test", LABELS[5:])):
        (directory / f"{split}2id.txt").write_text(openke(triples, separator))
    for kind, labels in (("entity", ENTITIES), ("relation", RELATIONS)):
        mapping = lines((label, number) for number, label in enumerate(labels))
        (directory / f"{kind}2id.txt").write_text(f"{len(labels)}\n{mapping}")
    return directory


def written(directory):
    return {
        split: [tuple(line.split("\t")) for line in (directory / f"{split}.txt").read_text().splitlines()]
        for split in ("train", "valid", "test")
    }


@pytest.mark.parametrize(
    "header",
    ["head\trelation\ttail", "Subject\tPredicate\tObject", "source\tedge_type\ttarget", "h\tr\tt"],
)
@pytest.mark.parametrize("number", [1, 3])
def test_a_header_is_no_triple(tmp_path, header, number):
    paths = [tmp_path / f"{split}.tsv" for split in ("train", "valid", "test")[:number]]
    for path in paths:
        path.write_text(lines(LABELS))
    paths[-1].write_text(f"{header}\n{lines(LABELS)}")
    message = assert_refused(run("prepare_data", "--triples", *paths, "-o", tmp_path / "out"))
    assert message.startswith(f"{paths[-1]}:1: ")
    assert "is a header; triples files have none, delete the line" in message
    assert not (tmp_path / "out").exists()


def test_a_first_triple_with_one_word_of_a_header_is_a_triple(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(lines([("head", "part of", "body"), *LABELS]))
    assert run("prepare_data", "--triples", path, "-o", tmp_path / "out").code == 0
    assert ("head", "part of", "body") in written(tmp_path / "out")["train"]


def test_what_looks_like_a_header_is_a_triple_where_labels_are_asked_for(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(lines([("h", "r", "t"), *LABELS]))
    done = run("prepare_data", "--triples", path, "--triples-format", "labels", "-o", tmp_path / "out")
    assert done.code == 0, done
    assert ("h", "r", "t") in written(tmp_path / "out")["train"]


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_openkes_files_are_converted(tmp_path, separator):
    directory = write_openke(tmp_path / "openke", separator)
    done = run("prepare_data", "--triples", directory, "--triples-format", "openke", "-o", tmp_path / "out")
    assert done.code == 0, done
    assert written(tmp_path / "out") == {"train": LABELS[:4], "valid": LABELS[4:5], "test": LABELS[5:]}
    mapping = [line.split("\t")[0] for line in (tmp_path / "out/entity_to_id.tsv").read_text().splitlines()]
    assert tuple(mapping) == ENTITIES


@pytest.mark.parametrize("number", [1, 3])
def test_openkes_files_are_named_where_labels_are_read(tmp_path, number):
    directory = write_openke(tmp_path / "openke", "\t")
    paths = [directory / f"{split}2id.txt" for split in ("train", "valid", "test")[:number]]
    message = assert_refused(run("prepare_data", "--triples", *paths, "-o", tmp_path / "out"))
    assert message.startswith(
        f"{paths[0]}:1: is a count, as in OpenKE's train2id.txt, with ids as head, tail, relation"
    )
    assert "prepare_data.py --triples-format openke" in message
    message = assert_refused(run("prepare_data", "--triples", directory, "-o", tmp_path / "out"))
    assert "it has OpenKE's train2id.txt; prepare_data.py --triples-format openke" in message


@pytest.mark.parametrize(
    "rows", [[(0, 1, 2), (1, 0, 0), (2, 3, 1)], [(0, 2, 1), (3, 0, 2)]], ids=["head, tail, relation", "LibKGE"]
)
def test_ids_are_no_labels(tmp_path, rows):
    path = tmp_path / "train.del"
    path.write_text(lines(rows * 5))
    message = assert_refused(run("prepare_data", "--triples", path, "-o", tmp_path / "out"))
    assert message.startswith(f"{path}: every label is an integer, as in files of ids")
    done = run("prepare_data", "--triples", path, path, path, "--triples-format", "labels", "-o", tmp_path / "out")
    assert done.code == 0, done


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("train2id.txt", "3\n0 1 2\n", ":1: '3' is not the count of the 1 triples below it"),
        ("train2id.txt", "1\n0 1\n", ":2: '0 1' is not three ids: head, tail, relation"),
        ("train2id.txt", "1\n0 1 3\n", ":2: relation id 3 is out of range; "),
        ("train2id.txt", "1\n0 9 0\n", ":2: entity id 9 is out of range; "),
        ("entity2id.txt", None, ": has no entity2id.txt, OpenKE's mapping; put it beside the triples"),
    ],
)
def test_broken_files_of_openke(tmp_path, name, text, expected):
    directory = write_openke(tmp_path / "openke")
    (directory / name).unlink()
    if text is not None:
        (directory / name).write_text(text)
    done = run("prepare_data", "--triples", directory, "--triples-format", "openke", "-o", tmp_path / "out")
    assert expected in assert_refused(done)


# ---------------------------------------------------------------------------------------------------------------
# Held-out triples that training gives away


def doctors():
    """treats and treated_by for the same pairs, and a third relation for some of them; two rings tie all together."""
    triples = []
    for number in range(24):
        drug, disease = f"drug {number}", f"disease {number}"
        triples += [(drug, "treats", disease), (disease, "treated by", drug)]
        triples += [(drug, "studied for", disease)] if number % 2 else []
        triples += [(drug, "like", f"drug {(number + 1) % 24}"), (disease, "like", f"disease {(number + 1) % 24}")]
    return triples


def pairs(triples):
    return [frozenset((head, tail)) for head, _, tail in triples]


def test_triples_that_training_gives_away_are_counted(tmp_path):
    everything = doctors()
    train = [each for each in everything if each[1] != "treats"]
    valid, test = [each for each in everything if each[1] == "treats"][:12], [("drug 23", "treats", "drug 3")]
    test += [each for each in everything if each[1] == "treats"][12:]
    for split, triples in (("train", [*train, ("drug 1", "treats", "disease 3")]), ("valid", valid), ("test", test)):
        (tmp_path / f"{split}.txt").write_text(lines(triples))
    done = run("prepare_data", "--triples", tmp_path, "-o", tmp_path / "out")
    assert (
        "24 of 25 valid and test triples join two entities that a training triple joins too (12 the same way by "
        "another relation, 24 the other way round)"
    ) in done.out
    done = run("prepare_data", "--triples", tmp_path, "--hold-out-pairs", "-o", tmp_path / "out")
    splits = written(tmp_path / "out")
    assert (splits["valid"], splits["test"]) == (valid, test)
    assert not set(pairs(splits["train"])) & set(pairs(valid + test))
    assert len(splits["train"]) == 49
    assert "join two entities" not in done.out


@pytest.mark.parametrize("seed", range(3))
def test_held_out_pairs_of_one_file_leave_training(tmp_path, seed):
    path = tmp_path / "all.txt"
    everything = doctors()
    path.write_text(lines(everything))
    arguments = ("--triples", path, "--random-seed", seed, "-o", tmp_path / "out")
    assert run("prepare_data", *arguments, "--hold-out-pairs").code == 0
    splits = written(tmp_path / "out")
    held_out = splits["valid"] + splits["test"]
    assert len(splits["valid"]) == len(splits["test"]) == round(len(everything) / 10)
    expected = [each for each in everything if frozenset((each[0], each[2])) not in set(pairs(held_out))]
    assert splits["train"] == expected
    for columns in ((0, 2), (1,)):
        trained = {each[column] for each in splits["train"] for column in columns}
        assert {each[column] for each in held_out for column in columns} <= trained


@pytest.mark.parametrize("seed", range(3))
def test_held_out_pairs_of_a_kgx_graph_leave_training(tmp_path, seed):
    everything = doctors()
    entities = sorted({end for head, _, tail in everything for end in (head, tail)})
    (tmp_path / "nodes.jsonl").write_text("".join(f"{json.dumps({'id': each})}\n" for each in entities))
    edges = [dict(zip(("subject", "predicate", "object"), each, strict=True)) for each in everything]
    (tmp_path / "edges.jsonl").write_text("".join(f"{json.dumps(edge)}\n" for edge in edges))
    done = run(
        "prepare_data", "--nodes", tmp_path / "nodes.jsonl", "--edges", tmp_path / "edges.jsonl", "--hold-out-pairs",
        "--test-predicate", "treats", "--test-fraction", "0.25", "--random-seed", seed, "-o", tmp_path / "out",
    )  # fmt: skip
    splits = written(tmp_path / "out")
    held_out = splits["valid"] + splits["test"]
    assert len(splits["test"]) == 6
    assert not set(pairs(splits["train"])) & set(pairs(held_out))
    left_out = len(everything) - sum(map(len, splits.values()))
    assert left_out == sum(pair in set(pairs(held_out)) for pair in pairs(everything)) - len(held_out)
    assert f"Left out of training: {left_out} edges that join a held-out pair" in done.out


def test_training_remarks_on_test_triples_that_it_has_seen(project):
    write("train.tsv", "".join(Path("train.tsv").read_text().splitlines(keepends=True)) + "PTGS2\ttreats\taspirin\n")
    Path("valid.tsv").write_bytes(Path("valid.tsv").read_bytes() + b"head ache\ttreats\taspirin\n")
    write("test.tsv", "PTGS2\ttreats\taspirin\nhead ache\ttreats\taspirin\naspirin\tinhibits\tibuprofen\n")
    done = run(*COMMANDS["train"])
    assert done.code == 0, done
    assert "1 of 3 test triples are training triples, too: metrics on them say little" in done.err
    assert "1 of 3 test triples stand in validation, too: they have helped to choose the model" in done.err


def test_training_says_nothing_of_test_triples_of_their_own(project):
    done = run(*COMMANDS["train"])
    assert done.code == 0, done
    assert "test triples" not in done.err


def test_only_compressed_text_is_read_as_such(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(gzip.compress(b"head\trelation\ttail\na\tr\tb\n"))
    assert "is a header" in assert_refused(run("prepare_data", "--triples", path, "-o", tmp_path / "out"))

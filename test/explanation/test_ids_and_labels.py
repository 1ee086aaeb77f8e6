"""Integers that are ids of one triple and labels of another: through the command lines."""

import json
from pathlib import Path

import pytest
from command_lines import assert_refused, run
from project_files import COMMANDS, clean, project, write  # noqa: F401

# The label "2" has the id 0, the label "0" the id 1, the label "1" the id 2; relations likewise.
ENTITIES, RELATIONS = ("2", "0", "1", "other"), ("1", "2", "0")
TRIPLES = [("2", "1", "0"), ("0", "0", "1"), ("1", "2", "2"), ("other", "1", "2"), ("2", "0", "other")]


@pytest.fixture
def numbered(project):
    """A project whose labels are integers, and a model of it."""
    text = "".join("\t".join(triple) + "\n" for triple in TRIPLES)
    for name in ("train.tsv", "valid.tsv", "test.tsv"):
        write(name, text)
    for kind, labels in (("entity", ENTITIES), ("relation", RELATIONS)):
        write(f"{kind}_to_id.tsv", "".join(f"{label}\t{number}\n" for number, label in enumerate(labels)))
    write("names.txt", "")
    assert run(*COMMANDS["train"]).code == 0
    Path("out/final_model.pt").replace("model.pt")
    return project


def without_names(command):
    return [part for part in COMMANDS[command] if part not in ("--node-name-dict", "names.txt", "--edge-map",
                                                               "edge_map.json")]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "ids", "labels"),
    [
        (("2", "1", "0"), (2, 1, 0), (0, 0, 1)),
        (("other", "1", "2"), None, (3, 0, 0)),
    ],
)
def test_two_readings_stop_and_the_flags_choose(numbered, values, ids, labels):
    arguments = [*without_names("tracin"), "--test-triple", *values]
    message = assert_refused(run(*arguments))
    assert message == (
        f"'{' '.join(values)}' means one triple by ids and another by labels, as labels of this graph are integers; "
        "add --ids or --labels"
    )
    for flag, expected in (("--ids", ids), ("--labels", labels)):
        done = run(*arguments, flag)
        if expected is None:
            assert assert_refused(done) == "head: 'other' is not an integer; leave --ids out"
            continue
        assert done.code == 0, done
        found = json.loads(Path("out/influences.json").read_text())["test_triple"]
        assert tuple(found[name] for name in ("head", "relation", "tail")) == expected


@pytest.mark.parametrize(("command", "script"), [("tracin many", "tracin_pytorch"), ("run listed", "run_tracin")])
def test_a_list_means_what_a_file_of_triples_means_or_stops(numbered, command, script):
    write("listed.txt", "2\t1\t0\n")
    message = assert_refused(run(*COMMANDS[command]))
    assert message.startswith("listed.txt:1: '2 1 0' means one triple by ids and another by labels")
    assert run(*COMMANDS[command], "--labels").code == 0
    name = "out/triple_0_0_1.json" if script == "tracin_pytorch" else "out/influences.json"
    content = json.loads(Path(name).read_text())
    found = (content["results"][0] if "results" in content else content)["test_triple"]
    assert (found["head"], found["relation"], found["tail"]) == (0, 0, 1)
    assert found["head_key"] == "2"


def test_one_possible_reading_needs_no_flag(project):
    done = run(*COMMANDS["tracin"], "--test-triple", "0", "treats", "5")
    assert done.code == 0, done
    found = json.loads(Path("out/influences.json").read_text())["test_triple"]
    assert (found["head"], found["relation"], found["tail"]) == (0, 0, 5)


def test_a_label_that_is_anothers_name_stops(project):
    write("names.txt", "PTGS2\t0\n")
    arguments = (*COMMANDS["tracin"], "--test-triple", "PTGS2", "treats", "aspirin")
    message = assert_refused(run(*arguments))
    assert message.startswith("head: 'PTGS2' is a label, and the name of another entity; add --labels")
    assert run(*arguments, "--labels").code == 0
    assert json.loads(Path("out/influences.json").read_text())["test_triple"]["head"] == 5


def test_ids_of_names_that_are_labels_are_remarked_on(numbered):
    write("names.txt", "zero\t0\none\t1\ntwo\t2\n")
    done = run(*without_names("tracin"), "--node-name-dict", "names.txt", "--test-triple", "2", "1", "0", "--ids")
    assert done.code == 0, done
    assert "names.txt: 3 of its 3 ids are labels of other entities, too; they are read as ids" in done.err

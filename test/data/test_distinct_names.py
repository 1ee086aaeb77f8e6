"""Things that differ are called differently: through the command line."""

import json
from pathlib import Path

import pytest
from command_lines import run
from project_files import COMMANDS, clean, project, write  # noqa: F401

AFFECTS = {"predicate": "biolink:affects"}


def edge_map(*meanings):
    keys = [meaning if isinstance(meaning, str) else json.dumps(meaning) for meaning in meanings]
    return json.dumps(dict(zip(keys, ("treats", "inhibits", "associated with"), strict=False)))


def traced(*more):
    done = run(*COMMANDS["tracin"], "--top-k", "99", *more)
    assert done.code == 0, done
    return json.loads(Path("out/influences.json").read_text(encoding="utf-8")), done


@pytest.mark.parametrize(
    ("meanings", "names"),
    [
        (
            [{**AFFECTS, "subject_aspect_qualifier": "activity"}, {**AFFECTS, "object_aspect_qualifier": "activity"}],
            ["biolink:affects (subject activity)", "biolink:affects (object activity)"],
        ),
        (
            [{**AFFECTS, "object_aspect_qualifier": "activity", "object_direction_qualifier": "increased"}, AFFECTS],
            ["biolink:affects (object activity increased)", "biolink:affects"],
        ),
        (
            [{**AFFECTS, "object_aspect_qualifier": ["activity", "expression"]}, AFFECTS],
            ["biolink:affects (object activity and expression)", "biolink:affects"],
        ),
        (
            [{**AFFECTS, "object_aspect_qualifier": "x"}, {**AFFECTS, "object_part_qualifier": "x"}],
            ["biolink:affects (object aspect x)", "biolink:affects (object part x)"],
        ),
        (
            [{**AFFECTS, "object_part_qualifier": "a and b"}, {**AFFECTS, "object_part_qualifier": ["a", "b"]}],
            [
                'biolink:affects (object part a and b) {"predicate": "biolink:affects", "object_part_qualifier": '
                '"a and b"}',
                'biolink:affects (object part a and b) {"predicate": "biolink:affects", "object_part_qualifier": '
                '["a", "b"]}',
            ],
        ),
        ([AFFECTS, '{"predicate":"biolink:affects"}'], ["biolink:affects …", "biolink:affects …"]),
    ],
)  # fmt: skip
def test_relations_that_differ_are_called_differently(project, meanings, names):
    write("edge_map.json", edge_map(*meanings))
    content, _ = traced()
    found = {row["train_relation_key"]: row for row in content["influences"]}
    assert found["treats"]["train_relation_label"] != found["inhibits"]["train_relation_label"]
    for label, name in zip(("treats", "inhibits"), names, strict=True):
        start = name.removesuffix("…")
        shown = found[label]["train_relation_label"]
        assert shown == name or (start != name and shown.startswith(start))
        assert found[label]["train_relation_curie"] == "biolink:affects"


def test_entities_of_one_name_are_told_apart_by_their_labels(project):
    write("names.txt", "Aspirin\t0\nAspirin\t1\nPTGS2\t2\n")
    content, done = traced()
    called = {row[f"train_{end}_key"]: row[f"train_{end}_label"] for row in content["influences"]
              for end in ("head", "tail")}  # fmt: skip
    assert called["aspirin"] == "Aspirin (aspirin)"
    assert called["ibuprofen"] == "Aspirin (ibuprofen)"
    assert len(set(called.values())) == len(called)
    assert content["test_triple"]["head_key"] == "aspirin"
    assert "Aspirin (aspirin)" in done.out


def test_an_edge_map_with_relations_that_the_graph_lacks_is_warned_of(project):
    write("edge_map.json", edge_map(AFFECTS).replace("treats", "predicate:6"))
    _, done = traced()
    assert "edge_map.json: names 1 relations that relation_to_id.tsv lacks (first: 'predicate:6')" in done.err


def test_a_key_that_occurs_twice_in_the_edge_map_is_refused(project):
    key = json.dumps(json.dumps(AFFECTS))
    write("edge_map.json", f'{{{key}: "treats", {key}: "inhibits"}}')
    done = run(*COMMANDS["tracin"])
    assert done.code == 2
    assert "occurs twice, for 'treats' and 'inhibits'; keep one of them" in done.err


def test_control_characters_of_labels_are_written_out_in_the_page(project):
    for name in ("train.tsv", "valid.tsv", "test.tsv", "entity_to_id.tsv"):
        path = Path(name)
        path.write_bytes(path.read_bytes().replace(b"PTGS2", "P\x1b[31m\x9b\u202eGS2".encode()))
    assert run(*COMMANDS["train"]).code == 0
    arguments = [*COMMANDS["tracin"], "--model-path", "out/final_model.pt", "--node-name-dict", "names.txt"]
    done = run(*arguments, "--report", "out/report.html")
    assert done.code == 0, done
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert not set(page) & set("\x1b\x9b\u202e")
    assert r"P\x1b[31m\x9b\u202eGS2" in page

"""What KGX members say: negation, qualifiers under other names, sources; through the command line."""

import json

import pytest
from command_lines import assert_refused, run

NODES = [
    {"id": "CHEBI:1", "name": "one", "category": ["biolink:SmallMolecule"]},
    {"id": "CHEBI:2", "name": "two", "category": ["biolink:SmallMolecule"]},
    {"id": "MONDO:3", "name": "three", "category": ["biolink:Disease"]},
    {"id": "MONDO:4", "name": "four", "category": ["biolink:Disease"]},
]
TREATS = {"subject": "CHEBI:1", "predicate": "biolink:treats", "object": "MONDO:3"}
AFFECTS = {"subject": "CHEBI:1", "predicate": "biolink:affects", "object": "MONDO:3"}
# Enough that some of them can be held out.
OTHERS = [
    {"subject": subject, "predicate": f"biolink:p{number}", "object": object_}
    for number in range(3) for subject in ("CHEBI:1", "CHEBI:2") for object_ in ("MONDO:3", "MONDO:4")
]  # fmt: skip


def json_lines(path, members):
    path.write_text("".join(json.dumps(each) + "\n" for each in members), encoding="utf-8")
    return path


def prepare(tmp_path, edges, *arguments):
    """Prepare a graph of these edges and OTHERS; return the summary, the labels by edge-map key, and what was said."""
    nodes = json_lines(tmp_path / "nodes.jsonl", NODES)
    edges = json_lines(tmp_path / "edges.jsonl", [*edges, *OTHERS])
    out = tmp_path / "out"
    done = run("prepare_data", "--nodes", nodes, "--edges", edges, "-o", out, *arguments)
    assert done.code == 0, done
    return json.loads((out / "graph_summary.json").read_text()), json.loads((out / "edge_map.json").read_text()), done


def triples_of(tmp_path, label):
    lines = [line for name in ("train", "valid", "test") for line in (tmp_path / f"out/{name}.txt").open()]
    return sorted(tuple(line.rstrip("\n").split("\t")) for line in lines if f"\t{label}\t" in line)


@pytest.mark.parametrize("value", [True, "True", "true", 1, "1", ["true"]])
@pytest.mark.parametrize("member", ["negated", "biolink:negated", "is_negated"])
def test_a_negated_edge_is_no_fact(tmp_path, value, member):
    summary, edge_map, done = prepare(tmp_path, [{**TREATS, member: value}])
    assert summary["dropped"]["negated"] == 1
    assert summary["edges"] == {"read": 12, "kept": 12}
    assert '{"predicate": "biolink:treats"}' not in edge_map
    assert "1 negated" in done.out


@pytest.mark.parametrize(
    "members",
    [
        {"frequency_qualifier": "HP:0040285"},
        {"frequency_qualifier": "0/12"},
        {"qualifiers": ["NOT"]},
        {"qualifier": "NOT"},
        {"statistical_significance_qualifier": "not_significant"},
    ],
)
def test_an_edge_that_says_not_in_another_member_is_no_fact(tmp_path, members):
    summary, edge_map, _ = prepare(tmp_path, [{**TREATS, **members}])
    assert summary["dropped"]["negated"] == 1
    assert '{"predicate": "biolink:treats"}' not in edge_map


@pytest.mark.parametrize("value", [False, "False", "false", 0, "0", "", None, []])
def test_an_edge_that_is_not_negated_is_a_fact(tmp_path, value):
    summary, edge_map, _ = prepare(tmp_path, [{**TREATS, "negated": value, "frequency_qualifier": "HP:0040280"}])
    assert summary["dropped"]["negated"] == 0
    assert triples_of(tmp_path, edge_map['{"predicate": "biolink:treats"}']) == [
        ("CHEBI:1", "predicate:3", "MONDO:3")
    ]  # fmt: skip


def test_kept_negated_edges_have_relations_of_their_own(tmp_path):
    negated = {**TREATS, "object": "MONDO:4", "negated": True, "object_aspect_qualifier": "activity"}
    summary, edge_map, _ = prepare(tmp_path, [TREATS, negated, {**TREATS, "negated": "true"}], "--negated", "keep")
    assert summary["dropped"]["negated"] == summary["dropped"]["duplicate"] == 0
    assert summary["predicates"]["not biolink:treats"] == {"read": 2, "kept": 2}
    relation = edge_map['{"predicate": "not biolink:treats"}']
    assert triples_of(tmp_path, relation) == [("CHEBI:1", relation, "MONDO:3")]
    relation = edge_map['{"predicate": "not biolink:treats", "object_aspect_qualifier": "activity"}']
    assert triples_of(tmp_path, relation) == [("CHEBI:1", relation, "MONDO:4")]


def test_a_negated_edge_is_never_held_out_as_the_test_predicate(tmp_path):
    edges = [
        {**TREATS, "subject": subject, "object": object_, "negated": object_ == "MONDO:3"}
        for subject in ("CHEBI:1", "CHEBI:2") for object_ in ("MONDO:3", "MONDO:4")
    ]  # fmt: skip
    edges += [{**TREATS, "subject": "CHEBI:1", "object": "CHEBI:2"}]
    held_out = ("--test-predicate", "biolink:treats", "--test-fraction", "0.4", "--valid-fraction", "0.3")
    _, edge_map, _ = prepare(tmp_path, edges, "--negated", "keep", *held_out)
    relations = {line.split("\t")[1] for name in ("valid", "test") for line in (tmp_path / f"out/{name}.txt").open()}
    assert relations == {edge_map['{"predicate": "biolink:treats"}']}
    assert '{"predicate": "not biolink:treats"}' in edge_map


def test_what_is_neither_true_nor_false_is_refused(tmp_path):
    nodes, edges = json_lines(tmp_path / "n", NODES), json_lines(tmp_path / "e", [{**TREATS, "negated": "maybe"}])
    message = assert_refused(run("prepare_data", "--nodes", nodes, "--edges", edges, "-o", tmp_path / "out"))
    assert message.startswith(f"{edges}:1: \"negated\" is 'maybe', neither true nor false; ")


@pytest.mark.parametrize(
    ("direction", "aspect"),
    [
        ("qualified_object_direction", "qualified_object_aspect"),
        ("object_direction", "object_aspect"),
        ("biolink:object_direction_qualifier", "biolink:object_aspect_qualifier"),
        ("object direction qualifier", "object aspect qualifier"),
    ],
)
def test_opposite_directions_under_other_names_stay_two_relations(tmp_path, direction, aspect):
    edges = [{**AFFECTS, direction: word, aspect: "activity"} for word in ("increased", "decreased")]
    summary, edge_map, _ = prepare(tmp_path, edges)
    assert summary["dropped"]["duplicate"] == 0
    for word in ("increased", "decreased"):
        qualifiers = {"object_aspect_qualifier": "activity", "object_direction_qualifier": word}
        relation = edge_map[json.dumps({"predicate": "biolink:affects", **qualifiers})]
        assert triples_of(tmp_path, relation) == [("CHEBI:1", relation, "MONDO:3")]


def test_nested_qualifiers_are_those_of_flat_ones(tmp_path):
    flat = {"qualified_predicate": "biolink:causes", "object_direction_qualifier": "increased"}
    nested = [{"qualifier_type_id": f"biolink:{name}", "qualifier_value": value} for name, value in flat.items()]
    summary, edge_map, _ = prepare(tmp_path, [{**AFFECTS, **flat}, {**AFFECTS, "qualifiers": nested}])
    assert json.dumps({"predicate": "biolink:affects", **flat}) in edge_map
    assert summary["dropped"]["duplicate"] == 1
    assert summary["not_read"] == {}


def test_two_values_for_one_qualifier_are_refused(tmp_path):
    edge = {**AFFECTS, "object_direction_qualifier": "increased", "qualified_object_direction": "decreased"}
    nodes, edges = json_lines(tmp_path / "n", NODES), json_lines(tmp_path / "e", [edge])
    message = assert_refused(run("prepare_data", "--nodes", nodes, "--edges", edges, "-o", tmp_path / "out"))
    assert '"qualified_object_direction" gives object_direction_qualifier a second value' in message


def test_members_that_are_not_read_are_named_with_their_counts(tmp_path):
    edges = [
        {**AFFECTS, "species_context_qualifier": "NCBITaxon:9606", "sex_qualifier": ""},
        {**AFFECTS, "species_context_qualifier": "NCBITaxon:10090", "object": "MONDO:4", "deprecated": True},
        {**AFFECTS, "subject": "CHEBI:2", "my_qualified_thing": "x", "deprecated": False, "qualifiers": ["HP:1"]},
        {**AFFECTS, "subject": "CHEBI:2", "object": "MONDO:4", "clinical_approval_status": "not_approved"},
    ]
    summary, _, done = prepare(tmp_path, edges)
    assert summary["not_read"] == {
        "species_context_qualifier": 2, "deprecated": 1, "my_qualified_thing": 1, "qualifiers": 1,
        "clinical_approval_status": 1,
    }  # fmt: skip
    assert "Not read, though they may change what an edge says: species_context_qualifier of 2, " in done.out


def test_both_conventions_of_provenance_are_counted(tmp_path):
    flat = "primary_knowledge_source"
    nested = [
        {"resource_id": "infores:ctd", "resource_role": "primary_knowledge_source"},
        {"resource_id": "infores:x", "resource_role": "aggregator_knowledge_source",
         "upstream_resource_ids": ["infores:ctd"]},
    ]  # fmt: skip
    edges = [
        {**TREATS, flat: "infores:ctd"},
        {**TREATS, flat: ["infores:ctd", "infores:drugbank"], "object": "MONDO:4"},
        {**TREATS, "sources": nested, "subject": "CHEBI:2"},
        {**TREATS, "sources": [{**nested[0], "resource_role": "biolink:primary"}], "subject": "CHEBI:2"},
    ]
    summary, _, _ = prepare(tmp_path, edges)
    assert summary["primary_knowledge_sources"] == {"infores:ctd": 4, "infores:drugbank": 1}


def test_control_characters_reach_neither_names_nor_the_terminal(tmp_path):
    nodes = [dict(node) for node in NODES]
    nodes[0]["name"] = "one\x1b[31m\x00\u202eeno\x85"
    nodes_path = json_lines(tmp_path / "nodes.jsonl", nodes)
    edges = json_lines(tmp_path / "edges.jsonl", OTHERS)
    assert run("prepare_data", "--nodes", nodes_path, "--edges", edges, "-o", tmp_path / "out").code == 0
    names = (tmp_path / "out/node_name_dict.txt").read_bytes().decode()
    assert names.splitlines()[0] == "one [31m eno\t0"

"""What stands behind the training triples of a KGX graph: each line of evidence.tsv.gz against the edges themselves."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from command_lines import assert_refused, run

from conve_tracin.data.evidence_columns import EVIDENCE_COLUMNS
from conve_tracin.data.kgx import edges as kgx_edges

SHARED = Path(__file__).resolve().parents[4] / "shared/data"
HETIONET, SAMPLES = SHARED / "hetionet-kgx", SHARED / "kgx-samples"

NODES = [{"id": f"X:{number}", "category": ["biolink:NamedThing"]} for number in range(4)]
A, B = {"subject": "X:0", "predicate": "biolink:p0", "object": "X:1"}, {"subject": "X:2", "predicate": "biolink:p1",
                                                                        "object": "X:3"}  # fmt: skip
# Enough that some of them can be held out.
OTHERS = [
    {"id": f"other {place}", "subject": f"X:{head}", "predicate": f"biolink:p{number}", "object": f"X:{tail}"}
    for place, (number, head, tail) in enumerate(
        (number, head, tail) for number in range(3) for head in range(4) for tail in range(4) if head != tail
    )
]  # fmt: skip
FLAT = {
    "id": "urn:1", "primary_knowledge_source": "infores:ctd", "aggregator_knowledge_source": ["infores:a", "infores:b"],
    "publications": ["PMID:1", "PMC:2"], "knowledge_level": "prediction", "agent_type": "text_mining_agent",
    "supporting_text": ["one sentence", "another"], "has_confidence_score": 0.25, "evidence_count": 12,
    "max_research_phase": 3, "clinical_approval_status": "approved_for_condition", "hetio_source": ["DrugBank"],
}  # fmt: skip


def json_lines(path, members):
    path.write_text("".join(json.dumps(each) + "\n" for each in members), encoding="utf-8")
    return path


def evidence_in(directory):
    """Return the lines of the file as dicts, without the header."""
    with gzip.open(directory / "evidence.tsv.gz", "rt", encoding="utf-8", newline="\n") as file:
        header, *lines = [line.removesuffix("\n").split("\t") for line in file]
    assert tuple(header) == EVIDENCE_COLUMNS
    return [dict(zip(header, line, strict=True)) for line in lines]


def triples_in(path):
    return [tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]


def predicates_in(directory):
    edge_map = json.loads((directory / "edge_map.json").read_text(encoding="utf-8"))
    return {label: json.loads(key)["predicate"] for key, label in edge_map.items()}


def prepare(tmp_path, edges, *arguments):
    """Prepare a graph of these edges, of which none is held out; return what stands behind their triples."""
    nodes = json_lines(tmp_path / "nodes.jsonl", NODES)
    held_out = [{**other, "predicate": "biolink:held_out"} for other in OTHERS]
    edges_path = json_lines(tmp_path / "edges.jsonl", [*edges, *held_out])
    arguments = ("--test-predicate", "biolink:held_out", *arguments)
    done = run("prepare_data", "--nodes", nodes, "--edges", edges_path, "-o", tmp_path / "out", *arguments)
    assert done.code == 0, done
    labels = {label for label, name in predicates_in(tmp_path / "out").items() if name != "biolink:held_out"}
    return [line for line in evidence_in(tmp_path / "out") if line["relation"] in labels]


def test_all_that_an_edge_says_stands_behind_its_triple(tmp_path):
    (line,) = prepare(tmp_path, [{**A, **FLAT}])
    assert line == {
        "head": "X:0", "relation": "predicate:1", "tail": "X:1", "edge_id": "urn:1",
        "primary_knowledge_source": "infores:ctd", "aggregator_knowledge_source": "infores:a|infores:b",
        "publications": "PMID:1|PMC:2", "knowledge_level": "prediction", "agent_type": "text_mining_agent",
        "supporting_text": "one sentence|another", "has_confidence_score": "0.25", "evidence_count": "12",
        "max_research_phase": "3", "clinical_approval_status": "approved_for_condition", "hetio_source": "DrugBank",
    }  # fmt: skip


def test_every_training_edge_has_a_line_in_the_order_of_the_file(tmp_path):
    nodes = json_lines(tmp_path / "nodes.jsonl", NODES)
    edges = [*OTHERS, *({**edge, "id": f"again {edge['id']}"} for edge in OTHERS[::2])]
    out = tmp_path / "out"
    arguments = ("--nodes", nodes, "--edges", json_lines(tmp_path / "e", edges), "-o", out, "--test-fraction", "0.3")
    assert run("prepare_data", *arguments).code == 0
    labels = {name: label for label, name in predicates_in(out).items()}
    trained = set(triples_in(out / "train.txt"))
    expected = [
        (edge["subject"], labels[edge["predicate"]], edge["object"], edge["id"]) for edge in edges
        if (edge["subject"], labels[edge["predicate"]], edge["object"]) in trained
    ]  # fmt: skip
    lines = evidence_in(out)
    assert [tuple(line.values())[:4] for line in lines] == expected
    assert len(trained) < len(expected) < len(edges)
    summary = json.loads((out / "graph_summary.json").read_text())
    assert summary["evidence"] == {"edges": len(expected), "with_publications": 0, "with_sources": 0}


def test_edges_of_held_out_pairs_and_dropped_edges_have_no_line(tmp_path):
    arguments = ("--style", "original", "--hold-out-pairs")
    nodes, edges = json_lines(tmp_path / "n", NODES), [*OTHERS, {**A, "predicate": "biolink:subclass_of"}]
    out = tmp_path / "out"
    done = run("prepare_data", "--nodes", nodes, "--edges", json_lines(tmp_path / "e", edges), "-o", out, *arguments)
    assert done.code == 0
    trained = triples_in(out / "train.txt")
    assert [tuple(line.values())[:3] for line in evidence_in(out)] == trained
    assert json.loads((out / "graph_summary.json").read_text())["dropped"]["of_held_out_pairs"]


def test_small_blocks_change_nothing(tmp_path, monkeypatch):
    edges = [{**A, **FLAT, "object": f"X:{1 + place % 3}", "id": str(place)} for place in range(40)]
    whole = prepare(tmp_path, edges)
    monkeypatch.setattr(kgx_edges, "EDGES_AT_A_TIME", 3)
    assert prepare(tmp_path, edges) == whole
    assert len(whole) == 40


def test_nested_sources_are_those_of_flat_ones(tmp_path):
    sources = [
        {"resource_id": "infores:ctd", "resource_role": "primary_knowledge_source"},
        {"resource_id": "infores:b", "resource_role": "biolink:aggregator_knowledge_source",
         "upstream_resource_ids": ["infores:a", "infores:ctd"]},
    ]  # fmt: skip
    nested = {name: value for name, value in FLAT.items() if not name.endswith("knowledge_source")}
    (line,) = prepare(tmp_path, [{**A, **nested, "sources": sources}])
    assert line["primary_knowledge_source"] == "infores:ctd"
    assert line["aggregator_knowledge_source"] == "infores:b|infores:a"
    (as_text,) = prepare(tmp_path, [{**A, **nested, "sources": json.dumps(sources)}])
    assert as_text == line


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        ("", ""),
        ([], ""),
        (["", None], ""),
        ("PMID:1", "PMID:1"),
        ("PMID:1|PMID:2", "PMID:1|PMID:2"),
        ([12, "PMID:3"], "12|PMID:3"),
        ([12], "12"),
        (7, "7"),
        (["a\tb", "c\r\nd", "e\x1bf\x00g\u202eh"], "a b|c  d|e f g h"),
        (["a|b", "c"], "a¦b|c"),
        (["<script>alert('&')</script>"], "<script>alert('&')</script>"),
        (["half \ud83d of it"], "half ? of it"),
        ({"PMID:1": {"sentence": "a|b\n"}}, '{"PMID:1": {"sentence": "a¦b\\n"}}'),
        ([["PMID:1", "PMID:2"], "PMID:3"], "PMID:1|PMID:2|PMID:3"),
        (["Müller\u00a0et al. 日本"], "Müller\u00a0et al. 日本"),
    ],
)
def test_hostile_and_odd_values_stay_text(tmp_path, value, expected):
    (line,) = prepare(tmp_path, [{**A, "publications": value}])
    assert line["publications"] == expected
    assert line["edge_id"] == ""


@pytest.mark.parametrize("column", [name for name in EVIDENCE_COLUMNS[3:] if name != "edge_id"])
def test_no_value_breaks_a_line(tmp_path, column):
    (line,) = prepare(tmp_path, [{**A, "id": "x\ty\n", column: "a\tb\nc\r<b>\x00"}])
    assert line[column] == "a b c <b>"
    assert line["edge_id"] == "x y"


def test_a_bar_in_a_text_is_no_list(tmp_path):
    (line,) = prepare(tmp_path, [{**A, "supporting_text": "p | q", "has_confidence_score": True, "id": "a|b"}])
    assert (line["supporting_text"], line["has_confidence_score"], line["edge_id"]) == ("p ¦ q", "true", "a¦b")


def test_the_summary_counts_publications_and_sources(tmp_path, capsys):
    edges = [
        {**A, "publications": ["PMID:1"]}, {**A, "publications": []}, {**A, "primary_knowledge_source": "infores:x"},
        {**B, "aggregator_knowledge_source": ["infores:x"], "publications": "PMID:2"},
    ]  # fmt: skip
    prepare(tmp_path, edges)
    counted = json.loads((tmp_path / "out/graph_summary.json").read_text())["evidence"]
    assert (counted["with_publications"], counted["with_sources"]) == (2, 2)
    assert counted["edges"] == len(evidence_in(tmp_path / "out"))


def test_a_table_gives_the_same_evidence(tmp_path):
    edges = [{**A, **FLAT}, {**B, "id": "2", "hetio_source": ["a", "b"]}]
    from_json = prepare(tmp_path, edges)
    columns = list(dict.fromkeys(name for edge in [*edges, *OTHERS] for name in edge))
    held_out = [{**other, "predicate": "biolink:held_out"} for other in OTHERS]
    with (tmp_path / "edges.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(columns)
        for edge in [*edges, *held_out]:
            values = [edge.get(name, "") for name in columns]
            table.writerow(["|".join(value) if isinstance(value, list) else value for value in values])
    arguments = ("--nodes", tmp_path / "nodes.jsonl", "--edges", tmp_path / "edges.tsv", "-o", tmp_path / "table")
    assert run("prepare_data", *arguments, "--test-predicate", "biolink:held_out").code == 0
    from_table = [line for line in evidence_in(tmp_path / "table") if not line["edge_id"].startswith("other")]
    assert from_table == from_json


def test_nothing_is_written_where_the_split_fails(tmp_path):
    nodes, edges = json_lines(tmp_path / "n", NODES), json_lines(tmp_path / "e", OTHERS)
    arguments = ("--nodes", nodes, "--edges", edges, "-o", tmp_path / "out", "--test-predicate", "biolink:none")
    assert "--test-predicate biolink:none" in assert_refused(run("prepare_data", *arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "n"]


def test_an_input_is_never_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    edges = json_lines(out / "evidence.tsv.gz", OTHERS)
    arguments = ("--nodes", json_lines(tmp_path / "n", NODES), "--edges", edges, "-o", out)
    assert "would be overwritten" in assert_refused(run("prepare_data", *arguments))


# Read off the edges' file: primary source, knowledge level, publications, Hetionet's own source.
BY_HAND = {
    "hetio:1": ("infores:chembl", "knowledge_assertion", "PMID:20053189", "DrugBank (target)|DrugCentral (ChEMBL)"),
    "hetio:2": (
        "infores:drugbank", "knowledge_assertion", "PMID:17016423|PMID:17139284|PMID:20053189", "DrugBank (target)"
    ),
    "hetio:3": ("infores:hetionet", "not_provided", "", "Dice similarity of ECFPs"),
    "hetio:5000": ("infores:lincs", "not_provided", "", "LINCS L1000"),
    "hetio:7272": ("infores:drugbank", "knowledge_assertion", "PMID:15601807|PMID:19934256", "DrugBank (enzyme)"),
    "hetio:15347": ("infores:drugbank", "knowledge_assertion", "PMID:16014768", "DrugBank (transporter)"),
    "hetio:20000": ("infores:hetionet", "knowledge_assertion", "PMID:6267277", "ChEMBL"),
    "hetio:23654": (
        "infores:drugbank", "knowledge_assertion", "PMID:11559920|PMID:15264002|PMID:16819214", "DrugBank (carrier)"
    ),
    "hetio:27716": ("infores:drugbank", "knowledge_assertion", "PMID:11553677|PMID:25517706", "DrugBank (target)"),
    "hetio:295164": ("infores:drugcentral", "not_provided", "", "DrugCentral"),
}  # fmt: skip


@pytest.mark.skipif(not HETIONET.is_dir(), reason="the project does not ship Hetionet")
def test_evidence_of_hetionet(tmp_path):
    out = tmp_path / "out"
    arguments = ("--nodes", HETIONET / "nodes.jsonl.gz", "--edges", HETIONET / "edges.jsonl.gz", "-o", out)
    assert run("prepare_data", *arguments, "--test-predicate", "biolink:treats").code == 0
    lines = evidence_in(out)
    with gzip.open(HETIONET / "edges.jsonl.gz", "rt", encoding="utf-8") as file:
        edges = list(map(json.loads, file))
    assert len(edges) == 143_242
    assert sum("publications" in edge for edge in edges) == 10_282
    held_out = {triple[::2] for split in ("valid", "test") for triple in triples_in(out / f"{split}.txt")}
    assert len(held_out) == 152
    trained = [
        edge for edge in edges
        if edge["predicate"] != "biolink:treats" or (edge["subject"], edge["object"]) not in held_out
    ]  # fmt: skip
    predicates = predicates_in(out)
    assert [(line["edge_id"], line["head"], predicates[line["relation"]], line["tail"]) for line in lines] == [
        (edge["id"], edge["subject"], edge["predicate"], edge["object"]) for edge in trained
    ]  # fmt: skip
    assert [line["publications"] for line in lines] == ["|".join(edge.get("publications", [])) for edge in trained]
    counted = json.loads((out / "graph_summary.json").read_text())["evidence"]
    assert counted == {"edges": 143_090, "with_publications": 10_282, "with_sources": 143_090}
    found = {line["edge_id"]: line for line in lines if line["edge_id"] in BY_HAND}
    columns = ("primary_knowledge_source", "knowledge_level", "publications", "hetio_source")
    assert {name: tuple(line[column] for column in columns) for name, line in found.items()} == BY_HAND
    assert {line["aggregator_knowledge_source"] for line in found.values()} == {"infores:hetionet"}


def nodes_of(table, path):
    """Write a node for each end of a table's edges, and return the edges."""
    header, *rows = [line.split("\t") for line in table.read_text(encoding="utf-8").split("\n")[:-1]]
    edges = [dict(zip(header, row, strict=True)) for row in rows]
    ends = sorted({edge[end] for edge in edges for end in ("subject", "object")})
    path.write_text("id\tcategory\n" + "".join(f"{end}\tbiolink:NamedThing\n" for end in ends), encoding="utf-8")
    return edges


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the project does not ship Monarch's sample")
def test_evidence_of_monarchs_sample(tmp_path):
    table, out = SAMPLES / "monarch-tiny_edges.tsv", tmp_path / "out"
    edges = {edge["id"]: edge for edge in nodes_of(table, tmp_path / "nodes.tsv")}
    fractions = ("--test-fraction", "0.02", "--valid-fraction", "0.02")
    assert run("prepare_data", "--nodes", tmp_path / "nodes.tsv", "--edges", table, "-o", out, *fractions).code == 0
    lines = evidence_in(out)
    assert len(lines) > 400
    for line in lines:
        edge = edges[line["edge_id"]]
        assert (line["head"], line["tail"]) == (edge["subject"], edge["object"])
        for column in ("primary_knowledge_source", "aggregator_knowledge_source", "publications"):
            assert line[column] == edge[column]
    by_hand = {line["edge_id"][5:13]: line["publications"] for line in lines}
    assert (by_hand["7739dc2e"], by_hand["7739dc8e"], by_hand["7739de1d"]) == (
        "PMID:23697806", "PMID:22840777", "PMID:11676915",
    )  # fmt: skip

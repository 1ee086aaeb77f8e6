"""DrugMechDB's curated paths as the known reasons of a graph's treatments; through the command line."""

import gzip
import json
from collections import defaultdict
from pathlib import Path

import pytest
from command_lines import assert_refused, run

from conve_tracin.data.kgx.drugmechdb import Mechanism, canonical, find_labels

HETIONET = Path(__file__).resolve().parents[4] / "shared/data/hetionet-kgx"

NODES = [
    {"id": "DRUGBANK:DB1", "category": ["biolink:Drug"]},
    {"id": "CHEBI:2", "category": ["biolink:Drug"], "equivalent_identifiers": ["CHEBI:2", "DrugBank:DB2"]},
    {"id": "MONDO:1", "category": ["biolink:Disease"], "xref": ["mesh:D1"]},
    {"id": "MONDO:2", "category": ["biolink:Disease"]},
    {"id": "NCBIGene:10", "category": ["biolink:Gene"], "same_as": "UniProtKB:P10"},
    {"id": "NCBIGene:11", "category": ["biolink:Gene"]},
    {"id": "GO:7", "category": ["biolink:BiologicalProcess"]},
]
TREATMENTS = [
    ("DRUGBANK:DB1", "biolink:treats", "MONDO:1"), ("CHEBI:2", "biolink:ameliorates_condition", "MONDO:2"),
    ("CHEBI:2", "biolink:treats", "MONDO:1"), ("DRUGBANK:DB1", "biolink:contraindicated_in", "MONDO:1"),
]  # fmt: skip
FACTS = [
    ("DRUGBANK:DB1", "biolink:affects", "NCBIGene:10"), ("NCBIGene:10", "biolink:affected_by", "DRUGBANK:DB1"),
    ("MONDO:1", "biolink:associated_with", "NCBIGene:10"), ("CHEBI:2", "biolink:affects", "NCBIGene:11"),
    ("NCBIGene:11", "biolink:participates_in", "GO:7"), ("DRUGBANK:DB1", "biolink:similar_to", "CHEBI:2"),
]  # fmt: skip
# Of which alone some are held out.
RING = [
    triple for other in ("MONDO:1", "MONDO:2", "CHEBI:2", "DRUGBANK:DB1")
    for triple in (("GO:7", "biolink:related_to", other), (other, "biolink:related_to", "GO:7"))
]  # fmt: skip


def mechanism(name, drugbank, drug_mesh, disease_mesh, *links):
    graph = {"_id": name, "drug": "a drug", "disease": "a disease", "drugbank": drugbank, "drug_mesh": drug_mesh,
             "disease_mesh": disease_mesh}  # fmt: skip
    nodes = [{"id": node, "label": "Protein", "name": node} for node in sorted({end for link in links for end in link})]
    links = [{"source": source, "key": "decreases activity of", "target": target} for source, target in links]
    return {"directed": True, "graph": graph, "links": links, "nodes": nodes, "multigraph": True}


MECHANISMS = [
    mechanism("DB1_MESH_D1_1", "DB:DB1", "MESH:C1", "MESH:D1", ("MESH:C1", "UniProt:P10"), ("UniProt:P10", "MESH:D1")),
    mechanism("DB1_MESH_D1_2", "DB:DB1", None, "MESH:D1", ("DB:DB1", "UniProt:P99"), ("UniProt:P99", "MESH:D1")),
    mechanism("DB2_MESH_D2_1", "DB:DB2", "MESH:C2", "MESH:D2", ("MESH:C2", "UniProt:P11"), ("UniProt:P11", "GO:7"),
              ("GO:7", "MESH:D2")),
    mechanism("DB3_MESH_D1_1", "DB:DB3", "MESH:C3", "MESH:D1", ("MESH:C3", "MESH:D1")),
]  # fmt: skip
EQUIVALENTS = "UniProtKB:P11\tENSEMBL:E11\tNCBIGene:11\nMONDO:2\tMESH:D2\nMESH:D9\tDOID:9\n"


def prepare(tmp_path, mechanisms=MECHANISMS, *, equivalents=EQUIVALENTS, seed=0, content=None):
    """Prepare a graph of TREATMENTS, FACTS and RING with a file of DrugMechDB."""
    edges = [
        dict(zip(("subject", "predicate", "object"), triple, strict=True)) for triple in (*TREATMENTS, *FACTS, *RING)
    ]
    for name, members in (("nodes", NODES), ("edges", edges)):
        (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in members), encoding="utf-8")
    (tmp_path / "paths.json").write_text(json.dumps(mechanisms) if content is None else content, encoding="utf-8")
    arguments = ["--nodes", tmp_path / "nodes", "--edges", tmp_path / "edges", "-o", tmp_path / "out"]
    arguments += ["--test-predicate", "biolink:related_to", "--random-seed", seed]
    arguments += ["--drugmechdb", tmp_path / "paths.json"]
    if equivalents is not None:
        (tmp_path / "equivalents.tsv").write_text(equivalents, encoding="utf-8")
        arguments += ["--equivalents", tmp_path / "equivalents.tsv"]
    return run("prepare_data", *arguments)


def json_lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()]


def trained_in(directory):
    return [tuple(line.split("\t")) for line in (directory / "train.txt").read_text().splitlines()]


def reasons_in(directory):
    """Return {treatment: {path: its triples}}, with predicates for labels, and the records as they stand."""
    edge_map = json.loads((directory / "edge_map.json").read_text())
    predicates = {label: json.loads(key)["predicate"] for key, label in edge_map.items()}
    records = json_lines(directory / "reasons.jsonl.gz")

    def named(triple):
        return (triple[0], predicates[triple[1]], triple[2])

    return {
        named(record["triple"]): {each["id"]: list(map(named, each["triples"])) for each in record["explanations"]}
        for record in records
    }, records


def test_links_that_are_edges_are_reasons_of_the_treatment(tmp_path):
    done = prepare(tmp_path)
    assert done.code == 0, done
    found, records = reasons_in(tmp_path / "out")
    of_second = [triple for triple in found[TREATMENTS[1]]["DB2_MESH_D2_1"] if triple not in RING]
    assert found[TREATMENTS[0]] == {"DB1_MESH_D1_1": FACTS[:3]}
    assert of_second == FACTS[3:5]
    assert set(found) == set(TREATMENTS[:2])
    assert {record["split"] for record in records} == {"train"}
    counts = json.loads((tmp_path / "out/graph_summary.json").read_text())["drugmechdb"]
    assert counts["drugs"] == {"read": 3, "found": 2}
    assert counts["diseases"] == {"read": 2, "found": 2}
    # MESH:C1, DB:DB1, MESH:C2, MESH:D1, MESH:D2, P10, P11, GO:7 of these and P99, MESH:C3
    assert counts["nodes"] == {"read": 10, "found": 8}
    assert counts["links"]["read"] == 8
    assert counts["treatments"] == {"read": 2, "found": 2}
    assert "found of DrugMechDB: 2 of 3 drugs, 2 of 2 diseases, 8 of 10 nodes, " in done.out


@pytest.mark.parametrize("seed", range(6))
def test_held_out_triples_are_no_reasons(tmp_path, seed):
    assert prepare(tmp_path, seed=seed).code == 0
    _, records = reasons_in(tmp_path / "out")
    trained = set(trained_in(tmp_path / "out"))
    listed = {tuple(triple) for record in records for each in record["explanations"] for triple in each["triples"]}
    assert listed <= trained
    # Every training triple between the ends of the last link, and no other, stands for that link.
    assert {triple for triple in listed if set(triple[::2]) == {"GO:7", "MONDO:2"}} == {
        triple for triple in trained if set(triple[::2]) == {"GO:7", "MONDO:2"}
    }  # fmt: skip


def test_an_explanation_says_how_much_of_its_path_was_found(tmp_path):
    links = (("MESH:C1", "UniProt:P10"), ("UniProt:P10", "UniProt:P99"), ("UniProt:P99", "MESH:D1"))
    broken = mechanism("gap", "DB:DB1", "MESH:C1", "MESH:D1", *links)
    assert prepare(tmp_path, [broken]).code == 0
    _, (record,) = reasons_in(tmp_path / "out")
    (explanation,) = record["explanations"]
    assert (explanation["links"], explanation["links_found"]) == (3, 1)


def test_a_treatment_is_no_reason_of_itself(tmp_path):
    direct = mechanism("direct", "DB:DB1", "MESH:C1", "MESH:D1", ("MESH:C1", "MESH:D1"))
    assert prepare(tmp_path, [direct]).code == 0
    found, _ = reasons_in(tmp_path / "out")
    assert found == {TREATMENTS[0]: {"direct": [TREATMENTS[3]]}}


def test_without_equivalents_the_nodes_tell(tmp_path):
    assert prepare(tmp_path, equivalents=None).code == 0
    found, _ = reasons_in(tmp_path / "out")
    assert set(found) == {TREATMENTS[0]}


def test_paths_of_another_graph_are_refused(tmp_path):
    message = assert_refused(prepare(tmp_path, [mechanism("x", "DB:DB8", None, "MESH:D8", ("DB:DB8", "MESH:D8"))]))
    assert message == (
        f"{tmp_path / 'paths.json'}: gives no reasons for this graph (found: 0 of 1 drugs, 0 of 1 diseases, "
        "0 of 2 nodes, 0 of 1 links, 0 of 0 treatments); name its CURIEs in --equivalents FILE"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ("{}", "is no list of paths"),
        ("[]", "is no list of paths"),
        ("[[]]", "path 1 has no graph or links"),
        ('[{"graph": {}}]', "path 1 has no graph or links"),
        ('[{"graph": {"drugbank": 3}, "links": []}]', "path 1 has no graph or links"),
        ('[{"graph": {}, "links": [{"source": "a"}]}]', "path 1 has no graph or links"),
    ],
)
def test_other_files_are_refused(tmp_path, content, expected):
    message = assert_refused(prepare(tmp_path, content=content))
    assert message.startswith(f"{tmp_path / 'paths.json'}: {expected}")
    assert "indication_paths.json" in message


def test_prefixes_in_other_spellings_are_one():
    for one, other in (
        ("DB:DB00619", "DRUGBANK:DB00619"), ("UniProt:P00519", "UNIPROTKB:P00519"), ("MESH:D1", "mesh:D1"),
        ("taxonomy:9606", "NCBITaxon:9606"), ("reactome:R-HSA-1", "REACT:R-HSA-1"),
    ):  # fmt: skip
        assert canonical(one) == canonical(other)
    assert canonical("UniProt:P00519") != canonical("UniProt:p00519")
    assert canonical("no CURIE") == "no CURIE"


def test_equivalents_without_drugmechdb_are_refused(tmp_path):
    done = run("prepare_data", "--nodes", "n", "--edges", "e", "-o", tmp_path, "--equivalents", "x")
    assert done.code == 2
    assert "--equivalents goes with --drugmechdb" in done.err


@pytest.mark.skipif(not HETIONET.is_dir(), reason="the project does not ship Hetionet")
def test_reasons_of_hetionet_are_those_that_were_mapped_before(tmp_path):
    """Put the published reasons back into DrugMechDB's shape and CURIEs, and find them again."""
    records = json_lines(HETIONET / "drugmechdb.jsonl.gz")
    mechanisms, expected, mesh = [], defaultdict(set), {}
    for record in records:
        drug, _, disease = record["triple"]
        mesh[disease] = f"MESH:{disease.replace(':', '')}"
        links = [[mesh[disease] if end == disease else end.replace("DRUGBANK:", "DB:") for end in (h, t)]
                 for h, _, t in record["reasons"]]  # fmt: skip
        mechanisms.append(mechanism("", drug.replace("DRUGBANK:", "DB:"), None, mesh[disease], *links))
        expected[drug, disease] |= {frozenset(triple[::2]) for triple in record["reasons"]}
    (tmp_path / "paths.json").write_text(json.dumps(mechanisms))
    (tmp_path / "equivalents").write_text("".join(f"{one}\t{other}\n" for one, other in mesh.items()))
    arguments = ["--nodes", HETIONET / "nodes.jsonl.gz", "--edges", HETIONET / "edges.jsonl.gz", "-o", tmp_path / "out"]
    arguments += ["--test-predicate", "biolink:treats", "--drugmechdb", tmp_path / "paths.json"]
    arguments += ["--equivalents", tmp_path / "equivalents"]
    done = run("prepare_data", *arguments)
    assert done.code == 0, done
    found = defaultdict(set)
    for (drug, _, disease), paths in reasons_in(tmp_path / "out")[0].items():
        found[drug, disease] |= {frozenset(triple[::2]) for triples in paths.values() for triple in triples}
    assert found == expected
    assert len(records) == 341


def test_a_node_whose_id_is_no_string_is_passed_over(tmp_path):
    nodes = tmp_path / "nodes.jsonl"
    lines = [{"id": ["DRUGBANK:1"]}, {"id": {}}, {"xref": ["MESH:1"]}, {"id": "DRUGBANK:1", "xref": ["MESH:1", ["x"]]}]
    nodes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mechanisms = [Mechanism("one", ("mesh:1",), (), ())]
    assert find_labels(mechanisms, ["DRUGBANK:1"], nodes, None) == {"mesh:1": {"DRUGBANK:1"}}

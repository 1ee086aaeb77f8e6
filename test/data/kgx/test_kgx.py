"""From KGX graphs to training files: styles, relations, splits, and lines that do not fit."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from conve_tracin import settings
from conve_tracin.data.kgx import biolink, styles
from conve_tracin.data.kgx import edges as kgx_edges
from conve_tracin.data.kgx import files as kgx_files
from conve_tracin.data.names import read_names, read_predicates
from conve_tracin.data.splits import hold_out
from conve_tracin.data.triples import read_triples
from conve_tracin.data.vocabulary import read_vocabulary
from conve_tracin.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "test" / "data" / "kgx"
NODES, EDGES = DATA / "nodes.jsonl", DATA / "edges.jsonl"
FRACTIONS = {"valid": 0.1, "test": 0.1}

A_NODE = {"id": "CHEBI:1", "name": "one", "category": ["biolink:SmallMolecule"]}
B_NODE = {"id": "MONDO:2", "name": "two", "category": ["biolink:Disease"]}
AN_EDGE = {"subject": "CHEBI:1", "predicate": "biolink:treats", "object": "MONDO:2"}


def json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path, contents):
    lines = (line if isinstance(line, (str, bytes)) else json.dumps(line) for line in contents)
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def prepare(*arguments):
    prepare_data.main([str(argument) for argument in arguments])


def read_graph(directory):
    """Return the label triples of each split, each relation written as its edge map key."""
    entities = read_vocabulary(directory / "entity_to_id.tsv", "entity")
    relations = read_vocabulary(directory / "relation_to_id.tsv", "relation")
    keys = {label: key for key, label in json.loads((directory / "edge_map.json").read_text()).items()}
    return {
        split: [
            (entities.label_of(h), keys[relations.label_of(r)], entities.label_of(t))
            for h, r, t in read_triples(directory / f"{split}.txt", entities, relations).tolist()
        ]
        for split in ("train", "valid", "test")
    }


def all_triples(splits):
    return [triple for triples in splits.values() for triple in triples]


def expected_triples(keep):
    """Go through the edges one by one with the graph's most general categories."""
    categories = {node["id"]: set(node["category"]) for node in json_lines(NODES)}
    triples = []
    for edge in json_lines(EDGES):
        if keep(edge["predicate"], categories[edge["subject"]], categories[edge["object"]]):
            qualifiers = {name: value for name, value in edge.items() if "qualif" in name}
            key = json.dumps({"predicate": edge["predicate"], **qualifiers})
            triples.append((edge["subject"], key, edge["object"]))
    return sorted(set(triples))


def between(*pairs):
    chemical, gene, disease = (
        "biolink:ChemicalEntity",
        "biolink:GeneOrGeneProduct",
        "biolink:DiseaseOrPhenotypicFeature",
    )
    letters = {"C": chemical, "G": gene, "D": disease}

    def test(_predicate, subject, object_):
        return any(
            (letters[one] in subject and letters[other] in object_)
            or (letters[other] in subject and letters[one] in object_)
            for one, other in pairs
        )

    return test


KEPT_BY_STYLE = {
    "keepall": lambda *edge: True,
    "original": lambda predicate, *ends: predicate != "biolink:subclass_of",
    "CD": between("CD"),
    "CGGD": between("CG", "GD"),
    "CCGGDD": between("CC", "GG", "DD"),
    "rCD": lambda *edge: not between("CD")(*edge),
    "CGGD_alltreat": lambda predicate, *ends: predicate == "biolink:treats" or between("CG", "GD")(predicate, *ends),
    "CCGGDD_alltreat": lambda predicate, *ends: (
        predicate == "biolink:treats" or between("CC", "GG", "DD")(predicate, *ends)
    ),
}


@pytest.mark.parametrize("style", KEPT_BY_STYLE)
def test_style_keeps_the_edges_it_names(tmp_path, style):
    prepare("--nodes", NODES, "--edges", EDGES, "--style", style, "-o", tmp_path)
    assert sorted(all_triples(read_graph(tmp_path))) == expected_triples(KEPT_BY_STYLE[style])


def test_all_styles_are_offered_and_tested():
    assert tuple(styles.STYLES) == settings.STYLES
    assert set(styles.STYLES) == {*KEPT_BY_STYLE, styles.CLEAN_BASELINE}  # which test_filters.py has


@pytest.mark.parametrize(
    ("category", "kinds"),
    [
        (["biolink:SmallMolecule"], biolink.CHEMICAL),
        (["biolink:Drug", "biolink:MolecularMixture"], biolink.CHEMICAL),
        ("biolink:Gene", biolink.GENE),
        (["Protein", "biolink:Drug"], biolink.GENE | biolink.CHEMICAL),
        (["biolink:PhenotypicFeature"], biolink.DISEASE),
        (["biolink:ChemicalEntityOrGeneOrGeneProduct", "biolink:NamedThing", "biolink:Pathway"], 0),
        ([], 0),
        (None, 0),
    ],
)
def test_kinds_of_most_specific_categories(category, kinds):
    assert biolink.kinds_of(category) == kinds


def test_files_names_and_predicates(tmp_path):
    prepare("--nodes", NODES, "--edges", EDGES, "-o", tmp_path / "with space")
    directory = tmp_path / "with space"
    entities = read_vocabulary(directory / "entity_to_id.tsv", "entity")
    assert list(entities.labels) == sorted(node["id"] for node in json_lines(NODES))
    names = read_names(directory / "node_name_dict.txt", entities)
    assert {entities.label_of(position): name for position, name in names.items()} == {
        node["id"]: node["name"] for node in json_lines(NODES)
    }
    predicates = read_predicates(directory / "edge_map.json")
    relations = read_vocabulary(directory / "relation_to_id.tsv", "relation")
    assert list(relations.labels) == [f"predicate:{number}" for number in range(len(relations))]
    assert set(predicates) == set(relations.labels)
    assert sorted(name for name in predicates.values() if name.startswith("biolink:affects")) == [
        "biolink:affects",
        "biolink:affects (causes, object activity decreased)",
        "biolink:affects (causes, object activity increased)",
        "biolink:affects (causes, object expression increased)",
    ]
    keys = [json.loads(key) for key in json.loads((directory / "edge_map.json").read_text())]
    assert {"predicate": "biolink:treats"} in keys
    assert {
        "predicate": "biolink:affects",
        "qualified_predicate": "biolink:causes",
        "object_aspect_qualifier": "activity",
        "object_direction_qualifier": "increased",
    } in keys


def test_more_than_ten_relations_keep_their_numbers(tmp_path):
    edges = [{**AN_EDGE, "predicate": f"biolink:p{n:02}"} for n in range(12)]
    edges += [{**edge, "subject": "MONDO:2", "object": "CHEBI:1"} for edge in edges]
    prepare(
        "--nodes", write_lines(tmp_path / "n", [A_NODE, B_NODE]), "--edges", write_lines(tmp_path / "e", edges),
        "-o", tmp_path / "out",
    )  # fmt: skip
    relations = read_vocabulary(tmp_path / "out" / "relation_to_id.tsv", "relation")
    predicates = read_predicates(tmp_path / "out" / "edge_map.json")
    assert [predicates[label] for label in relations.labels] == [f"biolink:p{n:02}" for n in range(12)]


@pytest.mark.parametrize("seed", range(5))
def test_only_edges_with_the_test_predicate_are_held_out(tmp_path, seed):
    prepare(
        "--nodes", NODES, "--edges", EDGES, "--test-predicate", "biolink:treats", "--test-fraction", "0.25",
        "--valid-fraction", "0.1", "--random-seed", seed, "-o", tmp_path,
    )  # fmt: skip
    splits = read_graph(tmp_path)
    everything = all_triples(splits)
    assert len(everything) == len(set(everything)) == 152
    held_out = splits["valid"] + splits["test"]
    assert {key for _, key, _ in held_out} == {'{"predicate": "biolink:treats"}'}
    num_treats = sum(key == '{"predicate": "biolink:treats"}' for _, key, _ in everything)
    assert len(splits["test"]) == round(num_treats * 0.25)
    assert len(splits["valid"]) == round(num_treats * 0.1)
    for column in ({0, 2}, {1}):
        trained = {triple[position] for triple in splits["train"] for position in column}
        assert {triple[position] for triple in held_out for position in column} <= trained


def test_the_seed_decides_the_split(tmp_path):
    arguments = ("--nodes", NODES, "--edges", EDGES, "--test-predicate", "biolink:treats")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(*arguments, "--random-seed", seed, "-o", tmp_path / name)
    contents = {
        name: [(tmp_path / name / f"{split}.txt").read_bytes() for split in ("train", "valid", "test")]
        for name in "abc"
    }
    assert contents["a"] == contents["b"]
    assert contents["a"][2] != contents["c"][2]


@pytest.mark.parametrize("seed", range(20))
def test_hold_out_of_candidates(seed):
    rng = np.random.default_rng(seed)
    triples = np.unique(rng.integers(0, [12, 3, 12], size=(60, 3)), axis=0)
    candidates = rng.random(len(triples)) < 0.5
    splits = hold_out(triples, {"valid": 0.2, "test": 0.3}, random_seed=seed, candidates=candidates)
    rows = {tuple(row): is_candidate for row, is_candidate in zip(triples.tolist(), candidates, strict=True)}
    held_out = [tuple(row) for split in ("valid", "test") for row in splits[split].tolist()]
    assert all(rows[row] for row in held_out)
    assert sorted([*held_out, *map(tuple, splits["train"].tolist())]) == sorted(rows)
    assert set(triples[:, [0, 2]].flat) == set(splits["train"][:, [0, 2]].flat)
    assert set(triples[:, 1]) == set(splits["train"][:, 1])


def test_unknown_test_predicate(tmp_path):
    with pytest.raises(InputError, match=r"keepall leaves no edge with --test-predicate treat.*biolink:treats"):
        prepare("--nodes", NODES, "--edges", EDGES, "--test-predicate", "treat", "-o", tmp_path)


def test_a_test_predicate_is_found_without_its_prefix(tmp_path):
    for name in ("treats", "biolink:treats"):
        prepare("--nodes", NODES, "--edges", EDGES, "--test-predicate", name, "-o", tmp_path / name)
    short, full = ((tmp_path / name / "test.txt").read_bytes() for name in ("treats", "biolink:treats"))
    assert short == full != b""


def test_gzip_crlf_and_byte_order_mark_change_nothing(tmp_path):
    nodes = tmp_path / "nodes.jsonl.gz"
    nodes.write_bytes(gzip.compress(NODES.read_bytes()))
    edges = tmp_path / "edges.jsonl"
    edges.write_bytes(b"\xef\xbb\xbf" + EDGES.read_bytes().replace(b"\n", b"\r\n").rstrip())
    prepare("--nodes", NODES, "--edges", EDGES, "-o", tmp_path / "plain")
    prepare("--nodes", nodes, "--edges", edges, "-o", tmp_path / "other")
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_small_blocks_change_nothing(tmp_path, monkeypatch):
    prepare("--nodes", NODES, "--edges", EDGES, "--style", "rCD", "-o", tmp_path / "whole")
    monkeypatch.setattr(kgx_edges, "EDGES_AT_A_TIME", 7)
    monkeypatch.setattr(kgx_files, "BLOCK_BYTES", 100)
    prepare("--nodes", NODES, "--edges", EDGES, "--style", "rCD", "-o", tmp_path / "blocks")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "blocks" / path.name).read_bytes(), path.name


def test_summary(tmp_path, capsys):
    edges = write_lines(
        tmp_path / "edges.jsonl",
        [*json_lines(EDGES), "{broken", {**AN_EDGE, "subject": "CHEBI:15365", "object": "MONDO:none"}],
    )
    prepare(
        "--nodes", NODES, "--edges", edges, "--style", "CD", "--skip-malformed", "--skip-unknown", "-o", tmp_path
    )  # fmt: skip
    summary = json.loads((tmp_path / "graph_summary.json").read_text())
    kept = len(expected_triples(between("CD")))
    assert summary["edges"] == {"read": 154, "kept": kept}
    assert summary["dropped"] == {
        "by_style": 154 - kept - 1, "duplicate": 1, "malformed": 1, "unknown_node": 1, "negated": 0,
        "of_held_out_pairs": 0, "by_source": 0, "by_knowledge_level": 0, "by_agent_type": 0, "by_degree": 0,
    }  # fmt: skip
    assert summary["predicates"]["biolink:treats"] == {"read": 53, "kept": 52}
    assert summary["predicates"]["biolink:subclass_of"] == {"read": 2, "kept": 0}
    assert summary["category_pairs"]["chemical - disease"]["read"] == 51
    assert sum(row["read"] for row in summary["category_pairs"].values()) == 154
    assert sum(row["kept"] for row in summary["category_pairs"].values()) == kept
    printed = capsys.readouterr().out
    assert f"{edges}:155: is not JSON" in printed
    assert f"{edges}:156: object 'MONDO:none' is no node" in printed
    assert "python train_pytorch.py" in printed


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"subject": "CHEBI:1", ', r"is not JSON \(.*column 23"),
        ("", "is empty"),
        ("[1, 2]", "holds a list instead of an object"),
        ("17", "holds a number instead of an object"),
        (b'{"subject": "\xff"}', r"is not UTF-8 \(byte 0xff\)"),
        ("[" * 100_000, "nested too deeply"),
        ('{"n": ' + "9" * 5000 + "}", "number that is too long"),
        ({**AN_EDGE, "predicate": ""}, 'has no "predicate"'),
        ({"subject": "CHEBI:1", "predicate": "biolink:treats"}, 'has no "object"'),
        ({**AN_EDGE, "subject": ["CHEBI:1"]}, '"subject" is a list instead of a string'),
        ({**AN_EDGE, "predicate": 3}, '"predicate" is a number instead of a string'),
        ({**AN_EDGE, "object_aspect_qualifier": {"a": 1}}, '"object_aspect_qualifier" is neither'),
        ({**AN_EDGE, "predicate": "\ud800"}, "half a character"),
    ],
)
def test_broken_edge_is_named_or_counted(tmp_path, line, reason):
    nodes = write_lines(tmp_path / "nodes.jsonl", [A_NODE, B_NODE])
    others = [{**AN_EDGE, "predicate": f"biolink:p{n}"} for n in range(8)]
    others += [{**edge, "subject": "MONDO:2", "object": "CHEBI:1"} for edge in others]
    edges = write_lines(tmp_path / "edges.jsonl", [*others[:3], line, *others[3:]])
    with pytest.raises(InputError, match=rf"edges\.jsonl:4: .*{reason}.*--skip-malformed"):
        prepare("--nodes", nodes, "--edges", edges, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    prepare("--nodes", nodes, "--edges", edges, "-o", tmp_path / "out", "--skip-malformed")
    summary = json.loads((tmp_path / "out" / "graph_summary.json").read_text())
    assert summary["dropped"]["malformed"] == 1
    assert summary["edges"]["kept"] == len(others)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{}", 'has no "id"'),
        ({**A_NODE, "id": "a\tb"}, "holds a tab"),
        ({**A_NODE, "id": "\udc00"}, "half a character"),
        ({**A_NODE, "category": {"biolink:Gene": 1}}, '"category" is no list of strings'),
        ("id\tcategory\tname", r"is not JSON"),
    ],
)
def test_broken_node_is_named_or_counted(tmp_path, line, reason):
    nodes = write_lines(tmp_path / "nodes.jsonl", [*json_lines(NODES), line])
    with pytest.raises(InputError, match=rf"nodes\.jsonl:61: .*{reason}.*--skip-malformed"):
        prepare("--nodes", nodes, "--edges", EDGES, "-o", tmp_path / "out")
    prepare("--nodes", nodes, "--edges", EDGES, "-o", tmp_path / "out", "--skip-malformed")
    summary = json.loads((tmp_path / "out" / "graph_summary.json").read_text())
    assert summary["malformed_nodes"] == 1
    assert summary["nodes"] == {"read": 60, "used": 60}


@pytest.mark.parametrize("column", ["subject", "object"])
def test_edge_without_node_is_named_or_counted(tmp_path, column):
    edges = write_lines(tmp_path / "edges.jsonl", [*json_lines(EDGES), {**json_lines(EDGES)[0], column: "X:1"}])
    with pytest.raises(InputError, match=rf"edges\.jsonl:155: {column} 'X:1' is no node of .*--skip-unknown"):
        prepare("--nodes", NODES, "--edges", edges, "-o", tmp_path / "out", "--skip-malformed")
    prepare("--nodes", NODES, "--edges", edges, "-o", tmp_path / "out", "--skip-unknown")
    summary = json.loads((tmp_path / "out" / "graph_summary.json").read_text())
    assert summary["dropped"]["unknown_node"] == 1


def test_qualifiers_that_say_nothing_and_lists(tmp_path):
    other = {**AN_EDGE, "subject": "MONDO:2", "object": "CHEBI:1"}
    edges = [
        AN_EDGE,
        {**AN_EDGE, "object_aspect_qualifier": "", "object_direction_qualifier": None, "subject_part_qualifier": []},
        {**AN_EDGE, "species_context_qualifier": "NCBITaxon:9606"},
        {**AN_EDGE, "object_aspect_qualifier": "activity"},
        {**AN_EDGE, "object_aspect_qualifier": ["activity"]},
        {**AN_EDGE, "object_aspect_qualifier": ["b", "a"]},
        {**AN_EDGE, "object_aspect_qualifier": ["a", "b", "a"]},
        *({**other, "predicate": f"biolink:p{n}"} for n in range(4)),
        *({**AN_EDGE, "predicate": f"biolink:p{n}"} for n in range(4)),
    ]
    nodes = write_lines(tmp_path / "nodes.jsonl", [A_NODE, B_NODE])
    prepare("--nodes", nodes, "--edges", write_lines(tmp_path / "edges.jsonl", edges), "-o", tmp_path / "out")
    keys = [json.loads(key) for key in json.loads((tmp_path / "out" / "edge_map.json").read_text())]
    assert [key for key in keys if key["predicate"] == "biolink:treats"] == [
        {"predicate": "biolink:treats", "object_aspect_qualifier": "activity"},
        {"predicate": "biolink:treats", "object_aspect_qualifier": ["a", "b"]},
        {"predicate": "biolink:treats"},
    ]
    assert len(all_triples(read_graph(tmp_path / "out"))) == 3 + 8


def test_nodes_on_two_lines_and_odd_names(tmp_path):
    nodes = [
        {"id": "X:1", "name": "first\tname\nof it", "category": ["biolink:Protein"]},
        {"id": "X:1", "name": "second", "category": ["biolink:Drug"]},
        {"id": "X_2", "category": ["biolink:Disease"], "name": "half \ud83d of it"},
        {"id": "X_3", "category": ["biolink:Disease"], "name": None},
    ]
    edges = [
        {"subject": "X:1", "predicate": f"biolink:{predicate}", "object": object_}
        for predicate in "abcd" for object_ in ("X_2", "X_3")
    ]  # fmt: skip
    prepare(
        "--nodes", write_lines(tmp_path / "n", nodes), "--edges", write_lines(tmp_path / "e", edges),
        "--style", "CD", "-o", tmp_path / "out",
    )  # fmt: skip
    assert (tmp_path / "out" / "node_name_dict.txt").read_text(encoding="utf-8").splitlines() == [
        "first name of it\t0", "half ? of it\t1", "X_3\t2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b'{"nodes": [], "edges": []}\n', "is one JSON document"),
        (b'[{"id": "X:1"}]\n', "is one JSON document"),
        ("{}".encode("utf-16"), "is UTF-16"),
        (b"\x1f\x8bnot gzip at all", "gzip"),
    ],
)
def test_files_that_are_not_json_lines(tmp_path, content, reason):
    path = tmp_path / "graph.json"
    path.write_bytes(content)
    for arguments in (("--nodes", path, "--edges", EDGES), ("--nodes", NODES, "--edges", path)):
        with pytest.raises(InputError, match=rf"graph\.json.*{reason}"):
            prepare(*arguments, "-o", tmp_path / "out", "--skip-malformed")


def test_nothing_left(tmp_path):
    nodes = write_lines(tmp_path / "nodes.jsonl", [A_NODE, B_NODE])
    edges = write_lines(tmp_path / "edges.jsonl", [AN_EDGE])
    with pytest.raises(InputError, match=r"no edge is left of 1 .*--style CGGD keeps none"):
        prepare("--nodes", nodes, "--edges", edges, "--style", "CGGD", "-o", tmp_path / "out")
    with pytest.raises(InputError, match=r"no edge is left of 0 .*1 have an end that is not in --nodes"):
        prepare("--nodes", NODES, "--edges", edges, "--skip-unknown", "-o", tmp_path / "out")
    with pytest.raises(InputError, match=r"none of its 1 lines holds a node"):
        prepare("--nodes", write_lines(tmp_path / "n", ["?"]), "--edges", edges, "--skip-malformed", "-o", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nodes", NODES), "--nodes goes with --edges"),
        (("--dataset", "umls", "--edges", EDGES), "--edges goes with --nodes"),
        (("--dataset", "umls", "--style", "CD"), "--style goes with --nodes"),
        (("--dataset", "umls", "--skip-malformed"), "--skip-malformed goes with --nodes"),
        (("--nodes", NODES, "--edges", EDGES, "--style", "CGD"), "invalid choice"),
    ],
)
def test_flags_that_do_not_fit(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        prepare(*arguments, "-o", tmp_path)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_error_is_one_line(tmp_path):
    edges = write_lines(tmp_path / "edges.jsonl", ["?"])
    done = subprocess.run(
        [sys.executable, ROOT / "prepare_data.py", "--nodes", NODES, "--edges", edges, "-o", tmp_path / "out"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"prepare_data.py: error: {edges}:1: is not JSON (Expecting value, column 1); an edge has a subject, "
        "a predicate and an object, or leave such lines out and count them with --skip-malformed"
    ]

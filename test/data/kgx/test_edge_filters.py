"""Which edges of a KGX graph the filters and the style clean_baseline leave; through the command line."""

import gzip
import json

import networkx
import numpy as np
import pytest
from command_lines import assert_refused, run

from conve_tracin.data.kgx.provenance import EdgeSources
from conve_tracin.data.kgx.styles import LOW_DEGREE, with_degree

NODES = [{"id": f"X:{number}", "category": ["biolink:NamedThing"]} for number in range(30)]
# Every filter leaves these: a ring of ten entities, each joined with all others.
RING = [
    {"subject": f"X:{head}", "predicate": "biolink:related_to", "object": f"X:{tail}",
     "primary_knowledge_source": "infores:ctd", "knowledge_level": "knowledge_assertion", "agent_type": "manual_agent"}
    for head in range(10) for tail in range(10) if head != tail
]  # fmt: skip


def edge(head, tail, predicate="biolink:p", **members):
    return {**RING[0], "subject": f"X:{head}", "predicate": predicate, "object": f"X:{tail}", **members}


def json_lines(path, members):
    path.write_text("".join(json.dumps(each) + "\n" for each in members), encoding="utf-8")
    return path


def prepare(tmp_path, edges, *arguments):
    """Prepare a graph of these edges and RING, of which alone some are held out; return what of the edges is left.

    The summary and what was printed come behind.
    """
    nodes, edges = json_lines(tmp_path / "nodes.jsonl", NODES), json_lines(tmp_path / "edges.jsonl", [*edges, *RING])
    out = tmp_path / "out"
    arguments = ("--test-predicate", "biolink:related_to", *arguments)
    done = run("prepare_data", "--nodes", nodes, "--edges", edges, "-o", out, *arguments)
    assert done.code == 0, done
    predicates = {
        label: json.loads(key)["predicate"] for key, label in json.loads((out / "edge_map.json").read_text()).items()
    }
    triples = [line.split("\t") for line in (out / "train.txt").read_text().splitlines()]
    left = {
        (int(head[2:]), int(tail[2:])) for head, label, tail in triples if predicates[label] != "biolink:related_to"
    }
    return left, json.loads((out / "graph_summary.json").read_text()), done.out


NESTED = [
    {"resource_id": "infores:x", "resource_role": "primary_knowledge_source"},
    {"resource_id": "infores:y", "resource_role": "aggregator_knowledge_source",
     "upstream_resource_ids": ["infores:semmeddb"]},
]  # fmt: skip
SOURCES = [
    edge(0, 1),
    edge(0, 2, primary_knowledge_source="infores:semmeddb"),
    edge(0, 3, primary_knowledge_source=["infores:ctd", "infores:semmeddb"]),
    edge(0, 4, aggregator_knowledge_source=["infores:a", "infores:semmeddb"]),
    edge(0, 5, supporting_data_source="infores:semmeddb"),
    edge(0, 6, primary_knowledge_source=None, sources=NESTED),
    edge(0, 7, primary_knowledge_source="infores:semmeddb-not"),
    edge(0, 8, primary_knowledge_source=None),
]


@pytest.mark.parametrize("name", ["infores:semmeddb", "semmeddb", "infores:SemMedDB"])
def test_an_edge_with_an_excluded_source_in_any_role_is_dropped(tmp_path, name):
    left, summary, out = prepare(tmp_path, SOURCES, "--exclude-source", name, "infores:none-such")
    assert left == {(0, 1), (0, 7), (0, 8)}
    assert summary["dropped"]["by_source"] == 5
    assert "Dropped by --exclude-source: 5 edges" in out
    assert summary["remarks"] == ["--exclude-source infores:none-such: no edge has it; is it spelt as in the edges?"]
    assert summary["remarks"][0] in out


def test_a_misspelt_source_is_named_with_what_was_meant(tmp_path):
    left, _, out = prepare(tmp_path, SOURCES, "--exclude-source", "infores:semeddb")
    assert len(left) == len(SOURCES)
    assert "--exclude-source infores:semeddb: no edge has it; did you mean 'infores:semmeddb'" in out


def test_levels_and_agents_that_are_kept(tmp_path):
    edges = [
        edge(0, 1, knowledge_level="knowledge_assertion"), edge(0, 2, knowledge_level="biolink:prediction"),
        edge(0, 3, knowledge_level=None), edge(0, 4, knowledge_level="not_provided"), edge(0, 5, agent_type="x"),
    ]  # fmt: skip
    ring = "knowledge_assertion"
    left, summary, _ = prepare(tmp_path, edges, "--knowledge-level", ring, "prediction")
    assert left == {(0, 1), (0, 2), (0, 5)}
    assert summary["dropped"]["by_knowledge_level"] == 2
    left, summary, _ = prepare(tmp_path, edges, "--knowledge-level", ring, "not_provided")
    assert left == {(0, 1), (0, 3), (0, 4), (0, 5)}
    left, summary, _ = prepare(tmp_path, edges, "--knowledge-level", ring, "--agent-type", "manual_agent")
    assert left == {(0, 1)}
    assert (summary["dropped"]["by_knowledge_level"], summary["dropped"]["by_agent_type"]) == (3, 1)


def test_each_edge_that_was_read_is_kept_or_counted_once(tmp_path):
    edges = [*SOURCES, edge(0, 20), edge(0, 1), edge(0, 9, "biolink:subclass_of"), edge(1, 2, agent_type="x")]
    filters = (
        "--exclude-source",
        "semmeddb",
        "--agent-type",
        "manual_agent",
        "--min-degree",
        "3",
        "--style",
        "original",
    )
    left, summary, _ = prepare(tmp_path, edges, *filters)
    assert left == {(0, 1), (0, 7), (0, 8)}
    dropped = summary["dropped"]
    assert summary["edges"]["read"] == len(edges) + len(RING)
    assert summary["edges"]["read"] - summary["edges"]["kept"] == sum(dropped.values())
    assert dropped == {
        "by_style": 1, "duplicate": 1, "by_source": 5, "by_knowledge_level": 0, "by_agent_type": 1, "by_degree": 1,
        "malformed": 0, "unknown_node": 0, "negated": 0, "of_held_out_pairs": 0,
    }  # fmt: skip
    assert summary["entities_dropped_by_degree"] == 1


def test_filters_that_leave_nothing_say_so(tmp_path):
    nodes, edges = json_lines(tmp_path / "n", NODES), json_lines(tmp_path / "e", RING)
    arguments = ("--nodes", nodes, "--edges", edges, "-o", tmp_path / "out")
    message = assert_refused(run("prepare_data", *arguments, "--exclude-source", "ctd"))
    assert message == (
        f"{edges}: no edge is left of 90 between known nodes; --exclude-source drops 90 of them, choose otherwise"
    )
    mined = json_lines(tmp_path / "mined", [edge(0, 1, primary_knowledge_source="infores:semmeddb")])
    done = run("prepare_data", "--nodes", nodes, "--edges", mined, "-o", tmp_path / "out", "--style", "clean_baseline")
    assert assert_refused(done) == f"{mined}: no edge is left of 1; --style clean_baseline keeps none, try keepall"
    message = assert_refused(run("prepare_data", *arguments, "--min-degree", "100"))
    assert message == f"{edges}: no edge is left with --min-degree 100; choose a smaller one"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("least", [1, 2, 3, 4])
def test_degrees_are_those_of_the_core_of_the_graph(seed, least):
    """Networkx finds the largest subgraph in which each entity has its degree: the k-core."""
    pairs = np.random.default_rng(seed).integers(0, 25, size=(45, 2))
    triples = np.unique(np.stack([pairs.min(axis=1), np.zeros(45, dtype=np.int64), pairs.max(axis=1)], axis=1), axis=0)
    triples = triples[triples[:, 0] != triples[:, 2]]
    core = networkx.k_core(networkx.Graph(triples[:, [0, 2]].tolist()), least)
    expected = [bool(core.has_edge(head, tail)) for head, _, tail in triples.tolist()]
    assert with_degree(triples, least).tolist() == expected


def test_a_loop_is_one_edge_and_relations_count_apart():
    triples = np.array([[0, 0, 0], [1, 0, 2], [1, 1, 2], [2, 0, 1], [2, 0, 3]])
    assert with_degree(triples, 2).tolist() == [False, True, True, True, False]
    exempt = np.array([False, False, False, False, True])
    assert with_degree(triples, 4, exempt=exempt).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("sources", "agent", "is_clean"),
    [
        (("infores:ctd",), (), True),
        (("infores:text-mining-provider-targeted",), (), False),
        (("infores:ctd", "infores:semmeddb"), (), False),
        (("infores:ctd",), ("text_mining_agent",), False),
        (("infores:ctd",), ("biolink:text_mining_agent",), False),
        (("infores:mgi",), (), False),
        (("infores:zfin", "infores:monarchinitiative"), (), False),
        (("infores:monarchinitiative",), ("manual_agent",), True),
        ((), (), True),
    ],
)
def test_sources_that_are_clean(sources, agent, is_clean):
    assert EdgeSources(sources[:1], sources[1:], (), (), agent).is_clean == is_clean


def test_clean_baseline_keeps_what_is_about_treatments_and_cleans_the_rest(tmp_path):
    mined, mouse = {"primary_knowledge_source": "infores:semmeddb"}, {"primary_knowledge_source": "infores:mgi"}
    treats = [edge(20, 21, "biolink:treats"), edge(22, 21, "biolink:treats", **mined)]
    of_their_ends = [
        edge(20, 23, **mined),
        edge(24, 22, **mouse),
        edge(21, 25),
        edge(21, 0, agent_type="text_mining_agent"),
    ]
    clean = [edge(0, 1), edge(2, 3, knowledge_level="prediction")]
    dirty = [edge(0, 2, **mined), edge(1, 0, **mouse), edge(3, 4, agent_type="text_mining_agent")]
    low = [edge(26, 0), edge(27, 28), edge(23, 29)]
    left, summary, out = prepare(tmp_path, [*treats, *of_their_ends, *clean, *dirty, *low], "--style", "clean_baseline")
    assert left == {(20, 21), (22, 21), (20, 23), (24, 22), (21, 25), (21, 0), (0, 1), (2, 3)}
    assert summary["dropped"]["by_style"] == len(dirty)
    assert (summary["dropped"]["by_degree"], summary["entities_dropped_by_degree"]) == (len(low), 4)
    assert "Dropped for their low degree: 4 entities with 3 edges" in out
    left, _, _ = prepare(tmp_path, [*treats, *clean, *dirty, *low], "--style", "clean_baseline", "--min-degree", "1")
    assert left == {(20, 21), (22, 21), (0, 1), (2, 3), (26, 0), (27, 28), (23, 29)}
    assert LOW_DEGREE == 5


def test_an_edge_that_clean_baseline_drops_is_no_evidence_of_its_triple(tmp_path):
    mined = {"primary_knowledge_source": "infores:semmeddb"}
    edges = [edge(0, 1, id="clean"), edge(0, 1, id="mined", **mined), edge(20, 21, "biolink:treats", id="t", **mined)]
    prepare(tmp_path, edges, "--style", "clean_baseline")
    lines = gzip.decompress((tmp_path / "out/evidence.tsv.gz").read_bytes()).decode().splitlines()[1:]
    assert [line.split("\t")[3] for line in lines if line.split("\t")[3]] == ["clean", "t"]


def test_explicit_filters_hold_for_treatments_too(tmp_path):
    mined = {"primary_knowledge_source": "infores:semmeddb"}
    edges = [edge(20, 21, "biolink:treats", **mined), edge(22, 21, "biolink:treats"), edge(20, 0, **mined), edge(20, 1)]
    left, _, _ = prepare(tmp_path, edges, "--style", "clean_baseline", "--exclude-source", "semmeddb")
    assert left == {(22, 21)}

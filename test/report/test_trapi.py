"""Predictions as a TRAPI response: what supports them, and whether a Translator tool would read it."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_lines import assert_refused, run
from conftest import TRAIN, TREATS, make_small_conve
from project_files import COMMANDS, clean, project, write  # noqa: F401 - fixtures

from conve_tracin.data.evidence import Evidence
from conve_tracin.data.graph import Graph
from conve_tracin.data.kgx.categories import Categories
from conve_tracin.data.names import Names
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.influence.paths import PathFinder
from conve_tracin.influence.summary import SummarySettings
from conve_tracin.influence.trace import TracedCheckpoint, trace
from conve_tracin.report.notes import Notes
from conve_tracin.report.trapi import RESOURCE, UNKNOWN_SOURCE, require_curies, trapi_response

CURIES = ("CHEBI:15365", "CHEBI:5855", "HP:0002315", "HP:0001945", "MONDO:0005148", "NCBIGene:5743")
LABELS = ("predicate:0", "predicate:1", "biolink:associated_with")
MEANINGS = {
    "predicate:0": {"predicate": "biolink:treats"},
    "predicate:1": {
        "predicate": "biolink:affects", "qualified_predicate": "biolink:causes",
        "object_aspect_qualifier": "activity", "negated": True,
    },
}  # fmt: skip
NAMES = Names(
    Vocabulary("entity", CURIES), Vocabulary("relation", LABELS), {0: "aspirin"}, {},
    {label: meaning["predicate"] for label, meaning in MEANINGS.items()},
)  # fmt: skip
EVIDENCE = {
    (0, 0, 2): [
        {
            "edge_id": "e1", "primary_knowledge_source": "infores:drugcentral", "publications": ["PMID:1", "PMID:2"],
            "aggregator_knowledge_source": ["infores:robokop"], "agent_type": "manual_agent", "mine": "<b>",
        },
        {"edge_id": "e2", "primary_knowledge_source": "infores:semmeddb"},
    ],
    (1, 0, 2): [{"edge_id": "e1"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def traces():
    analyzer = TracInAnalyzerPyTorch(make_small_conve())
    return list(
        trace(
            lambda _: TracedCheckpoint(analyzer.scorer, analyzer.method, 0.01),
            [Path("model.pt")], np.array([(1, TREATS, 4), (0, 1, 2)]), TRAIN, top_k=11, progress=False,
            describe=SummarySettings(graph=Graph(TRAIN, 6, 3)),
            find_paths=PathFinder(Graph(TRAIN, 6), limit=5, max_hops=3),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def response(traces):
    categories = Categories(("Drug",), np.array([0, 0, -1, -1, -1, -1]))
    notes = Notes(Evidence(("edge_id",), EVIDENCE))
    made = trapi_response(traces, NAMES, meanings=MEANINGS, notes=notes, categories=categories, method="TracIn")
    return json.loads(json.dumps(made))["message"]


def support_of(message, number):
    (binding,) = message["results"][number]["analyses"][0]["edge_bindings"]["e0"]
    edge = message["knowledge_graph"]["edges"][binding["id"]]
    (support,) = [one["value"] for one in edge["attributes"] if one["attribute_type_id"] == "biolink:support_graphs"]
    return edge, support


def test_each_prediction_is_a_result_with_an_inferred_edge(traces, response):
    assert len(response["results"]) == len(traces)
    for number, (traced, result) in enumerate(zip(traces, response["results"], strict=True)):
        head, _, tail = traced.test_triple
        assert result["node_bindings"]["n0"] == [{"id": CURIES[head], "attributes": []}]
        assert result["node_bindings"]["n1"] == [{"id": CURIES[tail], "attributes": []}]
        assert result["analyses"][0]["score"] == traced.prediction.score
        edge, _ = support_of(response, number)
        assert (edge["subject"], edge["object"]) == (CURIES[head], CURIES[tail])
        assert edge["sources"] == [{"resource_id": RESOURCE, "resource_role": "primary_knowledge_source"}]
    asked = response["query_graph"]["edges"]["e0"]
    assert asked["predicates"] == ["biolink:treats", "biolink:affects"]
    assert asked["knowledge_type"] == "inferred"
    (qualified,) = asked["qualifier_constraints"]
    assert qualified["qualifier_set"] == [
        {"qualifier_type_id": "biolink:qualified_predicate", "qualifier_value": "biolink:causes"},
        {"qualifier_type_id": "biolink:object_aspect_qualifier", "qualifier_value": "activity"},
    ]


def test_proponents_and_paths_are_its_support(traces, response):
    edges = response["knowledge_graph"]["edges"]
    for number, traced in enumerate(traces):
        _, support = support_of(response, number)
        graphs = [response["auxiliary_graphs"][name] for name in support]
        expected = [[(one.head, one.tail)] for one in traced.proponents]
        expected += [[(hop.influence.head, hop.influence.tail) for hop in path.hops] for path in traced.paths]
        for graph, triples in zip(graphs, expected, strict=True):
            found = {(edges[name]["subject"], edges[name]["object"]) for name in graph["edges"]}
            assert found == {(CURIES[head], CURIES[tail]) for head, tail in triples}
        values = [graph["attributes"][0]["value"] for graph in graphs]
        assert values == [one.influence for one in traced.proponents] + [path.score for path in traced.paths]


def test_edges_have_their_sources_and_publications(response):
    edges = response["knowledge_graph"]["edges"]
    # Two edges have the same id, which only one of them can keep.
    first, other = sorted((edges[name] for name in ("e1", "e1-2")), key=lambda edge: CURIES.index(edge["subject"]))
    assert first["sources"] == [
        {"resource_id": "infores:drugcentral", "resource_role": "primary_knowledge_source"},
        {
            "resource_id": "infores:robokop", "resource_role": "aggregator_knowledge_source",
            "upstream_resource_ids": ["infores:drugcentral"],
        },
    ]  # fmt: skip
    values = {one.get("original_attribute_name", one["attribute_type_id"]): one["value"] for one in first["attributes"]}
    assert values == {"biolink:publications": ["PMID:1", "PMID:2"], "biolink:agent_type": "manual_agent", "mine": "<b>"}
    assert edges["e2"]["object"] == CURIES[2]
    assert (other["subject"], other["sources"][0]["resource_id"]) == (CURIES[1], UNKNOWN_SOURCE)
    unknown = [edge for name, edge in edges.items() if name.startswith("training-triple-")]
    assert {edge["sources"][0]["resource_id"] for edge in unknown} == {UNKNOWN_SOURCE}
    nodes = response["knowledge_graph"]["nodes"]
    assert nodes[CURIES[0]] == {"name": "aspirin", "categories": ["biolink:Drug"], "attributes": []}
    assert nodes[CURIES[5]]["categories"] == ["biolink:NamedThing"]


def test_translators_model_reads_it(response):
    model = pytest.importorskip("reasoner_pydantic")
    read = model.Response.model_validate({"message": response})
    assert len(read.message.results) == 2
    assert len(read.message.auxiliary_graphs) == len(response["auxiliary_graphs"])


@pytest.mark.parametrize("label", ["aspirin", "CHEBI:", "CHEBI:1 2", "1:2", ":x"])
def test_other_labels_are_refused(label):
    with pytest.raises(InputError, match="is no CURIE, as TRAPI needs"):
        require_curies(Names(Vocabulary("entity", (*CURIES, label)), NAMES.relations, curies=NAMES.curies))


def test_other_relations_are_refused():
    require_curies(NAMES)
    with pytest.raises(InputError, match="'predicate:0' is no Biolink predicate, as TRAPI needs; give --edge-map"):
        require_curies(Names(NAMES.entities, NAMES.relations))


@pytest.mark.parametrize("command", ["tracin", "run"])
def test_the_scripts_refuse_it_before_they_work(project, command):
    message = assert_refused(run(*COMMANDS[command], "--trapi", "out/trapi.json"))
    assert "entity_to_id.tsv: 'aspirin' is no CURIE" in message
    assert not Path("out").exists()

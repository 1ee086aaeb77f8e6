"""Predictions as a response of the Translator Reasoner API, TRAPI 1.5 (https://github.com/NCATSTranslator/ReasonerAPI).

Each prediction is a result. Its edge is inferred; the proponents and the paths of the graph are its support graphs, and
their edges stand in the knowledge graph with sources and publications. An opponent supports nothing and is left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conve_tracin.data.evidence import Edge
from conve_tracin.data.kgx.categories import Categories
from conve_tracin.data.names import Names
from conve_tracin.data.text import shown
from conve_tracin.errors import InputError
from conve_tracin.influence.method import Influence
from conve_tracin.influence.trace import Trace
from conve_tracin.report.notes import SOURCE, Notes

SCHEMA_VERSION = "1.5.0"
RESOURCE = "infores:conve-tracin"
# A source is required; this one says that none is known.
UNKNOWN_SOURCE = "infores:unknown"
AGGREGATORS = "aggregator_knowledge_source"
ANY_CATEGORY = "biolink:NamedThing"

CURIE = re.compile(r"[A-Za-z_][\w.-]*:\S+", re.ASCII)
PREDICATE = re.compile(r"biolink:[a-z][a-z_]*")
CATEGORY = re.compile(r"biolink:[A-Z][a-zA-Z_]*")
# Slots of Biolink, which are attributes by their own names.
BIOLINK_SLOTS = {
    "publications", "knowledge_level", "agent_type", "supporting_text", "has_confidence_score", "evidence_count",
    "max_research_phase", "clinical_approval_status",
}  # fmt: skip

Json = dict[str, Any]


def require_curies(names: Names) -> None:
    """Raise InputError where an entity's label is no CURIE, or a relation no Biolink predicate."""
    for label in names.entities.labels:
        if not CURIE.fullmatch(label):
            raise InputError(f"{names.entities.source}: {shown(label)} is no CURIE, as TRAPI needs; leave --trapi out")
    for label in names.relations.labels:
        if not PREDICATE.fullmatch(names.curies.get(label, label)):
            if label in names.curies:
                trouble = f"stands for {shown(names.curies[label])}, which is no Biolink predicate; leave --trapi out"
            else:
                trouble = (
                    "is no Biolink predicate, as TRAPI needs; give --edge-map, which says what it stands for, or leave "
                    "--trapi out"
                )
            raise InputError(f"{names.relations.source}: {shown(label)} {trouble}")


def trapi_response(
    traces: Iterable[Trace],
    names: Names,
    *,
    meanings: Mapping[str, Mapping[str, Any]],
    notes: Notes,
    categories: Categories | None = None,
    method: str,
) -> Json:
    """Arrange traces as a response.

    Args:
        traces: with prediction each.
        names: of entities and relations, CURIEs and predicates; see `require_curies`.
        meanings: of relation labels, as `read_edge_map` has them.
        notes: the edges behind training triples.
        categories: of the entities, if they are known.
        method: what the influences were computed with.
    """
    graph = _Graph(names, meanings, notes, categories)
    results = [graph.add_prediction(number, traced, method) for number, traced in enumerate(traces)]
    message = {
        "query_graph": graph.query(),
        "knowledge_graph": {"nodes": graph.nodes, "edges": graph.edges},
        "results": results,
        "auxiliary_graphs": graph.auxiliary,
    }
    return {"message": message, "schema_version": SCHEMA_VERSION, "status": "Success", "logs": []}


@dataclass
class _Graph:
    """The parts of a message, to which predictions are added one by one."""

    names: Names
    meanings: Mapping[str, Mapping[str, Any]]
    notes: Notes
    categories: Categories | None
    nodes: dict[str, Json] = field(default_factory=dict)
    edges: dict[str, Json] = field(default_factory=dict)
    auxiliary: dict[str, Json] = field(default_factory=dict)
    predicted: list[Json] = field(default_factory=list)
    _edges_of: dict[int, list[str]] = field(default_factory=dict)

    def add_prediction(self, number: int, trace: Trace, method: str) -> Json:
        """Add what supports a prediction; return its result."""
        support = [
            self._add_support(f"influence-{number}-{place}", [one], _influence(one, method))
            for place, one in enumerate(trace.proponents)
        ]
        support += [
            self._add_support(f"path-{number}-{place}", [hop.influence for hop in path.hops], _score(path.score))
            for place, path in enumerate(trace.paths or [])
        ]
        edge = self._edge(trace.test_triple) | {
            "sources": [_source(RESOURCE)],
            "attributes": [
                _biolink("knowledge_level", "prediction"),
                _biolink("agent_type", "computational_model"),
                _biolink("support_graphs", support),
                _attribute("rank", trace.prediction.explained.rank),
            ],
        }
        identifier = self._unused(f"prediction-{number}")
        self.edges[identifier] = edge
        self.predicted.append(edge)
        return {
            "node_bindings": {
                "n0": [{"id": edge["subject"], "attributes": []}],
                "n1": [{"id": edge["object"], "attributes": []}],
            },
            "analyses": [
                {
                    "resource_id": RESOURCE,
                    "edge_bindings": {"e0": [{"id": identifier, "attributes": []}]},
                    "score": trace.prediction.explained.score,
                    "scoring_method": "logit of a ConvE model",
                    "attributes": [],
                }
            ],
        }

    def query(self) -> Json:
        """Return the question that the results answer."""
        ends = {"n0": "subject", "n1": "object"}
        asked = {node: list(dict.fromkeys(edge[end] for edge in self.predicted)) for node, end in ends.items()}
        qualified = [{"qualifier_set": edge["qualifiers"]} for edge in self.predicted if "qualifiers" in edge]
        edge = {
            "subject": "n0",
            "object": "n1",
            "knowledge_type": "inferred",
            "predicates": list(dict.fromkeys(edge["predicate"] for edge in self.predicted)),
            "attribute_constraints": [],
            "qualifier_constraints": [each for place, each in enumerate(qualified) if each not in qualified[:place]],
        }
        nodes = {node: {"ids": ids, "constraints": []} for node, ids in asked.items()}
        return {"nodes": nodes, "edges": {"e0": edge}}

    def _add_support(self, name: str, influences: Sequence[Influence], attribute: Json) -> str:
        edges = [edge for influence in influences for edge in self._training_edges(influence)]
        self.auxiliary[name] = {"edges": list(dict.fromkeys(edges)), "attributes": [attribute]}
        return name

    def _training_edges(self, influence: Influence) -> list[str]:
        """Add the edges behind a training triple, at least one; return their ids."""
        if influence.position not in self._edges_of:
            triple = (influence.head, influence.relation, influence.tail)
            ids = self._edges_of[influence.position] = []
            for edge in self.notes.edges(influence) or [{}]:
                identifier = self._unused(str(edge.get("edge_id", f"training-triple-{influence.position}")))
                self.edges[identifier] = self._edge(triple) | _provenance(edge)
                ids.append(identifier)
        return self._edges_of[influence.position]

    def _edge(self, triple: tuple[int, int, int]) -> Json:
        head, relation, tail = triple
        label = self.names.relations.labels[relation]
        qualifiers = [
            {"qualifier_type_id": f"biolink:{name}", "qualifier_value": value}
            for name, value in self.meanings.get(label, {}).items()
            if isinstance(value, str) and (name == "qualified_predicate" or name.endswith("_qualifier"))
        ]
        return {
            "subject": self._node(head),
            "predicate": self.names.curies.get(label, label),
            "object": self._node(tail),
            **({"qualifiers": qualifiers} if qualifiers else {}),
        }

    def _node(self, entity: int) -> str:
        curie = self.names.entities.labels[entity]
        category = None if self.categories is None else self.categories.name(entity)
        category = f"biolink:{category}" if category and CATEGORY.fullmatch(f"biolink:{category}") else ANY_CATEGORY
        self.nodes[curie] = {"name": self.names.entity(entity), "categories": [category], "attributes": []}
        return curie

    def _unused(self, identifier: str) -> str:
        found, number = identifier, 2
        while found in self.edges:
            found, number = f"{identifier}-{number}", number + 1
        return found


def _provenance(edge: Edge) -> Json:
    primary = str(edge.get(SOURCE, UNKNOWN_SOURCE))
    sources = [_source(primary)] + [
        {"resource_id": aggregator, "resource_role": AGGREGATORS, "upstream_resource_ids": [primary]}
        for aggregator in edge.get(AGGREGATORS, [])
    ]
    attributes = [
        _biolink(column, value) if column in BIOLINK_SLOTS else _attribute(column, value)
        for column, value in edge.items()
        if column not in (SOURCE, AGGREGATORS, "edge_id")
    ]
    return {"sources": sources, "attributes": attributes}


def _influence(influence: Influence, method: str) -> Json:
    return _attribute("influence", influence.influence, description=method)


def _score(score: float) -> Json:
    return _attribute("path score", score)


def _source(resource: str) -> Json:
    return {"resource_id": resource, "resource_role": SOURCE}


def _biolink(slot: str, value: Any) -> Json:
    return {"attribute_type_id": f"biolink:{slot}", "value": value}


def _attribute(name: str, value: Any, **more: str) -> Json:
    return {"attribute_type_id": "biolink:Attribute", "original_attribute_name": name, "value": value, **more}

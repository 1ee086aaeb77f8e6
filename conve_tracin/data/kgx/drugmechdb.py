"""Known reasons for the treatments of a graph, from the curated paths of DrugMechDB.

DrugMechDB's `indication_paths.json` is a list of paths from a drug to a disease: `graph` names both (`drugbank`,
`drug_mesh`, `disease_mesh`), `links` are pairs of nodes (`source`, `target`). A path gives reasons for each triple of a
split that says that the drug treats the disease: those training triples, by any relation and in either direction, that
join the two nodes of a link.

Its CURIEs are found in a graph by their own name, by what the nodes list as `equivalent_identifiers`, `same_as` or
`xref`, and by a file of equivalents: all CURIEs on one of its lines, separated by tabs, mean the same thing. Prefixes
are compared without case and under one spelling.

Source: Gonzalez-Cavazos et al., "DrugMechDB: A Curated Database of Drug Mechanisms", Scientific Data, 2023.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.data.kgx.biolink import texts_of
from conve_tracin.data.kgx.files import MalformedLineError, numbered, open_kgx, require_text
from conve_tracin.data.splits import SPLITS, SplitGraph
from conve_tracin.data.text import line_blocks, open_bytes
from conve_tracin.errors import InputError

REASONS_FILE = "reasons.jsonl.gz"

# Predicates that say that a drug helps against a disease.
TREATS_LIKE = frozenset(
    f"biolink:{name}"
    for name in (
        "treats", "applied_to_treat", "treats_or_applied_or_studied_to_treat", "ameliorates_condition",
        "preventative_for_condition",
    )
)  # fmt: skip

# Of prefixes in lower case, the spelling that they are compared under.
PREFIXES = {
    "db": "drugbank", "uniprot": "uniprotkb", "taxonomy": "ncbitaxon", "taxon": "ncbitaxon", "msh": "mesh",
    "react": "reactome", "tigr": "tigrfam", "entrez": "ncbigene", "hpo": "hp", "mim": "omim", "ordo": "orphanet",
}  # fmt: skip

EQUIVALENTS = ("equivalent_identifiers", "same_as", "xref")

REMEDY = "give DrugMechDB's indication_paths.json"

LabelTriple = tuple[str, str, str]


@dataclass(frozen=True)
class Mechanism:
    """A curated path: the CURIEs of its drug, those of its disease, and its links; all as `canonical` writes them."""

    name: str
    drug: tuple[str, ...]
    disease: tuple[str, ...]
    links: tuple[tuple[str, str], ...]

    @property
    def nodes(self) -> set[str]:
        """The ends of all links."""
        return {node for link in self.links for node in link}


@dataclass(frozen=True)
class Reasons:
    """The lines of the reasons file, and what could be found in the graph: {what: {"read", "found"}}."""

    records: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]

    def lines(self) -> Iterator[str]:
        """Write each record as JSON."""
        return (json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)


def canonical(curie: str) -> str:
    """Return a CURIE as others are compared with it: its prefix in lower case, under the spelling of PREFIXES."""
    prefix, colon, local = curie.strip().partition(":")
    return f"{PREFIXES.get(prefix.lower(), prefix.lower())}:{local}" if colon else curie.strip()


def read_mechanisms(path: Path) -> list[Mechanism]:
    """Read DrugMechDB's file, plain or gzip-compressed; raise InputError, with the record, where it is another."""
    with open_bytes(path) as stream:
        try:
            content = json.loads(stream.read())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not JSON ({error}); {REMEDY}") from error
    if not isinstance(content, list) or not content:
        raise InputError(f"{path}: is no list of paths; {REMEDY}")
    mechanisms = []
    for number, record in enumerate(content, start=1):
        try:
            mechanisms.append(_mechanism_of(record))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: path {number} has no graph or links as DrugMechDB writes them ({error!r}); {REMEDY}"
            ) from error
    return mechanisms


def _mechanism_of(record: Mapping[str, Any]) -> Mechanism:
    graph = record["graph"]
    drug, disease = (
        tuple(canonical(graph[name]) for name in names if graph.get(name))
        for names in (("drugbank", "drug_mesh"), ("disease_mesh",))
    )
    links = tuple((canonical(link["source"]), canonical(link["target"])) for link in record["links"])
    return Mechanism(str(graph.get("_id", "")), drug, disease, links)


def find_labels(
    mechanisms: Iterable[Mechanism], labels: Iterable[str], nodes: Path, equivalents: Path | None
) -> dict[str, set[str]]:
    """Find the entities of a graph that the CURIEs of mechanisms mean: {canonical CURIE: labels}, none left out.

    Args:
        mechanisms: of DrugMechDB.
        labels: of the graph's entities.
        nodes: the KGX nodes of the graph.
        equivalents: a file whose lines are CURIEs for the same thing, separated by tabs.
    """
    names: dict[str, set[str]] = {}  # what each CURIE is also called
    for mechanism in mechanisms:
        for curie in (*mechanism.nodes, *mechanism.drug, *mechanism.disease):
            names.setdefault(curie, {curie})
        for curie in mechanism.drug:  # DrugBank's and MeSH's CURIE of one drug
            names[curie].update(mechanism.drug)
    if equivalents is not None:
        _add_equivalents(equivalents, names)
    wanted = {name for others in names.values() for name in others}
    found: dict[str, set[str]] = defaultdict(set)
    known = set(labels)
    for label in known:
        if canonical(label) in wanted:
            found[canonical(label)].add(label)
    for label, curies in _equivalents_of_nodes(nodes, known):
        for curie in wanted.intersection(curies):
            found[curie].add(label)
    return {curie: {label for name in others for label in found.get(name, ())} for curie, others in names.items()}


def _add_equivalents(path: Path, names: Mapping[str, set[str]]) -> None:
    for _, block in line_blocks(path):
        for line in block.decode("utf-8").splitlines():
            curies = [canonical(curie) for curie in line.split("\t") if curie.strip()]
            for curie in curies:
                if curie in names:
                    names[curie].update(curies)


def _equivalents_of_nodes(path: Path, labels: set[str]) -> Iterator[tuple[str, list[str]]]:
    with open_kgx(path, "nodes") as (parse, blocks):
        for _, line in numbered(blocks):
            try:
                node = parse(line)
                label = require_text(node, "id")
            except MalformedLineError:  # counted when the graph was read
                continue
            if label in labels:
                yield label, [canonical(text) for name in EQUIVALENTS for text in texts_of(node.get(name))]


def find_reasons(
    path: Path, graph: SplitGraph, predicates: Mapping[str, str], *, nodes: Path, equivalents: Path | None
) -> Reasons:
    """Find, for each treatment among the graph's triples, the training triples that DrugMechDB's paths run along.

    Args:
        path: indication_paths.json.
        graph: with its splits.
        predicates: {label of a relation: its predicate}.
        nodes: the KGX nodes of the graph.
        equivalents: a file of CURIEs for the same thing, or None.

    Raises InputError where a file is not what it should be, and where no path leads to a triple of the graph.
    """
    mechanisms = read_mechanisms(path)
    labels = find_labels(mechanisms, graph.entities, nodes, equivalents)
    joining = _TriplesBetween(graph, {label for found in labels.values() for label in found})
    of_pair: dict[tuple[str, str], list[Mechanism]] = defaultdict(list)
    for mechanism in mechanisms:
        for drug in _labels_of(mechanism.drug, labels):
            for disease in _labels_of(mechanism.disease, labels):
                of_pair[drug, disease].append(mechanism)
    treatments = [
        (split, triple, of_pair[triple[0], triple[2]])
        for split, triple in _treatments(graph, predicates) if (triple[0], triple[2]) in of_pair
    ]  # fmt: skip
    counts = _counts(mechanisms, labels, joining)
    records = [record for each in treatments if (record := _record(*each, labels, joining))["explanations"]]
    counts["treatments"] = {"read": len(treatments), "found": len(records)}
    if not records:
        what = ", ".join(f"{number['found']:,} of {number['read']:,} {name}" for name, number in counts.items())
        raise InputError(
            f"{path}: gives no reasons for this graph (found: {what}); name its CURIEs in --equivalents FILE"
        )
    return Reasons(records, counts)


def _labels_of(curies: Iterable[str], labels: Mapping[str, set[str]]) -> list[str]:
    return sorted({label for curie in curies for label in labels[curie]})


def _treatments(graph: SplitGraph, predicates: Mapping[str, str]) -> Iterator[tuple[str, LabelTriple]]:
    """Yield the triples with a relation like treats, with their split."""
    is_like_treats = np.array([predicates.get(label) in TREATS_LIKE for label in graph.relations])
    for split in SPLITS:
        triples = graph.splits[split]
        for head, relation, tail in triples[is_like_treats[triples[:, 1]]].tolist():
            yield split, (graph.entities[head], graph.relations[relation], graph.entities[tail])


def _record(
    split: str,
    triple: LabelTriple,
    mechanisms: Iterable[Mechanism],
    labels: Mapping[str, set[str]],
    joining: "_TriplesBetween",
) -> dict[str, Any]:
    """Return what is known of a treatment, as a line of the reasons file has it."""
    explanations = []
    for mechanism in mechanisms:
        of_links = [joining.of(labels[one], labels[other]) for one, other in mechanism.links]
        triples = [each for found in of_links for each in found if each != triple]
        if triples:
            explanations.append(
                {
                    "id": mechanism.name,
                    "links": len(of_links),
                    "links_found": sum(map(bool, of_links)),
                    "triples": list(dict.fromkeys(triples)),
                }
            )
    return {"triple": triple, "split": split, "explanations": explanations}


class _TriplesBetween:
    """The training triples that join two of some entities, either way, in the order of training."""

    def __init__(self, graph: SplitGraph, labels: set[str]) -> None:
        is_wanted = np.array([label in labels for label in graph.entities], dtype=bool)
        train = graph.splits["train"]
        joins = is_wanted[train[:, 0]] & is_wanted[train[:, 2]]
        self._triples: dict[frozenset[str], list[LabelTriple]] = defaultdict(list)
        for head, relation, tail in train[joins].tolist():
            triple = (graph.entities[head], graph.relations[relation], graph.entities[tail])
            self._triples[frozenset((triple[0], triple[2]))].append(triple)

    def of(self, ones: Iterable[str], others: Iterable[str]) -> list[LabelTriple]:
        """Return the triples between one of `ones` and one of `others`."""
        others = sorted(others)
        pairs = dict.fromkeys(frozenset((one, other)) for one in sorted(ones) for other in others)
        return [triple for pair in pairs for triple in self._triples.get(pair, ())]


def _counts(
    mechanisms: Iterable[Mechanism], labels: Mapping[str, set[str]], joining: _TriplesBetween
) -> dict[str, dict[str, int]]:
    drugs = {mechanism.drug[:1] for mechanism in mechanisms}
    diseases = {mechanism.disease for mechanism in mechanisms}
    nodes = {node for mechanism in mechanisms for node in mechanism.nodes}
    links = {link for mechanism in mechanisms for link in mechanism.links}
    found = {
        "drugs": [bool(_labels_of(each, labels)) for each in drugs],
        "diseases": [bool(_labels_of(each, labels)) for each in diseases],
        "nodes": [bool(labels[node]) for node in nodes],
        "links": [bool(joining.of(labels[one], labels[other])) for one, other in links],
    }
    return {name: {"read": len(told), "found": sum(told)} for name, told in found.items()}

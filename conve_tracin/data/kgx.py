"""From a KGX graph (`nodes.jsonl`, `edges.jsonl`: ROBOKOP, Translator) to the files that training reads.

Both files are streamed; of an edge stay three integers. Plain or gzip-compressed, one JSON object a line.

**What counts as what.** A node's `category` lists Biolink classes, in some graphs with all their ancestors, in
others the most specific alone; so every class below a kind is named here (Biolink Model 4, and the older
`ChemicalSubstance`). The unions that blur the kinds (`ChemicalEntityOrGeneOrGeneProduct` and the like) count as
none. A node can be of several kinds: a therapeutic protein is a chemical and a gene product.

- chemical: `ChemicalEntity` and what is below it, drugs and foods included.
- gene: `Gene`, `GeneOrGeneProduct`, proteins and RNA products; not gene families, and not bare polypeptides.
- disease: `DiseaseOrPhenotypicFeature`, that is diseases and phenotypes, as Biolink lets `treats` end in both.

**Styles**, by the kinds of subject and object in either order:

- `keepall`: every edge.
- `original`: without `subclass_of`.
- `CD`: chemical-disease.
- `CGGD`: chemical-gene and gene-disease.
- `CCGGDD`: chemical-chemical, gene-gene and disease-disease.
- `rCD`: without chemical-disease.
- `CGGD_alltreat`: CGGD, and every `treats` whatever it connects.

**Relations.** A relation is a predicate with those qualifiers that take their values from a short list: "affects"
with increased activity and with decreased activity are two relations. Qualifiers that hold a context, such as a
species or a tissue, would make a relation of each context and are passed over. Relations are labelled
`predicate:N`, N counting them in the order of their predicates; `edge_map.json` says which is which.

**Lines that do not fit.** A broken line is an error, or is counted with `skip_malformed`. An edge that starts or
ends at no node is an error too, since it usually means that the two files do not belong together; `skip_unknown`
counts it instead. A node on two lines has the categories of both and its first name. A triple that occurs more
than once is kept once.
"""

import io
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from conve_tracin.data.prepare import Graph, hold_out, without_duplicates, write_graph
from conve_tracin.data.text import (
    BLOCK_BYTES,
    UNWRITABLE,
    UTF8_BOM,
    UTF16_BOMS,
    is_unicode,
    open_bytes,
    shown,
    suggestion,
    visible,
)
from conve_tracin.errors import InputError
from conve_tracin.files import json_text

EDGE_MAP_FILE, SUMMARY_FILE = "edge_map.json", "graph_summary.json"

CHEMICAL, GENE, DISEASE = 1, 2, 4

KIND_NAMES = {CHEMICAL: "chemical", GENE: "gene", DISEASE: "disease"}

NUM_KIND_SETS = 8

CLASSES = {
    CHEMICAL: (
        "ChemicalEntity", "MolecularEntity", "SmallMolecule", "NucleicAcidEntity", "ChemicalMixture",
        "MolecularMixture", "ComplexMolecularMixture", "ProcessedMaterial", "Drug", "Food", "FoodAdditive",
        "EnvironmentalFoodContaminant", "ChemicalSubstance",
    ),
    GENE: (
        "Gene", "GeneOrGeneProduct", "GeneProductMixin", "GeneProductIsoformMixin", "Protein", "ProteinIsoform",
        "RNAProduct", "RNAProductIsoform", "NoncodingRNAProduct", "MicroRNA", "SiRNA",
    ),
    DISEASE: (
        "DiseaseOrPhenotypicFeature", "Disease", "PhenotypicFeature", "BehavioralFeature", "ClinicalFinding",
    ),
}  # fmt: skip

KIND_OF_CLASS = {name: kind for kind, names in CLASSES.items() for name in names}

SUBCLASS_OF, TREATS = "biolink:subclass_of", "biolink:treats"

QUALIFIERS = (
    "qualified_predicate",
    *(
        f"{end}_{part}_qualifier"
        for end in ("subject", "object")
        for part in ("aspect", "direction", "form_or_variant", "part", "derivative")
    ),
    "causal_mechanism_qualifier",
)

RELATION_MEMBERS = ("predicate", *QUALIFIERS)

EDGES_AT_A_TIME = 2**17

EXAMPLES_KEPT = 3

ONE_DOCUMENT = re.compile(rb'\s*(\[|\{\s*"(nodes|edges)"\s*:\s*\[)')


@dataclass(frozen=True, eq=False)
class EdgeBlock:
    """Some edges as far as styles look at them: each member is an array of shape (n,)."""

    head_kinds: np.ndarray
    tail_kinds: np.ndarray
    is_subclass: np.ndarray
    is_treats: np.ndarray

    def connects(self, one: int, other: int) -> np.ndarray:
        """Tell which edges go between a node of kind `one` and a node of kind `other`, either way, (n,) bool."""
        forward = (self.head_kinds & one > 0) & (self.tail_kinds & other > 0)
        return forward | ((self.head_kinds & other > 0) & (self.tail_kinds & one > 0))


def _connects_over_genes(block: EdgeBlock) -> np.ndarray:
    return block.connects(CHEMICAL, GENE) | block.connects(GENE, DISEASE)


# Which edges a style keeps, (n,) bool.
STYLES: dict[str, Callable[[EdgeBlock], np.ndarray]] = {
    "keepall": lambda block: np.ones(len(block.is_treats), dtype=bool),
    "original": lambda block: ~block.is_subclass,
    "CD": lambda block: block.connects(CHEMICAL, DISEASE),
    "CGGD": _connects_over_genes,
    "CCGGDD": lambda block: (
        block.connects(CHEMICAL, CHEMICAL) | block.connects(GENE, GENE) | block.connects(DISEASE, DISEASE)
    ),
    "rCD": lambda block: ~block.connects(CHEMICAL, DISEASE),
    "CGGD_alltreat": lambda block: _connects_over_genes(block) | block.is_treats,
}


class MalformedLineError(ValueError):
    """A line that holds no node or edge; the message says why."""


@dataclass
class Skipped:
    """Lines left out for one reason: how many, and the first of them in words."""

    number: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Count one line."""
        self.number += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append(message)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) of a plain or gzip-compressed file, without a byte order mark.

    Raises InputError where the file is empty, UTF-16, or one JSON document instead of one object a line.
    """
    with open_bytes(path) as raw, io.BufferedReader(raw, BLOCK_BYTES) as stream:
        start = stream.peek(4096)[:4096]
        if not start:
            raise InputError(f"{path}: is empty; give a KGX file with one JSON object a line")
        if start.startswith(UTF16_BOMS):
            raise InputError(f"{path}: is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
        if ONE_DOCUMENT.match(start.removeprefix(UTF8_BOM)):
            raise InputError(f"{path}: is one JSON document; convert it to JSON lines (kgx transform -f jsonl)")
        if start.startswith(UTF8_BOM):
            stream.read(len(UTF8_BOM))
        # Lists of lines: asking for the lines one by one costs more than decoding them.
        numbers = count(1)
        while lines := stream.readlines(BLOCK_BYTES):
            yield from zip(numbers, lines, strict=False)


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object on a line; raise MalformedLineError where there is none."""
    try:
        content = json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        raise MalformedLineError(f"is not UTF-8 (byte 0x{line[error.start]:02x})") from error
    except json.JSONDecodeError as error:
        if not line.strip():
            raise MalformedLineError("is empty") from error
        raise MalformedLineError(f"is not JSON ({error.msg}, column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise MalformedLineError("is nested too deeply, or holds a number that is too long") from error
    if not isinstance(content, dict):
        raise MalformedLineError(f"holds {_kind_of_json(content)} instead of an object")
    return content


def require_text(members: Mapping[str, Any], name: str) -> str:
    """Return a member that must be a string; raise MalformedLineError where it is missing, empty or another thing."""
    value = members.get(name)
    if isinstance(value, str) and value:
        return value
    if value is None or value == "":
        raise MalformedLineError(f'has no "{name}"')
    raise MalformedLineError(f'"{name}" is {_kind_of_json(value)} instead of a string')


def _kind_of_json(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _reject(where: str, reason: str, skipped: Skipped | None, *, flag: str, remedy: str) -> None:
    """Count a line that is left out, or raise InputError where none may be."""
    if skipped is None:
        raise InputError(f"{where}: {reason}; {remedy}, or leave such lines out and count them with {flag}")
    skipped.add(f"{where}: {reason}")


@dataclass(eq=False)
class Nodes:
    """The nodes of a graph in the order of their first lines.

    `index` gives each id its position; `names` holds the names of those that have one; `kinds` is a set of
    CHEMICAL, GENE and DISEASE for each position, as bits.
    """

    path: Path
    index: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    kinds: bytearray = field(default_factory=bytearray)

    def add(self, identifier: str, name: str, kinds: int) -> None:
        """Take in one line."""
        position = self.index.setdefault(identifier, len(self.kinds))
        if position == len(self.kinds):
            self.kinds.append(kinds)
        else:
            self.kinds[position] |= kinds
        if name:
            self.names.setdefault(identifier, name)


def read_nodes(path: Path, *, malformed: Skipped | None) -> Nodes:
    """Read `nodes.jsonl`; `malformed` counts broken lines.

    Raises InputError at the first broken line where `malformed` is None, and where no node is left.
    """
    nodes = Nodes(path)
    for number, line in tqdm(numbered_lines(path), desc="nodes", unit=" lines", leave=False, disable=None):
        try:
            node = parse_object(line)
            identifier = require_text(node, "id")
            if UNWRITABLE.search(identifier) or not is_unicode(identifier):
                raise MalformedLineError(f'"id" {shown(identifier)} holds a tab, a line end or half a character')
            nodes.add(identifier, _clean_name(node.get("name")), kinds_of(node.get("category")))
        except MalformedLineError as error:
            _reject(
                f"{path}:{number}", str(error), malformed, flag="--skip-malformed",
                remedy="a node is a JSON object with an id and categories",
            )  # fmt: skip
    if not nodes.index:
        raise InputError(f"{path}: none of its {number} lines holds a node; give a KGX nodes.jsonl")
    return nodes


def kinds_of(category: Any) -> int:
    """Return the kinds, as bits, of a node with these Biolink classes: one CURIE or a list of them.

    Raises MalformedLineError for anything else; a node without categories is of no kind.
    """
    classes = [category] if isinstance(category, str) else category or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise MalformedLineError('"category" is no list of strings')
    kinds = 0
    for name in classes:
        kinds |= KIND_OF_CLASS.get(name.removeprefix("biolink:"), 0)
    return kinds


def _clean_name(name: Any) -> str:
    # JSON can write half of a surrogate pair, which no UTF-8 file can hold.
    return name.encode("utf-8", "replace").decode("utf-8") if isinstance(name, str) else ""


class Relations:
    """Numbers for predicates with their qualifiers, in the order in which they are met."""

    def __init__(self) -> None:
        self.keys: dict[str, int] = {}
        self.predicates: list[str] = []
        self._numbers: dict[tuple, int] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def number(self, edge: Mapping[str, Any]) -> int:
        """Return the number of an edge's relation; raise MalformedLineError where the edge has no proper one."""
        values = tuple(map(edge.get, RELATION_MEMBERS))
        try:
            number = self._numbers.get(values)
        except TypeError:  # a qualifier with several values
            return self._number_of_key(edge)
        if number is None:
            number = self._numbers[values] = self._number_of_key(edge)
        return number

    def _number_of_key(self, edge: Mapping[str, Any]) -> int:
        predicate = require_text(edge, "predicate")
        key = json.dumps({"predicate": predicate, **qualifiers_of(edge)}, ensure_ascii=False)
        if not is_unicode(key):
            raise MalformedLineError('"predicate" or a qualifier holds half a character')
        if key not in self.keys:
            self.keys[key] = len(self.keys)
            self.predicates.append(predicate)
        return self.keys[key]

    def with_predicate(self, predicate: str) -> np.ndarray:
        """Tell which relations have this predicate, (R,) bool."""
        return np.array([other == predicate for other in self.predicates], dtype=bool)


def qualifiers_of(edge: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Return the qualifiers that make an edge's relation, without those that are missing or empty.

    Raises MalformedLineError for one that is neither a string nor a list of strings.
    """
    qualifiers = {}
    for name in QUALIFIERS:
        value = edge.get(name)
        values = value if isinstance(value, list) else [value] if value else []
        if not all(isinstance(part, str) for part in values):
            raise MalformedLineError(f'"{name}" is neither a string nor a list of strings')
        if any(values):
            qualifiers[name] = values[0] if len(values) == 1 else sorted(set(values))
    return qualifiers


@dataclass(eq=False)
class Edges:
    """What is left of the edges: ids of nodes and relations, and what was counted on the way.

    `triples` is (N, 3) int32; the counts of predicates and of pairs of kinds are over all edges between known
    nodes, `read_pairs` being (8, 8).
    """

    triples: np.ndarray
    relations: Relations
    read: Counter[str]
    read_pairs: np.ndarray


def read_edges(path: Path, nodes: Nodes, *, style: str, malformed: Skipped | None, unknown: Skipped | None) -> Edges:
    """Read `edges.jsonl` and keep what the style keeps; `malformed` and `unknown` count lines left out.

    Raises InputError at the first broken line where `malformed` is None, at the first edge with an end that is no
    node where `unknown` is None, and where no edge is left.
    """
    relations = Relations()
    kinds = np.frombuffer(nodes.kinds, dtype=np.uint8)
    read_relations = np.zeros(0, dtype=np.int64)
    read_pairs = np.zeros(NUM_KIND_SETS**2, dtype=np.int64)
    kept = []
    for triples in _edge_blocks(path, nodes, relations, malformed=malformed, unknown=unknown):
        head_kinds, tail_kinds = kinds[triples[:, 0]], kinds[triples[:, 2]]
        new_relations = len(relations) - len(read_relations)
        read_relations = np.append(read_relations, np.zeros(new_relations, dtype=np.int64))
        read_relations += np.bincount(triples[:, 1], minlength=len(relations))
        pairs = head_kinds.astype(np.int64) * NUM_KIND_SETS + tail_kinds
        read_pairs += np.bincount(pairs, minlength=NUM_KIND_SETS**2)
        is_kept = STYLES[style](
            EdgeBlock(
                head_kinds,
                tail_kinds,
                relations.with_predicate(SUBCLASS_OF)[triples[:, 1]],
                relations.with_predicate(TREATS)[triples[:, 1]],
            )
        )
        kept.append(triples[is_kept])
    number_read = int(read_relations.sum())
    if not any(map(len, kept)):
        remedy = "give a KGX edges.jsonl"
        if number_read:
            remedy = f"--style {style} keeps none of them, try keepall"
        elif unknown is not None and unknown.number:
            remedy = f"{unknown.number:,} have an end that is not in --nodes, give the nodes of this graph"
        raise InputError(f"{path}: no edge is left of {number_read:,} between known nodes; {remedy}")
    triples = np.concatenate(kept)
    read = Counter()
    for predicate, number in zip(relations.predicates, read_relations.tolist(), strict=True):
        read[predicate] += number
    return Edges(triples, relations, read, read_pairs.reshape(NUM_KIND_SETS, NUM_KIND_SETS))


def _edge_blocks(
    path: Path, nodes: Nodes, relations: Relations, *, malformed: Skipped | None, unknown: Skipped | None
) -> Iterator[np.ndarray]:
    """Yield the edges between known nodes as node and relation numbers, (n, 3) int32, n <= EDGES_AT_A_TIME."""
    index = nodes.index
    flat = array("i")
    for line_number, line in tqdm(numbered_lines(path), desc="edges", unit=" lines", leave=False, disable=None):
        try:
            edge = parse_object(line)
            subject, object_ = require_text(edge, "subject"), require_text(edge, "object")
            relation = relations.number(edge)
        except MalformedLineError as error:
            _reject(
                f"{path}:{line_number}", str(error), malformed, flag="--skip-malformed",
                remedy="an edge is a JSON object with subject, predicate and object",
            )  # fmt: skip
            continue
        head, tail = index.get(subject), index.get(object_)
        if head is None or tail is None:
            column, label = ("subject", subject) if head is None else ("object", object_)
            _reject(
                f"{path}:{line_number}", f"{column} {shown(label)} is no node of {nodes.path}", unknown,
                flag="--skip-unknown", remedy="give the nodes file of the same graph",
            )  # fmt: skip
            continue
        flat.extend((head, relation, tail))
        if len(flat) == 3 * EDGES_AT_A_TIME:
            yield np.array(flat, dtype=np.int32).reshape(-1, 3)
            del flat[:]
    if flat:
        yield np.array(flat, dtype=np.int32).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class KgxGraph:
    """A graph with its relations' meanings and the content of `graph_summary.json`."""

    graph: Graph
    edge_map: dict[str, str]
    summary: dict[str, Any]


def read_kgx(
    nodes_path: Path,
    edges_path: Path,
    *,
    style: str,
    fractions: Mapping[str, float],
    test_predicate: str | None = None,
    random_seed: int = 42,
    skip_malformed: bool = False,
    skip_unknown: bool = False,
) -> KgxGraph:
    """Read a KGX graph, keep the edges of a style and hold some out for validation and test.

    `fractions` gives the shares of valid and test among the edges with `test_predicate`, or among all edges where
    it is None. Training keeps every entity and relation, and no triple is in two splits.

    Raises InputError for a line that does not fit, and where no edge is left or none can be held out.
    """
    malformed, unknown = Skipped(), Skipped()
    nodes = read_nodes(nodes_path, malformed=malformed if skip_malformed else None)
    malformed_nodes = malformed.number
    edges = read_edges(
        edges_path, nodes, style=style,
        malformed=malformed if skip_malformed else None, unknown=unknown if skip_unknown else None,
    )  # fmt: skip
    used_relations, triples = _number_relations(edges.triples, list(edges.relations.keys))
    del edges.triples  # with millions of edges each copy counts
    entity_labels, triples = _number_entities(triples, nodes)
    kept = len(triples)
    triples = without_duplicates(triples)

    predicates = np.array([json.loads(key)["predicate"] for key in used_relations], dtype=object)
    candidates = None
    if test_predicate is not None:
        candidates = (predicates == test_predicate)[triples[:, 1]]
        if not candidates.any():
            others = sorted(set(predicates))
            raise InputError(
                f"{edges_path}: style {style} leaves no edge with --test-predicate {test_predicate}; "
                + suggestion(test_predicate, others, otherwise=f"it leaves {', '.join(others[:10])}")
            )
    splits = hold_out(triples, fractions, random_seed=random_seed, candidates=candidates)
    labels = [f"predicate:{number}" for number in range(len(used_relations))]
    names = {label: nodes.names.get(label, label) for label in entity_labels}
    kinds = np.array([nodes.kinds[nodes.index[label]] for label in entity_labels], dtype=np.uint8)
    return KgxGraph(
        Graph(entity_labels, labels, splits, names),
        dict(zip(used_relations, labels, strict=True)),
        {
            "style": style,
            "nodes": {"read": len(nodes.index), "used": len(entity_labels)},
            "edges": {"read": sum(edges.read.values()), "kept": len(triples)},
            "dropped": {
                "by_style": sum(edges.read.values()) - kept,
                "duplicate": kept - len(triples),
                "malformed": malformed.number - malformed_nodes,
                "unknown_node": unknown.number,
            },
            "malformed_nodes": malformed_nodes,
            "skipped_lines": malformed.examples + unknown.examples,
            "predicates": _count_predicates(edges.read, predicates, triples),
            "category_pairs": _count_pairs(edges.read_pairs, kinds, triples),
        },
    )


def _number_relations(triples: np.ndarray, keys: list[str]) -> tuple[list[str], np.ndarray]:
    """Number the relations that occur, in the order of their keys; return those keys and triples as int64."""
    numbers = sorted(np.unique(triples[:, 1]).tolist(), key=keys.__getitem__)
    place = np.zeros(len(keys), dtype=np.int64)
    place[numbers] = np.arange(len(numbers))
    triples = triples.astype(np.int64)
    triples[:, 1] = place[triples[:, 1]]
    return [keys[number] for number in numbers], triples


def _number_entities(triples: np.ndarray, nodes: Nodes) -> tuple[list[str], np.ndarray]:
    """Number the nodes that occur, in sorted order; return their labels and the triples, renumbered in place."""
    used = np.zeros(len(nodes.kinds), dtype=bool)
    used[triples[:, 0]] = True
    used[triples[:, 2]] = True
    labels = sorted(label for label, is_used in zip(nodes.index, used.tolist(), strict=True) if is_used)
    place = np.zeros(len(used), dtype=np.int64)
    place[[nodes.index[label] for label in labels]] = np.arange(len(labels))
    triples[:, 0] = place[triples[:, 0]]
    triples[:, 2] = place[triples[:, 2]]
    return labels, triples


def _count_predicates(read: Counter[str], predicates: np.ndarray, triples: np.ndarray) -> dict[str, dict[str, int]]:
    kept = Counter()
    for predicate, number in zip(predicates, np.bincount(triples[:, 1]).tolist(), strict=True):
        kept[predicate] += number
    return {name: {"read": number, "kept": kept[name]} for name, number in read.most_common()}


def _count_pairs(read_pairs: np.ndarray, kinds: np.ndarray, triples: np.ndarray) -> dict[str, dict[str, int]]:
    kept_codes = kinds[triples[:, 0]].astype(np.int64) * NUM_KIND_SETS + kinds[triples[:, 2]]
    kept_pairs = np.bincount(kept_codes, minlength=NUM_KIND_SETS**2).reshape(NUM_KIND_SETS, NUM_KIND_SETS)
    read, kept = Counter(), Counter()
    for one, other in zip(*read_pairs.nonzero(), strict=True):
        pair = " - ".join(map(_kind_set_name, sorted((one, other), key=_kind_order)))
        read[pair] += int(read_pairs[one, other])
        kept[pair] += int(kept_pairs[one, other])
    return {pair: {"read": number, "kept": kept[pair]} for pair, number in read.most_common()}


def _kind_set_name(kinds: int) -> str:
    return " and ".join(name for kind, name in KIND_NAMES.items() if kinds & kind) or "other"


def _kind_order(kinds: int) -> tuple[bool, int]:
    return kinds == 0, int(kinds)


def write_kgx(kgx: KgxGraph, output_dir: Path) -> None:
    """Write the files of `write_graph`, the edge map and the summary to `output_dir`, all of them or none."""
    more = {EDGE_MAP_FILE: json_text(kgx.edge_map), SUMMARY_FILE: json_text(kgx.summary)}
    write_graph(kgx.graph, output_dir, more)


def describe(content: Mapping[str, Any], *, rows: int = 15) -> str:
    """Lay out the content of `graph_summary.json` as text, with at most `rows` rows in each table."""
    nodes, edges, dropped = content["nodes"], content["edges"], content["dropped"]
    lines = [
        f"Style {content['style']}: {edges['kept']:,} of {edges['read']:,} edges, "
        f"{nodes['used']:,} of {nodes['read']:,} nodes",
        f"Dropped: {dropped['by_style']:,} edges by the style, {dropped['duplicate']:,} duplicates, "
        f"{dropped['unknown_node']:,} with an unknown node, {dropped['malformed']:,} malformed lines"
        + (f" (and {content['malformed_nodes']:,} of nodes)" if content["malformed_nodes"] else ""),
        *(f"  {example}" for example in content["skipped_lines"]),
    ]
    for title, table in (("predicate", content["predicates"]), ("categories", content["category_pairs"])):
        width = max(28, *(len(name) for name in list(table)[:rows])) + 2
        lines.append(f"  {title:<{width}}{'edges':>12}{'kept':>12}")
        lines += [
            f"  {visible(name):<{width}}{row['read']:>12,}{row['kept']:>12,}"
            for name, row in list(table.items())[:rows]
        ]
        if len(table) > rows:
            lines.append(f"  … and {len(table) - rows:,} more in {SUMMARY_FILE}")
    return "\n".join(lines)

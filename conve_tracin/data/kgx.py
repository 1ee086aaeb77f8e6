"""From a KGX graph (ROBOKOP, Translator, Monarch, RTX-KG2) to the files that training reads.

Both files, nodes and edges, are streamed; of an edge stay three integers. Each is JSON lines or a KGX table, plain,
gzip-compressed or in a tar archive. What the members mean is in biolink.py.

**Styles**, by the kinds of subject and object in either order:

- `keepall`: every edge.
- `original`: without `subclass_of`.
- `CD`: chemical-disease.
- `CGGD`: chemical-gene and gene-disease.
- `CCGGDD`: chemical-chemical, gene-gene and disease-disease.
- `rCD`: without chemical-disease.
- `CGGD_alltreat`: CGGD, and every `treats` whatever it connects.

**Relations** are labelled `predicate:N`, N counting them in the order of their predicates; `edge_map.json` says which
is which.

**Lines that do not fit.** A broken line is an error, or is counted with `skip_malformed`. An edge that starts or
ends at no node is an error too, since it usually means that the two files do not belong together; `skip_unknown`
counts it instead. A node on two lines has the categories of both and its first name. A triple that occurs more
than once is kept once. A negated edge is dropped and counted; `keep_negated` gives it a relation of its own.
"""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from conve_tracin.data.biolink import (
    CHEMICAL,
    DISEASE,
    GENE,
    PRIMARY_SOURCE,
    Relations,
    kinds_of,
    knowledge_sources,
)
from conve_tracin.data.kgx_files import MalformedLineError, Skipped, open_kgx, reject, require_text
from conve_tracin.data.prepare import Graph, hold_out, without_duplicates, write_graph
from conve_tracin.data.text import UNWRITABLE, is_unicode, shown, suggestion, visible
from conve_tracin.errors import InputError
from conve_tracin.files import json_text

EDGE_MAP_FILE, SUMMARY_FILE = "edge_map.json", "graph_summary.json"

KIND_NAMES = {CHEMICAL: "chemical", GENE: "gene", DISEASE: "disease"}

NUM_KIND_SETS = 8

SUBCLASS_OF, TREATS = "biolink:subclass_of", "biolink:treats"

EDGES_AT_A_TIME = 2**17


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
    """Read the nodes; `malformed` counts broken lines.

    Raises InputError at the first broken line where `malformed` is None, and where no node is left.
    """
    nodes = Nodes(path)
    number = 1
    with open_kgx(path, "nodes") as (parse, lines):
        for number, line in tqdm(lines, desc="nodes", unit=" lines", leave=False, disable=None):
            try:
                node = parse(line)
                identifier = require_text(node, "id")
                if UNWRITABLE.search(identifier) or not is_unicode(identifier):
                    raise MalformedLineError(f'"id" {shown(identifier)} holds a tab, a line end or half a character')
                kinds = kinds_of(node.get("category") or node.get("categories"))
                nodes.add(identifier, _clean_name(node.get("name")), kinds)
            except MalformedLineError as error:
                reject(
                    f"{path}:{number}", str(error), malformed, flag="--skip-malformed",
                    remedy="a node is a JSON object with an id and categories",
                )  # fmt: skip
    if not nodes.index:
        raise InputError(f"{path}: none of its {number} lines holds a node; give a KGX nodes.jsonl")
    return nodes


def _clean_name(name: Any) -> str:
    # JSON can write half of a surrogate pair, which no UTF-8 file can hold.
    return name.encode("utf-8", "replace").decode("utf-8") if isinstance(name, str) else ""


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
    tally: "Tally"


@dataclass(eq=False)
class Tally:
    """What was counted of the edges: negated ones that were dropped, members not read, and primary sources."""

    negated: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)

    def add_sources(self, edge: Mapping[str, Any]) -> None:
        """Count the primary sources of an edge."""
        source = edge.get(PRIMARY_SOURCE)
        if type(source) is str and source in self.sources:
            self.sources[source] += 1
            return
        for name in knowledge_sources(edge).get(PRIMARY_SOURCE, ()):
            self.sources[name] = self.sources.get(name, 0) + 1


def read_edges(
    path: Path,
    nodes: Nodes,
    *,
    style: str,
    keep_negated: bool,
    malformed: Skipped | None,
    unknown: Skipped | None,
) -> Edges:
    """Read the edges and keep what the style keeps; `malformed` and `unknown` count lines left out.

    Raises InputError at the first broken line where `malformed` is None, at the first edge with an end that is no
    node where `unknown` is None, and where no edge is left.
    """
    relations, tally = Relations(keep_negated=keep_negated), Tally()
    kinds = np.frombuffer(nodes.kinds, dtype=np.uint8)
    read_relations = np.zeros(0, dtype=np.int64)
    read_pairs = np.zeros(NUM_KIND_SETS**2, dtype=np.int64)
    kept = []
    for triples in _edge_blocks(path, nodes, relations, tally, malformed=malformed, unknown=unknown):
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
        elif tally.negated:
            remedy = f"{tally.negated:,} are negated, --negated keep gives them relations of their own"
        raise InputError(f"{path}: no edge is left of {number_read:,} between known nodes; {remedy}")
    triples = np.concatenate(kept)
    read = Counter()
    for predicate, number in zip(relations.predicates, read_relations.tolist(), strict=True):
        read[predicate] += number
    return Edges(triples, relations, read, read_pairs.reshape(NUM_KIND_SETS, NUM_KIND_SETS), tally)


def _edge_blocks(
    path: Path, nodes: Nodes, relations: Relations, tally: Tally, *, malformed: Skipped | None, unknown: Skipped | None
) -> Iterator[np.ndarray]:
    """Yield the edges between known nodes as node and relation numbers, (n, 3) int32, n <= EDGES_AT_A_TIME."""
    index = nodes.index
    flat = array("i")
    with open_kgx(path, "edges") as (parse, lines):
        for line_number, line in tqdm(lines, desc="edges", unit=" lines", leave=False, disable=None):
            try:
                edge = parse(line)
                subject, object_ = require_text(edge, "subject"), require_text(edge, "object")
                shape = relations.shape_of(edge)
                relation = relations.number(edge, shape)
            except MalformedLineError as error:
                reject(
                    f"{path}:{line_number}", str(error), malformed, flag="--skip-malformed",
                    remedy="an edge is a JSON object with subject, predicate and object",
                )  # fmt: skip
                continue
            if relation < 0:
                tally.negated += 1
                continue
            head, tail = index.get(subject), index.get(object_)
            if head is None or tail is None:
                column, label = ("subject", subject) if head is None else ("object", object_)
                reject(
                    f"{path}:{line_number}", f"{column} {shown(label)} is no node of {nodes.path}", unknown,
                    flag="--skip-unknown", remedy="give the nodes file of the same graph",
                )  # fmt: skip
                continue
            if shape.passed_over:
                shape.count_passed_over(edge, tally.passed_over)
            if shape.has_sources:
                tally.add_sources(edge)
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
    together: bool = False,
    keep_negated: bool = False,
    skip_malformed: bool = False,
    skip_unknown: bool = False,
) -> KgxGraph:
    """Read a KGX graph, keep the edges of a style and hold some out for validation and test.

    `fractions` gives the shares of valid and test among the edges with `test_predicate`, or among all edges where
    it is None. Training keeps every entity and relation, and no triple is in two splits. `together` takes all edges
    that join a held-out pair out of training.

    Raises InputError for a line that does not fit, and where no edge is left or none can be held out.
    """
    malformed, unknown = Skipped(), Skipped()
    nodes = read_nodes(nodes_path, malformed=malformed if skip_malformed else None)
    malformed_nodes = malformed.number
    edges = read_edges(
        edges_path, nodes, style=style, keep_negated=keep_negated,
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
        candidates = _with_test_predicate(triples, predicates, test_predicate, where=f"{edges_path}: style {style}")
    splits = hold_out(triples, fractions, random_seed=random_seed, candidates=candidates, together=together)
    labels = [f"predicate:{number}" for number in range(len(used_relations))]
    names = {label: nodes.names.get(label, label) for label in entity_labels}
    kinds = np.array([nodes.kinds[nodes.index[label]] for label in entity_labels], dtype=np.uint8)
    summary = {
        "style": style,
        "nodes": {"read": len(nodes.index), "used": len(entity_labels)},
        "edges": {"read": sum(edges.read.values()), "kept": len(triples)},
        "dropped": {
            "by_style": sum(edges.read.values()) - kept,
            "duplicate": kept - len(triples),
            "malformed": malformed.number - malformed_nodes,
            "unknown_node": unknown.number,
            "negated": edges.tally.negated,
            "of_held_out_pairs": len(triples) - sum(map(len, splits.values())),
        },
        "malformed_nodes": malformed_nodes,
        "skipped_lines": malformed.examples + unknown.examples,
        "not_read": _most_first(edges.tally.passed_over),
        "predicates": _count_predicates(edges.read, predicates, triples),
        "category_pairs": _count_pairs(edges.read_pairs, kinds, triples),
        "primary_knowledge_sources": _most_first(edges.tally.sources),
    }
    return KgxGraph(
        Graph(entity_labels, labels, splits, names), dict(zip(used_relations, labels, strict=True)), summary
    )  # fmt: skip


def _with_test_predicate(triples: np.ndarray, predicates: np.ndarray, wanted: str, *, where: str) -> np.ndarray:
    """Tell which triples have this predicate, (N,) bool; raise InputError where none has."""
    has_it = (predicates == wanted)[triples[:, 1]]
    if not has_it.any():
        others = sorted(set(predicates))
        raise InputError(
            f"{where} leaves no edge with --test-predicate {wanted}; "
            + suggestion(wanted, others, otherwise=f"it leaves {', '.join(others[:10])}")
        )
    return has_it


def _most_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(counts).most_common())


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
        f"{dropped['unknown_node']:,} with an unknown node, {dropped['negated']:,} negated, "
        f"{dropped['malformed']:,} malformed lines"
        + (f" (and {content['malformed_nodes']:,} of nodes)" if content["malformed_nodes"] else ""),
        *(f"  {example}" for example in content["skipped_lines"]),
    ]
    if dropped["of_held_out_pairs"]:
        lines.append(f"Left out of training: {dropped['of_held_out_pairs']:,} edges that join a held-out pair")
    if content["not_read"]:
        members = ", ".join(f"{visible(name)} of {number:,}" for name, number in content["not_read"].items())
        lines.append(f"Not read, though they may change what an edge says: {members} edges")
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

"""From a KGX graph (ROBOKOP, Translator, Monarch, RTX-KG2) to the files that training reads.

Both files, nodes and edges, are streamed; of an edge stay three integers. Each is JSON lines or a KGX table, plain,
gzip-compressed or in a tar archive. What the members mean is in biolink.py.

**Relations** are labelled `predicate:N`, N counting them in the order of their predicates; `edge_map.json` says which
is which.

**Lines that do not fit.** A broken line is an error, or is counted with `skip_malformed`. An edge that starts or
ends at no node is an error too, since it usually means that the two files do not belong together; `skip_unknown`
counts it instead. A node on two lines has the categories of both and its first name. A triple that occurs more
than once is kept once. A negated edge is dropped and counted; `keep_negated` gives it a relation of its own.
"""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from conve_tracin.data.keys import first_places
from conve_tracin.data.kgx.biolink import CHEMICAL, DISEASE, GENE, kinds_of
from conve_tracin.data.kgx.drugmechdb import REASONS_FILE, Reasons
from conve_tracin.data.kgx.edges import NUM_KIND_SETS, Edges, Nodes, read_edges
from conve_tracin.data.kgx.evidence_writer import EVIDENCE_FILE, EvidenceStore, TrainingEvidence, write_evidence
from conve_tracin.data.kgx.files import (
    EXAMPLES_KEPT,
    MalformedLineError,
    Skipped,
    numbered,
    open_kgx,
    reject,
    require_text,
)
from conve_tracin.data.kgx.provenance import EdgeFilters, count_primary_sources
from conve_tracin.data.kgx.styles import CLEAN_BASELINE, LOW_DEGREE, TREATS, touches_ends_of, with_degree
from conve_tracin.data.names import BIOLINK_PREFIX
from conve_tracin.data.prepare import write_graph
from conve_tracin.data.splits import SplitGraph, hold_out
from conve_tracin.data.text import UNWRITABLE, is_unicode, shown, suggestion, visible
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write, json_text, open_gzip

EDGE_MAP_FILE, SUMMARY_FILE = "edge_map.json", "graph_summary.json"

KGX_FILES = (EDGE_MAP_FILE, SUMMARY_FILE, EVIDENCE_FILE, REASONS_FILE)

KIND_NAMES = {CHEMICAL: "chemical", GENE: "gene", DISEASE: "disease"}


def read_nodes(path: Path, *, malformed: Skipped | None) -> Nodes:
    """Read the nodes; `malformed` counts broken lines.

    Raises InputError at the first broken line where `malformed` is None, and where no node is left.
    """
    nodes = Nodes(path)
    number = 1
    with open_kgx(path, "nodes") as (parse, blocks):
        for number, line in tqdm(numbered(blocks), desc="nodes", unit=" lines", leave=False, disable=None):
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
                    remedy="a node has an id and categories",
                )  # fmt: skip
    if not nodes.index:
        raise InputError(f"{path}: none of its {number} lines holds a node; give a KGX nodes.jsonl")
    return nodes


def _clean_name(name: Any) -> str:
    # JSON can write half of a surrogate pair, which no UTF-8 file can hold.
    return name.encode("utf-8", "replace").decode("utf-8") if isinstance(name, str) else ""


@dataclass(frozen=True, eq=False)
class KgxGraph:
    """A graph with its relations' meanings, the content of `graph_summary.json`, and its evidence if that was kept."""

    graph: SplitGraph
    edge_map: dict[str, str]
    summary: dict[str, Any]
    evidence: TrainingEvidence | None = None


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
    filters: EdgeFilters | None = None,
    min_degree: int | None = None,
    evidence: EvidenceStore | None = None,
) -> KgxGraph:
    """Read a KGX graph, keep the edges of a style and hold some out for validation and test.

    `fractions` gives the shares of valid and test among the edges with `test_predicate`, or among all edges where
    it is None. Training keeps every entity and relation, and no triple is in two splits. `together` takes all edges
    that join a held-out pair out of training. `evidence` takes up what stands behind the edges.

    Raises InputError for a line that does not fit, and where no edge is left or none can be held out.
    """
    of_nodes, malformed, unknown = Skipped(), Skipped(), Skipped()
    nodes = read_nodes(nodes_path, malformed=of_nodes if skip_malformed else None)
    edges = read_edges(
        edges_path, nodes, style=style, keep_negated=keep_negated, filters=filters, evidence=evidence,
        malformed=malformed if skip_malformed else None, unknown=unknown if skip_unknown else None,
    )  # fmt: skip
    chosen = _choose(edges, style, min_degree, where=str(edges_path))
    triples = chosen.triples
    numbering = _number(triples, nodes, list(edges.relations.keys))

    predicates = np.array([json.loads(key)["predicate"] for key in numbering.relation_keys], dtype=object)
    candidates = _candidates(triples, predicates, test_predicate, where=f"{edges_path}: style {style}")
    splits = hold_out(triples, fractions, random_seed=random_seed, candidates=candidates, together=together)
    labels = [f"predicate:{number}" for number in range(len(numbering.relation_keys))]
    names = {label: nodes.names.get(label, label) for label in numbering.entity_labels}
    graph = SplitGraph(numbering.entity_labels, labels, splits, names)
    kinds = np.array([nodes.kinds[nodes.index[label]] for label in numbering.entity_labels], dtype=np.uint8)
    summary = {
        "style": style,
        "nodes": {"read": len(nodes.index), "used": len(numbering.entity_labels)},
        "edges": {"read": sum(edges.read.values()), "kept": len(triples)},
        "dropped": {
            **chosen.dropped,
            "malformed": malformed.number,
            "unknown_node": unknown.number,
            "negated": edges.tally.negated,
            "of_held_out_pairs": len(triples) - sum(map(len, splits.values())),
        },
        "entities_dropped_by_degree": chosen.entities_dropped,
        "malformed_nodes": of_nodes.number,
        "skipped_lines": [*of_nodes.examples, *malformed.examples][:EXAMPLES_KEPT] + unknown.examples,
        "remarks": [] if filters is None else filters.remarks(edges.provenances.met),
        "not_read": dict(Counter(edges.tally.passed_over).most_common()),
        "predicates": _count_predicates(edges.read, predicates, triples),
        "category_pairs": _count_pairs(edges.read_pairs, kinds, triples),
        "primary_knowledge_sources": count_primary_sources(edges.provenances.met, edges.tally.of_provenance.tolist()),
    }
    basis = evidence and TrainingEvidence(evidence, chosen.is_kept, numbering.entity_ids, numbering.relation_ids, graph)
    return KgxGraph(graph, dict(zip(numbering.relation_keys, labels, strict=True)), summary, basis)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The distinct triples that are left of the edges, (M, 3), and what dropped the others.

    `is_kept` tells which of the edges the style clean_baseline keeps, (N,) bool; None for the other styles.
    """

    triples: np.ndarray
    is_kept: np.ndarray | None
    dropped: dict[str, int]
    entities_dropped: int


def _choose(edges: Edges, style: str, min_degree: int | None, *, where: str) -> _Chosen:
    """Drop what shows only when all edges have been read. Takes the triples out of `edges`.

    Raises InputError where no triple is left.
    """
    triples, edges.triples = edges.triples, None  # with millions of edges each copy counts
    by_style = edges.dropped["style"]
    is_kept = exempt = None
    if style == CLEAN_BASELINE:
        exempt = touches_ends_of(triples, edges.relations.with_predicate(TREATS)[triples[:, 1]])
        is_kept = exempt | edges.is_clean
        by_style += int((~is_kept).sum())
        triples, exempt = triples[is_kept], exempt[is_kept]
        min_degree = LOW_DEGREE if min_degree is None else min_degree
        if not is_kept.any():
            raise InputError(f"{where}: no edge is left of {len(is_kept):,}; --style {style} keeps none, try keepall")
    number = len(triples)
    first = first_places(triples)
    triples = triples[first]
    duplicates = number - len(triples)
    num_entities = _num_entities(triples)
    if min_degree is not None:
        triples = triples[with_degree(triples, min_degree, exempt=None if exempt is None else exempt[first])]
        if not len(triples):
            raise InputError(f"{where}: no edge is left with --min-degree {min_degree}; choose a smaller one")
    dropped = {
        "by_style": by_style,
        "duplicate": duplicates,
        "by_source": edges.dropped["exclude_source"],
        "by_knowledge_level": edges.dropped["knowledge_level"],
        "by_agent_type": edges.dropped["agent_type"],
        "by_degree": number - duplicates - len(triples),
    }
    return _Chosen(triples, is_kept, dropped, num_entities - _num_entities(triples))


def _num_entities(triples: np.ndarray) -> int:
    is_end = np.zeros(triples[:, [0, 2]].max(initial=-1) + 1, dtype=bool)
    is_end[triples[:, 0]] = True
    is_end[triples[:, 2]] = True
    return int(is_end.sum())


def _candidates(triples: np.ndarray, predicates: np.ndarray, wanted: str | None, *, where: str) -> np.ndarray | None:
    """Tell which triples have the wanted predicate, (N,) bool; None if any will do. InputError where none has it."""
    if wanted is None:
        return None
    name = wanted if wanted in predicates else f"{BIOLINK_PREFIX}{wanted}"
    has_it = (predicates == name)[triples[:, 1]]
    if not has_it.any():
        others = sorted(set(predicates))
        raise InputError(
            f"{where} leaves no edge with --test-predicate {wanted}; "
            + suggestion(wanted, others, otherwise=f"it leaves {', '.join(others[:10])}")
        )
    return has_it


@dataclass(frozen=True, eq=False)
class _Numbering:
    """Which nodes and relations a graph has: their labels and keys by id, and the id of each number met, or -1."""

    entity_labels: list[str]
    relation_keys: list[str]
    entity_ids: np.ndarray
    relation_ids: np.ndarray


def _number(triples: np.ndarray, nodes: Nodes, keys: list[str]) -> _Numbering:
    """Number the nodes that occur in sorted order, and the relations in that of their keys; renumber in place."""
    used = np.zeros(len(nodes.kinds), dtype=bool)
    used[triples[:, 0]] = True
    used[triples[:, 2]] = True
    labels = sorted(label for label, is_used in zip(nodes.index, used.tolist(), strict=True) if is_used)
    entity_ids = np.full(len(used), -1)
    entity_ids[[nodes.index[label] for label in labels]] = np.arange(len(labels))
    numbers = sorted(np.unique(triples[:, 1]).tolist(), key=keys.__getitem__)
    relation_ids = np.full(len(keys), -1)
    relation_ids[numbers] = np.arange(len(numbers))
    for column, ids in enumerate((entity_ids, relation_ids, entity_ids)):
        triples[:, column] = ids[triples[:, column]]
    return _Numbering(labels, [keys[number] for number in numbers], entity_ids, relation_ids)


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


def write_kgx(kgx: KgxGraph, output_dir: Path, reasons: Reasons | None = None) -> dict[str, Any]:
    """Write the files of `write_graph` and KGX_FILES to `output_dir`, all or none; return the whole summary."""
    summary = kgx.summary
    with ExitStack() as stack:
        if kgx.evidence is not None:
            path = stack.enter_context(atomic_write(output_dir / EVIDENCE_FILE))
            summary = {**summary, "evidence": write_evidence(path, kgx.evidence)}
        if reasons is not None:
            file = stack.enter_context(open_gzip(stack.enter_context(atomic_write(output_dir / REASONS_FILE))))
            file.writelines(line.encode("utf-8") for line in reasons.lines())
            summary = {**summary, "drugmechdb": reasons.counts}
        more = {EDGE_MAP_FILE: json_text(kgx.edge_map), SUMMARY_FILE: json_text(summary)}
        write_graph(kgx.graph, output_dir, more)
    return summary


def _lines_about_filters(content: Mapping[str, Any]) -> list[str]:
    flags = {
        "by_source": "--exclude-source",
        "by_knowledge_level": "--knowledge-level",
        "by_agent_type": "--agent-type",
    }
    dropped, entities = content["dropped"], content["entities_dropped_by_degree"]
    lines = [f"Dropped by {flag}: {dropped[name]:,} edges" for name, flag in flags.items() if dropped[name]]
    if entities:
        lines.append(f"Dropped for their low degree: {entities:,} entities with {dropped['by_degree']:,} edges")
    return lines


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
        *_lines_about_filters(content),
        *(visible(remark) for remark in content["remarks"]),
    ]
    if "evidence" in content:
        held = content["evidence"]
        lines.append(
            f"Evidence of {held['edges']:,} training edges in {EVIDENCE_FILE}: {held['with_publications']:,} name "
            f"publications, {held['with_sources']:,} a source"
        )
    if dropped["of_held_out_pairs"]:
        lines.append(f"Left out of training: {dropped['of_held_out_pairs']:,} edges that join a held-out pair")
    if content["not_read"]:
        members = ", ".join(f"{visible(name)} of {number:,}" for name, number in content["not_read"].items())
        lines.append(f"Not read, though they may change what an edge says: {members} edges")
    if "drugmechdb" in content:
        found = ", ".join(
            f"{number['found']:,} of {number['read']:,} {name}" for name, number in content["drugmechdb"].items()
        )
        lines.append(f"Known reasons in {REASONS_FILE}; found of DrugMechDB: {found}")
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

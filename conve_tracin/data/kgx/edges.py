"""The edges of a KGX graph, streamed: numbers of nodes and relations, and what was counted on the way."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conve_tracin.data.kgx.biolink import Relations
from conve_tracin.data.kgx.evidence_writer import EvidenceStore, cells_of, evidence_text
from conve_tracin.data.kgx.files import MalformedLineError, Skipped, open_kgx, reject, require_text
from conve_tracin.data.kgx.provenance import FILTERS, EdgeFilters, EdgeSources, Provenances
from conve_tracin.data.kgx.styles import CLEAN_BASELINE, STYLES, SUBCLASS_OF, TREATS, EdgeBlock
from conve_tracin.data.text import shown
from conve_tracin.errors import InputError

NUM_KIND_SETS = 8

EDGES_AT_A_TIME = 2**16


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


@dataclass(eq=False)
class Edges:
    """What is left of the edges: ids of nodes and relations, and what was counted on the way.

    Attributes:
        triples: (N, 3) int32.
        is_clean: (N,) bool, as clean_baseline wants it; None for the other styles.
        read, read_pairs: counts of predicates and of pairs of kinds, (8, 8), over all edges between known nodes.
        dropped: {setting: number of edges}, for the filters and the style.
        tally: counts that are none of these.
    """

    triples: np.ndarray
    is_clean: np.ndarray | None
    relations: Relations
    provenances: Provenances
    read: Counter[str]
    read_pairs: np.ndarray
    dropped: Counter[str]
    tally: "Tally"


@dataclass(eq=False)
class Tally:
    """What was counted of the edges: negated ones that were dropped, members not read, edges of each provenance."""

    negated: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    of_provenance: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class _Block:
    """Edges between known nodes: the triple and the provenance of each, (n, 3) and (n,) int32.

    `texts` holds the evidence of each, if that is wanted.
    """

    triples: np.ndarray
    origins: np.ndarray
    texts: list[str]


def read_edges(
    path: Path,
    nodes: Nodes,
    *,
    style: str,
    keep_negated: bool,
    malformed: Skipped | None,
    unknown: Skipped | None,
    filters: EdgeFilters | None = None,
    evidence: EvidenceStore | None = None,
) -> Edges:
    """Read the edges and keep what the filters and the style keep; `malformed` and `unknown` count lines left out.

    What is kept goes to `evidence`, too. Raises InputError at the first broken line where `malformed` is None, at the
    first edge with an end that is no node where `unknown` is None, and where no edge is left.
    """
    relations, provenances, tally = Relations(keep_negated=keep_negated), Provenances(), Tally()
    choice = _Choice(style, filters or EdgeFilters(), relations, provenances, nodes)
    read_relations = np.zeros(0, dtype=np.int64)
    # One buffer that grows in place: a list of arrays would be held twice when they are joined.
    kept, is_clean = array("i"), bytearray()
    for block in _edge_blocks(path, nodes, relations, provenances, tally, malformed, unknown, evidence is not None):
        read_relations = _added(read_relations, block.triples[:, 1], len(relations))
        tally.of_provenance = _added(tally.of_provenance, block.origins, len(provenances.met))
        is_kept = choice.keeps(block)
        triples = block.triples[is_kept]
        kept.frombytes(triples.tobytes())
        if style == CLEAN_BASELINE:
            is_clean += choice.is_clean[block.origins[is_kept]].tobytes()
        if evidence is not None:
            evidence.add(triples, list(compress(block.texts, is_kept.tolist())))
    if not kept:
        remedy = _why_nothing_is_left(style, choice.dropped, unknown, tally)
        raise InputError(
            f"{path}: no edge is left of {int(read_relations.sum()):,} between known nodes; {remedy}"
        )  # fmt: skip
    read = Counter()
    for predicate, number in zip(relations.predicates, read_relations.tolist(), strict=True):
        read[predicate] += number
    return Edges(
        np.frombuffer(kept, dtype=np.int32).reshape(-1, 3),
        np.frombuffer(is_clean, dtype=bool) if style == CLEAN_BASELINE else None,
        relations, provenances, read, choice.read_pairs.reshape(NUM_KIND_SETS, NUM_KIND_SETS), choice.dropped, tally,
    )  # fmt: skip


def _added(counts: np.ndarray, numbers: np.ndarray, size: int) -> np.ndarray:
    """Add to the counts of numbers, which may have grown to `size`."""
    more = np.bincount(numbers, minlength=size)
    more[: len(counts)] += counts
    return more


def _why_nothing_is_left(style: str, dropped: Mapping[str, int], unknown: Skipped | None, tally: Tally) -> str:
    dropping = [f"--{name.replace('_', '-')} drops {number:,}" for name, number in dropped.items()
                if name in FILTERS and number]  # fmt: skip
    if dropping:
        return f"{' and '.join(dropping)} of them, choose otherwise"
    if dropped["style"]:
        return f"--style {style} keeps none of them, try keepall"
    if unknown is not None and unknown.number:
        return f"{unknown.number:,} have an end that is not in --nodes, give the nodes of this graph"
    if tally.negated:
        return f"{tally.negated:,} are negated, --negated keep gives them relations of their own"
    return "give a KGX edges.jsonl"


class _Choice:
    """Which edges are kept, and how many were dropped by what.

    Attributes:
        read_pairs: edges of each pair of kinds, (64,), dropped ones too.
        dropped: {setting: number of edges}.
        is_clean: of each provenance met so far, (P,) bool.
    """

    def __init__(
        self, style: str, filters: EdgeFilters, relations: Relations, provenances: Provenances, nodes: Nodes
    ) -> None:
        self.read_pairs = np.zeros(NUM_KIND_SETS**2, dtype=np.int64)
        self.dropped = Counter(dict.fromkeys((*FILTERS, "style"), 0))
        self.is_clean = np.zeros(0, dtype=bool)
        self._style, self._filters = STYLES[style], filters
        self._relations, self._provenances = relations, provenances
        self._kinds = np.frombuffer(nodes.kinds, dtype=np.uint8)
        self._reasons = np.zeros(0, dtype=np.int64)  # 0: kept, n: dropped by the nth filter

    def keeps(self, block: _Block) -> np.ndarray:
        """Tell which edges of a block are kept, (n,) bool."""
        self._look_at(self._provenances.met[len(self._reasons) :])
        heads, relations, tails = block.triples.T
        head_kinds, tail_kinds = self._kinds[heads], self._kinds[tails]
        pairs = head_kinds.astype(np.int64) * NUM_KIND_SETS + tail_kinds
        self.read_pairs += np.bincount(pairs, minlength=NUM_KIND_SETS**2)
        is_subclass, is_treats = (self._relations.with_predicate(name)[relations] for name in (SUBCLASS_OF, TREATS))
        reasons = self._reasons[block.origins]
        passes = reasons == 0
        is_kept = passes & self._style(EdgeBlock(head_kinds, tail_kinds, is_subclass, is_treats))
        for number, name in enumerate(FILTERS, start=1):
            self.dropped[name] += int((reasons == number).sum())
        self.dropped["style"] += int((passes & ~is_kept).sum())
        return is_kept

    def _look_at(self, new: list[EdgeSources]) -> None:
        if new:
            reasons = [self._filters.dropped_by(each) for each in new]
            numbers = [0 if name is None else 1 + FILTERS.index(name) for name in reasons]
            self._reasons = np.append(self._reasons, np.array(numbers))
            self.is_clean = np.append(self.is_clean, np.array([each.is_clean for each in new]))


def _edge_blocks(
    path: Path,
    nodes: Nodes,
    relations: Relations,
    provenances: Provenances,
    tally: Tally,
    malformed: Skipped | None,
    unknown: Skipped | None,
    with_evidence: bool,
) -> Iterator[_Block]:
    """Yield the edges between known nodes, at most EDGES_AT_A_TIME at a time."""
    index = nodes.index
    flat, texts, cells = array("i"), [], []
    with (
        open_kgx(path, "edges") as (parse, blocks),
        tqdm(desc="edges", unit=" lines", leave=False, disable=None) as bar,
    ):
        for first, lines in blocks:
            for line_number, line in enumerate(lines, start=first):
                try:
                    edge = parse(line)
                    subject, object_ = require_text(edge, "subject"), require_text(edge, "object")
                    shape = relations.shape_of(edge)
                    relation = relations.number(edge, shape)
                except MalformedLineError as error:
                    reject(
                        f"{path}:{line_number}", str(error), malformed, flag="--skip-malformed",
                        remedy="an edge has a subject, a predicate and an object",
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
                origin = provenances.number(edge, shape)
                flat.extend((head, relation, tail, origin))
                if with_evidence:
                    if origin == len(cells):
                        cells.append(cells_of(provenances.met[origin]))
                    # At once: to keep the edge itself until its style is known costs more.
                    texts.append(evidence_text(edge, shape, cells[origin]))
                if len(flat) == 4 * EDGES_AT_A_TIME:
                    yield _block_of(flat, texts)
                    del flat[:], texts[:]
            bar.update(len(lines))
    if flat:
        yield _block_of(flat, texts)


def _block_of(flat: array, texts: list[str]) -> _Block:
    rows = np.array(flat, dtype=np.int32).reshape(-1, 4)
    return _Block(rows[:, :3], rows[:, 3], texts)

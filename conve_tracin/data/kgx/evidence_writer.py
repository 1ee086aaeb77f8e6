"""What stands behind the training triples of a KGX graph, as the lines of `evidence.tsv.gz`.

The file is UTF-8, gzip-compressed and tab-separated, with the columns of EVIDENCE_COLUMNS in its first line and then a
line for each edge whose triple is in training, in the order of the edges' file. Edges that became one triple have a
line each. Several values of a column are joined with `|`. In a value, control characters (tabs and line ends among
them) are blanks, and `|` is written `¦`; all else stays as it is.

Which triples are in training shows when all edges have been read. Until then their evidence waits in a temporary file,
so that memory does not grow with it.
"""

import json
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from conve_tracin.data.evidence_columns import EVIDENCE_COLUMNS, SEPARATOR
from conve_tracin.data.keys import is_among, triple_keys
from conve_tracin.data.kgx.biolink import EdgeShape
from conve_tracin.data.kgx.provenance import EdgeSources
from conve_tracin.data.splits import SplitGraph
from conve_tracin.data.text import CONTROL_CHARACTERS
from conve_tracin.files import not_writable, open_gzip

EVIDENCE_FILE = "evidence.tsv.gz"

STAND_IN = "¦"

OWN_COLUMNS = EVIDENCE_COLUMNS[3:]

PUBLICATIONS = OWN_COLUMNS.index("publications")

_COUNTS = struct.Struct("<qq")


def cell(value: Any) -> str:
    """Return a value of an edge as text; the parts of a list are joined with SEPARATOR."""
    if type(value) is str:
        return value if value.isprintable() and SEPARATOR not in value else _clean(value)
    if type(value) is list:
        return _joined(value)
    return "" if value is None else _clean(json.dumps(value, ensure_ascii=False))


def _joined(values: list[Any]) -> str:
    try:
        joined = SEPARATOR.join(values)
    except TypeError:  # not all are texts
        return SEPARATOR.join(filter(None, map(cell, values)))
    if joined.isprintable() and joined.count(SEPARATOR) == len(values) - 1 and "" not in values:
        return joined
    return SEPARATOR.join(filter(None, map(_clean, values)))


def _clean(text: str) -> str:
    text = CONTROL_CHARACTERS.sub(" ", text).replace(SEPARATOR, STAND_IN).strip()
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold half a character


def cells_of(provenance: EdgeSources) -> list[str]:
    """Return the cells of OWN_COLUMNS that a provenance fills, the others empty."""
    filled = {
        "primary_knowledge_source": provenance.primary,
        "aggregator_knowledge_source": provenance.aggregators,
        "knowledge_level": provenance.knowledge_level,
        "agent_type": provenance.agent_type,
    }
    return [cell(list(filled.get(name, ()))) for name in OWN_COLUMNS]


def evidence_text(edge: Mapping[str, Any], shape: EdgeShape, provenance_cells: Sequence[str]) -> str:
    """Return the line of an edge behind its triple."""
    cells = list(provenance_cells)
    for place, member in shape.evidence:
        value = edge[member]
        if place == PUBLICATIONS and type(value) is str and SEPARATOR in value:
            value = value.split(SEPARATOR)  # as tables join them
        cells[place] = cell(value)
    return "\t".join(cells)


class EvidenceStore:
    """Evidence of edges in a temporary file, in the order of the edges."""

    def __init__(self, file: BinaryIO, directory: Path) -> None:
        self._file = file
        self._directory = directory

    def add(self, triples: np.ndarray, lines: Sequence[str]) -> None:
        """Store the triples (n, 3) int32 of some edges, and the text of each; raise InputError if the disk is full."""
        if not lines:
            return
        text = zlib.compress("\n".join(lines).encode("utf-8"), 1)
        try:
            self._file.write(_COUNTS.pack(len(triples), len(text)))
            self._file.write(np.ascontiguousarray(triples, dtype=np.int32).tobytes())
            self._file.write(text)
        except OSError as error:
            raise not_writable(self._directory, error) from error

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[str]]]:
        """Yield what was added, piece by piece."""
        self._file.seek(0)
        while counts := self._file.read(_COUNTS.size):
            number, size = _COUNTS.unpack(counts)
            triples = np.frombuffer(self._file.read(number * 12), dtype=np.int32).reshape(-1, 3)
            yield triples, zlib.decompress(self._file.read(size)).decode("utf-8").split("\n")


@contextmanager
def open_evidence_store(directory: Path) -> Iterator[EvidenceStore]:
    """Open a store in `directory`; its file has no name, and goes with the process. InputError if it cannot be made."""
    try:
        file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
    except OSError as error:
        raise not_writable(directory, error) from error
    with file:
        yield EvidenceStore(file, directory)


@dataclass(frozen=True, eq=False)
class TrainingEvidence:
    """What is needed to write the evidence of a graph's training triples.

    Attributes:
        store: the evidence of all edges that were kept at reading, by numbers of nodes and relations.
        is_kept: which of these edges count, (N,) bool; None: all of them.
        entity_ids, relation_ids: for each such number, the id in `graph`, or -1.
        graph: with its splits.
    """

    store: EvidenceStore
    is_kept: np.ndarray | None
    entity_ids: np.ndarray
    relation_ids: np.ndarray
    graph: SplitGraph

    def blocks(self) -> Iterator[tuple[np.ndarray, list[str]]]:
        """Yield the training triples as ids of the graph, (n, 3), and the evidence of each; edge by edge."""
        sizes = np.array([len(self.graph.entities), len(self.graph.relations), len(self.graph.entities)])
        trained = np.sort(triple_keys(self.graph.splits["train"], sizes))
        start = 0
        for numbers, lines in self.store:
            places = (self.entity_ids, self.relation_ids, self.entity_ids)
            ids = np.stack([of[column] for of, column in zip(places, numbers.T, strict=True)], axis=1)
            keys = np.where((ids < 0).any(axis=1), -1, triple_keys(ids, sizes))
            is_trained = is_among(keys, trained)
            if self.is_kept is not None:
                is_trained &= self.is_kept[start : start + len(lines)]
                start += len(lines)
            chosen = np.flatnonzero(is_trained)
            yield ids[chosen], [lines[place] for place in chosen.tolist()]


def write_evidence(path: Path, evidence: TrainingEvidence) -> dict[str, int]:
    """Write the file; return how many edges it holds, how many of them name publications, and how many a source.

    Raises InputError where it cannot be written.
    """
    entities, relations = (np.array(of, dtype=object) for of in (evidence.graph.entities, evidence.graph.relations))
    counts = dict.fromkeys(("edges", "with_publications", "with_sources"), 0)
    with open_gzip(path) as file:
        file.write(("\t".join(EVIDENCE_COLUMNS) + "\n").encode())
        for ids, lines in evidence.blocks():
            heads, labels, tails = ids.T
            columns = (entities[heads], relations[labels], entities[tails], lines)
            text = "".join(map("{}\t{}\t{}\t{}\n".format, *columns))
            file.write(text.encode("utf-8"))
            counts["edges"] += len(lines)
            for line in lines:
                _, primary, aggregators, publications, _ = line.split("\t", 4)
                counts["with_publications"] += bool(publications)
                counts["with_sources"] += bool(primary or aggregators)
    return counts

"""What stands behind training triples: edges of a KGX graph with their sources and publications.

Read from the `evidence.tsv.gz` of prepare_data.py: tab-separated, plain or .gz, the names of the columns on the first
line and an edge on each other one. Several edges may be one triple. Columns that this module does not know are kept.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conve_tracin.data.evidence_columns import EVIDENCE_COLUMNS, SEPARATOR
from conve_tracin.data.keys import is_among, triple_keys
from conve_tracin.data.text import column_trouble, line_blocks, shown
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError

Triple = tuple[int, int, int]
# What a column says of an edge; columns that say nothing are left out.
Edge = dict[str, str | float | list[str]]

TRIPLE_COLUMNS = EVIDENCE_COLUMNS[:3]
LIST_COLUMNS = {"aggregator_knowledge_source", "publications", "supporting_text", "hetio_source"}
NUMBER_COLUMNS = {"has_confidence_score", "evidence_count", "max_research_phase"}
REMEDY = "give the evidence.tsv.gz that prepare_data.py wrote beside these triples"


@dataclass(frozen=True, eq=False)
class Evidence:
    """The edges behind some triples (ids of the files), each in the order of the file.

    Attributes:
        columns: of the file, behind those of the triple.
        edges: {triple: its edges}; triples without any are left out.
    """

    columns: tuple[str, ...]
    edges: dict[Triple, list[Edge]] = field(default_factory=dict)

    def of(self, triple: Triple) -> list[Edge]:
        """Return the edges behind a triple."""
        return self.edges.get(triple, [])


def read_evidence(
    path: Path,
    wanted: Collection[Triple],
    *,
    entities: Vocabulary,
    relations: Vocabulary,
    total: int | None = None,
) -> Evidence:
    """Read the edges behind the wanted triples; of other lines no more than the head is looked at.

    Args:
        path: the file.
        wanted: triples in the ids of the files.
        entities, relations: the mappings.
        total: about how many lines there are, for the progress bar.

    Raises InputError for a file without these columns, and a wanted line that has other ones.
    """
    columns = read_columns(path)
    vocabularies = (entities, relations, entities)
    by_labels = {
        "\t".join(vocabulary.labels[id_] for vocabulary, id_ in zip(vocabularies, triple, strict=True)).encode(): triple
        for triple in wanted
    }
    evidence = Evidence(columns[len(TRIPLE_COLUMNS) :])
    with tqdm(total=total, desc="evidence", unit=" lines", unit_scale=True, delay=2) as bar:
        for number, labels, line in _lines_about(path, by_labels, bar):
            values = line.decode("utf-8").split("\t")
            if len(values) != len(columns):
                raise InputError(f"{path}:{number}: {column_trouble(values, len(columns))}")
            edge = dict(zip(evidence.columns, values[len(TRIPLE_COLUMNS) :], strict=True))
            evidence.edges.setdefault(by_labels[labels], []).append(_parsed(edge))
    return evidence


def _lines_about(path: Path, wanted: Collection[bytes], bar: tqdm) -> Iterator[tuple[int, bytes, bytes]]:
    r"""Yield (number, head\trelation\ttail, whole line) of the lines about wanted triples."""
    # One look at the head settles most of the lines, without a list of their columns.
    heads = {labels.partition(b"\t")[0] for labels in wanted}
    for first, block in line_blocks(path):
        lines = block.split(b"\n")
        for number, line in enumerate(lines, start=first):
            if line[: line.find(b"\t")] in heads:
                labels = b"\t".join(line.split(b"\t", 3)[:3])
                if labels in wanted:
                    yield number, labels, line
        bar.update(len(lines) - 1)


def read_columns(path: Path) -> tuple[str, ...]:
    """Read the names of the columns; raise InputError where they are not those of such a file."""
    first = next(line_blocks(path), None)
    if first is None:
        raise InputError(f"{path}: is empty; {REMEDY}")
    columns = tuple(first[1].partition(b"\n")[0].decode("utf-8").split("\t"))
    if columns[: len(TRIPLE_COLUMNS)] != TRIPLE_COLUMNS or len(columns) == len(TRIPLE_COLUMNS):
        raise InputError(
            f"{path}:1: the columns are not {', '.join(TRIPLE_COLUMNS)} and what is known of an edge, but "
            f"{shown(' '.join(columns))}; {REMEDY}"
        )
    if len(set(columns)) < len(columns):
        twice = next(name for place, name in enumerate(columns) if name in columns[:place])
        raise InputError(f"{path}:1: the column {shown(twice)} stands twice; delete one of them")
    return columns


def _parsed(values: dict[str, str]) -> Edge:
    return {name: _value(name, text) for name, text in values.items() if text}


def _value(name: str, text: str) -> str | float | list[str]:
    if name in LIST_COLUMNS:
        return [part for part in text.split(SEPARATOR) if part]
    if name in NUMBER_COLUMNS:
        try:
            number = float(text)
        except ValueError:
            return text
        # JSON has no number for the others.
        return (int(number) if number == int(number) else number) if np.isfinite(number) else text
    return text


def as_text(value: str | float | list[str]) -> str:
    """Write a value as the file has it."""
    return SEPARATOR.join(value) if isinstance(value, list) else str(value)


def require_evidence_of(
    path: Path, training_triples: np.ndarray, *, entities: Vocabulary, relations: Vocabulary
) -> None:
    """Raise InputError if none of the training triples (N, 3) stands in the file, or it is no such file.

    Reads on until it finds one: mostly the beginning.
    """
    read_columns(path)
    sizes = len(entities), len(relations), len(entities)
    in_training = triple_keys(training_triples, sizes)
    for _, block in line_blocks(path):
        triples = [_ids(line, entities, relations) for line in block.split(b"\n")]
        triples = np.array([triple for triple in triples if triple is not None], dtype=np.int64).reshape(-1, 3)
        if is_among(in_training, np.sort(triple_keys(triples, sizes))).any():
            return
    raise InputError(f"{path}: none of the training triples stands in it, so it is of another graph; {REMEDY}")


def _ids(line: bytes, entities: Vocabulary, relations: Vocabulary) -> Triple | None:
    columns = line.decode("utf-8").split("\t", 3)
    if len(columns) < len(TRIPLE_COLUMNS):
        return None
    ids = (entities.index.get(columns[0]), relations.index.get(columns[1]), entities.index.get(columns[2]))
    return None if None in ids else ids

"""Files of triples to ids, and test triples by ids, labels or names."""

import csv
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np

from conve_tracin.data.names import SHOWN_LABELS
from conve_tracin.data.text import (
    UNWRITABLE,
    as_id,
    column_trouble,
    line_blocks,
    read_lines,
    require_writable,
    shown,
    shown_id,
    suggestion,
)
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.files import write_together

logger = logging.getLogger(__name__)

COLUMN_NAMES = ("head", "relation", "tail")

# What stands for the end of a triple that a query asks for.
ASKED = "?"

HEADER_WORDS = {"head", "subject", "source", "h", "head_id", "relation", "predicate", "tail", "object", "target"}

TAB, LINE_FEED = 9, 10


def read_triples(
    path: str | Path, entities: Vocabulary, relations: Vocabulary, *, skip_unknown: bool = False
) -> np.ndarray:
    """Read `head<TAB>relation<TAB>tail` lines as ids.

    Returns an int64 array of shape (N, 3) in the order of the file. With `skip_unknown`, triples with a label
    that the vocabularies lack are left out, and a warning is logged that says how many and which labels.

    Raises InputError at the first line that has other than three filled columns or an unknown label, and where
    no triple is left.
    """
    return _read_triples(Path(path), entities, relations, skip_unknown=skip_unknown)[0]


def read_triples_and_places(
    path: str | Path, entities: Vocabulary, relations: Vocabulary, *, skip_unknown: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Read the same, (N, 3), and the place of each triple in the file, counted from 0 over all its lines: (N,)."""
    triples, dropped = _read_triples(Path(path), entities, relations, skip_unknown=skip_unknown)
    return triples, np.delete(np.arange(len(triples) + len(dropped)), dropped)


def _read_triples(
    path: Path, entities: Vocabulary, relations: Vocabulary, *, skip_unknown: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the triples and the places of those that were dropped."""
    import pandas as pd

    entity_index = pd.Index(entities.labels, dtype=object)
    relation_index = pd.Index(relations.labels, dtype=object)
    indexes = (entity_index, relation_index, entity_index)
    vocabularies = (entities, relations, entities)

    found: list[np.ndarray] = []  # each (n, 3)
    dropped = [np.empty(0, dtype=np.int64)]
    unknown_labels: dict[str, None] = {}
    for first_line, columns in label_blocks(path):
        ids = [index.get_indexer(column) for index, column in zip(indexes, columns, strict=True)]  # 3 x (n,)
        ids = np.stack(ids, axis=1, dtype=np.int32, casting="same_kind")  # (n, 3)
        known = ids >= 0
        complete = known.all(axis=1)
        if not complete.all():
            row, column = np.argwhere(~known)[0]
            if not skip_unknown:
                where = f"{path}:{first_line + row}"
                raise InputError(unknown_label(where, columns[column][row], vocabularies[column], COLUMN_NAMES[column]))
            if len(unknown_labels) < 5:
                labels = np.stack(columns, axis=1)[~known]
                unknown_labels.update(dict.fromkeys(pd.unique(labels)[:5]))
            ids = ids[complete]
            dropped.append(np.flatnonzero(~complete) + first_line - 1)
        found.append(ids)

    triples, places_dropped = np.concatenate(found, dtype=np.int64), np.concatenate(dropped)
    if len(places_dropped):
        total = len(triples) + len(places_dropped)
        trouble = f"{len(places_dropped)} of {total} triples have labels that {entities.source} or "
        trouble += f"{relations.source} lacks (first: {', '.join(map(shown, islice(unknown_labels, 5)))})"
        if len(triples) == 0:
            raise InputError(f"{path}: {trouble}, and none is left; give the mappings that belong to this file")
        logger.warning("%s: %s; they were dropped", path, trouble)
    return triples, places_dropped


def label_blocks(path: Path) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield (number of the first line, [heads, relations, tails]) of a triples file, a block at a time.

    The columns are object arrays of strings. Lines above a malformed one are yielded before InputError is
    raised, so that whoever finds something wrong with them speaks first.
    """
    empty = True
    for line_number, block in line_blocks(path):
        empty = False
        trouble = first_malformed_line(block)
        if trouble is None:
            yield line_number, split_columns(block)
            continue
        lines_above, message = trouble
        if lines_above > 0:
            above = block.split(b"\n")[:lines_above]
            yield line_number, split_columns(b"\n".join([*above, b""]))
        raise InputError(f"{path}:{line_number + lines_above}: {message}")
    if empty:
        raise InputError(f"{path}: is empty; give a file with at least one triple")


def first_malformed_line(block: bytes) -> tuple[int, str] | None:
    """Return (number of lines before it, what is wrong) of the first line without three filled columns."""
    data = np.frombuffer(block, dtype=np.uint8)
    separators = np.flatnonzero((data == TAB) | (data == LINE_FEED))
    if len(separators) % 3 == 0:
        kinds = data[separators].reshape(-1, 3)
        three_columns = (kinds == (TAB, TAB, LINE_FEED)).all()
        if three_columns and (np.diff(separators, prepend=-1) > 1).all() and b"\r" not in block:
            return None
    for number, line in enumerate(block.decode("utf-8").split("\n")[:-1]):
        trouble = column_trouble(line.split("\t"), 3)
        if trouble is not None:
            return number, trouble
    raise AssertionError("the fast and the slow check of the columns disagree")


def split_columns(block: bytes) -> list[np.ndarray]:
    """Return heads, relations and tails as object arrays of strings; every line must have three columns."""
    import pandas as pd

    table = pd.read_csv(
        BytesIO(block),
        sep="\t",
        names=list(COLUMN_NAMES),
        index_col=False,
        dtype=object,
        encoding="utf-8",
        engine="c",
        lineterminator="\n",
        quoting=csv.QUOTE_NONE,
        na_filter=False,  # the labels "NA" and "null" are labels
        skip_blank_lines=False,
        low_memory=False,
    )
    return [table[name].to_numpy() for name in COLUMN_NAMES]


def unknown_label(where: str, label: str, vocabulary: Vocabulary, column: str) -> str:
    """Return the message for a label in a triples file that its vocabulary lacks."""
    message = f"{where}: unknown {vocabulary.kind} {shown(label)} ({column}), {vocabulary.source} lacks it; "
    if where.endswith(":1") and label.casefold() in HEADER_WORDS:
        return message + "triples files have no header, delete the line"
    if as_id(label) is not None:
        return message + "triples files hold labels, not ids (--skip-unknown drops such triples)"
    return message + suggestion(label, vocabulary.labels, otherwise="add it") + " (--skip-unknown drops such triples)"


def write_triples(path: str | Path, label_triples: Iterable[tuple[str, str, str]]) -> None:
    """Write `head<TAB>relation<TAB>tail` lines, whole or not at all.

    Raises InputError for a label that the format cannot hold: an empty one, or one with a tab or a line end.
    """
    write_together({Path(path): triple_lines(path, label_triples)})


def triple_lines(path: str | Path, label_triples: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Yield the lines of `write_triples`."""
    for head, relation, tail in label_triples:
        if not (head and relation and tail) or UNWRITABLE.search(head + relation + tail):
            require_writable(path, head, relation, tail)
        yield f"{head}\t{relation}\t{tail}\n"


# Which ids of a vocabulary's kind are called so, besides by their labels.
IdsCalled = Callable[[str, str], Sequence[int]]


def resolve_triple(
    values: Sequence[str | int],
    entities: Vocabulary,
    relations: Vocabulary,
    *,
    ids_called: IdsCalled = lambda _kind, _text: (),
) -> tuple[int, int, int]:
    """Return the ids of a triple given as head, relation and tail, each an id, a label or a name.

    Three integers are ids. Otherwise a value that is a label is that label, and an integer that is no label is
    an id: "00260881 _hypernym 05074774" means the WordNet labels, "12 treats 7" two ids and a label. What is neither
    may be a name, with `ids_called`.

    Raises InputError for a label that is unknown, an id that is out of range, or a name that several have.
    """
    # A shell that reads a file with Windows line ends leaves half of them on the tail.
    texts = [str(value).removesuffix("\r") for value in values]
    if len(texts) != 3:
        raise InputError(f"a triple is head, relation and tail, got {len(texts)} values; give three")
    vocabularies = (entities, relations, entities)
    resolved = resolve_values(list(zip(COLUMN_NAMES, texts, vocabularies, strict=True)), ids_called=ids_called)
    return resolved[0], resolved[1], resolved[2]


def resolve_values(values: Sequence[tuple[str, str, Vocabulary]], *, ids_called: IdsCalled) -> list[int]:
    """Return the ids of (column, text, its vocabulary), several that belong together, as in `resolve_triple`."""
    ids = [as_id(text) for _, text, _ in values]
    only_ids = None not in ids
    resolved = []
    for (column, text, vocabulary), position in zip(values, ids, strict=True):
        if position is None or (not only_ids and text in vocabulary.index):
            resolved.append(id_of_value(column, text, vocabulary, ids_called=ids_called))
        elif 0 <= position < len(vocabulary):
            resolved.append(position)
        else:
            raise InputError(out_of_range(column, text, vocabulary))
    return resolved


def id_of_value(column: str, text: str, vocabulary: Vocabulary, *, ids_called: IdsCalled) -> int:
    """Return the id of a label, or of a name; the error names the column of the triple."""
    try:
        return vocabulary.id_of(text)
    except InputError as error:
        message = str(error)
    called = ids_called(vocabulary.kind, text)
    if len(called) == 1:
        return called[0]
    if called:
        labels = ", ".join(shown(vocabulary.labels[position]) for position in called[:SHOWN_LABELS])
        more = ", …" if len(called) > SHOWN_LABELS else ""
        message = f"{shown(text)} is the name of {len(called)}: {labels}{more}; give one of these labels"
    raise InputError(f"{column}: {message}")


def out_of_range(column: str, text: str, vocabulary: Vocabulary) -> str:
    """Return the message for an id that the vocabulary does not have."""
    message = f"{column}: {vocabulary.kind} id {shown_id(text)} is out of range; {vocabulary.source} has ids "
    message += f"0 to {len(vocabulary) - 1}"
    if text in vocabulary.index:
        message += f" (three integers are ids; the label {text!r} has the id {vocabulary.index[text]})"
    return message


def resolve_query(
    values: Sequence[str],
    entities: Vocabulary,
    relations: Vocabulary,
    *,
    ids_called: IdsCalled = lambda _kind, _text: (),
) -> tuple[int, int]:
    """Return the query of a triple whose head or tail is `?`: (head, relation), or (tail, ~relation) for its head.

    What is given are ids, labels or names as in `resolve_triple`; two integers are ids.

    Raises InputError unless one end is asked for, and what `resolve_triple` raises.
    """
    texts = [str(value).removesuffix("\r") for value in values]
    head, relation, tail = texts
    if relation == ASKED:
        raise InputError("a relation cannot be asked for; write ? for the head or the tail")
    if (head == ASKED) == (tail == ASKED):
        trouble = "head and tail are both asked for" if head == ASKED else "neither head nor tail is asked for"
        raise InputError(f"{trouble}; give one of them, and ask for the other")
    vocabularies = (entities, relations, entities)
    given = [value for value in zip(COLUMN_NAMES, texts, vocabularies, strict=True) if value[1] != ASKED]
    first, second = resolve_values(given, ids_called=ids_called)
    return (first, second) if tail == ASKED else (second, ~first)


def read_test_triples(
    path: str | Path,
    entities: Vocabulary,
    relations: Vocabulary,
    *,
    ids_called: IdsCalled = lambda _kind, _text: (),
) -> np.ndarray:
    """Read a list of test triples, one `H R T` a line, each value an id, a label or a name as in `resolve_triple`.

    Columns are separated by tabs, or by blanks on a line without a tab. A table is read, too: of more columns, whose
    names stand on the first line; those called head, relation and tail hold labels or names.

    Returns int64, shape (N, 3). Raises InputError at the first line that is no triple of these vocabularies.
    """
    path = Path(path)
    lines = read_lines(path)
    header = lines[0].split("\t")
    if len(header) > len(COLUMN_NAMES) and set(COLUMN_NAMES) <= set(header):
        return _triples_of_table(path, header, lines[1:], (entities, relations, entities), ids_called)

    def resolve(columns: Sequence[str]) -> tuple[int, int, int]:
        return resolve_triple(columns, entities, relations, ids_called=ids_called)

    return np.array(_resolve_lines(path, lines, resolve), dtype=np.int64)


def read_queries(
    path: str | Path,
    entities: Vocabulary,
    relations: Vocabulary,
    *,
    ids_called: IdsCalled = lambda _kind, _text: (),
) -> np.ndarray:
    """Read queries, a triple with one `?` a line as in `resolve_query`: int64, shape (Q, 2), in the file's order.

    Raises InputError at the first line that is no query of these vocabularies.
    """

    def resolve(columns: Sequence[str]) -> tuple[int, int]:
        return resolve_query(columns, entities, relations, ids_called=ids_called)

    return np.array(_resolve_lines(Path(path), read_lines(Path(path)), resolve), dtype=np.int64)


def _resolve_lines(
    path: Path, lines: Sequence[str], resolve: Callable[[Sequence[str]], tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Resolve lines of three columns; the error names the line."""
    resolved = []
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t") if "\t" in line or not line.strip() else line.split()
        trouble = column_trouble(columns, 3)
        if trouble is not None:
            raise InputError(f"{path}:{number}: {trouble}")
        try:
            resolved.append(resolve(columns))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return resolved


def _triples_of_table(
    path: Path,
    header: Sequence[str],
    lines: Sequence[str],
    vocabularies: tuple[Vocabulary, Vocabulary, Vocabulary],
    ids_called: IdsCalled,
) -> np.ndarray:
    if not lines:
        raise InputError(f"{path}: has no line below the names of its columns; give at least one triple")
    places = [header.index(name) for name in COLUMN_NAMES]
    triples = []
    for number, line in enumerate(lines, start=2):
        columns = line.split("\t")
        if len(columns) != len(header):
            raise InputError(f"{path}:{number}: {column_trouble(columns, len(header))}")
        try:
            triples.append(
                [
                    id_of_value(name, columns[place], vocabulary, ids_called=ids_called)
                    for name, place, vocabulary in zip(COLUMN_NAMES, places, vocabularies, strict=True)
                ]
            )
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return np.array(triples, dtype=np.int64)

"""What a user wrote for a triple or a query, on the command line or in a file, as ids."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from conve_tracin.data.finding import Finder
from conve_tracin.data.text import as_id, column_trouble, read_lines, shown, shown_id
from conve_tracin.data.triples import COLUMN_NAMES
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError

# The column of a triple, what is given there, and the vocabulary of that column.
Value = tuple[str, str, Vocabulary]

# What stands for the end of a triple that a query asks for.
ASKED = "?"


def resolve_triple(
    values: Sequence[str | int],
    entities: Vocabulary,
    relations: Vocabulary,
    *,
    finder: Finder | None = None,
    given_as: str | None = None,
) -> tuple[int, int, int]:
    """Return the ids of a triple given as head, relation and tail, each an id, a label or what `finder` finds.

    `given_as` is "ids", "labels" (or names), or None. Then three integers are ids, and in a triple with words an
    integer is a label where there is one: "00260881 _hypernym 05074774" means the WordNet labels, "12 treats 7" two ids
    and a label. Where integers are labels of another triple than they are ids of, neither is chosen.

    Raises InputError for a label that is unknown, an id that is out of range, a name that several have, and a triple
    that can be read in two ways.
    """
    # A shell that reads a file with Windows line ends leaves half of them on the tail.
    texts = [str(value).removesuffix("\r") for value in values]
    if len(texts) != 3:
        raise InputError(f"a triple is head, relation and tail, got {len(texts)} values; give three")
    vocabularies = (entities, relations, entities)
    values = list(zip(COLUMN_NAMES, texts, vocabularies, strict=True))
    resolved = resolve_values(values, finder=finder, given_as=given_as)
    return resolved[0], resolved[1], resolved[2]


def resolve_values(values: Sequence[Value], *, finder: Finder | None, given_as: str | None = None) -> list[int]:
    """Return the ids of several values that belong together, by the rules of `resolve_triple`."""
    are_ids = [as_id(text) is not None for _, text, _ in values]
    if given_as == "ids" or (given_as is None and all(are_ids)):
        resolved = [_id_given(*value) for value in values]
    else:
        resolved = [
            _id_given(*value) if given_as is None and is_id and value[1] not in value[2].index
            else id_of_value(*value, finder=finder)
            for value, is_id in zip(values, are_ids, strict=True)
        ]  # fmt: skip
    if given_as is None:
        _require_one_reading(values, are_ids, resolved, finder)
    return resolved


def _id_given(column: str, text: str, vocabulary: Vocabulary) -> int:
    position = as_id(text)
    if position is None:
        raise InputError(f"{column}: {shown(text)} is not an integer; leave --ids out")
    if not 0 <= position < len(vocabulary):
        raise InputError(out_of_range(column, text, vocabulary))
    return position


def _require_one_reading(
    values: Sequence[Value],
    are_ids: Sequence[bool],
    resolved: Sequence[int],
    finder: Finder | None,
) -> None:
    """Raise InputError where the values mean another triple, too, or a label is another's name."""
    as_ids, as_labels = list(resolved), list(resolved)
    for place, (column, text, vocabulary) in enumerate(values):
        label_id = vocabulary.index.get(text)
        if are_ids[place]:
            as_ids[place], as_labels[place] = as_id(text), label_id
        elif label_id is not None and _is_name_of_another(text, label_id, vocabulary, finder):
            raise InputError(
                f"{column}: {shown(text)} is a label, and the name of another {vocabulary.kind}; add --labels for the "
                "label, or give the other's label"
            )
    if all(are_ids):
        differs = None not in as_labels and as_labels != as_ids
    else:
        in_range = all(0 <= id_ < len(value[2]) for id_, value in zip(as_ids, values, strict=True))
        differs = in_range and any(
            label_id is not None and label_id != id_ for id_, label_id in zip(as_ids, as_labels, strict=True)
        )
    if differs:
        given = " ".join(text for _, text, _ in values)
        raise InputError(
            f"{shown(given)} means one triple by ids and another by labels, as labels of this graph are integers; "
            "add --ids or --labels"
        )


def _is_name_of_another(text: str, label_id: int, vocabulary: Vocabulary, finder: Finder | None) -> bool:
    return finder is not None and bool(set(finder.names.ids_called(vocabulary.kind, text)) - {label_id})


def id_of_value(column: str, text: str, vocabulary: Vocabulary, *, finder: Finder | None) -> int:
    """Return the id of a label, or of what `finder` finds; the error names the column of the triple."""
    try:
        return vocabulary.id_of(text) if finder is None else finder.id_of(vocabulary.kind, text)
    except InputError as error:
        raise InputError(f"{column}: {error}") from None


def out_of_range(column: str, text: str, vocabulary: Vocabulary) -> str:
    """Return the message for an id that the vocabulary does not have."""
    message = f"{column}: {vocabulary.kind} id {shown_id(text)} is out of range; {vocabulary.source} has ids "
    message += f"0 to {len(vocabulary) - 1}"
    if text in vocabulary.index:
        message += (
            f" (three integers are ids; the label {text!r} has the id {vocabulary.index[text]}); --labels reads labels"
        )
    return message


def resolve_query(
    values: Sequence[str],
    entities: Vocabulary,
    relations: Vocabulary,
    *,
    finder: Finder | None = None,
    given_as: str | None = None,
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
    first, second = resolve_values(given, finder=finder, given_as=given_as)
    return (first, second) if tail == ASKED else (second, ~first)


def read_test_triples(
    path: str | Path,
    entities: Vocabulary,
    relations: Vocabulary,
    *,
    finder: Finder | None = None,
    given_as: str | None = None,
) -> np.ndarray:
    """Read a list of test triples, one `H R T` a line, each value an id, a label or a name as in `resolve_triple`.

    Columns are separated by tabs, or by blanks on a line without a tab. A table is read, too: of more columns, whose
    names stand on the first line; those called head, relation and tail hold labels or names (with `given_as` "ids",
    ids).

    Returns int64, shape (N, 3). Raises InputError at the first line that is no triple of these vocabularies.
    """
    path = Path(path)
    lines = read_lines(path)
    header = lines[0].split("\t")
    if len(header) > len(COLUMN_NAMES) and set(COLUMN_NAMES) <= set(header):
        vocabularies = (entities, relations, entities)
        return _triples_of_table(path, header, lines[1:], vocabularies, finder, given_as)

    resolve = partial(resolve_triple, entities=entities, relations=relations, finder=finder, given_as=given_as)
    return np.array(_resolve_lines(path, lines, resolve), dtype=np.int64)


def read_queries(
    path: str | Path,
    entities: Vocabulary,
    relations: Vocabulary,
    *,
    finder: Finder | None = None,
    given_as: str | None = None,
) -> np.ndarray:
    """Read queries, a triple with one `?` a line as in `resolve_query`: int64, shape (Q, 2), in the file's order.

    Raises InputError at the first line that is no query of these vocabularies.
    """
    resolve = partial(resolve_query, entities=entities, relations=relations, finder=finder, given_as=given_as)
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
    finder: Finder | None,
    given_as: str | None,
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
                    _id_given(name, columns[place], vocabulary)
                    if given_as == "ids"
                    else id_of_value(name, columns[place], vocabulary, finder=finder)
                    for name, place, vocabulary in zip(COLUMN_NAMES, places, vocabularies, strict=True)
                ]
            )
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return np.array(triples, dtype=np.int64)

"""Files of triples to ids, and test triples by ids, labels or names."""

import csv
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.data.finding import Finder
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
from conve_tracin.data.vocabulary import Vocabulary, read_vocabulary
from conve_tracin.errors import InputError
from conve_tracin.files import write_together

logger = logging.getLogger(__name__)

COLUMN_NAMES = ("head", "relation", "tail")

# Of each column; of a header all three are known.
HEADER_WORDS = (
    {"head", "subject", "source", "h", "s", "head_id", "subject_id", "source_id", "from", "node1", "start", "x_id"},
    {"relation", "predicate", "r", "p", "relation_id", "label", "type", "edge", "edge_type", "rel", "property"},
    {"tail", "object", "target", "t", "o", "tail_id", "object_id", "target_id", "to", "node2", "end", "y_id"},
)

OPENKE_REMEDY = "prepare_data.py --triples-format openke converts such files"

# PyKEEN's `training_triples/`: ids below the header head, relation, tail.
PYKEEN_TRIPLES = ("numeric_triples.tsv.gz", "numeric_triples.tsv")

# What stands for the end of a triple that a query asks for.
ASKED = "?"

TAB, LINE_FEED = 9, 10

# Below this, loading pandas takes longer than doing without.
FEW_LINES = 50_000


def read_triples(
    path: str | Path, entities: Vocabulary, relations: Vocabulary, *, skip_unknown: bool = False
) -> np.ndarray:
    """Read `head<TAB>relation<TAB>tail` lines as ids.

    Returns an int64 array of shape (N, 3) in the order of the file. With `skip_unknown`, triples with a label
    that the vocabularies lack are left out, and a warning is logged that says how many and which labels.

    Raises InputError at the first line that has other than three filled columns or an unknown label, and where
    no triple is left.
    """
    return read_triples_and_dropped(Path(path), entities, relations, skip_unknown=skip_unknown)[0]


def read_triples_and_places(
    path: str | Path, entities: Vocabulary, relations: Vocabulary, *, skip_unknown: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Read the same, (N, 3), and the place of each triple in the file, counted from 0 over all its lines: (N,)."""
    triples, dropped = read_triples_and_dropped(Path(path), entities, relations, skip_unknown=skip_unknown)
    return triples, np.delete(np.arange(len(triples) + len(dropped)), dropped)


def read_triples_and_dropped(
    path: Path, entities: Vocabulary, relations: Vocabulary, *, skip_unknown: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Read the same, (N, 3), and the places of the triples that were dropped."""
    if path.name in PYKEEN_TRIPLES:
        return read_pykeen_triples(path, entities, relations), np.empty(0, dtype=np.int64)
    places_in = {id(each): _Places(each) for each in (entities, relations)}
    vocabularies = (entities, relations, entities)

    found: list[np.ndarray] = []  # each (n, 3)
    dropped = [np.empty(0, dtype=np.int64)]
    unknown_labels: dict[str, None] = {}
    for first_line, columns in label_blocks(path):
        ids = [places_in[id(each)](column) for each, column in zip(vocabularies, columns, strict=True)]  # 3 x (n,)
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
                unknown_labels.update(islice(dict.fromkeys(labels.tolist()).items(), 5))
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


class _Places:
    """Looks up the ids of labels, −1 where there is none."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def __call__(self, column: np.ndarray) -> np.ndarray:
        if len(column) < FEW_LINES:
            index = self.vocabulary.index
            return np.array([index.get(label, -1) for label in column.tolist()], dtype=np.int64)
        return self._pandas_index.get_indexer(column)

    @cached_property
    def _pandas_index(self) -> Any:
        import pandas as pd

        return pd.Index(self.vocabulary.labels, dtype=object)


def read_pykeen_triples(path: Path, entities: Vocabulary, relations: Vocabulary) -> np.ndarray:
    """Read the triples of ids that PyKEEN saves beside its mappings, (N, 3).

    Raises InputError where those mappings are not the given ones, or the file is not what PyKEEN writes.
    """
    for vocabulary in (entities, relations):
        own = path.parent / f"{vocabulary.kind}_to_id.tsv.gz"
        if not own.is_file():
            raise InputError(f"{path}: holds ids, and the mapping {own.name} is not beside it; give a file of labels")
        if read_vocabulary(own, vocabulary.kind).digest() != vocabulary.digest():
            raise InputError(f"{path}: holds ids of another {vocabulary.kind} mapping; give {own}")
    vocabularies = (entities, relations, entities)
    triples = []
    for number, line in enumerate(read_lines(path), start=1):
        if number == 1 and tuple(line.split("\t")) == COLUMN_NAMES:
            continue
        ids = [as_id(text) for text in line.split("\t")]
        if len(ids) != 3 or None in ids:
            raise InputError(f"{path}:{number}: {shown(line)} is not three ids; give what PyKEEN wrote")
        try:
            triples.append([each.require_id(position) for each, position in zip(vocabularies, ids, strict=True)])
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    if not triples:
        raise InputError(f"{path}: is empty; give a file with at least one triple")
    return np.array(triples, dtype=np.int64)


def find_pykeen_triples(path: Path) -> Path | None:
    """Return the training triples that a PyKEEN pipeline saved in this directory, or beside this file of it."""
    folder = (path if path.is_dir() else path.parent) / "training_triples"
    return next((folder / name for name in PYKEEN_TRIPLES if (folder / name).is_file()), None)


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
        raise InputError(f"{path}:{line_number + lines_above}: {_count_of_openke(line_number, block) or message}")
    if empty:
        raise InputError(f"{path}: is empty; give a file with at least one triple")


def _count_of_openke(line_number: int, block: bytes) -> str | None:
    """Say what OpenKE's files are where the first line is a count; None elsewhere."""
    if line_number > 1 or not block.partition(b"\n")[0].strip().isdigit():
        return None
    return f"is a count, as in OpenKE's train2id.txt, with ids as head, tail, relation below; {OPENKE_REMEDY}"


def is_header(labels: Sequence[str]) -> bool:
    """Whether the three labels of a first line name the columns."""
    return all(label.casefold() in words for label, words in zip(labels, HEADER_WORDS, strict=True))


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
    if block.count(b"\n") < FEW_LINES:
        words = np.array(block.decode("utf-8")[:-1].replace("\n", "\t").split("\t"), dtype=object)
        return list(words.reshape(-1, 3).T)
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
    if where.endswith(":1") and any(label.casefold() in words for words in HEADER_WORDS):
        return message + "triples files have no header, delete the line"
    if as_id(label) is not None:
        return message + f"triples files hold labels, not ids; {OPENKE_REMEDY} (--skip-unknown drops such triples)"
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


# The column of a triple, what is given there, and the vocabulary of that column.
Value = tuple[str, str, Vocabulary]


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

    def resolve(columns: Sequence[str]) -> tuple[int, int, int]:
        return resolve_triple(columns, entities, relations, finder=finder, given_as=given_as)

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

    def resolve(columns: Sequence[str]) -> tuple[int, int]:
        return resolve_query(columns, entities, relations, finder=finder, given_as=given_as)

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

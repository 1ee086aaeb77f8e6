"""Files to numbers: triples, label mappings, names and predicates, and the grouping of triples by query.

Every reader takes plain or gzip-compressed UTF-8 with LF or CRLF line ends, and raises InputError with the
file and the line of the first thing that is wrong.
"""

import csv
import difflib
import gzip
import hashlib
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from conve_tracin.errors import InputError
from conve_tracin.files import write_together

logger = logging.getLogger(__name__)

# About 400,000 lines: large enough that the cost per call vanishes, small enough to stay out of the memory budget.
BLOCK_BYTES = 16 * 2**20

COLUMN_NAMES = ("head", "relation", "tail")
HEADER_WORDS = {"head", "subject", "source", "h", "head_id", "relation", "predicate", "tail", "object", "target"}

TAB, LINE_FEED = 9, 10
GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")

# Leading zeros mark a label (WordNet's "00260881"), never an id.
INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
LABEL_SEPARATORS = str.maketrans("", "", " _:.-/")
# Of a label, in messages.
SHOWN_CHARACTERS = 100
# Of many labels that share a name.
SHOWN_LABELS = 5
CONTROL_CHARACTERS = re.compile("[\0-\x1f\x7f-\x9f]")
# A byte order mark at the start of a file is taken off when it is read.
UNWRITABLE = re.compile("[\t\n\r\0]|^\ufeff")


@dataclass(frozen=True)
class Vocabulary:
    """The labels of all entities, or of all relations, in the order of their ids.

    `kind` ("entity" or "relation") and `path` serve the messages only.
    """

    kind: str
    labels: tuple[str, ...] = field(repr=False)
    path: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def index(self) -> dict[str, int]:
        """The id of each label."""
        return {label: position for position, label in enumerate(self.labels)}

    @property
    def source(self) -> str:
        """Where the labels come from, for messages."""
        return str(self.path) if self.path is not None else f"the {self.kind} mapping"

    def id_of(self, label: str) -> int:
        """Return the id of `label`; raise InputError, with labels that look alike, where there is none."""
        try:
            return self.index[label]
        except KeyError:
            raise InputError(
                f"unknown {self.kind} {shown(label)}, {self.source} lacks it; "
                + suggestion(label, self.labels, otherwise="check its spelling")
            ) from None

    def label_of(self, position: int) -> str:
        """Return the label of the id `position`; raise InputError outside 0..n-1."""
        self.require_id(position)
        return self.labels[position]

    def require_id(self, position: int) -> int:
        """Return `position`; raise InputError where it is no id of this vocabulary."""
        if not 0 <= position < len(self):
            raise InputError(f"{self.kind} id {position} is out of range; {self.source} has ids 0 to {len(self) - 1}")
        return position

    def digest(self) -> str:
        """SHA-256 over the labels in the order of their ids, as hexadecimal digits.

        Two mappings with the same digest give every label the same id, whatever format they were read from.
        """
        return hashlib.sha256("\0".join(self.labels).encode("utf-8", "surrogatepass")).hexdigest()


def shown(text: str) -> str:
    """Return a label in quotes for a message; a long one, which may be a whole file without tabs, is cut off."""
    return repr(text) if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]!r}… ({len(text):,} characters)"


def shown_id(text: str) -> str:
    """Return what stands in the place of an id for a message."""
    return text if len(text) <= 20 else f"{text[:20]}… ({len(text):,} characters)"


def visible(text: str) -> str:
    """Return `text` for a terminal, which would obey control characters: they are written as \\x1b and the like."""
    return CONTROL_CHARACTERS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def suggestion(label: str, labels: Iterable[str], *, otherwise: str) -> str:
    """Return "did you mean …?" for labels close to `label`, or `otherwise` where none is close."""
    close = close_labels(label, labels)
    return f"did you mean {' or '.join(map(shown, close))}?" if close else otherwise


def close_labels(label: str, labels: Iterable[str], *, limit: int = 3, candidates: int = 2000) -> list[str]:
    """Return up to `limit` labels that look like `label`, best first.

    Labels that differ in case and separators only come first. The edit distance is then taken over at most
    `candidates` labels with the same beginning or end, as it would take seconds over a large vocabulary. Nothing is
    close to a label of more than SHOWN_CHARACTERS.
    """

    def plain(text: str) -> str:
        return text.casefold().translate(LABEL_SEPARATORS)

    if len(label) > SHOWN_CHARACTERS:
        return []
    labels = tuple(labels)
    wanted = plain(label)
    same = [other for other in labels if plain(other) == wanted]
    if same:
        return same[:limit]
    if len(labels) > candidates:
        # Ends first: all labels of a graph may begin with the same prefix.
        ends = (other for other in labels if plain(other).endswith(wanted[-4:]))
        beginnings = (other for other in labels if plain(other).startswith(wanted[:4]))
        labels = tuple(dict.fromkeys(islice(chain(ends, beginnings), candidates)))
    return difflib.get_close_matches(label, labels, n=limit, cutoff=0.75)


# ---------------------------------------------------------------------------------------------------------------
# Bytes and lines


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzip-compressed file, told apart by its first bytes, for reading.

    Raises InputError where it cannot be opened or, while it is read, turns out to be damaged.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.peek(2)[:2] == GZIP_MAGIC
            with gzip.open(raw) if compressed else nullcontext(raw) as stream:
                yield stream
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: is a damaged gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); give the name of a readable file") from error


def line_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    r"""Yield (number of the first line, whole lines) of a UTF-8 file, about BLOCK_BYTES at a time.

    Each line ends in a single "\n", the last one too; a byte order mark is taken off. Raises InputError where
    the file is not text in UTF-8.
    """
    with open_bytes(path) as stream:
        read = start = stream.read(len(UTF8_BOM))
        if start.startswith(UTF16_BOMS):
            raise InputError(f"{path}: is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
        line_number, rest = 1, start.removeprefix(UTF8_BOM)
        while read:
            read = stream.read(BLOCK_BYTES)
            whole, end, rest = (rest + read).rpartition(b"\n")
            if end:
                block = clean_block(path, line_number, whole + end)
                yield line_number, block
                line_number += block.count(b"\n")
            elif len(rest) > BLOCK_BYTES:
                raise InputError(
                    f"{path}:{line_number}: no line end in {len(rest):,} bytes; give a tab-separated text file"
                )
        if rest:
            yield line_number, clean_block(path, line_number, rest + b"\n")


def clean_block(path: Path, line_number: int, block: bytes) -> bytes:
    """Return `block` with LF line ends; raise InputError where it is not text in UTF-8.

    `line_number` is the number of the block's first line.
    """
    nul = block.find(b"\0")
    if nul >= 0:
        line = line_number + block.count(b"\n", 0, nul)
        raise InputError(f"{path}:{line}: holds a NUL byte, so it is not UTF-8 text; give a tab-separated text file")
    if not block.isascii():
        try:
            block.decode("utf-8")
        except UnicodeDecodeError as error:
            line = line_number + block.count(b"\n", 0, error.start)
            byte = block[error.start]
            raise InputError(f"{path}:{line}: is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from error
    # Finding one byte is far cheaper than a replacement that replaces nothing.
    return block.replace(b"\r\n", b"\n") if b"\r" in block else block


def read_lines(path: Path) -> list[str]:
    """Return all lines of a UTF-8 file without their ends; raise InputError where it is empty or not text."""
    lines = [line for _, block in line_blocks(path) for line in block.decode("utf-8").split("\n")[:-1]]
    if not lines:
        raise InputError(f"{path}: is empty; give a file with at least one line")
    return lines


def column_trouble(columns: Sequence[str], wanted: int) -> str | None:
    """Return what is wrong with the columns of a line that should have `wanted` filled ones, or None."""
    if len(columns) == wanted and "\r" not in "".join(columns):
        empty = [str(position) for position, column in enumerate(columns, start=1) if not column]
        return f"column {empty[0]} is empty; fill it or delete the line" if empty else None
    if columns == [""]:
        return "the line is empty; delete it"
    if "\r" in "".join(columns):
        return "lines end in a bare CR; convert the file to LF line ends"
    found = f"{len(columns)} column{'s' * (len(columns) != 1)} instead of {wanted}"
    if len(columns) == 1:
        return f"{found}; columns are separated by a tab, this line has none"
    if columns[-1] == "":
        return f"{found}; delete the tab at the end of the line"
    return f"{found}; a line is {wanted} columns separated by single tabs"


def as_id(text: str) -> int | None:
    """Return the integer that `text` writes, or None where it is none; absurdly long ones count as -1."""
    if not INTEGER.fullmatch(text):
        return None
    return int(text) if len(text) < 19 else -1


# ---------------------------------------------------------------------------------------------------------------
# Mappings


def read_vocabulary(path: str | Path, kind: str) -> Vocabulary:
    """Read the labels of all entities or relations; `kind` is "entity" or "relation".

    Three formats are told apart by their first line: `label<TAB>id` on every line; OpenKE's, the same after a
    line that holds the count; and PyKEEN's export, with the header `id<TAB>label` and CSV quoting.

    Raises InputError unless the ids are 0 to n-1 and every label and id occurs once.
    """
    path = Path(path)
    lines = read_lines(path)
    header = lines[0].split("\t")
    if sorted(header) == ["id", "label"]:
        first, rows = 2, quoted_rows(path, lines[1:])
        if header == ["id", "label"]:
            rows = [row[::-1] for row in rows]
    elif len(header) == 1 and header[0].strip().isdecimal():
        first, rows = 2, [line.split("\t") for line in lines[1:]]
        count = as_id(lines[0].strip())
        if count != len(rows):
            raise InputError(
                f"{path}:1: the first line announces {shown_id(lines[0].strip())} labels, {len(rows)} lines follow; "
                "correct the count or take the line out"
            )
    else:
        first, rows = 1, [line.split("\t") for line in lines]
    if not rows:
        raise InputError(f"{path}: holds no {kind}; give a file with at least one label")
    return Vocabulary(kind, labels_by_id(path, rows, first_line=first), path)


def quoted_rows(path: Path, lines: list[str]) -> list[list[str]]:
    """Return the columns of the lines below PyKEEN's header, whose labels may be quoted as in CSV."""
    reader = csv.reader(lines, delimiter="\t", strict=True)
    rows = []
    try:
        for row in reader:
            rows.append(row)
            if reader.line_num != len(rows):
                raise InputError(f"{path}:{len(rows) + 1}: a quoted label goes over several lines; rename it")
    except csv.Error as error:
        raise InputError(
            f'{path}:{reader.line_num + 1}: {error}; below the header, a label with quotes is written """so"""'
        ) from error
    return rows


def labels_by_id(path: Path, rows: list[list[str]], *, first_line: int) -> list[str]:
    """Return the labels of [label, id] rows in the order of their ids; raise InputError at the first bad row."""
    labels: list[str | None] = [None] * len(rows)
    line_of_label: dict[str, int] = {}
    for line, columns in enumerate(rows, start=first_line):
        if len(columns) != 2 or not all(columns):
            raise InputError(f"{path}:{line}: {column_trouble(columns, 2)}")
        label, id_text = columns
        position = as_id(id_text)
        if position is None:
            raise InputError(f"{path}:{line}: {not_an_id(id_text, rows, is_first=line == first_line)}")
        if not 0 <= position < len(rows):
            raise InputError(
                f"{path}:{line}: id {shown_id(id_text)} is outside 0 to {len(rows) - 1}; "
                f"the ids of {len(rows)} labels start at 0 and have no gaps"
            )
        if labels[position] is not None:
            raise InputError(
                f"{path}:{line}: id {id_text} is taken by {shown(labels[position])} "
                f"(line {line_of_label[labels[position]]}); give each label its own id"
            )
        if label in line_of_label:
            raise InputError(
                f"{path}:{line}: label {shown(label)} occurs a second time (first on line {line_of_label[label]}); "
                "delete one of the lines"
            )
        labels[position] = label
        line_of_label[label] = line
    return labels


def not_an_id(id_text: str, rows: list[list[str]], *, is_first: bool) -> str:
    """Say what is probably wrong with a mapping whose second column is no integer on some line."""
    if all(as_id(columns[0]) is not None for columns in rows):
        return "the columns are the wrong way round; write label<TAB>id, or put the header id<TAB>label on top"
    if is_first and len(rows) > 1 and as_id(rows[1][-1]) is not None:
        return f"{shown(id_text)} is not an integer id; delete the line if it is a header"
    return f"{shown(id_text)} is not an integer id; write label<TAB>id"


def write_vocabulary(path: str | Path, labels: Iterable[str]) -> None:
    """Write `label<TAB>id` lines, the ids in the order of `labels`, whole or not at all.

    Raises InputError for a label that the format cannot hold: an empty one, or one with a tab or a line end.
    """
    write_together({Path(path): vocabulary_lines(path, labels)})


def vocabulary_lines(path: str | Path, labels: Iterable[str]) -> Iterator[str]:
    """Yield the lines of `write_vocabulary`."""
    for position, label in enumerate(labels):
        require_writable(path, label)
        yield f"{label}\t{position}\n"


def require_writable(path: str | Path, *labels: str) -> None:
    """Raise InputError for a label that a tab-separated file cannot hold."""
    for label in labels:
        if not label or UNWRITABLE.search(label):
            raise InputError(
                f"{path}: label {shown(label)} is empty, begins with a byte order mark, or holds a tab or a "
                "line end; rename it"
            )


# ---------------------------------------------------------------------------------------------------------------
# Triples


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


# ---------------------------------------------------------------------------------------------------------------
# Test triples


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
    ids = [as_id(text) for text in texts]
    only_ids = None not in ids
    vocabularies = (entities, relations, entities)
    resolved = []
    for column, text, position, vocabulary in zip(COLUMN_NAMES, texts, ids, vocabularies, strict=True):
        if position is None or (not only_ids and text in vocabulary.index):
            resolved.append(id_of_value(column, text, vocabulary, ids_called=ids_called))
        elif 0 <= position < len(vocabulary):
            resolved.append(position)
        else:
            raise InputError(out_of_range(column, text, vocabulary))
    return resolved[0], resolved[1], resolved[2]


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


def read_test_triples(
    path: str | Path,
    entities: Vocabulary,
    relations: Vocabulary,
    *,
    ids_called: IdsCalled = lambda _kind, _text: (),
) -> np.ndarray:
    """Read a list of test triples, one `H R T` a line, each value an id, a label or a name as in `resolve_triple`.

    Columns are separated by tabs, or by blanks on a line without a tab. Returns int64, shape (N, 3).
    Raises InputError at the first line that is no triple of these vocabularies.
    """
    path = Path(path)
    resolved = []
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t") if "\t" in line or not line.strip() else line.split()
        trouble = column_trouble(columns, 3)
        if trouble is not None:
            raise InputError(f"{path}:{number}: {trouble}")
        try:
            resolved.append(resolve_triple(columns, entities, relations, ids_called=ids_called))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return np.array(resolved, dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------------
# Names and predicates


def read_names(path: str | Path, entities: Vocabulary | None = None) -> dict[int, str]:
    """Read `name<TAB>id` lines into {id: name}.

    Where every value of the second column is an integer, they are ids; otherwise they are labels of `entities`,
    and labels that it lacks are left out (a file of names may serve several graphs) with a logged count. A line
    without a name is passed over.

    Raises InputError for malformed lines, ids out of range, two names for one id, and where no line fits.
    """
    path = Path(path)
    rows = [line.split("\t") for line in read_lines(path)]
    for number, columns in enumerate(rows, start=1):
        if len(columns) != 2 or not columns[1]:
            raise InputError(f"{path}:{number}: {column_trouble(columns, 2)}")
    hold_ids = all(as_id(identifier) is not None for _, identifier in rows)
    if not hold_ids and entities is None:
        number = next(line for line, (_, identifier) in enumerate(rows, start=1) if as_id(identifier) is None)
        raise InputError(f"{path}:{number}: {shown(rows[number - 1][1])} is not an integer id; write name<TAB>id")

    names: dict[int, str] = {}
    unknown = 0
    for number, (name, identifier) in enumerate(rows, start=1):
        position = as_id(identifier) if hold_ids else entities.index.get(identifier)
        if position is None:
            unknown += 1
            continue
        if position < 0 or (entities is not None and position >= len(entities)):
            limit = f"0 to {len(entities) - 1}" if entities is not None else "0 and up"
            raise InputError(
                f"{path}:{number}: id {shown_id(identifier)} is out of range; entity ids are {limit}, "
                "so give the names of this graph"
            )
        if name and names.setdefault(position, name) != name:
            raise InputError(
                f"{path}:{number}: a second name, {shown(name)}, for {shown_id(identifier)} "
                f"(the first: {shown(names[position])}); keep one of them"
            )
    if unknown == len(rows):
        raise InputError(f"{path}: none of its ids is in {entities.source}; give the names of this graph")
    if unknown:
        logger.warning("%s: %d of %d names belong to no entity of this graph", path, unknown, len(rows))
    return names


def read_predicates(path: str | Path) -> dict[str, str]:
    """Read an edge map into {relation label: predicate, with its qualifiers}.

    The file is a JSON object; its keys are JSON objects in turn, written as strings, with a member "predicate"
    and qualifiers beside it, and its values are the relation labels.

    Raises InputError where it is anything else, or gives one label two predicates.
    """
    path = Path(path)
    text = "\n".join(read_lines(path))
    try:
        edge_map = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: is not valid JSON ({error.msg}); correct it") from error
    except ValueError as error:
        raise InputError(f"{path}: holds a number that is too long; an edge map holds texts only") from error
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply; an edge map is one flat JSON object") from None
    if not isinstance(edge_map, dict):
        raise InputError(f'{path}: is not a JSON object; write {{"{{\\"predicate\\": …}}": "relation label"}}')
    predicates: dict[str, str] = {}
    for key, label in edge_map.items():
        if not isinstance(label, str):
            raise InputError(f"{path}: the value of {shown(key)} is not a string; give a relation label")
        predicate = predicate_of(key)
        if not is_unicode(predicate or ""):
            raise InputError(
                f"{path}: the key {shown(key)} holds half a character (\\ud800 to \\udfff); correct the key"
            )
        if predicate is None:
            raise InputError(f'{path}: the key {shown(key)} is not JSON with a "predicate" string; correct the key')
        if predicates.setdefault(label, predicate) != predicate:
            raise InputError(
                f"{path}: {shown(label)} stands for both {shown(predicates[label])} and {shown(predicate)}; "
                "keep one of them"
            )
    return predicates


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8; JSON can hold half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def predicate_of(key: str) -> str | None:
    """Return the "predicate" of a JSON object written as a string, or None where there is none.

    Its qualifiers stand behind it in brackets: they tell relations apart that mean opposite things, such as
    "biolink:affects (activity, increased)" and "(activity, decreased)".
    """
    try:
        members = json.loads(key)
    except (ValueError, RecursionError):
        return None
    predicate = members.get("predicate") if isinstance(members, dict) else None
    if not isinstance(predicate, str):
        return None
    qualifiers = [value for name, value in members.items() if name != "predicate" and isinstance(value, str)]
    return (
        f"{predicate} ({', '.join(value.removeprefix('biolink:') for value in qualifiers)})"
        if qualifiers
        else predicate
    )


# ---------------------------------------------------------------------------------------------------------------
# Queries


@dataclass(frozen=True, eq=False)
class QueryIndex:
    """The distinct (head, relation) queries of a set of triples and, in CSR form, their tails.

    The tails of queries[i] are tails[offsets[i]:offsets[i + 1]], in the order of the triples they come from.
    """

    queries: np.ndarray  # (Q, 2) int64, sorted by head, then relation
    offsets: np.ndarray  # (Q + 1,) int64
    tails: np.ndarray  # (N,) int64
    order: np.ndarray  # (N,) int64: tails[i] is the tail of triples[order[i]]


def group_by_query(triples: np.ndarray) -> QueryIndex:
    """Group triples, shape (N, 3), by their (head, relation)."""
    triples = np.asarray(triples, dtype=np.int64).reshape(-1, 3)
    heads, relations, tails = triples.T
    num_relations = int(relations.max(initial=0)) + 1
    keys = heads * num_relations + relations  # (N,)
    sorted_keys, order = _sort_stably(keys)
    starts = np.flatnonzero(np.diff(sorted_keys, prepend=-1))  # (Q,)
    queries = np.stack(np.divmod(sorted_keys[starts], num_relations), axis=1)  # (Q, 2)
    return QueryIndex(queries=queries, offsets=np.append(starts, len(keys)), tails=tails[order], order=order)


def _sort_stably(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort keys (N,) of at least 0; return them and where each was, equal ones in their order."""
    bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        order = np.argsort(keys, kind="stable")
        return keys[order], order
    # Key and place in one number: numbers are sorted in less time than places by their keys.
    packed = np.sort((keys << bits) | np.arange(len(keys)))
    return packed >> bits, packed & ((1 << bits) - 1)


def distinct_triples(triples: np.ndarray) -> np.ndarray:
    """Return each triple of (N, 3) ids once, sorted; as `np.unique(triples, axis=0)`, and many times faster."""
    triples = np.asarray(triples, dtype=np.int64).reshape(-1, 3)
    sizes = [int(size) for size in triples.max(axis=0, initial=0) + 1]
    if sizes[0] * sizes[1] * sizes[2] >= 2**63:
        return np.unique(triples, axis=0)
    # One integer for each triple sorts in a fraction of the time that rows take.
    keys = np.sort((triples[:, 0] * sizes[1] + triples[:, 1]) * sizes[2] + triples[:, 2])
    keys = keys[np.diff(keys, prepend=-1) > 0]
    queries, tails = np.divmod(keys, sizes[2])
    heads, relations = np.divmod(queries, sizes[1])
    return np.stack([heads, relations, tails], axis=1)


def digest_of_triples(triples: np.ndarray) -> str:
    """Digest which triples (N, 3) there are, in whatever order and however often: SHA-256 in hexadecimal."""
    return hashlib.sha256(distinct_triples(triples)).hexdigest()


def with_inverse_triples(triples: np.ndarray) -> np.ndarray:
    """Return the triples and their inverses, shape (2N, 3), with PyKEEN's relation ids.

    Row i is (h, 2r, t) and row N + i its inverse (t, 2r + 1, h).
    """
    heads, relations, tails = np.asarray(triples, dtype=np.int64).reshape(-1, 3).T
    forward = np.stack((heads, 2 * relations, tails), axis=1)
    inverse = np.stack((tails, 2 * relations + 1, heads), axis=1)
    return np.concatenate((forward, inverse))

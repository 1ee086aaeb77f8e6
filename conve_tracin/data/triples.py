"""Files of triples to ids, and back."""

import csv
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.data.text import (
    UNWRITABLE,
    as_id,
    column_trouble,
    line_blocks,
    read_lines,
    require_writable,
    shown,
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

"""Labels and ids: the mappings of entities and relations."""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conve_tracin.data.text import as_id, column_trouble, read_lines, require_writable, shown, shown_id, suggestion
from conve_tracin.errors import InputError
from conve_tracin.files import write_together

if TYPE_CHECKING:
    import numpy as np


class StoredLabels(Sequence[str]):
    """Labels that are decoded when they are asked for: those of a large graph take a second, and hundreds of MB.

    Args:
        text: the labels in UTF-8, a zero byte before each and behind the last: (L,) uint8.
        starts: where each begins, and where the next one would: (n + 1,).
    """

    def __init__(self, text: "np.ndarray", starts: "np.ndarray") -> None:
        self.text = text
        self.starts = starts

    @classmethod
    def arrays_of(cls, labels: Iterable[str]) -> dict[str, "np.ndarray"]:
        """Return what stores these labels."""
        import numpy as np

        encoded = [label.encode("utf-8") for label in labels]
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        starts = np.concatenate([[1], 1 + np.cumsum(lengths + 1)])
        return {"text": np.frombuffer(b"\0" + b"\0".join(encoded) + b"\0", dtype=np.uint8), "starts": starts}

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self[each] for each in range(*place.indices(len(self))))
        place = range(len(self))[place]
        return self.text[int(self.starts[place]) : int(self.starts[place + 1]) - 1].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return iter(self.bytes[1:-1].decode("utf-8").split("\0"))

    @cached_property
    def bytes(self) -> bytes:
        """The whole text."""
        return self.text.tobytes()

    def id_of(self, label: str) -> int | None:
        """Find a label."""
        import numpy as np

        if not label or "\0" in label:
            return None
        place = self.bytes.find(f"\0{label}\0".encode("utf-8", "surrogatepass"))
        return None if place < 0 else int(np.searchsorted(self.starts, place + 1))


class StoredIndex(Mapping[str, int]):
    """The id of each of some stored labels. Few are searched for in the text; for many, a dictionary is made."""

    SEARCHES = 64

    def __init__(self, labels: StoredLabels) -> None:
        self._labels = labels
        self._searched = 0

    @cached_property
    def _whole(self) -> dict[str, int]:
        return {label: position for position, label in enumerate(self._labels)}

    def __getitem__(self, label: str) -> int:
        self._searched += 1
        found = self._labels.id_of(label) if self._searched <= self.SEARCHES else self._whole.get(label)
        if found is None:
            raise KeyError(label)
        return found

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)


@dataclass(frozen=True)
class Vocabulary:
    """The labels of all entities, or of all relations, in the order of their ids.

    `kind` ("entity" or "relation") and `path` serve the messages only.
    """

    kind: str
    labels: Sequence[str] = field(repr=False)
    path: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.labels, StoredLabels):
            object.__setattr__(self, "labels", tuple(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The id of each label."""
        if isinstance(self.labels, StoredLabels):
            return StoredIndex(self.labels)
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
        if isinstance(self.labels, StoredLabels):
            return hashlib.sha256(self.labels.bytes[1:-1]).hexdigest()
        return hashlib.sha256("\0".join(self.labels).encode("utf-8", "surrogatepass")).hexdigest()


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

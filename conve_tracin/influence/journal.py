"""The journal of a long run, kept beside its output: a killed run continues behind its last finished traces."""

import dataclasses
import hashlib
import json
import logging
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from conve_tracin.files import digest_of_file, lock_file, not_writable
from conve_tracin.influence import trace as trace_module
from conve_tracin.influence.trace import Trace

logger = logging.getLogger(__name__)


class Journal:
    """Records of finished parts, one JSON line each, below a line that says which run they belong to.

    Records of another run (other settings or files) are dropped with a message, and so is a last line that was cut off.
    Records stay on the disk and take no memory. A file that another process is writing is left alone. Leaving the
    context closes the file.

    Args:
        path: the journal's file; it is made with the first records.
        digest: stands for everything that the records depend on, see `digest_of`.

    Attributes:
        has_other_writer: whether another process is writing the file, so that this one keeps no records.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self._first_line = _as_line({"digest": digest})
        self.has_other_writer = False
        self._file: BinaryIO | None = None
        self._has_first_line = False
        # Where each record ends, in bytes.
        self._ends: list[int] = []
        if path.is_file():
            with self._named_errors():
                self._open()
                if self._file is not None:
                    self._find_records()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def records(self) -> Iterator[dict[str, Any]]:
        """Yield what this run and the earlier ones have finished, read from the disk."""
        if self._ends:
            with self._named_errors(), self.path.open("rb") as file:
                file.seek(len(self._first_line))
                for _ in self._ends:
                    yield json.loads(file.readline())

    def _open(self) -> None:
        """Open the file for writing, unless another process has: two that write into one would garble it."""
        if self._file is not None or self.has_other_writer:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, which would keep what a full disk refused, and write it later.
        file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        if lock_file(file, wait=False):
            self._file = file
            return
        file.close()
        self.has_other_writer = True
        logger.info("%s: another process writes it; this one starts afresh if it is killed", self.path)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise not_writable(self.path, error) from error

    @property
    def _length(self) -> int:
        if self._ends:
            return self._ends[-1]
        return len(self._first_line) if self._has_first_line else 0

    def _find_records(self) -> None:
        with self.path.open("rb") as file:
            self._has_first_line = file.readline() == self._first_line
            if not self._has_first_line:
                logger.info("%s: belongs to a run with other settings or files; this run starts afresh", self.path)
                return
            for line in file:
                if not _is_record(line):
                    break
                self._ends.append(self._length + len(line))

    def keep(self, count: int) -> None:
        """Forget all records but the first `count`."""
        del self._ends[count:]

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records; they are on the disk when this returns, unless another process writes the file.

        Raises InputError if they cannot be written.
        """
        lines = [_as_line(record) for record in records]
        first_line = b"" if self._has_first_line else self._first_line
        with self._named_errors():
            self._open()
            if self._file is None:
                return
            try:
                self._append(self._file, first_line + b"".join(lines))
            except OSError:
                self._file.truncate(self._length)
                if not self._length:
                    self.remove()
                raise
        self._has_first_line = True
        for line in lines:
            self._ends.append(self._length + len(line))

    def _append(self, file: BinaryIO, lines: bytes) -> None:
        file.truncate(self._length)
        file.seek(self._length)
        rest = memoryview(lines)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())

    def remove(self) -> None:
        """Delete the file, as the output is complete; one that another process writes stays."""
        self._close()
        if not self.has_other_writer:
            with self._named_errors():
                self.path.unlink(missing_ok=True)


def open_in_directory(directory: Path, digest: str) -> Journal:
    """Open the journal of a run that writes many files; others may write into the same directory meanwhile."""
    return Journal(directory / f"tracin.{digest[:12]}.unfinished", digest)


def digest_of(*, settings: dict[str, Any], files: Sequence[Path], arrays: Iterable[Any]) -> str:
    """Digest what a run depends on: settings, the content of files, and arrays.

    Raises InputError if a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in files:
        digest.update(digest_of_file(path).encode())
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _as_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _is_record(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def resume_traces(
    journal: Journal | None, test_triples: np.ndarray, trace_rest: Callable[[np.ndarray], Iterator[Trace]]
) -> Iterator[Trace]:
    """Yield the trace of each test triple (n, 3), as if the run had never stopped.

    Args:
        journal: of this run; without one everything is computed.
        test_triples: all of them, in order.
        trace_rest: traces those that the journal lacks.
    """
    if journal is None:
        yield from trace_rest(test_triples)
        return
    # Whole groups only: a group is computed as one, so that a resumed run rounds as an undisturbed one does.
    journal.keep(len(journal) // trace_module.GROUP_SIZE * trace_module.GROUP_SIZE)
    num_finished = len(journal)
    if num_finished:
        logger.info(f"{journal.path}: goes on, {num_finished} of {len(test_triples)} test triples are finished")
    yield from StoredTraces(journal)
    traces = trace_rest(test_triples[num_finished:])
    while group := list(islice(traces, trace_module.GROUP_SIZE)):
        journal.add([dataclasses.asdict(traced) for traced in group])
        yield from group


class StoredTraces:
    """The traces in a journal, which take no memory: they are read whenever they are gone through."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def __len__(self) -> int:
        return len(self.journal)

    def __iter__(self) -> Iterator[Trace]:
        return (from_plain(Trace, record) for record in self.journal.records)


def from_plain(kind: Any, value: Any) -> Any:
    """Rebuild what `dataclasses.asdict` took apart and JSON kept; `kind` is a dataclass or a type in one."""
    if value is None:
        return None
    if isinstance(kind, types.UnionType):
        (kind,) = (option for option in typing.get_args(kind) if option is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_plain(hints[name], member) for name, member in value.items()})
    container = typing.get_origin(kind)
    if container in (list, tuple):
        element = typing.get_args(kind)[0]
        return container(from_plain(element, member) for member in value)
    return value

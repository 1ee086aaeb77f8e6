"""Finished parts of a long run, kept beside its output, so that a killed run goes on where it stopped."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from conve_tracin.errors import InputError

logger = logging.getLogger(__name__)


class Journal:
    """Records of finished parts, one JSON line each, below a line that says which run they belong to.

    Records of another run (other settings or files) are dropped with a message. A last line that was cut off when
    the run was killed is dropped, too.

    Args:
        path: the journal's file; it is made with the first records.
        digest: stands for everything that the records depend on, see `digest_of`.

    Attributes:
        records: what an earlier run has finished; those that this one adds are on the disk only.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self._first_line = _as_line({"digest": digest})
        self.records: list[dict[str, Any]] = []
        self._length = 0
        if path.is_file():
            self._read()

    def _read(self) -> None:
        first, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        if first != self._first_line:
            logger.info("%s: belongs to a run with other settings or files; this run starts afresh", self.path)
            return
        self._length = len(first)
        for line in lines:
            record = _parse_line(line)
            if record is None:
                break
            self.records.append(record)
            self._length += len(line)

    def keep(self, count: int) -> None:
        """Forget all records but the first `count`."""
        for record in self.records[count:]:
            self._length -= len(_as_line(record))
        del self.records[count:]

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records; they are on the disk when this returns.

        Raises InputError where they cannot be written.
        """
        records = list(records)
        lines = b"".join(map(_as_line, records))
        if not self._length:
            lines = self._first_line + lines
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "wb") as file:
                file.truncate(self._length)
                file.seek(self._length)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"{self.path}: cannot be written ({reason}); free the disk or choose another place"
            ) from error
        self._length += len(lines)

    def remove(self) -> None:
        """Delete the file: the output is complete."""
        self.path.unlink(missing_ok=True)


def open_in_directory(directory: Path, digest: str) -> Journal:
    """Open the journal of a run that writes many files; others may write into the same directory meanwhile."""
    return Journal(directory / f"tracin.{digest[:12]}.unfinished", digest)


def digest_of(*, settings: dict[str, Any], files: Sequence[Path], arrays: Iterable[Any]) -> str:
    """Digest what a run depends on: settings, the content of files, and arrays.

    Raises InputError where a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in files:
        try:
            with path.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _as_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _parse_line(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None

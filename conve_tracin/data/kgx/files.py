"""The files of a KGX graph: JSON lines or tables, plain, gzip-compressed or in a tar archive."""

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from conve_tracin.data.text import BLOCK_BYTES, UTF8_BOM, UTF16_BOMS, is_tar, open_bytes, open_unpacked, shown
from conve_tracin.errors import InputError

EXAMPLES_KEPT = 3

# It does without the checks of `json.loads`, which cost a tenth of reading.
SCAN_ONCE = json.JSONDecoder().scan_once

ONE_DOCUMENT = re.compile(rb'\s*(\[|\{\s*"(nodes|edges)"\s*:\s*\[)')

# What a line must hold, by the file.
REQUIRED = {"nodes": ("id",), "edges": ("subject", "predicate", "object")}

# Columns of a table in which `|` joins several values, besides qualifiers.
LIST_COLUMNS = {
    "category", "categories", "primary_knowledge_source", "aggregator_knowledge_source", "supporting_data_source",
    "publications", "negated", "supporting_text", "hetio_source",
    "equivalent_identifiers", "same_as", "xref",
}  # fmt: skip

Parse = Callable[[bytes], dict[str, Any]]


class MalformedLineError(ValueError):
    """A line that holds no node or edge; the message says why."""


@dataclass
class Skipped:
    """Lines left out for one reason: how many, and the first of them in words."""

    number: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Count one line."""
        self.number += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append(message)


def reject(where: str, reason: str, skipped: Skipped | None, *, flag: str, remedy: str) -> None:
    """Count a line that is left out, or raise InputError where none may be."""
    if skipped is None:
        raise InputError(f"{where}: {reason}; {remedy}, or leave such lines out and count them with {flag}")
    skipped.add(f"{where}: {reason}")


@contextmanager
def open_kgx(path: Path, kind: str) -> Iterator[tuple[Parse, Iterator[tuple[int, list[bytes]]]]]:
    """Open the file of `kind` "nodes" or "edges"; yield what parses a line, and the lines.

    The lines come as lists, each with the number of its first line.

    A parser raises MalformedLineError for a line that holds no object.

    Raises InputError where the file is empty, or of a format that is not read: the message names it and the remedy.
    """
    with _open_lines(path, kind) as raw, io.BufferedReader(raw, BLOCK_BYTES) as stream:
        start = stream.peek(4096)[:65536]
        if not start:
            raise InputError(f"{path}: is empty; give a KGX file with one JSON object a line")
        if start.startswith(UTF16_BOMS):
            raise InputError(f"{path}: is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
        if start.startswith(UTF8_BOM):
            stream.read(len(UTF8_BOM))
            start = start.removeprefix(UTF8_BOM)
        first_line = start.partition(b"\n")[0]
        if ONE_DOCUMENT.match(start[:4096]):
            raise InputError(f"{path}: is one JSON document; convert it to JSON lines (kgx transform -f jsonl)")
        if first_line.lstrip().startswith(b"<") or start.startswith((b"@prefix", b"PREFIX")):
            raise InputError(f"{path}: is RDF or XML; convert it to JSON lines (kgx transform -f jsonl)")
        is_table = b"\t" in first_line or set(REQUIRED[kind]) <= set(first_line.decode("latin-1").split(","))
        if first_line.lstrip().startswith(b"{") or not is_table:
            yield parse_object, _blocks_of(stream, start=1)
        else:
            stream.readline()
            yield table_parser(path, first_line, kind), _blocks_of(stream, start=2)


def _blocks_of(stream: BinaryIO, *, start: int) -> Iterator[tuple[int, list[bytes]]]:
    # Lists of lines: asking for the lines one by one costs more than decoding them.
    while lines := stream.readlines(BLOCK_BYTES):
        yield start, lines
        start += len(lines)


def numbered(blocks: Iterator[tuple[int, list[bytes]]]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that `open_kgx` gives one by one, each with its number."""
    for first, lines in blocks:
        yield from enumerate(lines, start=first)


@contextmanager
def _open_lines(path: Path, kind: str) -> Iterator[BinaryIO]:
    """Open a file, or the file of this kind in a tar archive."""
    with open_unpacked(path) as stream:
        packed = is_tar(stream)
    if not packed:
        with open_bytes(path) as stream:
            yield stream
        return
    chosen = _member_of_archive(path, kind)
    with open_unpacked(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        yield next(archive.extractfile(member) for member in archive if member.name == chosen)


def _member_of_archive(path: Path, kind: str) -> str:
    """Return the name of the only file in an archive, or of the only one whose name says that it is of this kind."""
    with open_unpacked(path) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                names = [member.name for member in archive if member.isfile()]
        except tarfile.TarError as error:
            raise InputError(f"{path}: is a damaged tar archive ({error}); fetch it again") from error
    names = [name for name in names if not Path(name).name.startswith(".")]
    chosen = [name for name in names if kind in Path(name).name] or names
    if len(chosen) != 1:
        listed = ", ".join(map(shown, chosen[:5])) or "no files"
        raise InputError(f"{path}: holds {listed}; unpack the archive (tar -xf) and give its {kind} file")
    return chosen[0]


def table_parser(path: Path, header: bytes, kind: str) -> Parse:
    """Return what parses the lines below a table's header; KGX joins several values of a column with `|`.

    Raises InputError where the header is not that of a KGX table.
    """
    required = REQUIRED[kind]
    try:
        names = header.decode("utf-8").rstrip("\r").split("\t")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:1: is not UTF-8 (byte 0x{header[error.start]:02x}); save it as UTF-8") from error
    if len(names) == 1:
        raise InputError(f"{path}: is comma-separated; save it with tabs, or as JSON lines (kgx transform -f jsonl)")
    missing = [name for name in required if name not in names]
    if missing:
        raise InputError(
            f"{path}:1: is not JSON, and as the header of a KGX table it lacks {' and '.join(missing)}; "
            f"give {kind}.jsonl or {kind}.tsv"
        )
    if kind == "nodes" and set(REQUIRED["edges"]) <= set(names):
        raise InputError(f"{path}: is a table of edges; give it to --edges, and the nodes to --nodes")
    if len(set(names)) != len(names):
        raise InputError(f"{path}:1: names a column twice; rename one of them")
    lists = [place for place, name in enumerate(names) if name in LIST_COLUMNS or "qualif" in name]

    def parse(line: bytes) -> dict[str, Any]:
        try:
            cells: list[Any] = line.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            raise MalformedLineError(f"is not UTF-8 (byte 0x{line[error.start]:02x})") from error
        if len(cells) != len(names):
            raise MalformedLineError(f"has {len(cells)} columns, the header {len(names)}")
        for place in lists:
            if "|" in cells[place]:
                cells[place] = cells[place].split("|")
        return dict(zip(names, cells, strict=True))

    return parse


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object on a line; raise MalformedLineError where there is none."""
    try:
        text = line.decode("utf-8")
        try:
            content, end = SCAN_ONCE(text, 0)
        except (json.JSONDecodeError, StopIteration):
            end = 0
        if not end or (text[end:] != "\n" and text[end:].strip()):
            content = json.loads(text.rstrip())  # blanks in front, or an error with its column
    except UnicodeDecodeError as error:
        raise MalformedLineError(f"is not UTF-8 (byte 0x{line[error.start]:02x})") from error
    except json.JSONDecodeError as error:
        if not line.strip():
            raise MalformedLineError("is empty") from error
        raise MalformedLineError(f"is not JSON ({error.msg}, column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise MalformedLineError("is nested too deeply, or holds a number that is too long") from error
    if not isinstance(content, dict):
        raise MalformedLineError(f"holds {_kind_of_json(content)} instead of an object")
    return content


def require_text(members: Mapping[str, Any], name: str) -> str:
    """Return a member that must be a string; raise MalformedLineError where it is missing, empty or another thing."""
    value = members.get(name)
    if isinstance(value, str) and value:
        return value
    if value is None or value == "":
        raise MalformedLineError(f'has no "{name}"')
    raise MalformedLineError(f'"{name}" is {_kind_of_json(value)} instead of a string')


def _kind_of_json(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")

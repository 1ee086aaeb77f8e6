"""Lines of text files: UTF-8, plain or gzip-compressed, LF or CRLF; and text in messages.

Every reader raises InputError with the file and the line of the first thing that is wrong.
"""

import difflib
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from conve_tracin.errors import InputError

# About 400,000 lines: large enough that the cost per call vanishes, small enough to stay out of the memory budget.
BLOCK_BYTES = 16 * 2**20

GZIP_MAGIC = b"\x1f\x8b"

# What the first bytes of a file that is not read say: its format, and the remedy.
OTHER_FORMATS = {
    re.compile(rb"PK\x03\x04"): ("a zip archive, as checkpoints are", "give a text file, unpacked (unzip)"),
    re.compile(rb"BZh[1-9]1AY&SY"): ("compressed with bzip2", "decompress it (bunzip2)"),
    re.compile(rb"\xfd7zXZ\x00"): ("compressed with xz", "decompress it (unxz)"),
    re.compile(rb"\x28\xb5\x2f\xfd"): ("compressed with Zstandard", "decompress it (unzstd)"),
    re.compile(rb"7z\xbc\xaf\x27\x1c"): ("a 7z archive", "unpack it (7z x)"),
    re.compile(rb"PAR1[\x00-\x08\x0e-\x1f]"): ("a Parquet table", "save it as tab-separated text"),
    re.compile(rb"SQLite format 3\x00"): ("an SQLite database", "save the table as tab-separated text"),
}

UTF8_BOM = b"\xef\xbb\xbf"

UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")

# Leading zeros mark a label (WordNet's "00260881"), never an id.
INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")

LABEL_SEPARATORS = str.maketrans("", "", " _:.-/")

# Of a label, in messages.
SHOWN_CHARACTERS = 100

# Of terminals, of lines, and of the direction in which text runs.
CONTROL_CHARACTERS = re.compile("[\0-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

LAYOUT = "\t\n"

# A byte order mark at the start of a file is taken off when it is read.
UNWRITABLE = re.compile("[\t\n\r\0]|^\ufeff")


def shown(text: str) -> str:
    """Return a label in quotes for a message; a long one, which may be a whole file without tabs, is cut off."""
    return repr(text) if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]!r}… ({len(text):,} characters)"


def shown_id(text: str) -> str:
    """Return what stands in the place of an id for a message."""
    return text if len(text) <= 20 else f"{text[:20]}… ({len(text):,} characters)"


def visible(text: str) -> str:
    """Return `text` for a terminal, which would obey control characters: they are written as \\x1b and the like."""
    return CONTROL_CHARACTERS.sub(lambda found: _written_out(found[0]), text)


def printable(text: str) -> str:
    """Return `text` for a page: as `visible` does, but tabs and line ends stay."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0] if found[0] in LAYOUT else _written_out(found[0]), text)


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


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


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzip-compressed file, told apart by its first bytes, for reading.

    Raises InputError where it cannot be opened, is an archive or compressed otherwise, or, while it is read, turns out
    to be damaged.
    """
    with open_unpacked(path) as stream:
        if is_tar(stream):
            raise InputError(f"{path}: is a tar archive; unpack it (tar -xf) and give the file in it")
        yield stream


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Do the same, and let a tar archive pass."""
    try:
        with path.open("rb") as raw:
            start = raw.peek(16)[:16]
            for magic, (what, remedy) in OTHER_FORMATS.items():
                if magic.match(start):
                    raise InputError(f"{path}: is {what}; {remedy}")
            with gzip.open(raw) if start[:2] == GZIP_MAGIC else nullcontext(raw) as stream:
                yield stream
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: is a damaged gzip file ({error}); fetch or compress it again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); give the name of a readable file") from error


def is_tar(stream: BinaryIO) -> bool:
    """Whether a stream that is at its start is a tar archive."""
    return stream.peek(512)[257:262] == b"ustar"


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


def require_writable(path: str | Path, *labels: str) -> None:
    """Raise InputError for a label that a tab-separated file cannot hold."""
    for label in labels:
        if not label or UNWRITABLE.search(label):
            raise InputError(
                f"{path}: label {shown(label)} is empty, begins with a byte order mark, or holds a tab or a "
                "line end; rename it"
            )


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8; JSON can hold half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def single_line(text: str) -> str:
    """Return `text` with every run of white space and control characters as one blank, fit for a column of a table."""
    return " ".join(CONTROL_CHARACTERS.sub(" ", text).split())

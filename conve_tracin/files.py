"""Output files: checked before the work, written beside their place, and moved there whole."""

import errno
import glob
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import Any, BinaryIO

from conve_tracin.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Linux, and other kinds of Unix.
NAMES_OF_OPEN_FILES = ("/proc", "/dev/fd")

# Higher ones take several times as long for files a tenth smaller.
GZIP_LEVEL = 3


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; move it to `path` when the block succeeds.

    The content reaches the disk before the move, and a block that raises leaves nothing behind. What an earlier,
    killed process left is removed. Missing parent directories are made. A link stays one, and its target is written.
    A pipe or a device, such as /dev/stdout, is yielded itself: it cannot be moved to.

    Raises InputError if the place cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory; give the name of a file")
    try:
        if is_stream(path):
            yield path
        else:
            with _moved_into_place(Path(os.path.realpath(path))) as temporary:
                yield temporary
    except OSError as error:
        raise not_writable(path, error) from error


def not_writable(path: Path, error: OSError) -> InputError:
    """Say why a file cannot be written."""
    return InputError(f"{path}: cannot be written ({error.strerror or error}); free the disk or choose another place")


@contextmanager
def _moved_into_place(path: Path) -> Iterator[Path]:
    # The process id keeps two processes that write the same output from sharing a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned_parts(path)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        # If the place itself is bad (a file for a directory), so is the temporary path.
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder in the same directory; move it to `path` when the block succeeds.

    What is written reaches the disk before the move, and a block that raises leaves nothing behind. If another process
    has moved its own there meanwhile, that one stays. Raises OSError if the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned_parts(path)
        # In containers, a run often has the process id of the one that was killed.
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
        with suppress(FileExistsError):
            _rename_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename_folder(folder: Path, path: Path) -> None:
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        raise


def is_stream(path: Path) -> bool:
    """Whether a path is there and can only be written into: a device, a pipe, or one of this process's open files."""
    if not path.exists():
        return False
    # /dev/stdout leads to an open file, which may be a regular one.
    target = path.parent / path.readlink() if path.is_symlink() else path
    folders = [place.parent.resolve() for place in (path, target)]
    is_open_file = any(folder.is_relative_to(names) for folder in folders for names in NAMES_OF_OPEN_FILES)
    return is_open_file or not path.is_file()


def remove_abandoned_parts(path: Path) -> None:
    """Remove the temporary files of `path` whose processes are gone: each may be as large as a checkpoint."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        process_id = part.name.removesuffix(".part").rpartition(".")[2]
        if part.name == f".{path.name}.{process_id}.part" and process_id.isdecimal() and is_gone(int(process_id)):
            with suppress(OSError):
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def is_gone(process_id: int) -> bool:
    """Whether no process of this machine has the id; False if that cannot be known."""
    # Elsewhere, os.kill ends a process that is there.
    if os.name != "posix":
        return False
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def lock_file(file: BinaryIO, *, wait: bool) -> bool:
    """Lock an open file until it is closed; False if another process has it, but True on systems without locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def write_together(files: Mapping[Path, Iterable[str]]) -> None:
    """Write the text of several files in UTF-8.

    Raises InputError if one cannot be written; none of them changes then.
    """
    with ExitStack() as stack:
        for path, text in files.items():
            temporary = stack.enter_context(atomic_write(path))
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(text)


@contextmanager
def open_gzip(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write it gzip-compressed; the same content makes the same file, whatever its name and the time."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=GZIP_LEVEL, fileobj=raw, mtime=0) as file:
        yield file


def write_json(path: str | Path, content: object) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_together({Path(path): json_text(content)})


def json_text(content: object) -> Iterator[str]:
    """Yield the pieces of `content` as indented JSON."""
    for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(content):
        # Names of files may hold half a character, for which Python's backslashes are JSON, too.
        yield piece.encode("utf-8", "backslashreplace").decode("utf-8")
    yield "\n"


def json_text_of_many(content: Mapping[str, Any], name: str, members: Iterable[object]) -> Iterator[str]:
    """Yield the text of `json_text` for `content`, which is not empty, with the list `name` of members at its end.

    No more than one member is in memory at a time.
    """
    whole = "".join(json_text(content))
    yield whole.removesuffix("\n}\n") + f",\n  {json.dumps(name)}: ["
    separator = "\n    "
    for member in members:
        yield separator + "".join(json_text(member)).rstrip("\n").replace("\n", "\n    ")
        separator = ",\n    "
    yield "]\n}\n" if separator[0] == "\n" else "\n  ]\n}\n"


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits.

    Raises InputError if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return digest.hexdigest()


# What is read from the directory of a model: checkpoints, and the mappings of a PyKEEN pipeline.
MODEL_SUFFIXES = (".pt", ".pkl", ".gz")


def require_usable_outputs(
    files: Mapping[str, Path | str | None],
    *,
    directory: tuple[str, Path | str] | None = None,
    inputs: Iterable[Path | str | None] = (),
) -> None:
    """Refuse outputs that cannot be written, that name one file twice, or that would replace an input.

    Args:
        files: {flag: file}; None if the output is not wanted.
        directory: flag and path of a directory that gets further files.
        inputs: files that are read, and directories of models; None is ignored.

    Raises InputError for the first that is unusable.
    """
    wanted = {flag: Path(path) for flag, path in files.items() if path is not None}
    kept = list(_files_of(inputs))
    for flag, path in wanted.items():
        if path.is_dir():
            raise InputError(f"{path}: is a directory; {flag} needs a file")
        if any(_is_same_file(path, source) for source in kept):
            raise InputError(f"{path}: is an input, which {flag} would replace; choose another")
        _require_writable(path.parent, path)
    for (flag, path), (other_flag, other) in combinations(wanted.items(), 2):
        if path.resolve() == other.resolve():
            raise InputError(f"{path}: {flag} and {other_flag} name the same file; choose another")
    if directory is not None:
        flag, path = directory[0], Path(directory[1])
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; {flag} needs a directory")
        _require_writable(path, path)


def _files_of(inputs: Iterable[Path | str | None]) -> Iterable[Path]:
    for path in inputs:
        if path is not None:
            # Beside a model there may lie results of an earlier run, which are no inputs.
            yield from (found for found in Path(path).rglob("*") if found.suffix in MODEL_SUFFIXES)
            yield from [Path(path)] if Path(path).is_file() else []


def _is_same_file(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)


def nearest_directory(directory: Path) -> Path:
    """Return `directory`, or the nearest one above it that exists; this may be a file."""
    return next(place for place in (directory, *directory.absolute().parents) if place.exists())


def _require_writable(directory: Path, output: Path) -> None:
    # Missing directories are made; what counts is the directory that they are made in.
    existing = nearest_directory(directory)
    if not existing.is_dir():
        raise InputError(f"{output}: cannot be written, as {existing} is a file; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{output}: cannot be written, as {existing} is not writable; choose another place")

"""Files are written beside their place and moved there, so that a reader never meets half a file."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conve_tracin.errors import InputError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; move it to `path` when the block succeeds.

    The content reaches the disk before the move, and a block that raises leaves nothing behind.
    Missing parent directories are made.

    Raises InputError where the place cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory; give the name of a file")
    # The process id keeps two processes that write the same output from sharing a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written ({reason}); free the disk or choose another place") from error
    finally:
        # Where the place itself is bad (a file for a directory), so is the temporary path.
        with suppress(OSError):
            temporary.unlink()


def write_json(path: str | Path, content: object) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")

"""Outputs are checked before the work: that they can be written, and that no input is lost by it."""

import os
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

from conve_tracin.errors import InputError

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
        files: {flag: file}; None where the output is not wanted.
        directory: flag and path of a directory that gets further files.
        inputs: files that are read, and directories of models; None is passed over.

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


def _require_writable(directory: Path, output: Path) -> None:
    # Directories that are missing are made; what counts is the one that they are made in.
    existing = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"{output}: cannot be written, as {existing} is a file; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{output}: cannot be written, as {existing} is not writable; choose another place")

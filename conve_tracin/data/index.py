"""An index beside a large file of triples: what is read and sorted once, mapped into memory from the second run on.

The index of `train.txt` is the folder `train.txt.index`. In it is a folder for the content of the three files that it
was made of, the triples and the two mappings, and a file with their sizes, times and digests. Structures are added when
they are first needed. Everything is written beside its place and moved there whole, so that a run that is killed leaves
no half of it, and of several runs that make the same one, one prevails. Results are the same with an index and without.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.data.graph import Arrays, Graph, Keep
from conve_tracin.data.triples import read_triples
from conve_tracin.data.vocabulary import StoredLabels, Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_folder, atomic_write, digest_of_file, not_writable

logger = logging.getLogger(__name__)

# What the files hold; one of another version is made anew.
VERSION = 2
# Smaller files are read in less than half a second.
FEWEST_TRIPLES = 100_000
# Arrays below this many bytes are read, not mapped: an empty file cannot be mapped.
SMALL = 2**16
# Models of which something is kept, with each setting that it depends on: mostly megabytes, tens for wide models.
MODELS_KEPT = 8

CONTENTS = "contents.json"
# Beside the arrays of a structure: their names. What another process is deleting has lost some of them.
NAMES = "names.json"
# What an index begins with.
PARTS = {"entities": {"text", "starts"}, "relations": {"text", "starts"}, "listed": {"triples"}}


@dataclass(frozen=True)
class IndexPlace:
    """Where an index is, or would be, and what it is of.

    Attributes:
        folder: of the index.
        sources: the triples, the entity mapping and the relation mapping.
        is_chosen: it was asked for, so that a place that cannot be written is an error.
    """

    folder: Path
    sources: tuple[Path, Path, Path]
    is_chosen: bool = False

    @classmethod
    def of(cls, sources: Sequence[Path | str], directory: Path | str | None = None) -> "IndexPlace":
        """Choose the place beside the triples, or in a directory that may hold other indexes."""
        triples, entities, relations = map(Path, sources)
        if directory is None:
            return cls(triples.with_name(f"{triples.name}.index"), (triples, entities, relations))
        path = hashlib.sha256(str(triples.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
        folder = Path(directory) / f"{triples.name}.{path[:8]}.index"
        return cls(folder, (triples, entities, relations), is_chosen=True)

    def find(self) -> "Index | None":
        """Return the index if it is there, whole and of the files as they are now."""
        stamps = self.stamps()
        # What begins with a dot is still being made, by another process or by none any more.
        for contents in sorted(self.folder.glob(f"[!.]*/{CONTENTS}")) if stamps else ():
            known = _read_contents(contents)
            if known.get("version") != VERSION or [each[0] for each in known["stamps"]] != [s[0] for s in stamps]:
                continue
            # A file that was copied, or fetched again, may have another time and the same content.
            if known["stamps"] != stamps:
                if known["digests"] != self.digests():
                    continue
                self._write_contents(contents, {**known, "stamps": stamps})
            if (found := Index(contents.parent, self)).is_whole():
                return found
        return None

    def make_if_many(
        self, listed_triples: np.ndarray, entities: Vocabulary, relations: Vocabulary, stamps: Any
    ) -> "Index | None":
        """Write the index of many triples; if its place cannot be written, say so and return None.

        Raises InputError if the place was asked for and cannot be written. See `make`.
        """
        if stamps is None or (len(listed_triples) < FEWEST_TRIPLES and not self.is_chosen):
            return None
        try:
            return self.make(listed_triples, entities, relations, stamps)
        except OSError as error:
            if self.is_chosen:
                raise not_writable(self.folder, error) from error
            reason = error.strerror or error
            logger.info("%s: no index is made (%s); --index-dir names another place for it", self.folder, reason)
            return None

    def make(
        self, listed_triples: np.ndarray, entities: Vocabulary, relations: Vocabulary, stamps: Any
    ) -> "Index | None":
        """Write the index of triples (M, 3) that were read from the files; None if another process removed it at once.

        `stamps` are those of before the mappings and the triples were read. Raises OSError if the place cannot be
        written, or the files changed.
        """
        digests = self.digests()
        if stamps != self.stamps():
            raise OSError("the files were changed while they were read")
        key = hashlib.sha256("".join([str(VERSION), *digests]).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        others = [each for each in self.folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
        if (self.folder / key).is_dir() and not Index(self.folder / key, self).is_whole():
            shutil.rmtree(self.folder / key, ignore_errors=True)
        with atomic_folder(self.folder / key) as temporary:
            for name, vocabulary in (("entities", entities), ("relations", relations)):
                _save(temporary / name, StoredLabels.arrays_of(vocabulary.labels))
            _save(temporary / "listed", {"triples": listed_triples})
            contents = {"version": VERSION, "stamps": stamps, "digests": digests}
            (temporary / CONTENTS).write_text(json.dumps(contents), encoding="utf-8")
        for stale in others:
            if stale.name != key:
                shutil.rmtree(stale, ignore_errors=True)
        index = Index(self.folder / key, self)
        if not index.is_whole():
            logger.info("%s: is replaced by another process with other files; this one goes on without", self.folder)
            return None
        logger.info("%s: %s", self.folder, "was stale or broken, and is made anew" if others else "an index is made")
        return index

    def stamps(self) -> list[list[int]] | None:
        """Return what shows that a file changed, of each; None if one is not there, or can be read only once."""
        try:
            return [stamp_of(path) for path in self.sources] if all(map(Path.is_file, self.sources)) else None
        except OSError:
            return None

    def digests(self) -> list[str]:
        """Return the SHA-256 of each file."""
        return [digest_of_file(path) for path in self.sources]

    @staticmethod
    def _write_contents(path: Path, contents: dict[str, Any]) -> None:
        try:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(contents), encoding="utf-8")
        except InputError:
            logger.debug("%s: the new time of a file cannot be noted", path)


class Index:
    """The files of an index."""

    def __init__(self, folder: Path, place: IndexPlace) -> None:
        self.folder = folder
        self.place = place
        # They are opened at once: a process with other mappings may remove the files while this one works.
        self._parts = {name: _load(folder / name) or {} for name in PARTS}
        self._has_spoken = False

    def is_whole(self) -> bool:
        """Whether all that an index begins with is there."""
        whole = all(self._parts[name].keys() == arrays for name, arrays in PARTS.items())
        return bool(_read_contents(self.folder / CONTENTS)) and whole

    @cached_property
    def vocabularies(self) -> tuple[Vocabulary, Vocabulary]:
        """The mappings of entities and relations, whose labels are read when they are asked for."""
        _, entities, relations = self.place.sources
        return (
            Vocabulary("entity", StoredLabels(**self._parts["entities"]), entities),
            Vocabulary("relation", StoredLabels(**self._parts["relations"]), relations),
        )

    @cached_property
    def graph(self) -> Graph:
        """The training graph; what it sorts stays in the index."""
        sizes = (len(vocabulary) for vocabulary in self.vocabularies)
        return Graph.of_listed(self.listed_triples, *sizes, keep=self.keep)

    @property
    def listed_triples(self) -> np.ndarray:
        """The triples as the file lists them, (N, 3)."""
        return self._parts["listed"]["triples"]

    def keep(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a name, or make and store them; if they cannot be stored, they are made only."""
        folder = self.folder / name
        arrays = _load(folder)
        if arrays is None:
            arrays = make()
            try:
                if folder.is_dir():
                    logger.info("%s: is broken, and is made anew", folder)
                    shutil.rmtree(folder)
                with atomic_folder(folder) as temporary:
                    _save(temporary, arrays)
            except OSError as error:
                self._say(error)
        return arrays

    def keep_of_model(self, checkpoint: Path, stamp: list[int], settings: Any) -> Keep:
        """Return what keeps arrays that also depend on settings, and on a checkpoint's file while it had the stamp."""
        known_by = [str(checkpoint.resolve()), *stamp, repr(settings)]
        key = hashlib.sha256(json.dumps(known_by).encode()).hexdigest()[:16]
        models = self.folder / "models"
        if not (models / key).is_dir():
            others = sorted(models.glob("*"), key=_time_of)
            for oldest in others[: max(0, len(others) - MODELS_KEPT + 1)]:
                shutil.rmtree(oldest, ignore_errors=True)
        return lambda name, make: self.keep(f"models/{key}/{name}", make)

    def _say(self, error: OSError) -> None:
        if not self._has_spoken:
            self._has_spoken = True
            logger.info("%s: nothing more is stored (%s)", self.place.folder, error.strerror or error)


def read_indexed(
    path: Path | str, entities: Vocabulary, relations: Vocabulary, *, skip_unknown: bool = False
) -> np.ndarray:
    """Read the triples of a file as `read_triples` does, from an index beside it if explaining has left one: (N, 3)."""
    sources = (path, entities.path, relations.path)
    is_of_files = all(each is not None and Path(each).is_file() for each in sources)
    index = IndexPlace.of(sources).find() if is_of_files else None
    if index is not None:
        return index.listed_triples
    return read_triples(path, entities, relations, skip_unknown=skip_unknown)


def stamp_of(path: Path) -> list[int]:
    """Return a file's size and times. That of its inode shows a change also if the other one was set back.

    Raises OSError if it is not there.
    """
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _time_of(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # another process removed it
        return 0


def _save(folder: Path, arrays: Arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    (folder / NAMES).write_text(json.dumps(list(arrays)), encoding="utf-8")


def _load(folder: Path) -> Arrays | None:
    """Map the arrays of a folder; None if it is not there, or one of them is missing or cut off."""
    try:
        names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
        return {name: _load_array(folder / f"{name}.npy") for name in names}
    except (OSError, ValueError, EOFError):
        return None


def _load_array(path: Path) -> np.ndarray:
    mapped = path.stat().st_size > SMALL
    return np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False).view(np.ndarray)


def _read_contents(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        return contents if {"version", "stamps", "digests"} <= contents.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}

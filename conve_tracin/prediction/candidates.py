"""Which entities may be the answer to a query: those of a list, or of a Biolink category."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conve_tracin.data.finding import Finder
from conve_tracin.data.kgx.categories import classes_of_nodes
from conve_tracin.data.names import BIOLINK_PREFIX
from conve_tracin.data.resolve import resolve_values
from conve_tracin.data.text import as_id, read_lines, shown, suggestion
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError

logger = logging.getLogger(__name__)


def read_candidates(
    path: str | Path, entities: Vocabulary, *, finder: Finder, skip_unknown: bool, given_as: str | None = None
) -> np.ndarray:
    """Read entities, one a line: sorted ids, each once, (C,).

    `given_as` is "ids", "labels" (or names), or None. Then, if every line is an integer, they are ids; otherwise
    labels, names, or ids that are no labels. With `skip_unknown`, those that the graph lacks are left out, and a
    warning says how many.

    Raises InputError at the first unknown entity, if none is left, and if the lines can be read in two ways.
    """
    path = Path(path)
    lines = read_lines(path)
    holds_ids = given_as == "ids" or (given_as is None and all(as_id(line) is not None for line in lines))
    if given_as is None and holds_ids:
        _require_no_other_labels(path, lines, entities)
        given_as = "ids"
    found, unknown = [], 0
    for number, line in enumerate(lines, start=1):
        if not line:
            raise InputError(f"{path}:{number}: the line is empty; delete it")
        if not holds_ids and skip_unknown and not finder.find(entities.kind, line):
            unknown += 1
            continue
        try:
            found.append(_candidate(line, entities, finder=finder, given_as=given_as))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    if not found:
        raise InputError(f"{path}: none of its {unknown} candidates is in {entities.source}; give those of this graph")
    if unknown:
        logger.warning("%s: %d of %d candidates are not in this graph; they were dropped", path, unknown, len(lines))
    return np.unique(found)


def _require_no_other_labels(path: Path, lines: Sequence[str], entities: Vocabulary) -> None:
    """Raise InputError if integers could be labels, and would then be other entities than by their ids."""
    by_label = [entities.index.get(line) for line in lines]
    if None not in by_label and by_label != [as_id(line) for line in lines]:
        raise InputError(
            f"{path}: means some entities by ids and others by labels, as labels of this graph are integers; "
            "add --ids or --labels"
        )


def _candidate(line: str, entities: Vocabulary, *, finder: Finder, given_as: str | None) -> int:
    position, labelled = as_id(line), entities.index.get(line)
    if given_as is not None or position is None or labelled is None:
        return resolve_values([("candidate", line, entities)], finder=finder, given_as=given_as)[0]
    # Other lines hold words, so that an integer is a label if there is one.
    if position != labelled and 0 <= position < len(entities):
        raise InputError(
            f"{shown(line)} is the label of one entity and the id of another; add --labels for the label, or --ids and "
            "write all candidates as ids"
        )
    return labelled


def candidates_of_category(path: str | Path, category: str, entities: Vocabulary) -> np.ndarray:
    """Find the entities whose node in a KGX file lists a Biolink category: sorted ids, (C,).

    Only the category itself counts: graphs differ in whether they list what is above it.

    Raises InputError if no entity has it, and at the first line that holds no node.
    """
    wanted, found, seen = category.removeprefix(BIOLINK_PREFIX), set(), {}
    number = 0
    for number, (identifier, classes) in enumerate(classes_of_nodes(path), start=1):  # noqa: B007 - it is counted
        seen.update(dict.fromkeys(classes))
        entity = entities.index.get(identifier)
        if wanted in classes and entity is not None:
            found.add(entity)
    asked = f"{BIOLINK_PREFIX}{wanted}"
    if not found and wanted in seen:
        raise InputError(f"{path}: no node of {asked} is in {entities.source}; give the nodes of this graph")
    if not found:
        known = [f"{BIOLINK_PREFIX}{name}" for name in seen]
        remedy = suggestion(asked, known, otherwise=f"among its categories are {', '.join(known[:5])}")
        raise InputError(f"{path}: none of its {number} nodes is a {shown(asked)}; {remedy}")
    return np.array(sorted(found))

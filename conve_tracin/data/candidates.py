"""Which entities may be the answer to a query: those of a list, or of a Biolink category."""

import logging
from pathlib import Path

import numpy as np

from conve_tracin.data.kgx import MalformedLineError, numbered_lines, parse_object
from conve_tracin.data.text import as_id, read_lines, shown, suggestion
from conve_tracin.data.triples import IdsCalled, resolve_values
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError

logger = logging.getLogger(__name__)

PREFIX = "biolink:"


def read_candidates(path: str | Path, entities: Vocabulary, *, ids_called: IdsCalled, skip_unknown: bool) -> np.ndarray:
    """Read entities, one a line: sorted ids, each once, (C,).

    If every line is an integer, they are ids; otherwise labels, names, or ids that are no labels. With `skip_unknown`,
    those that the graph lacks are left out, and a warning says how many.

    Raises InputError at the first unknown entity, and if none is left.
    """
    path = Path(path)
    lines = read_lines(path)
    holds_ids = all(as_id(line) is not None for line in lines)
    found, unknown = [], 0
    for number, line in enumerate(lines, start=1):
        if not line:
            raise InputError(f"{path}:{number}: the line is empty; delete it")
        if not holds_ids and skip_unknown and line not in entities.index and not ids_called(entities.kind, line):
            unknown += 1
            continue
        try:
            found += (
                [entities.index[line]]
                if not holds_ids and line in entities.index
                else resolve_values([("candidate", line, entities)], ids_called=ids_called)
            )
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    if not found:
        raise InputError(f"{path}: none of its {unknown} candidates is in {entities.source}; give those of this graph")
    if unknown:
        logger.warning("%s: %d of %d candidates are not in this graph; they were dropped", path, unknown, len(lines))
    return np.unique(found)


def candidates_of_category(path: str | Path, category: str, entities: Vocabulary) -> np.ndarray:
    """Find the entities whose node in a KGX file lists a Biolink category: sorted ids, (C,).

    Only the category itself counts: graphs differ in whether they list what is above it.

    Raises InputError if no entity has it, and at the first line that holds no node.
    """
    path, wanted = Path(path), category.removeprefix(PREFIX)
    found, seen = set(), {}
    number = 0
    for number, line in numbered_lines(path):
        try:
            node = parse_object(line)
        except MalformedLineError as error:
            raise InputError(f"{path}:{number}: {error}; a node is a JSON object with an id and categories") from None
        listed = node.get("category")
        listed = listed if isinstance(listed, list) else [listed or ""]
        classes = [str(name).removeprefix(PREFIX) for name in listed if name]
        seen.update(dict.fromkeys(classes))
        entity = entities.index.get(str(node.get("id")))
        if wanted in classes and entity is not None:
            found.add(entity)
    if not found and wanted in seen:
        raise InputError(f"{path}: no node of {PREFIX}{wanted} is in {entities.source}; give the nodes of this graph")
    if not found:
        known = [f"{PREFIX}{name}" for name in seen]
        remedy = suggestion(f"{PREFIX}{wanted}", known, otherwise=f"among its categories are {', '.join(known[:5])}")
        raise InputError(f"{path}: none of its {number} nodes is a {shown(PREFIX + wanted)}; {remedy}")
    return np.array(sorted(found))

"""Known reasons: triples that are known to make a prediction true.

Read from JSON lines, plain or .gz: {"triple": [h, r, t], "explanations": [{"triples": [[h, r, t], …]}, …]}, or
"reasons": [[h, r, t], …] for one explanation. Labels are those of the triples' files; a relation may also be a KGX
predicate, which stands for every relation of the graph that has it.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.data.keys import places_of
from conve_tracin.data.names import read_predicates
from conve_tracin.data.text import read_lines, shown
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError

logger = logging.getLogger(__name__)

Labels = tuple[str, str, str]
Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class KnownReasons:
    """A prediction (3,) in ids, and for each explanation the positions (m,) of its triples in the training set.

    `complete` says for each explanation whether all its triples are in the training set. Explanations without any are
    left out. `entities` are those of all triples of all explanations, also of triples that are not in training.
    """

    triple: np.ndarray
    explanations: tuple[np.ndarray, ...]
    complete: tuple[bool, ...]
    entities: frozenset[int] = frozenset()

    @property
    def reasons(self) -> np.ndarray:
        """The positions of all triples of all explanations, each once: (m,)."""
        return np.unique(np.concatenate(self.explanations))

    @cached_property
    def is_complete(self) -> dict[int, bool]:
        """The position of each reason, and whether it belongs to an explanation that is wholly in training."""
        found: dict[int, bool] = {}
        for positions, complete in zip(self.explanations, self.complete, strict=True):
            found |= {position: complete or found.get(position, False) for position in positions.tolist()}
        return found


@dataclass(frozen=True)
class _Line:
    """A line of the file in ids: for each reason the triples that its labels stand for, none if one is unknown."""

    triple: Triple
    explanations: list[list[list[Triple]]]


def read_reasons(
    path: Path,
    train: np.ndarray,
    *,
    entities: Vocabulary,
    relations: Vocabulary,
    edge_map: Path | None = None,
    skip_unknown: bool = False,
) -> list[KnownReasons]:
    """Read the predictions of a file and find their reasons among the training triples (N, 3).

    Predictions none of whose reasons is in training are left out, and with `skip_unknown` those with an unknown label,
    too; a line is logged that counts each.

    Raises:
        InputError: a line is no such object, its triple has an unknown label, or nothing is left.
    """
    lines = list(_read_lines(path, entities, relations_by_name(relations, edge_map), skip_unknown=skip_unknown))
    reasons = {triple for line in lines for each in line.explanations for same in each for triple in same}
    place = find_positions(reasons, train)
    found = [each for each in (_explained(line, place) for line in lines) if each is not None]
    if not found:
        raise InputError(f"{path}: none of its reasons is in the training triples; give those of this graph")
    if len(found) < len(lines):
        logger.info(
            "%s: no reason of %d of its %d predictions is a training triple", path, len(lines) - len(found), len(lines)
        )
    return found


def relations_by_name(relations: Vocabulary, edge_map: Path | None) -> Mapping[str, list[int]]:
    """Map each relation label, and each predicate of an edge map, to the ids that it stands for."""
    by_name = {label: [i] for label, i in relations.index.items()}
    if edge_map is not None:
        for label, predicate in read_predicates(edge_map).items():
            name = predicate.partition(" (")[0]
            if label in relations.index:
                by_name.setdefault(name, []).append(relations.index[label])
    return by_name


def find_positions(triples: set[Triple], train: np.ndarray) -> dict[Triple, int]:
    """Find the first place of each of some triples among the training triples (N, 3); others are left out."""
    if not triples:
        return {}
    wanted = np.array(sorted(triples))
    positions = places_of(train, wanted)[::-1].tolist()
    return dict(zip(map(tuple, train[positions].tolist()), positions, strict=True))


def by_prediction(explained: Sequence[KnownReasons]) -> dict[Triple, KnownReasons]:
    """Put the explanations of each prediction together: {triple: all of them}."""
    found: dict[Triple, KnownReasons] = {}
    for each in explained:
        triple = tuple(each.triple.tolist())
        other = found.get(triple)
        found[triple] = each if other is None else KnownReasons(
            each.triple, other.explanations + each.explanations, other.complete + each.complete,
            other.entities | each.entities,
        )  # fmt: skip
    return found


def _read_lines(
    path: Path, entities: Vocabulary, relations_of: Mapping[str, list[int]], *, skip_unknown: bool
) -> Iterator[_Line]:
    unknown, number = 0, 0
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        triple, explanations = _parse(line, where)
        ids = _ids(triple, entities, relations_of)
        if not ids and not skip_unknown:
            raise InputError(
                f"{where}: {shown(' '.join(triple))} has a label that the mappings lack; give the graph's labels "
                "(--skip-unknown drops such predictions)"
            )
        unknown += not ids
        for each in ids:
            yield _Line(
                each, [[_ids(reason, entities, relations_of) for reason in reasons] for reasons in explanations]
            )
    if unknown:
        logger.warning("%s: %d of %d predictions have labels that the mappings lack; they were dropped", path, unknown,
                       number)  # fmt: skip


def _parse(line: str, where: str) -> tuple[Labels, list[list[Labels]]]:
    try:
        content = json.loads(line)
        explanations = content["explanations"] if "explanations" in content else [{"triples": content["reasons"]}]
        return _labels(content["triple"]), [[_labels(t) for t in each["triples"]] for each in explanations]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f'{where}: is no {{"triple": [h, r, t], "explanations": [{{"triples": […]}}]}}, nor with "reasons": […] in '
            "their place; correct the line"
        ) from error


def _labels(triple: Any) -> Labels:
    head, relation, tail = triple
    if not all(isinstance(label, str) for label in triple):
        raise TypeError
    return head, relation, tail


def _ids(triple: Labels, entities: Vocabulary, relations_of: Mapping[str, list[int]]) -> list[Triple]:
    """Translate labels to ids: a triple for each relation that the name stands for, none for unknown labels."""
    head, relation, tail = triple
    if head not in entities.index or tail not in entities.index:
        return []
    return [(entities.index[head], i, entities.index[tail]) for i in relations_of.get(relation, [])]


def _explained(line: _Line, place: Mapping[Triple, int]) -> KnownReasons | None:
    positions, complete = [], []
    for reasons in line.explanations:
        places = [[place[triple] for triple in same if triple in place] for same in reasons]
        here = np.unique(np.array([position for each in places for position in each], dtype=np.int64))
        if len(here):
            positions.append(here)
            complete.append(all(places))
    if not positions:
        return None
    triples = [triple for reasons in line.explanations for same in reasons for triple in same]
    entities = frozenset(entity for head, _, tail in triples for entity in (head, tail))
    return KnownReasons(np.array(line.triple), tuple(positions), tuple(complete), entities)

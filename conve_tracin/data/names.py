"""Readable names of entities and predicates of relations, from the files that the options name."""

import json
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from conve_tracin.data.text import as_id, column_trouble, is_unicode, read_lines, shown, shown_id
from conve_tracin.data.vocabulary import Vocabulary, read_vocabulary
from conve_tracin.errors import InputError

logger = logging.getLogger(__name__)

# Of many labels that share a name.
SHOWN_LABELS = 5


@dataclass(frozen=True)
class Names:
    """What entities and relations are called.

    Attributes:
        entities, relations: the mappings of the files.
        entity_names: readable names of some entities, by id.
        predicates: readable predicates of some relations, by label.
    """

    entities: Vocabulary
    relations: Vocabulary
    entity_names: dict[int, str] = field(default_factory=dict)
    predicates: dict[str, str] = field(default_factory=dict)

    def entity(self, entity: int) -> str:
        """Return an entity's name, or else its label."""
        return self.entity_names.get(entity) or self.entities.labels[entity]

    def relation(self, relation: int) -> str:
        """Return a relation's predicate, or else its label."""
        label = self.relations.labels[relation]
        return self.predicates.get(label, label)

    def ids_called(self, kind: str, text: str) -> list[int]:
        """Find the entities, or the relations, whose readable name is `text`; `kind` is that of their vocabulary."""
        return self._ids_by_name[kind].get(text, [])

    @cached_property
    def _ids_by_name(self) -> dict[str, dict[str, list[int]]]:
        entities, relations = defaultdict(list), defaultdict(list)
        for position, name in self.entity_names.items():
            entities[name].append(position)
        for label, predicate in self.predicates.items():
            if label in self.relations.index:
                relations[predicate].append(self.relations.index[label])
        return {self.entities.kind: entities, self.relations.kind: relations}

    def sentence(self, head: int, relation: int, tail: int) -> str:
        """Return a triple as a line to read."""
        return f"{self.entity(head)} — {self.relation(relation)} → {self.entity(tail)}"

    def triple(self, head: int, relation: int, tail: int) -> dict[str, str]:
        """Return the three names of a triple, for `head_label`, `relation_label` and `tail_label`."""
        return {
            "head_label": self.entity(head),
            "relation_label": self.relation(relation),
            "tail_label": self.entity(tail),
        }


def read_names_from(options: Any) -> Names:
    """Read the files that options or parsed arguments name: two mappings, names of entities, predicates of relations.

    `options.node_name_dict` and `options.edge_map` may be None.
    """
    entities = read_vocabulary(options.entity_to_id, "entity")
    return Names(
        entities=entities,
        relations=read_vocabulary(options.relation_to_id, "relation"),
        entity_names={} if options.node_name_dict is None else read_names(options.node_name_dict, entities),
        predicates={} if options.edge_map is None else read_predicates(options.edge_map),
    )


def read_names(path: str | Path, entities: Vocabulary | None = None) -> dict[int, str]:
    """Read `name<TAB>id` lines into {id: name}.

    If every value of the second column is an integer, they are ids; otherwise they are labels of `entities`.
    Labels that it lacks are left out with a logged count, since a file of names may serve several graphs. Lines
    without a name are ignored.

    Raises InputError for malformed lines, ids out of range, two names for one id, and if no line fits.
    """
    path = Path(path)
    rows = [line.split("\t") for line in read_lines(path)]
    for number, columns in enumerate(rows, start=1):
        if len(columns) != 2 or not columns[1]:
            raise InputError(f"{path}:{number}: {column_trouble(columns, 2)}")
    hold_ids = all(as_id(identifier) is not None for _, identifier in rows)
    if not hold_ids and entities is None:
        number = next(line for line, (_, identifier) in enumerate(rows, start=1) if as_id(identifier) is None)
        raise InputError(f"{path}:{number}: {shown(rows[number - 1][1])} is not an integer id; write name<TAB>id")

    names: dict[int, str] = {}
    unknown = 0
    for number, (name, identifier) in enumerate(rows, start=1):
        position = as_id(identifier) if hold_ids else entities.index.get(identifier)
        if position is None:
            unknown += 1
            continue
        if position < 0 or (entities is not None and position >= len(entities)):
            limit = f"0 to {len(entities) - 1}" if entities is not None else "0 and up"
            raise InputError(
                f"{path}:{number}: id {shown_id(identifier)} is out of range; entity ids are {limit}, "
                "so give the names of this graph"
            )
        if name and names.setdefault(position, name) != name:
            raise InputError(
                f"{path}:{number}: a second name, {shown(name)}, for {shown_id(identifier)} "
                f"(the first: {shown(names[position])}); keep one of them"
            )
    if unknown == len(rows):
        raise InputError(f"{path}: none of its ids is in {entities.source}; give the names of this graph")
    if unknown:
        logger.warning("%s: %d of %d names belong to no entity of this graph", path, unknown, len(rows))
    return names


def read_predicates(path: str | Path) -> dict[str, str]:
    """Read an edge map into {relation label: predicate, with its qualifiers}.

    The file is a JSON object; its keys are JSON objects in turn, written as strings, with a member "predicate"
    and qualifiers beside it, and its values are the relation labels.

    Raises InputError if it is anything else, or gives one label two predicates.
    """
    path = Path(path)
    text = "\n".join(read_lines(path))
    try:
        edge_map = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: is not valid JSON ({error.msg}); correct it") from error
    except ValueError as error:
        raise InputError(f"{path}: holds a number that is too long; an edge map holds texts only") from error
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply; an edge map is one flat JSON object") from None
    if not isinstance(edge_map, dict):
        raise InputError(f'{path}: is not a JSON object; write {{"{{\\"predicate\\": …}}": "relation label"}}')
    predicates: dict[str, str] = {}
    for key, label in edge_map.items():
        if not isinstance(label, str):
            raise InputError(f"{path}: the value of {shown(key)} is not a string; give a relation label")
        predicate = predicate_of(key)
        if not is_unicode(predicate or ""):
            raise InputError(
                f"{path}: the key {shown(key)} holds half a character (\\ud800 to \\udfff); correct the key"
            )
        if predicate is None:
            raise InputError(f'{path}: the key {shown(key)} is not JSON with a "predicate" string; correct the key')
        if predicates.setdefault(label, predicate) != predicate:
            raise InputError(
                f"{path}: {shown(label)} stands for both {shown(predicates[label])} and {shown(predicate)}; "
                "keep one of them"
            )
    return predicates


def predicate_of(key: str) -> str | None:
    """Return the "predicate" of a JSON object written as a string, or None if there is none.

    Its qualifiers stand behind it in brackets: they tell relations apart that mean opposite things, such as
    "biolink:affects (activity, increased)" and "(activity, decreased)".
    """
    try:
        members = json.loads(key)
    except (ValueError, RecursionError):
        return None
    predicate = members.get("predicate") if isinstance(members, dict) else None
    if not isinstance(predicate, str):
        return None
    qualifiers = [value for name, value in members.items() if name != "predicate" and isinstance(value, str)]
    return (
        f"{predicate} ({', '.join(value.removeprefix('biolink:') for value in qualifiers)})"
        if qualifiers
        else predicate
    )

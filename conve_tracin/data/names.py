"""Readable names of entities and predicates of relations, from the files that the options name."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from conve_tracin.data.text import as_id, column_trouble, is_unicode, read_lines, shown, shown_id
from conve_tracin.data.vocabulary import Vocabulary, read_vocabulary
from conve_tracin.errors import InputError

# Of Biolink's classes and predicates, which are written with it or without.
BIOLINK_PREFIX = "biolink:"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Names:
    """What entities and relations are called.

    Attributes:
        entities, relations: the mappings of the files.
        entity_names: readable names of some entities, by id.
        predicates: readable predicates of some relations, by label.
        curies: the predicates themselves, without qualifiers, by label.
    """

    entities: Vocabulary
    relations: Vocabulary
    entity_names: dict[int, str] = field(default_factory=dict)
    predicates: dict[str, str] = field(default_factory=dict)
    curies: dict[str, str] = field(default_factory=dict)

    def entity(self, entity: int) -> str:
        """Return an entity's name, with its label if others are called so, or its label if it has none."""
        label = self.entities.labels[entity]
        name = self.entity_names.get(entity)
        return f"{name} ({label})" if name in self._shared_names and name != label else name or label

    @cached_property
    def _shared_names(self) -> set[str]:
        counts = Counter(self.entity_names.values())
        return {
            name
            for position, name in self.entity_names.items()
            if counts[name] > 1 or self.entities.index.get(name, position) != position
        }

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

    def keys(self, head: int, relation: int, tail: int) -> dict[str, str]:
        """Return the labels of a triple in the mappings, and the predicate's CURIE where the edge map tells it."""
        label = self.relations.labels[relation]
        return {
            "head_key": self.entities.labels[head],
            "relation_key": label,
            "tail_key": self.entities.labels[tail],
            **({"relation_curie": self.curies[label]} if label in self.curies else {}),
        }

    def members(self, head: int, relation: int, tail: int) -> dict[str, str]:
        """Return what JSON says of a triple besides its ids: its names and its labels."""
        return self.triple(head, relation, tail) | self.keys(head, relation, tail)


def read_names_from(options: Any, vocabularies: tuple[Vocabulary, Vocabulary] | None = None) -> Names:
    """Read the files that options or parsed arguments name: two mappings, names of entities, predicates of relations.

    `options.node_name_dict` and `options.edge_map` may be None. `vocabularies` are the mappings if they are there.
    """
    if vocabularies is None:
        vocabularies = tuple(
            read_vocabulary(path, kind)
            for path, kind in ((options.entity_to_id, "entity"), (options.relation_to_id, "relation"))
        )
    entities, relations = vocabularies
    edge_map = {} if options.edge_map is None else read_edge_map(options.edge_map)
    missing = [label for label in edge_map if label not in relations.index]
    if missing:
        logger.warning(
            "%s: names %d relations that %s lacks (first: %s); if it is another graph's, relations are called by wrong "
            "names", options.edge_map, len(missing), relations.source, shown(missing[0]),
        )  # fmt: skip
    return Names(
        entities=entities,
        relations=relations,
        entity_names={} if options.node_name_dict is None else read_names(options.node_name_dict, entities),
        predicates=names_of_relations(edge_map),
        curies={label: meaning["predicate"] for label, meaning in edge_map.items()},
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

    if hold_ids and entities is not None and all(identifier in entities.index for _, identifier in rows):
        others = sum(entities.index[identifier] != as_id(identifier) for _, identifier in rows)
        if others:
            logger.warning(
                "%s: %d of its %d ids are labels of other entities, too; they are read as ids", path, others, len(rows)
            )
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
    """Read an edge map into {relation label: predicate, with its qualifiers}; no two are called alike.

    Raises InputError as `read_edge_map` does.
    """
    return names_of_relations(read_edge_map(path))


def read_edge_map(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read an edge map into {relation label: its meaning}, a predicate and its qualifiers by their members.

    The file is a JSON object; its keys are JSON objects in turn, written as strings, with a member "predicate"
    and qualifiers beside it, and its values are the relation labels.

    Raises InputError if it is anything else, or gives one label two meanings.
    """
    path = Path(path)
    text = "\n".join(read_lines(path))
    try:
        edge_map = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: is not valid JSON ({error.msg}); correct it") from error
    except ValueError as error:
        raise InputError(f"{path}: holds a number that is too long; an edge map holds texts only") from error
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply; an edge map is one flat JSON object") from None
    if not isinstance(edge_map, _Pairs):
        raise InputError(f'{path}: is not a JSON object; write {{"{{\\"predicate\\": …}}": "relation label"}}')
    meanings: dict[str, dict[str, Any]] = {}
    label_of_key: dict[str, str] = {}
    for key, label in edge_map:
        if not isinstance(label, str):
            raise InputError(f"{path}: the value of {shown(key)} is not a string; give a relation label")
        if label_of_key.setdefault(key, label) != label:
            raise InputError(f"{path}: the key {shown(key)} occurs twice, for {shown(label_of_key[key])} and "
                             f"{shown(label)}; keep one of them")  # fmt: skip
        meaning = meaning_of(key)
        if meaning is None:
            raise InputError(f'{path}: the key {shown(key)} is not JSON with a "predicate" string; correct the key')
        if not is_unicode(json.dumps(meaning, ensure_ascii=False)):
            raise InputError(
                f"{path}: the key {shown(key)} holds half a character (\\ud800 to \\udfff); correct the key"
            )
        if meanings.setdefault(label, meaning) != meaning:
            raise InputError(
                f"{path}: {shown(label)} stands for both {shown(short_name(meanings[label]))} and "
                f"{shown(short_name(meaning))}; keep one of them"
            )
    return meanings


class _Pairs(list):
    """The members of a JSON object in their order; a dictionary would keep the last of two with one name."""


def meaning_of(key: str) -> dict[str, Any] | None:
    """Return the JSON object that is written as a string, or None where it has no "predicate"."""
    try:
        members = json.loads(key)
    except (ValueError, RecursionError):
        return None
    is_meaning = isinstance(members, dict) and isinstance(members.get("predicate"), str)
    return members if is_meaning else None


def names_of_relations(meanings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return {relation label: name}; relations whose short names are equal get longer ones.

    A name holds the qualifiers, as they tell relations apart that mean opposite things: "biolink:affects (object
    activity increased)" and "biolink:affects (object activity decreased)".
    """
    names = {label: short_name(meaning) for label, meaning in meanings.items()}
    for longer in (long_name, lambda meaning: f"{long_name(meaning)} {json.dumps(meaning, ensure_ascii=False)}"):
        names |= {label: longer(meanings[label]) for label in _repeated(names)}
    return names | {label: f"{names[label]} [{label}]" for label in _repeated(names)}


def _repeated(names: Mapping[str, str]) -> list[str]:
    counts = Counter(names.values())
    return [label for label, name in names.items() if counts[name] > 1]


def short_name(meaning: Mapping[str, Any]) -> str:
    """Return the predicate with its qualifiers in brackets: all of the subject, and of the object, as one phrase."""
    phrases: dict[str, list[str]] = {}
    for name, text in _qualifiers(meaning):
        end = name.partition("_")[0]
        # The predicate that a qualifier gives stands for itself, and so does the mechanism.
        phrases.setdefault(end if end in ("subject", "object") else name, []).append(text)
    written = [
        " ".join([end, *texts]) if end in ("subject", "object") else " ".join(texts) for end, texts in phrases.items()
    ]  # fmt: skip
    return f"{meaning['predicate']} ({', '.join(written)})" if written else meaning["predicate"]


def long_name(meaning: Mapping[str, Any]) -> str:
    """Return the predicate and each qualifier with its name."""
    written = [
        f"{name.removesuffix('_qualifier').replace('_', ' ')} {text}" for name, text in _qualifiers(meaning)
    ]  # fmt: skip
    return f"{meaning['predicate']} ({', '.join(written)})" if written else meaning["predicate"]


def _qualifiers(meaning: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the qualifiers and their values as text, the values of a list joined."""
    return [
        (name, " and ".join(str(part).removeprefix("biolink:") for part in (value if type(value) is list else [value])))
        for name, value in meaning.items()
        if name != "predicate" and value not in (None, "", [])
    ]

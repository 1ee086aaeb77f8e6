"""Finding entities and relations by what a person types: a label or a name, whatever its case.

Exact labels come first, then exact names. The tables for everything else are built at the first miss, so that finding
by labels costs nothing in a graph of 400,000 names.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from conve_tracin.data.names import BIOLINK_PREFIX, Names
from conve_tracin.data.text import SHOWN_CHARACTERS, close_labels, shown
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError

# Of what a name may stand for, in messages.
SHOWN_ENTITIES, SHOWN_RELATIONS = 5, 20
# A shorter text is part of too many names to be a hint.
SHORTEST_PART = 4


class Finder:
    """Finds the entity or relation that a text names; `kind` is that of its vocabulary in all methods."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.vocabularies = {each.kind: each for each in (names.entities, names.relations)}

    def id_of(self, kind: str, text: str) -> int:
        """Return the id of what is called so.

        Raises InputError if there is none, with names that look alike, or several, with what they are.
        """
        found = self.find(kind, text)
        if len(found) == 1:
            return found[0]
        raise InputError(self._ambiguous(kind, text, found) if found else self._unknown(kind, text))

    def find(self, kind: str, text: str) -> Sequence[int]:
        """Return the ids of all that is called so: by label, or else by name, or else in another case.

        A relation is also found without `biolink:`, with blanks for underscores, and by its predicate without
        qualifiers, which may stand for several.
        """
        vocabulary = self.vocabularies[kind]
        if text in vocabulary.index:
            return [vocabulary.index[text]]
        return self.names.ids_called(kind, text) or self._found_in_another_case(kind, text)

    def _found_in_another_case(self, kind: str, text: str) -> Sequence[int]:
        if kind == self.names.entities.kind:
            found = self._entities.get(text.casefold(), ())
        else:
            found = self._relations_called(text)
        return list(dict.fromkeys(found))

    def _relations_called(self, text: str) -> Sequence[int]:
        plain = plain_predicate(text)
        found, by_predicate = self._relations.get(plain, []), self._predicates.get(plain, [])
        if not _has_prefix(text) or any(self._is_of_biolink(id_) for id_ in found):
            return found or by_predicate
        # `biolink:affects` is no relation that is called `affects`, if there are predicates that are.
        return [*found, *by_predicate]

    def _is_of_biolink(self, relation: int) -> bool:
        label = self.names.relations.labels[relation]
        return _has_prefix(label) or _has_prefix(self.names.predicates.get(label, ""))

    @cached_property
    def _entities(self) -> dict[str, list[int]]:
        """The entities by label and by name, both casefolded."""
        return _grouped((text.casefold(), id_) for text, id_ in self._called(self.names.entities))

    @cached_property
    def _relations(self) -> dict[str, list[int]]:
        """The relations by label and by name with its qualifiers."""
        return _grouped((plain_predicate(text), id_) for text, id_ in self._called(self.names.relations))

    @cached_property
    def _predicates(self) -> dict[str, list[int]]:
        """The relations by their predicates without qualifiers."""
        index, curies = self.names.relations.index, self.names.curies
        return _grouped((plain_predicate(curie), index[label]) for label, curie in curies.items() if label in index)

    def _called(self, vocabulary: Vocabulary) -> Iterator[tuple[str, int]]:
        yield from vocabulary.index.items()
        if vocabulary is self.names.entities:
            for id_, name in self.names.entity_names.items():
                yield name, id_
                # As it is printed: with the label behind it if others are called so.
                if (printed := self.names.entity(id_)) != name:
                    yield printed, id_
        else:
            index = vocabulary.index
            yield from ((name, index[label]) for label, name in self.names.predicates.items() if label in index)

    # What stands in messages

    def _ambiguous(self, kind: str, text: str, found: Sequence[int]) -> str:
        if self.names.ids_called(kind, text):
            labels = self.vocabularies[kind].labels
            listed = _listed([shown(labels[id_]) for id_ in found], SHOWN_ENTITIES, ", ")
            return f"{shown(text)} is the name of {len(found)}: {listed}; give one of these labels"
        if kind == self.names.entities.kind:
            listed = _listed([self._described(kind, id_) for id_ in found], SHOWN_ENTITIES, ", ")
            return f"{shown(text)} may be any of {len(found)}: {listed}; give one of them as it is written"
        listed = _listed([self._described(kind, id_) for id_ in found], SHOWN_RELATIONS, "; ")
        return f"{shown(text)} stands for {len(found)} relations, give one of them as it is written: {listed}"

    def _unknown(self, kind: str, text: str) -> str:
        close = [self._described(kind, id_) for id_ in self._close(kind, text)]
        if close:
            return f"unknown {kind} {shown(text)}; did you mean {' or '.join(close)}?"
        is_entity = kind == self.names.entities.kind
        has_names = self.names.entity_names if is_entity else self.names.predicates
        flag = "--node-name-dict" if is_entity else "--edge-map"
        remedy = "check its spelling" if has_names else f"check its spelling, or give names with {flag} FILE"
        return f"unknown {kind} {shown(text)}, {self.vocabularies[kind].source} lacks it; {remedy}"

    def _close(self, kind: str, text: str) -> list[int]:
        """Return up to three ids whose label or name looks like `text`, or else contains it."""
        is_entity = kind == self.names.entities.kind
        table = self._entities if is_entity else self._predicates | self._relations
        wanted = text.casefold() if is_entity else plain_predicate(text)
        close = close_labels(wanted, table)
        if not close and SHORTEST_PART <= len(wanted) <= SHOWN_CHARACTERS:
            close = sorted((other for other in table if wanted in other), key=len)
        return list(dict.fromkeys(id_ for other in close for id_ in table[other]))[:3]

    def _described(self, kind: str, id_: int) -> str:
        """Return a name in quotes with the label behind it, or the label alone."""
        label = self.vocabularies[kind].labels[id_]
        if kind == self.names.entities.kind:
            name = self.names.entity_names.get(id_, label)
        else:
            name = self.names.predicates.get(label, label)
        return shown(label) if name == label else f"{shown(name)} ({label})"


def plain_predicate(text: str) -> str:
    """Return a predicate as it is looked for: `Biolink:has_phenotype` and "has phenotype" are the same."""
    return text.casefold().replace("_", " ").strip().removeprefix(BIOLINK_PREFIX)


def _has_prefix(text: str) -> bool:
    return text.casefold().strip().startswith(BIOLINK_PREFIX)


def _grouped(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    groups = defaultdict(list)
    for text, id_ in pairs:
        groups[text].append(id_)
    return dict(groups)


def _listed(descriptions: Sequence[str], limit: int, separator: str) -> str:
    return separator.join([*descriptions[:limit], *(["…"] if len(descriptions) > limit else [])])

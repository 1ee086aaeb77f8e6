"""What a page calls an entity or a relation."""

from collections.abc import Sequence
from dataclasses import dataclass

from conve_tracin.data.names import Names
from conve_tracin.report.lettering import in_words


@dataclass(frozen=True)
class Name:
    """What the page calls an entity or a relation.

    Attributes:
        text: the name.
        identifier: what the files call it, "" if that is the name.
        is_shared: it also occurs in the prediction.
        label: its label in the mapping.
    """

    text: str
    identifier: str = ""
    is_shared: bool = False
    label: str = ""


def entity_name(names: Names, entity: int, *, shared_with: Sequence[int] = ()) -> Name:
    """Return what an entity is called; it is marked if it is one of `shared_with`."""
    name, label = names.entity(entity), names.entities.labels[entity]
    return Name(name, "" if label == name else label, entity in shared_with, label)


def relation_name(names: Names, relation: int, *, shared_with: Sequence[int] = ()) -> Name:
    """Return what a relation is called, in words; it is marked if it is one of `shared_with`."""
    text = in_words(names.relation(relation))
    label = names.relations.labels[relation]
    written = dict.fromkeys((names.relation(relation), label))
    return Name(text, " · ".join(name for name in written if name != text), relation in shared_with, label)

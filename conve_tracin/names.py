"""What entities and relations are called."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from conve_tracin.triples import Vocabulary


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
        """Return an entity's name, or its label where it has none."""
        return self.entity_names.get(entity) or self.entities.labels[entity]

    def relation(self, relation: int) -> str:
        """Return a relation's predicate, or its label where it has none."""
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

"""Traces as JSON and as a table to read in a terminal."""

from dataclasses import dataclass, field
from typing import Any

from conve_tracin.influence.analyzer import Influence
from conve_tracin.influence.tracing import Trace
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

    def triple(self, head: int, relation: int, tail: int) -> dict[str, str]:
        """Return the three names of a triple, for `head_label`, `relation_label` and `tail_label`."""
        return {
            "head_label": self.entity(head),
            "relation_label": self.relation(relation),
            "tail_label": self.entity(tail),
        }


def trace_as_json(
    trace: Trace, names: Names, *, top_k: int, learning_rate: float | list[float], method: dict[str, Any]
) -> dict[str, Any]:
    """Arrange a trace as the documented JSON, with names and `method` as further members."""
    head, relation, tail = trace.test_triple
    return {
        "test_triple": {"head": head, "relation": relation, "tail": tail, **names.triple(head, relation, tail)},
        "top_k": top_k,
        "learning_rate": learning_rate,
        **method,
        "influences": [influence_as_json(influence, names) for influence in trace.influences],
    }


def influence_as_json(influence: Influence, names: Names) -> dict[str, Any]:
    """Arrange one influence as the documented members and the names behind them."""
    labels = names.triple(influence.head, influence.relation, influence.tail)
    return influence.as_dict() | {f"train_{member}": label for member, label in labels.items()}


def trace_as_table(trace: Trace, names: Names, *, rows: int = 5) -> str:
    """Lay out the strongest proponents and opponents as text."""

    def sentence(head: int, relation: int, tail: int) -> str:
        return f"{names.entity(head)} — {names.relation(relation)} → {names.entity(tail)}"

    lines = [f"Prediction: {sentence(*trace.test_triple)}"]
    for title, influences in (
        ("Proponents (the model believes it because of)", trace.proponents),
        ("Opponents (the model believes it in spite of)", trace.opponents),
    ):
        lines.append(f"{title}:" if influences else f"{title}: none")
        lines += [
            f"  {influence.influence:+12.5e}  {sentence(influence.head, influence.relation, influence.tail)}"
            for influence in influences[:rows]
        ]
    return "\n".join(lines)

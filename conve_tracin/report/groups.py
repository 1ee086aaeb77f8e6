"""Rows that say the same of many entities, as one: 34 drugs that treat hypertension."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from conve_tracin.influence.method import Influence

# From this many rows on.
GROUPED_FROM = 4


@dataclass(frozen=True)
class Group:
    """Influences of one sign that differ in their heads only, or in their tails only; strongest first.

    `many` is "head" or "tail"; None for a single influence.
    """

    influences: tuple[Influence, ...]
    many: str | None

    @property
    def sum(self) -> float:
        """The sum of the influences."""
        return sum(one.influence for one in self.influences)


def group_influences(influences: Sequence[Influence]) -> list[Group]:
    """Group influences of one sign, strongest sums first; each stands in one group, the larger one it fits in."""
    sizes = Counter(key for one in influences for key in _keys(one))
    members: dict[tuple[str, int, int] | int, list[Influence]] = {}
    for place, one in enumerate(influences):
        key = max(_keys(one), key=lambda key: sizes[key])
        members.setdefault(key if sizes[key] >= GROUPED_FROM else place, []).append(one)
    # What the larger groups have taken can leave a smaller one with too few.
    groups = []
    for key, found in members.items():
        if isinstance(key, tuple) and len(found) >= GROUPED_FROM:
            groups.append(Group(tuple(found), key[0]))
        else:
            groups += [Group((one,), None) for one in found]
    return sorted(groups, key=lambda group: -abs(group.sum))


def _keys(influence: Influence) -> tuple[tuple[str, int, int], tuple[str, int, int]]:
    return ("head", influence.relation, influence.tail), ("tail", influence.head, influence.relation)

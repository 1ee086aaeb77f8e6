"""Where edges come from: their sources, knowledge level and agent type, and the filters that go by them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from conve_tracin.data.kgx.biolink import MOST_VALUES, SOURCE_ROLES, EdgeShape, knowledge_sources, texts_of
from conve_tracin.data.text import suggestion

# What edges that lack a knowledge level or an agent type have, as Biolink puts it.
NOT_PROVIDED = "not_provided"

TEXT_MINING_AGENT = "text_mining_agent"

# In the names of sources whose edges were found by reading the literature by machine.
TEXT_MINED = re.compile(r"text-?mining|tmkp|semmed|co-?occurrence|omnicorp|cord-?19|pubtator|litcovid")

# Databases of one organism that is not human, and those that join them.
MODEL_ORGANISMS = frozenset(
    (
        "mgi", "rgd", "zfin", "flybase", "wormbase", "sgd", "pombase", "xenbase", "dictybase", "tair", "araport",
        "ecocyc", "ecogene", "impc", "mpd", "animalqtldb", "omia", "agrkb", "alliancegenome",
        "alliance-of-genome-resources",
    )
)  # fmt: skip


@dataclass(frozen=True)
class EdgeSources:
    """Where an edge comes from, under Biolink's names; each member is empty where the edge does not say."""

    primary: tuple[str, ...]
    aggregators: tuple[str, ...]
    supporting: tuple[str, ...]
    knowledge_level: tuple[str, ...]
    agent_type: tuple[str, ...]

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> "EdgeSources":
        """Read the members of an edge under Biolink's names."""
        found = knowledge_sources(members)
        others = ([text for text in texts_of(members.get(name)) if text] for name in ("knowledge_level", "agent_type"))
        return cls(*(tuple(found.get(role, ())) for role in SOURCE_ROLES), *map(tuple, others))

    @property
    def sources(self) -> tuple[str, ...]:
        """All sources, whatever their role."""
        return (*self.primary, *self.aggregators, *self.supporting)

    @property
    def is_clean(self) -> bool:
        """Whether neither text mining nor a database of a model organism gave the edge."""
        names = set(map(plain, self.sources))
        is_mined = any(map(TEXT_MINED.search, names)) or TEXT_MINING_AGENT in map(plain, self.agent_type)
        return not is_mined and not names & MODEL_ORGANISMS


def plain(name: str) -> str:
    """Return the name of a source or of a value as filters compare it: without its prefix, in lower case."""
    return name.strip().lower().removeprefix("infores:").removeprefix("biolink:")


# The filters that go by provenance, in the order in which they count an edge as dropped.
FILTERS = ("exclude_source", "knowledge_level", "agent_type")


@dataclass(frozen=True)
class EdgeFilters:
    """What an edge must not have, or must have, to be kept; empty: anything.

    `excluded_sources` are compared with all of an edge's sources. Edges without a knowledge level or an agent type
    have NOT_PROVIDED.
    """

    excluded_sources: tuple[str, ...] = ()
    knowledge_levels: tuple[str, ...] = ()
    agent_types: tuple[str, ...] = ()

    def dropped_by(self, provenance: EdgeSources) -> str | None:
        """Return the first filter that drops such an edge, by the name of its setting, or None."""
        if set(map(plain, self.excluded_sources)) & set(map(plain, provenance.sources)):
            return "exclude_source"
        for name, wanted, values in (
            ("knowledge_level", self.knowledge_levels, provenance.knowledge_level),
            ("agent_type", self.agent_types, provenance.agent_type),
        ):
            if wanted and not set(map(plain, wanted)) & set(map(plain, values or (NOT_PROVIDED,))):
                return name
        return None

    def remarks(self, provenances: Iterable[EdgeSources]) -> list[str]:
        """Say which of the names no edge has: one sentence each, as they may be misspelt."""
        met = list(provenances)
        remarks = []
        for flag, wanted, has in (
            ("--exclude-source", self.excluded_sources, [each.sources for each in met]),
            ("--knowledge-level", self.knowledge_levels, [each.knowledge_level or (NOT_PROVIDED,) for each in met]),
            ("--agent-type", self.agent_types, [each.agent_type or (NOT_PROVIDED,) for each in met]),
        ):
            values = sorted({value for names in has for value in names})
            known = set(map(plain, values))
            remarks += [
                f"{flag} {name}: no edge has it; {suggestion(name, values, otherwise='is it spelt as in the edges?')}"
                for name in wanted
                if plain(name) not in known
            ]
        return remarks


class Provenances:
    """Numbers for provenances, in the order in which they are met."""

    def __init__(self) -> None:
        self.met: list[EdgeSources] = []
        self._numbers: dict[EdgeSources, int] = {}

    def number(self, edge: Mapping[str, Any], shape: EdgeShape) -> int:
        """Return the number of an edge's provenance."""
        values = shape.origins_of(edge)
        try:
            key = tuple([tuple(value) if type(value) is list else value for value in values])
            number = shape.provenance_numbers.get(key)
        except TypeError:  # objects cannot be looked up
            key = (repr(values),)
            number = shape.provenance_numbers.get(key)
        if number is None:
            provenance = EdgeSources.of(dict(zip(shape.origins.values(), values, strict=True)))
            number = self._numbers.setdefault(provenance, len(self.met))
            if number == len(self.met):
                self.met.append(provenance)
            if len(shape.provenance_numbers) >= MOST_VALUES:
                shape.provenance_numbers.clear()
            shape.provenance_numbers[key] = number
        return number


def count_primary_sources(provenances: Iterable[EdgeSources], counts: Iterable[int]) -> dict[str, int]:
    """Return how many edges have each primary source."""
    found: Counter[str] = Counter()
    for provenance, number in zip(provenances, counts, strict=True):
        for name in provenance.primary:
            found[name] += number
    return dict(found.most_common())

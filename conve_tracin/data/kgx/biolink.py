"""What the members of KGX nodes and edges mean: the Biolink model, and the other names that graphs have for it.

**Kinds.** A node's `category` lists Biolink classes, in some graphs with all their ancestors, in others the most
specific alone; so every class below a kind is named here (Biolink 4, and the older `ChemicalSubstance`). The unions
that blur the kinds (`ChemicalEntityOrGeneOrGeneProduct` and the like) count as none. A node can be of several kinds:
a therapeutic protein is a chemical and a gene product.

- chemical: `ChemicalEntity` and what is below it, drugs and foods included.
- gene: `Gene`, `GeneOrGeneProduct`, proteins and RNA products; not gene families, and not bare polypeptides.
- disease: `DiseaseOrPhenotypicFeature`, that is diseases and phenotypes, as Biolink lets `treats` end in both.

**Relations.** A relation is a predicate with those qualifiers that change what it says and take their values from a
short list: "affects" with increased activity and with decreased activity are two relations. Qualifiers that hold a
context, such as a species or a tissue, would make a relation of each context; they are counted and passed over.

**Negation.** An edge with `negated`, with the qualifier NOT, with a frequency of zero (HP:0040285, 0/12, 0%), or
without statistical significance says that something is not so.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from conve_tracin.data.evidence_columns import EVIDENCE_COLUMNS
from conve_tracin.data.kgx.files import MalformedLineError, require_text
from conve_tracin.data.names import BIOLINK_PREFIX
from conve_tracin.data.text import is_unicode, shown

CHEMICAL, GENE, DISEASE = 1, 2, 4

CLASSES = {
    CHEMICAL: (
        "ChemicalEntity", "MolecularEntity", "SmallMolecule", "NucleicAcidEntity", "ChemicalMixture",
        "MolecularMixture", "ComplexMolecularMixture", "ProcessedMaterial", "Drug", "Food", "FoodAdditive",
        "EnvironmentalFoodContaminant", "ChemicalSubstance",
    ),
    GENE: (
        "Gene", "GeneOrGeneProduct", "GeneProductMixin", "GeneProductIsoformMixin", "Protein", "ProteinIsoform",
        "RNAProduct", "RNAProductIsoform", "NoncodingRNAProduct", "MicroRNA", "SiRNA", "NucleosomeModification",
        "PosttranslationalModification",
    ),
    DISEASE: (
        "DiseaseOrPhenotypicFeature", "Disease", "PhenotypicFeature", "BehavioralFeature", "ClinicalFinding",
    ),
}  # fmt: skip

KIND_OF_CLASS = {name: kind for kind, names in CLASSES.items() for name in names}

# Those that make a relation, in the order in which they stand in an edge map.
QUALIFIERS = (
    "qualified_predicate",
    *(
        f"{end}_{part}_qualifier"
        for end in ("subject", "object")
        for part in ("aspect", "direction", "form_or_variant", "part", "derivative")
    ),
    "causal_mechanism_qualifier",
    "response_context_qualifier",
)

# Lists of CURIEs or words (Monarch, GO), or of objects with a type and a value (TRAPI).
NESTED_QUALIFIERS = ("qualifiers", "qualifier")

NEGATIONS = ("negated", "is_negated", "negation")

DENIALS = {
    "frequency_qualifier": re.compile(r"HP:0040285|0/\d+|0(\.0*)?%"),
    "statistical_significance_qualifier": re.compile("(biolink:)?not_significant"),
    **dict.fromkeys(NESTED_QUALIFIERS, re.compile("(?i)NOT")),
}

# What else can change what an edge says; the values that do.
OTHER_MEANINGS = {
    "deprecated": re.compile("(?i)true|1"),
    "logical_interpretation": re.compile(".*inverse.*"),
    "clinical_approval_status": re.compile(".*(not_approved|withdrawal).*"),
    **dict.fromkeys(("has_count", "has_quotient", "has_percentage"), re.compile(r"0(\.0*)?")),
}

PRIMARY_SOURCE = "primary_knowledge_source"

SOURCE_ROLES = (PRIMARY_SOURCE, "aggregator_knowledge_source", "supporting_data_source")

ORIGINS = (*SOURCE_ROLES, "sources", "knowledge_level", "agent_type")

# Of the columns that hold what an edge itself says, counted from the first one behind the triple.
PLACE_OF_EVIDENCE = {
    {"edge_id": "id"}.get(name, name): place for place, name in enumerate(EVIDENCE_COLUMNS[3:]) if name not in ORIGINS
}

MOST_SHAPES, MOST_VALUES = 10_000, 100_000


def kinds_of(category: Any) -> int:
    """Return the kinds, as bits, of a node with these Biolink classes: one CURIE or a list of them.

    Raises MalformedLineError for anything else; a node without categories is of no kind.
    """
    classes = [category] if isinstance(category, str) else category or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise MalformedLineError('"category" is no list of strings')
    kinds = 0
    for name in classes:
        kinds |= KIND_OF_CLASS.get(name.removeprefix(BIOLINK_PREFIX), 0)
    return kinds


def biolink_name(member: str) -> str:
    """Return Biolink's name of a member of an edge.

    RTX-KG2 has `qualified_object_direction` for `object_direction_qualifier`; drafts of Biolink had
    `object_direction`, and TRAPI writes `biolink:object_direction_qualifier`.
    """
    name = member.removeprefix(BIOLINK_PREFIX).replace(" ", "_").lower()
    if name in NEGATIONS:
        return "negated"
    as_qualifier = f"{name.removeprefix('qualified_').removesuffix('_qualifier')}_qualifier"
    return as_qualifier if name not in QUALIFIERS and as_qualifier in QUALIFIERS else name


@dataclass(eq=False)
class EdgeShape:
    """What the member names of an edge say, worked out once for all edges that have the same.

    Attributes:
        names: {member: Biolink's name} of what makes the relation or denies the edge.
        passed_over: members that may change the meaning and are not read.
        origins: {member: Biolink's name} of what says where the edge comes from.
        evidence: (place in EVIDENCE_COLUMNS behind the triple, member) of what else stands behind the edge.
        values_of: picks the members in `names`.
        origins_of: picks the members in `origins`, always as a tuple.
        relation_numbers: for each of the values in `names`.
        provenance_numbers: for each of the values in `origins`.
    """

    names: dict[str, str]
    passed_over: tuple[str, ...]
    origins: dict[str, str]
    evidence: tuple[tuple[int, str], ...]
    values_of: Callable[[Mapping[str, Any]], Any]
    origins_of: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    relation_numbers: dict[Any, int] = field(default_factory=dict)
    provenance_numbers: dict[Any, int] = field(default_factory=dict)

    @classmethod
    def of(cls, members: Iterable[str]) -> "EdgeShape":
        """Work it out."""
        called = {member: biolink_name(member) for member in members}
        read = ("predicate", "negated", *QUALIFIERS, *DENIALS)
        names = {member: name for member, name in called.items() if name in read}
        passed_over = tuple(
            member
            for member, name in called.items()
            if (name not in read or name in DENIALS) and (name in OTHER_MEANINGS or "qualif" in name)
        )
        origins = {member: name for member, name in called.items() if name in ORIGINS}
        evidence = tuple(
            (PLACE_OF_EVIDENCE[name], member) for member, name in called.items() if name in PLACE_OF_EVIDENCE
        )  # fmt: skip
        values_of = itemgetter(*names) if names else lambda _: None
        return cls(names, passed_over, origins, evidence, values_of, _picker_of_tuples(*origins))

    def count_passed_over(self, edge: Mapping[str, Any], counts: dict[str, int]) -> None:
        """Add 1 to `counts` for each member of the edge that may change its meaning and is not read."""
        for member in self.passed_over:
            if changes_meaning(member, edge[member]):
                counts[member] = counts.get(member, 0) + 1


def _picker_of_tuples(*members: str) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(members) > 1:
        return itemgetter(*members)
    return lambda edge: tuple(edge[member] for member in members)


class Relations:
    """Numbers for predicates with their qualifiers, in the order in which they are met.

    With `keep_negated`, an edge that denies something has the relation "not PREDICATE"; otherwise it has none.
    """

    def __init__(self, *, keep_negated: bool = False) -> None:
        self.keep_negated = keep_negated
        self.keys: dict[str, int] = {}
        self.predicates: list[str] = []
        self._shapes: dict[tuple[str, ...], EdgeShape] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def shape_of(self, edge: Mapping[str, Any]) -> EdgeShape:
        """Return the shape of an edge."""
        members = tuple(edge)
        shape = self._shapes.get(members)
        if shape is None:
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            shape = self._shapes[members] = EdgeShape.of(members)
        return shape

    def number(self, edge: Mapping[str, Any], shape: EdgeShape) -> int:
        """Return the number of an edge's relation, or -1 for a negated edge that is not kept.

        Raises MalformedLineError where the edge has no proper relation.
        """
        values = shape.values_of(edge)
        try:
            number = shape.relation_numbers.get(values)
        except TypeError:  # lists and objects cannot be looked up
            values = (repr(values),)
            number = shape.relation_numbers.get(values)
        if number is None:
            number = self._number_of_key(edge, shape)
            if len(shape.relation_numbers) >= MOST_VALUES:
                shape.relation_numbers.clear()
            shape.relation_numbers[values] = number
        return number

    def _number_of_key(self, edge: Mapping[str, Any], shape: EdgeShape) -> int:
        predicate = require_text(edge, "predicate")
        qualifiers = qualifiers_of(edge, shape.names)
        if is_negated(edge, shape.names):
            if not self.keep_negated:
                return -1
            predicate = f"not {predicate}"
        key = json.dumps({"predicate": predicate, **qualifiers}, ensure_ascii=False)
        if not is_unicode(key):
            raise MalformedLineError('"predicate" or a qualifier holds half a character')
        if key not in self.keys:
            self.keys[key] = len(self.keys)
            self.predicates.append(predicate)
        return self.keys[key]

    def with_predicate(self, predicate: str) -> np.ndarray:
        """Tell which relations have this predicate, (R,) bool."""
        return np.array([other == predicate for other in self.predicates], dtype=bool)


def qualifiers_of(edge: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str | list[str]]:
    """Return the qualifiers that make an edge's relation, without those that are missing or empty.

    `names` is {member: Biolink's name}, as in `EdgeShape`. Raises MalformedLineError for one that is neither a string
    nor a list of strings, and where two members give one qualifier different values.
    """
    found: dict[str, list[str]] = {}
    for member, name, value in _given_qualifiers(edge, names):
        values = value if isinstance(value, list) else [value] if value else []
        if not all(isinstance(part, str) for part in values):
            raise MalformedLineError(f'"{member}" is neither a string nor a list of strings')
        values = sorted({part for part in values if part})
        if values and found.setdefault(name, values) != values:
            raise MalformedLineError(f'"{member}" gives {name} a second value, {shown(values[0])}')
    return {
        name: found[name][0] if len(found[name]) == 1 else found[name] for name in QUALIFIERS if name in found
    }  # fmt: skip


def _given_qualifiers(edge: Mapping[str, Any], names: Mapping[str, str]) -> Iterable[tuple[str, str, Any]]:
    for member, name in names.items():
        if name in QUALIFIERS:
            yield member, name, edge[member]
        elif name in NESTED_QUALIFIERS:
            for part in _objects(edge[member]):
                kind = biolink_name(str(part.get("qualifier_type_id")))
                if kind in QUALIFIERS:
                    yield member, kind, part.get("qualifier_value")


def _objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects in a list, which a table holds as JSON text."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def is_negated(edge: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    """Tell whether an edge says that something is not so; `names` as in `EdgeShape`.

    Raises MalformedLineError where "negated" is neither true nor false.
    """
    if any(_is_true(edge[member], member) for member, name in names.items() if name == "negated"):
        return True
    return any(
        DENIALS[name].fullmatch(text)
        for member, name in names.items()
        if name in DENIALS
        for text in texts_of(edge[member])
    )


def _is_true(value: Any, member: str) -> bool:
    if isinstance(value, list):
        return any(_is_true(part, member) for part in value)
    text = "" if value is None else str(value).strip().casefold()
    if text in ("true", "t", "yes", "1", "1.0"):
        return True
    if text in ("", "false", "f", "no", "0", "0.0"):
        return False
    raise MalformedLineError(f'"{member}" is {shown(str(value))}, neither true nor false')


def texts_of(value: Any) -> list[str]:
    """Return a text or a number, or those in a list, as texts."""
    values = value if isinstance(value, list) else [value]
    return [str(part).strip() for part in values if part is not None and not isinstance(part, dict)]


def changes_meaning(member: str, value: Any) -> bool:
    """Tell whether a member that is not read may make an edge mean something else."""
    name = biolink_name(member)
    if name in OTHER_MEANINGS:
        return any(OTHER_MEANINGS[name].fullmatch(text) for text in texts_of(value))
    if name in NESTED_QUALIFIERS:
        types = [biolink_name(str(part.get("qualifier_type_id"))) for part in _objects(value)]
        texts = [] if types else [text for text in texts_of(value) if text and text.upper() != "NOT"]
        return bool(texts) or not set(types) <= set(QUALIFIERS)
    return value not in (None, "", [], False)


def knowledge_sources(edge: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return where an edge comes from: {role: identifiers}, each once, for the roles in SOURCE_ROLES that it has.

    Both conventions are read: members with a text or a list, and TRAPI's `sources`, a list of objects with
    `resource_id`, `resource_role` and `upstream_resource_ids`. A resource that is only named as upstream of another
    is an aggregator, unless it is the primary source.
    """
    found: dict[str, dict[str, None]] = {}
    for role in SOURCE_ROLES:
        for text in texts_of(edge.get(role)):
            found.setdefault(role, {})[text] = None
    sources = _objects(edge.get("sources"))
    for source in sources:
        role = str(source.get("resource_role", "")).removeprefix(BIOLINK_PREFIX)
        role = {"primary": SOURCE_ROLES[0], "aggregator": SOURCE_ROLES[1]}.get(role, role)
        for text in texts_of(source.get("resource_id")) if role in SOURCE_ROLES else []:
            found.setdefault(role, {})[text] = None
    named = {text for texts in found.values() for text in texts}
    for source in sources:
        for text in texts_of(source.get("upstream_resource_ids")):
            if text not in named:
                found.setdefault(SOURCE_ROLES[1], {})[text] = None
    return {role: [text for text in texts if text] for role, texts in found.items() if any(texts)}

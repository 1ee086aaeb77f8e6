"""The tables of Biolink classes and qualifiers against the model itself, so that a new version shows."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from conve_tracin.data.kgx import biolink

# Classes of earlier versions, whose graphs are still about.
FORMER_CLASSES = {biolink.CHEMICAL: {"ChemicalSubstance"}}

TOPS = {
    biolink.CHEMICAL: {"ChemicalEntity"},
    biolink.GENE: {"Gene", "GeneOrGeneProduct", "GeneProductMixin"},
    biolink.DISEASE: {"DiseaseOrPhenotypicFeature"},
}

# They hold a context or the strength of the evidence, would make a relation of each value, and are counted instead.
CONTEXTS = {
    *(f"{end}_{part}_qualifier" for end in ("subject", "object")
      for part in ("specialization", "activity", "process", "context")),
    *(f"{part}_qualifier" for part in (
        "response_target_context", "population_context", "temporal_context", "temporal_interval", "anatomical_context",
        "species_context", "disease_context", "association_basis", "statistical_significance", "frequency", "severity",
        "sex", "onset", "stage", "statement", "clinical_modifier", "sequence_variant", "quantifier",
        "catalyst",
    )),
    "qualifiers",
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    # The schema alone: the package's own classes take seconds to import.
    (folder,) = find_spec("biolink_model").submodule_search_locations
    text = (Path(folder) / "schema" / "biolink_model.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def ancestors(definitions, name):
    definition = definitions.get(name) or {}
    parents = [definition.get("is_a"), *definition.get("mixins", ())]
    return {name}.union(*(ancestors(definitions, parent) for parent in parents if parent))


def class_name(name):
    return "".join(word[0].upper() + word[1:] for word in name.split())


@pytest.mark.parametrize("kind", TOPS)
def test_each_kind_is_all_classes_below_its_tops(model, kind):
    classes = {class_name(name): {class_name(each) for each in ancestors(model["classes"], name)}
               for name in model["classes"]}  # fmt: skip
    below = {name for name, above in classes.items() if above & TOPS[kind]}
    assert set(biolink.CLASSES[kind]) == below | FORMER_CLASSES.get(kind, set())


def test_each_qualifier_makes_a_relation_or_is_known_to_be_a_context(model):
    slots = model["slots"]
    qualifiers = {
        name.replace(" ", "_") for name, slot in slots.items()
        if ("qualifier" in ancestors(slots, name) or "qualif" in name) and not slot.get("abstract")
        and name != "qualifier"
    }  # fmt: skip
    assert qualifiers - CONTEXTS == set(biolink.QUALIFIERS) & qualifiers
    assert set(biolink.QUALIFIERS) <= qualifiers
    assert qualifiers >= CONTEXTS


def test_each_boolean_of_an_edge_is_known(model):
    slots = model["slots"]
    booleans = {
        name.replace(" ", "_") for name, slot in slots.items()
        if slot.get("range") == "boolean" and "association slot" in ancestors(slots, name)
    }  # fmt: skip
    assert booleans == {"negated", "mechanism_of_action", "reaction_balanced"}


def test_the_roles_of_sources_are_the_models(model):
    roles = {name.removeprefix("biolink:") for name in model["enums"]["ResourceRoleEnum"]["permissible_values"]}
    assert set(biolink.SOURCE_ROLES) == roles


def test_members_that_are_watched_are_the_models(model):
    slots = {name.replace(" ", "_") for name in model["slots"]}
    assert set(biolink.OTHER_MEANINGS) <= slots
    assert set(biolink.DENIALS) - {"qualifier"} <= slots

"""Finding entities and relations by what a person types."""

import pytest

from conve_tracin.data.finding import Finder
from conve_tracin.data.names import Names
from conve_tracin.data.resolve import read_queries, read_test_triples, resolve_query, resolve_triple
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.prediction.candidates import read_candidates

ENTITIES = Vocabulary("entity", ("DRUGBANK:DB00178", "DOID:10763", "DOID:1612", "gene:1", "gene:2", "gene:3", "Loss"))
RELATIONS = Vocabulary("relation", ("predicate:0", "predicate:1", "predicate:2", "predicate:3", "predicate:4"))
NAMES = Names(
    entities=ENTITIES,
    relations=RELATIONS,
    entity_names={0: "Ramipril", 1: "hypertension", 2: "Breast cancer", 3: "ABC", 4: "Abc", 5: "twin", 6: "twin"},
    predicates={
        "predicate:0": "biolink:affects (causes, object increased expression)",
        "predicate:1": "biolink:affects (causes, object decreased expression)",
        "predicate:2": "biolink:treats",
        "predicate:3": "biolink:has_phenotype",
        "predicate:4": "biolink:regulates (object upregulated)",
    },
    curies={
        "predicate:0": "biolink:affects", "predicate:1": "biolink:affects", "predicate:2": "biolink:treats",
        "predicate:3": "biolink:has_phenotype", "predicate:4": "biolink:regulates",
    },
)  # fmt: skip
FINDER = Finder(NAMES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DRUGBANK:DB00178", 0),
        ("drugbank:db00178", 0),
        ("Ramipril", 0),
        ("RAMIPRIL", 0),
        ("Hypertension", 1),
        ("BREAST CANCER", 2),
        ("ABC", 3),  # the exact name, though another differs in case only
        ("Abc", 4),
        ("Twin (gene:3)", 5),  # as the scripts print what several are called
        ("loss", 6),
    ],
)
def test_an_entity_is_found_whatever_its_case(text, expected):
    assert FINDER.id_of("entity", text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("treats", 2),
        ("biolink:treats", 2),
        ("Treats", 2),
        ("BIOLINK:TREATS", 2),
        ("has phenotype", 3),
        ("has_phenotype", 3),
        ("affects (causes, object increased expression)", 0),
        ("regulates", 4),  # its one relation, though it has a qualifier
        ("predicate:1", 1),
    ],
)
def test_a_relation_is_found_without_its_prefix(text, expected):
    assert FINDER.id_of("relation", text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("entity", "abc", "'abc' may be any of 2: 'ABC' (gene:1), 'Abc' (gene:2); give one of them as it is written"),
        ("entity", "twin", "'twin' is the name of 2: 'gene:3', 'Loss'; give one of these labels"),
        (
            "relation", "affects",
            "'affects' stands for 2 relations, give one of them as it is written: 'biolink:affects (causes, object "
            "increased expression)' (predicate:0); 'biolink:affects (causes, object decreased expression)' "
            "(predicate:1)",
        ),
        ("entity", "ramipirl", "unknown entity 'ramipirl'; did you mean 'Ramipril' (DRUGBANK:DB00178)?"),
        ("entity", "cancer", "unknown entity 'cancer'; did you mean 'Breast cancer' (DOID:1612)?"),
        ("relation", "treat", "unknown relation 'treat'; did you mean 'biolink:treats' (predicate:2)?"),
        ("entity", "no such name", "unknown entity 'no such name', the entity mapping lacks it; check its spelling"),
        ("entity", "x" * 200, f"unknown entity '{'x' * 100}'… (200 characters), the entity mapping lacks it; "
                              "check its spelling"),
    ],
)  # fmt: skip
def test_what_is_not_found_or_not_one_thing(kind, text, expected):
    with pytest.raises(InputError) as caught:
        FINDER.id_of(kind, text)
    assert str(caught.value) == expected


def test_names_are_asked_for_if_none_are_given():
    finder = Finder(Names(ENTITIES, RELATIONS))
    with pytest.raises(InputError, match="check its spelling, or give names with --node-name-dict FILE"):
        finder.id_of("entity", "Ramipril")
    with pytest.raises(InputError, match="check its spelling, or give names with --edge-map FILE"):
        finder.id_of("relation", "treats")


def test_an_unqualified_predicate_is_found_before_those_with_qualifiers():
    names = Names(
        ENTITIES, Vocabulary("relation", ("p", "q")),
        predicates={"p": "biolink:affects", "q": "biolink:affects (object decreased)"},
        curies={"p": "biolink:affects", "q": "biolink:affects"},
    )  # fmt: skip
    assert Finder(names).id_of("relation", "Affects") == 0


def test_a_predicate_with_its_prefix_is_not_another_relation_of_that_name():
    names = Names(
        ENTITIES, Vocabulary("relation", ("affects", "p", "q")),
        predicates={"p": "biolink:affects (object increased)", "q": "biolink:affects (object decreased)"},
        curies={"p": "biolink:affects", "q": "biolink:affects"},
    )  # fmt: skip
    finder = Finder(names)
    assert finder.id_of("relation", "affects") == finder.id_of("relation", "Affects") == 0
    with pytest.raises(InputError, match="stands for 3 relations"):
        finder.id_of("relation", "biolink:affects")


def test_triples_queries_and_candidates_are_found_so(tmp_path):
    given = {"finder": FINDER}
    assert resolve_triple(("ramipril", "treats", "Hypertension"), ENTITIES, RELATIONS, **given) == (0, 2, 1)
    assert resolve_query(("?", "TREATS", "HYPERTENSION"), ENTITIES, RELATIONS, **given) == (1, ~2)
    listed = tmp_path / "listed.txt"
    listed.write_text("ramipril\ttreats\tHypertension\n")
    assert read_test_triples(listed, ENTITIES, RELATIONS, **given).tolist() == [[0, 2, 1]]
    listed.write_text("ramipril\ttreats\t?\n")
    assert read_queries(listed, ENTITIES, RELATIONS, **given).tolist() == [[0, 2]]
    listed.write_text("BREAST cancer\nnobody\n")
    assert read_candidates(listed, ENTITIES, **given, skip_unknown=True).tolist() == [2]
    listed.write_text("ramipril\taffects\tHypertension\n")
    with pytest.raises(InputError, match=r"listed\.txt:1: relation: 'affects' stands for 2 relations"):
        read_test_triples(listed, ENTITIES, RELATIONS, **given)


def test_labels_are_found_without_the_tables_of_other_cases():
    finder = Finder(NAMES)
    assert finder.id_of("entity", "DOID:1612") == 2
    assert finder.id_of("relation", "biolink:treats") == 2
    assert {"_entities", "_relations", "_predicates"}.isdisjoint(vars(finder))

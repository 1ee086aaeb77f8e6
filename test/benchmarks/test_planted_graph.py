import gzip
import json
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from truth_lib.planted_graph import (
    ASSOCIATED,
    REASONS_FILE,
    REGULATES,
    TARGETS,
    TREATS,
    PlantedGraphConfig,
    plant_graph,
)

from conve_tracin.data.triples import read_triples
from conve_tracin.data.vocabulary import read_vocabulary
from conve_tracin.errors import InputError

SMALL = PlantedGraphConfig(drugs=60, genes=9, diseases=12, side_effects=5)


@pytest.fixture(scope="module")
def graph():
    return plant_graph(3, SMALL)


def test_the_seed_decides_everything(graph):
    assert plant_graph(3, SMALL) == graph
    assert plant_graph(4, SMALL) != graph


def test_a_drug_treats_exactly_what_its_genes_with_an_effect_are_associated_with(graph):
    held_out = [*graph.valid, *graph.test]
    everything = [*graph.train, *held_out]
    targets = {(head, tail) for head, relation, tail in everything if relation == TARGETS}
    associated = {(head, tail) for head, relation, tail in everything if relation == ASSOCIATED}
    true = {
        (drug, TREATS, disease)
        for drug, gene in targets
        for other, disease in associated
        if gene == other and gene in graph.genes_with_effect
    }
    treats = [triple for triple in everything if triple[1] == TREATS]
    assert set(treats) - true == set(graph.false_triples)
    assert true == set(graph.reasons) == set(treats) - set(graph.false_triples)
    assert len(everything) == len(set(everything))
    assert {triple[1] for triple in held_out} == {TREATS}
    assert not set(held_out) & set(graph.false_triples)


def test_the_reasons_are_the_pairs_through_genes_with_an_effect_and_are_in_training(graph):
    train = set(graph.train)
    for (drug, _, disease), pairs in graph.reasons.items():
        assert pairs
        for first, second in pairs:
            assert {first, second} <= train
            assert first[:2] == (drug, TARGETS)
            assert second[1:] == (ASSOCIATED, disease)
            assert first[2] == second[0]
            assert first[2] in graph.genes_with_effect


def test_where_genes_regulate_others_the_reasons_are_all_paths_over_them():
    graph = plant_graph(3, replace(SMALL, genes_regulated=2))
    everything = [*graph.train, *graph.valid, *graph.test]
    facts = {relation: {(h, t) for h, r, t in everything if r == relation} for relation in (TARGETS, REGULATES)}
    associated = {(head, tail) for head, relation, tail in everything if relation == ASSOCIATED}
    paths = defaultdict(set)
    for drug, gene in facts[TARGETS]:
        for regulator, regulated in facts[REGULATES]:
            for other, disease in associated:
                if gene == regulator and regulated == other and gene in graph.genes_with_effect:
                    path = (drug, TARGETS, gene), (gene, REGULATES, regulated), (regulated, ASSOCIATED, disease)
                    paths[drug, TREATS, disease].add(path)
    assert {triple: set(found) for triple, found in graph.reasons.items()} == paths
    assert all(count == 2 for count in Counter(gene for gene, _ in facts[REGULATES]).values())
    assert not any(gene == regulated for gene, regulated in facts[REGULATES])
    true = {triple for triple in everything if triple[1] == TREATS} - set(graph.false_triples)
    assert true == set(paths)


def test_a_graph_of_the_usual_size_has_a_hub_without_effect_and_about_four_thousand_triples():
    graph = plant_graph(0)
    assert 3_300 < len(graph.train) < 4_500
    by_gene = Counter(tail for _, relation, tail in graph.train if relation == TARGETS)
    (hub, drugs), (_, next_drugs) = by_gene.most_common(2)
    assert hub == "gene_00"
    assert hub not in graph.genes_with_effect
    assert drugs > 2 * next_drugs
    assert len(graph.genes_with_effect) == 12
    true = len(graph.reasons)
    assert len(graph.false_triples) == round(0.05 * true)
    assert len(graph.test) == len(graph.valid) == round(0.1 * true)


def test_files_are_those_of_the_benchmarks(graph, tmp_path):
    graph.write(tmp_path / "planted")
    graph.write(tmp_path / "again")
    entities = read_vocabulary(tmp_path / "planted" / "entity_to_id.tsv", "entity")
    relations = read_vocabulary(tmp_path / "planted" / "relation_to_id.tsv", "relation")
    for split in ("train", "valid", "test"):
        read = read_triples(tmp_path / "planted" / f"{split}.txt", entities, relations)
        labelled = [
            (entities.labels[head], relations.labels[relation], entities.labels[tail])
            for head, relation, tail in read.tolist()
        ]
        assert labelled == getattr(graph, split)
    first, second = ((tmp_path / name / REASONS_FILE).read_bytes() for name in ("planted", "again"))
    assert first == second
    lines = [json.loads(line) for line in gzip.decompress(first).decode().splitlines()]
    assert {tuple(line["triple"]) for line in lines} == set(graph.reasons)
    for line in lines:
        pairs = [tuple(map(tuple, explanation["triples"])) for explanation in line["explanations"]]
        assert pairs == graph.reasons[tuple(line["triple"])]


@pytest.mark.parametrize(
    "settings", [{"genes": 3}, {"genes_of_disease": 0}, {"genes_regulated": 25}, {"held_out_share": 0.5}]
)
def test_impossible_sizes_are_refused(settings):
    with pytest.raises(InputError, match="give"):
        PlantedGraphConfig(**settings)

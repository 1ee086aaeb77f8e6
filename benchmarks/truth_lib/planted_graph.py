"""A graph whose reasons are known because it was made by a rule: drugs treat diseases through the genes they target.

A drug treats a disease exactly if it targets a gene that is associated with the disease and carries an effect. Where
genes regulate others, it is one of those that has to be associated with the disease, and reasons have three triples.
What makes the reasons hard to find is put there on purpose: genes without an effect, a gene that many drugs target,
side effects that follow nothing, and false facts among the training triples.
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conve_tracin.data.triples import write_triples
from conve_tracin.data.vocabulary import write_vocabulary
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write

TREATS, TARGETS, ASSOCIATED, SIDE_EFFECT = "treats", "targets", "associated_with", "has_side_effect"
REGULATES = "regulates"
SPLITS = ("train", "valid", "test")
REASONS_FILE = "reasons.jsonl.gz"

LabelledTriple = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class PlantedGraphConfig:
    """How large a planted graph is, and how much of it is noise.

    Attributes:
        drugs, genes, diseases, side_effects: entities of each kind.
        most_targets: a drug targets one to so many genes, all numbers alike, besides the hub.
        genes_of_disease: genes that are associated with each disease.
        genes_regulated: by each gene, which acts through them. With 0 it acts by itself.
        share_with_effect: of the genes; the hub, gene 0, has none.
        hub_share: of the drugs, which target the hub too.
        side_effects_of_drug: mean of a Poisson distribution.
        false_share: false `treats` triples among the training triples, relative to the true ones.
        held_out_share: of the true `treats` triples, for validation and as many for the test.
    """

    drugs: int = 600
    genes: int = 25
    diseases: int = 40
    side_effects: int = 30
    most_targets: int = 3
    genes_of_disease: int = 2
    genes_regulated: int = 0
    share_with_effect: float = 0.5
    hub_share: float = 0.4
    side_effects_of_drug: float = 1.0
    false_share: float = 0.05
    held_out_share: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.most_targets < self.genes or not 1 <= self.genes_of_disease < self.genes:
            raise InputError(f"{self.genes} genes are too few for the targets and associations; give more")
        if not 0 <= self.genes_regulated < self.genes:
            raise InputError(f"{self.genes} genes are too few for each to regulate {self.genes_regulated}; give more")
        if not 0 < self.held_out_share < 0.5:
            raise InputError(f"held_out_share is {self.held_out_share}; give a number between 0 and 0.5")


@dataclass(frozen=True)
class PlantedGraph:
    """Labelled triples of the three splits, and what makes the true `treats` triples true.

    Attributes:
        train, valid, test: (head, relation, tail) as labels.
        reasons: {true `treats` triple: its explanations, each the triples of a path from the drug to the disease}.
        false_triples: training triples that are not true.
        genes_with_effect: labels.
    """

    train: list[LabelledTriple]
    valid: list[LabelledTriple]
    test: list[LabelledTriple]
    reasons: dict[LabelledTriple, list[tuple[LabelledTriple, ...]]]
    false_triples: list[LabelledTriple]
    genes_with_effect: list[str]

    def write(self, folder: Path) -> None:
        """Write the files that `truth.py` reads, and the reasons as JSON lines."""
        for split in SPLITS:
            write_triples(folder / f"{split}.txt", getattr(self, split))
        everything = [*self.train, *self.valid, *self.test]
        write_vocabulary(folder / "entity_to_id.tsv", sorted({label for h, _, t in everything for label in (h, t)}))
        write_vocabulary(folder / "relation_to_id.tsv", sorted({relation for _, relation, _ in everything}))
        lines = [
            json.dumps({"triple": triple, "explanations": [{"triples": path} for path in paths]})
            for triple, paths in self.reasons.items()
        ]
        # Without a time of writing, the same graph has the same bytes.
        content = gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
        with atomic_write(folder / REASONS_FILE) as temporary:
            temporary.write_bytes(content)


def plant_graph(seed: int, config: PlantedGraphConfig | None = None) -> PlantedGraph:
    """Draw a planted graph; the same seed and sizes give the same one."""
    config = config or PlantedGraphConfig()
    generator = np.random.default_rng([20261128, seed])
    has_effect = _draw_effects(config, generator)
    targets = _draw_targets(config, generator)
    associated = _draw_associations(config, generator)
    regulates = _draw_regulations(config, generator)
    drugs, genes, diseases, side_effects = (
        [f"{kind}_{number:0{len(str(count - 1))}d}" for number in range(count)]
        for kind, count in (
            ("drug", config.drugs),
            ("gene", config.genes),
            ("disease", config.diseases),
            ("side_effect", config.side_effects),
        )
    )
    acts_through = regulates if config.genes_regulated else np.eye(config.genes, dtype=bool)
    reaches = acts_through.astype(int) @ associated.astype(int)
    is_true = (targets & has_effect).astype(int) @ reaches > 0  # (drugs, diseases)
    reasons = {}
    for drug, disease in np.argwhere(is_true).tolist():
        through = np.argwhere((targets[drug] & has_effect)[:, None] & acts_through & associated[:, disease]).tolist()
        reasons[drugs[drug], TREATS, diseases[disease]] = [
            (
                (drugs[drug], TARGETS, genes[target]),
                *([(genes[target], REGULATES, genes[last])] if target != last else []),
                (genes[last], ASSOCIATED, diseases[disease]),
            )
            for target, last in through
        ]
    wrong = _choose(np.argwhere(~is_true), round(config.false_share * is_true.sum()), generator)
    counts = np.minimum(generator.poisson(config.side_effects_of_drug, config.drugs), config.side_effects)
    observed = [
        (drug, generator.choice(config.side_effects, size, replace=False)) for drug, size in enumerate(counts.tolist())
    ]
    background = [
        *_labelled(drugs, TARGETS, genes, np.argwhere(targets)),
        *_labelled(genes, ASSOCIATED, diseases, np.argwhere(associated)),
        *_labelled(genes, REGULATES, genes, np.argwhere(regulates)),
        *((drugs[drug], SIDE_EFFECT, side_effects[effect]) for drug, effects in observed for effect in effects),
    ]
    false_triples = _labelled(drugs, TREATS, diseases, wrong)
    treats = [list(reasons)[place] for place in generator.permutation(len(reasons))]
    held_out = round(config.held_out_share * len(treats))
    train = [*treats[2 * held_out :], *false_triples, *background]
    return PlantedGraph(
        train=[train[place] for place in generator.permutation(len(train))],
        valid=treats[:held_out],
        test=treats[held_out : 2 * held_out],
        reasons=reasons,
        false_triples=false_triples,
        genes_with_effect=[genes[gene] for gene in np.flatnonzero(has_effect)],
    )


def _draw_effects(config: PlantedGraphConfig, generator: np.random.Generator) -> np.ndarray:
    """Say which genes carry an effect: (genes,) bool, never the hub."""
    has_effect = np.zeros(config.genes, dtype=bool)
    count = min(max(1, round(config.share_with_effect * config.genes)), config.genes - 1)
    has_effect[1 + generator.permutation(config.genes - 1)[:count]] = True
    return has_effect


def _draw_targets(config: PlantedGraphConfig, generator: np.random.Generator) -> np.ndarray:
    """Say which genes each drug targets: (drugs, genes) bool."""
    targets = np.zeros((config.drugs, config.genes), dtype=bool)
    for row in targets:
        count = generator.integers(1, config.most_targets + 1)
        row[1 + generator.permutation(config.genes - 1)[:count]] = True
    targets[:, 0] = generator.random(config.drugs) < config.hub_share
    return targets


def _draw_associations(config: PlantedGraphConfig, generator: np.random.Generator) -> np.ndarray:
    """Say which genes are associated with each disease: (genes, diseases) bool."""
    associated = np.zeros((config.genes, config.diseases), dtype=bool)
    for column in associated.T:
        column[generator.permutation(config.genes)[: config.genes_of_disease]] = True
    return associated


def _draw_regulations(config: PlantedGraphConfig, generator: np.random.Generator) -> np.ndarray:
    """Say which other genes each gene regulates: (genes, genes) bool."""
    regulates = np.zeros((config.genes, config.genes), dtype=bool)
    if not config.genes_regulated:
        # Nothing is drawn, so that the other draws stay the same.
        return regulates
    for gene, row in enumerate(regulates):
        others = np.delete(np.arange(config.genes), gene)
        row[generator.permutation(others)[: config.genes_regulated]] = True
    return regulates


def _choose(pairs: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    return pairs[np.sort(generator.permutation(len(pairs))[:count])]


def _labelled(heads: Sequence[str], relation: str, tails: Sequence[str], pairs: np.ndarray) -> list[LabelledTriple]:
    return [(heads[head], relation, tails[tail]) for head, tail in pairs.tolist()]

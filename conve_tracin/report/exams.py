"""How the methods did where the reasons are known: the figures, and what a page says of them.

The figures are those of `benchmarks/results/`, rounded; `test/report/test_exams_on_page.py` compares them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conve_tracin.report.lettering import count
from conve_tracin.settings import GAUSS_NEWTON, TrainingConfig

# Entities of Hetionet, the largest graph of an exam, and of UMLS, Kinships and Nations, the smallest.
HETIONET, SMALL = 18_503, 135
# A graph of between a quarter and four times as many entities counts as one of that size.
SIMILAR = 4


@dataclass(frozen=True)
class Range:
    """The lowest and the highest of what some exams measured."""

    low: str
    high: str

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


# Over Hetionet's two folds and its validation predictions, by models of cross-entropy with weights by tails.
FIRST_EDGE = {GAUSS_NEWTON: Range(".13", ".27"), "tracin": Range(".01", ".03")}
GENES = {GAUSS_NEWTON: Range(".79", ".87"), "tracin": Range(".41", ".66")}
TARGETS = {GAUSS_NEWTON: Range(".57", ".71"), "tracin": Range(".45", ".53")}
PATHS = {"with the model": Range(".45", ".71"), "without it": Range(".53", ".65")}
# Of the ten strongest by two seeds, how many are the same.
SHARED_BY_SEEDS = ".53"
# Rank correlation with models retrained on half the triples, over UMLS, Kinships and Nations, KvsAll.
AGREEMENT = {GAUSS_NEWTON: Range(".63", ".71"), "tracin": Range("−.03", ".41")}
BEST_RULE = Range(".55", ".58")
# The same on UMLS with cross-entropy and weights by tails.
AGREEMENT_CE = {GAUSS_NEWTON: ".19", "tracin": ".20"}
BEST_RULE_CE = ".50"


def measured_of(method: str, training_config: Mapping[str, Any], num_entities: int) -> list[str]:
    """Say in paragraphs what was measured of a method on such a graph, with models trained like this one.

    `training_config` is that of the checkpoint, empty if it is unknown.
    """
    if not training_config:
        return ["How far the influences on such a model can be trusted is not known: its file tells no training."]
    is_ce = training_config.get("loss", TrainingConfig.loss) == "ce"
    is_recommended = is_ce and training_config.get("query_weights") == "tails"
    if num_entities * SIMILAR < HETIONET:
        small = _on_small_graphs(method, is_recommended=is_recommended, is_ce=is_ce)
        return [*small, *_if_between(num_entities)]
    if not is_recommended:
        return [
            "How far the influences can be trusted was not measured for a model trained like this one on a graph of this "
            "size. What was measured are models of cross-entropy (--loss ce --query-weights tails), on Hetionet."
        ]
    return [*_on_hetionet(method), *_if_larger(num_entities)]


def _on_hetionet(method: str) -> list[str]:
    return [
        f"On Hetionet ({count(HETIONET, 'entity')}), experts' reasons for drugs that treat diseases were looked for in "
        "such lists, with models trained like this one that did not know these predictions. "
        f"A 1 is perfect. The first triple of an expert's reason stood at a mean reciprocal rank of "
        f"{FIRST_EDGE[method]} among all training triples. The disease's right genes stood above its other ones in a "
        f"share of {GENES[method]} of all pairs, the drug's right targets in {TARGETS[method]}; chance is .5.",
        f"In the order in which a page lists paths, the first triple of a reason had {PATHS['with the model']}, and "
        f"in the same order without any model {PATHS['without it']}: most of what the paths tell is told by the graph."
        + (
            f" Two models of different seeds had {SHARED_BY_SEEDS} of their ten strongest triples in common."
            if method == GAUSS_NEWTON
            else ""
        ),
    ]


def _on_small_graphs(method: str, *, is_recommended: bool, is_ce: bool) -> list[str]:
    if is_ce and not is_recommended:
        return ["What was measured are models of other training (--loss ce --query-weights tails, or --loss bce)."]
    agreement, rule = (AGREEMENT_CE, BEST_RULE_CE) if is_recommended else (AGREEMENT, BEST_RULE)
    graphs = "UMLS" if is_recommended else "UMLS, Kinships and Nations"
    return [
        f"On {graphs} (at most {SMALL} entities) models like this one were trained again without half of the triples. "
        f"The influences told the change of a prediction's score with a rank correlation of {agreement[method]}, and "
        f"the best simple rule (triples with the same relation and tail, or with the same head and relation) with "
        f"{rule}; 1 is perfect."
    ]


def _if_between(num_entities: int) -> list[str]:
    if num_entities <= SIMILAR * SMALL:
        return []
    return ["This graph is larger than those and smaller than Hetionet, on which larger models were examined."]


def _if_larger(num_entities: int) -> list[str]:
    if num_entities <= SIMILAR * HETIONET:
        return []
    return [f"This graph has {count(num_entities, 'entity')}: nothing was measured on one of its size."]

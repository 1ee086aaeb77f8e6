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
        return self.low if self.low == self.high else f"{self.low} to {self.high}"


# Over Hetionet's three folds and its validation predictions, by models of cross-entropy with weights by tails.
FIRST_EDGE = {GAUSS_NEWTON: Range(".12", ".29"), "tracin": Range(".01", ".04")}
GENES = {GAUSS_NEWTON: Range(".82", ".90"), "tracin": Range(".41", ".66")}
TARGETS = {GAUSS_NEWTON: Range(".46", ".63"), "tracin": Range(".45", ".53")}
PATHS = {"with the model": Range(".45", ".71"), "without it": Range(".53", ".74")}
PREDICTIONS = 231
# Of one fold's predictions after training anew: with everything, without the reasons, without Gauss–Newton's strongest.
AFTER = {"nothing": ".44", "known reasons": ".47", "strongest proponents": ".32"}
# Of the ten strongest by two seeds, how many are the same.
SHARED_BY_SEEDS = Range(".59", ".59")
# The first true reason of French Royalty and of five planted graphs, by models of cross-entropy with weights by tails.
ROYALTY = {GAUSS_NEWTON: ".76", "tracin": ".09"}
PLANTED = {GAUSS_NEWTON: Range(".80", ".90"), "tracin": Range(".01", ".02")}
# Rank correlation with models retrained on half the triples, over UMLS, Kinships and Nations, KvsAll.
AGREEMENT = {GAUSS_NEWTON: Range(".63", ".71"), "tracin": Range("−.03", ".41")}
BEST_RULE = Range(".55", ".58")
# The same with cross-entropy and weights by tails, of the score that each method's influences are on: on UMLS, and on
# Hetionet.
EXPLAINED = {GAUSS_NEWTON: "score of a triple and its inverse", "tracin": "score of a triple as a tail"}
AGREEMENT_CE = {GAUSS_NEWTON: ".47", "tracin": ".20"}
BEST_RULE_CE = {GAUSS_NEWTON: ".41", "tracin": ".50"}
AGREEMENT_HETIONET = {GAUSS_NEWTON: ".32", "tracin": ".00"}
BEST_RULE_HETIONET = {GAUSS_NEWTON: ".23", "tracin": ".20"}


def measured_of(method: str, training_config: Mapping[str, Any], num_entities: int) -> list[str]:
    """Say in paragraphs what was measured of a method on such a graph, with models trained like this one.

    `training_config` is that of the checkpoint, empty if it is unknown.
    """
    if not training_config:
        return ["How it does on such a model is not known, as the model's file does not tell how it was trained."]
    is_ce = training_config.get("loss", TrainingConfig.loss) == "ce"
    is_recommended = is_ce and training_config.get("query_weights") == "tails"
    if num_entities * SIMILAR < HETIONET:
        small = _on_small_graphs(method, is_recommended=is_recommended, is_ce=is_ce)
        return [*small, *_if_between(num_entities)]
    if not is_recommended:
        return [
            "It was not examined with models trained like this one on a graph of this size. The models examined on "
            "Hetionet were trained with --loss ce --query-weights tails."
        ]
    return [*_on_hetionet(method), *_if_larger(num_entities)]


def _on_hetionet(method: str) -> list[str]:
    order = "In the order of the paths on this page"
    if method == GAUSS_NEWTON:
        paths = (
            f"{order}, the first triple of a reason has {PATHS['with the model']}; in an order without any model, "
            f"{PATHS['without it']}. So the graph tells what the paths tell, and the influences add little to their "
            f"order. Two models of different seeds shared {SHARED_BY_SEEDS} of their ten strongest triples."
        )
    else:
        paths = (
            f"A list of --method {GAUSS_NEWTON} has {FIRST_EDGE[GAUSS_NEWTON]}. {order}, without any model, "
            f"the first triple of a reason has {PATHS['without it']}."
        )
    used = (
        "A model does not need the experts' triples: trained again without them, it gave the predictions of one part a "
        f"mean reciprocal rank of {AFTER['known reasons']}, and {AFTER['nothing']} with them. Without the strongest "
        f"triples of --method {GAUSS_NEWTON} it was {AFTER['strongest proponents']}."
    )
    return [
        f"It was examined on Hetionet ({count(HETIONET, 'entity')}), with models trained like this one and "
        f"{PREDICTIONS} treatments that they had not seen and ranked within the first ten. How high does a list place "
        "what experts give as the reason? The first triple of a reason has a mean reciprocal rank of "
        f"{FIRST_EDGE[method]} (1 is always first, .1 is tenth). Of the disease's genes the right ones stand higher in "
        f"{GENES[method]} of all comparisons, of the drug's targets in {TARGETS[method]} (.5 is chance).",
        paths,
        used,
        "Models like this one were also trained again on random halves of the triples. The rank correlation of the "
        f"missing triples' influences with the change of the {EXPLAINED[method]} is {AGREEMENT_HETIONET[method]} (1 is "
        "perfect); that of the best simple rule, which counts triples with two labels in common, is "
        f"{BEST_RULE_HETIONET[method]}.",
    ]


def _on_small_graphs(method: str, *, is_recommended: bool, is_ce: bool) -> list[str]:
    if is_ce and not is_recommended:
        return [
            "It was not examined with models trained like this one, only with those of --loss bce, and of --loss ce "
            "--query-weights tails."
        ]
    agreement, rule = (AGREEMENT_CE, BEST_RULE_CE[method]) if is_recommended else (AGREEMENT, BEST_RULE)
    graphs = "UMLS" if is_recommended else "UMLS, Kinships and Nations"
    scores = f"{EXPLAINED[method]} changes" if is_recommended else "scores change"
    return [
        f"It was examined on {graphs} (at most {SMALL} entities): models like this one were trained again without a "
        f"random half of the triples, many times. Do the influences of the missing triples tell how the {scores}? "
        f"Their rank correlation is {agreement[method]} (1 is perfect); that of the best simple rule, which counts "
        f"triples with two labels in common, is {rule}.",
        *([_on_true_reasons(method)] if is_recommended else []),
    ]


def _on_true_reasons(method: str) -> str:
    return (
        "On graphs whose true reasons are known, lists by models trained like this one have the first of them at a "
        f"mean reciprocal rank of {ROYALTY[method]} (French Royalty) and {PLANTED[method]} (graphs of drugs, genes "
        "and diseases that follow one rule); 1 is always first."
    )


def _if_between(num_entities: int) -> list[str]:
    if num_entities <= SIMILAR * SMALL:
        return []
    return ["This graph is larger than those and much smaller than Hetionet, so that the figures need not hold here."]


def _if_larger(num_entities: int) -> list[str]:
    if num_entities <= SIMILAR * HETIONET:
        return []
    return [f"This graph has {count(num_entities, 'entity')}: the method was examined on none of its size."]

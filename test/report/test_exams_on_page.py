"""What a page says of the methods, against what the benchmarks recorded."""

import json

import pytest
from documents import ROOT

from conve_tracin.report import exams
from conve_tracin.report.exams import measured_of

RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("fold c", "validation", "fold a", "fold b")
SUFFIX = ", softmax curvature"
# The rows of each method among the exams: of the list, and of agreement with retraining.
ROWS = {
    "gauss-newton": (SUFFIX, "gauss-newton", "gauss-newton (recommended)"),
    "tracin": ("", "TracIn, all parameters", "TracIn, all parameters"),
}
SMALL_GRAPHS = ("umls-kvsall-inverse", "kinships-kvsall-inverse", "nations-kvsall-inverse")
RULES = ("shares (h, r) or (r, t)", "same (r, t)", "same (h, r)")
RECOMMENDED = {"loss": "ce", "query_weights": "tails", "training_approach": "kvsall"}


def examined(part, suffix):
    """The name of an exam; both curvatures of fold c stand in one."""
    return f"Hetionet, {part}{', held out' if part == 'fold c' else suffix}"


def recorded(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def written(value):
    return f"{value:.2f}".replace("-", "−").replace("0.", ".", 1)


def range_of(values):
    low, high = written(min(values)), written(max(values))
    return low if low == high else f"{low} to {high}"


@pytest.mark.parametrize("method", ROWS)
@pytest.mark.parametrize(
    ("said", "measure"),
    [(exams.FIRST_EDGE, "reciprocal_rank"), (exams.GENES, "tail_auc"), (exams.TARGETS, "head_auc")],
)
def test_known_reasons(method, said, measure):
    suffix, row, _ = ROWS[method]
    reasons = recorded("exams")["reasons"]
    values = [reasons[examined(part, suffix)]["results"][row]["mean"][measure]["mean"] for part in PARTS]
    assert str(said[method]) == range_of(values)
    assert sum(reasons[examined(part, suffix)]["predictions"] for part in PARTS) == exams.PREDICTIONS


@pytest.mark.parametrize(("said", "row"), [("with the model", "gauss-newton"), ("without it", "no model")])
def test_paths(said, row):
    paths = recorded("exams")["paths"]
    results = [paths[examined(part, SUFFIX)]["results"]["ranked paths"] for part in PARTS]
    assert str(exams.PATHS[said]) == range_of([result[row]["mean"]["first_reason"]["mean"] for result in results])


def test_after_training_anew():
    results = recorded("exams")["mechanism"]["Hetionet, fold a"]["results"]
    assert {name: written(results[name]["mrr_by_seed"][0]) for name in exams.AFTER} == exams.AFTER


def test_agreement_of_seeds():
    results = [recorded("exams")["stability"][examined(part, SUFFIX)]["results"] for part in PARTS[:2]]
    assert str(exams.SHARED_BY_SEEDS) == range_of(
        [one["gauss-newton"]["1"]["ten_strongest"]["mean"] for one in results]
    )


@pytest.mark.parametrize("method", ROWS)
def test_agreement_with_retraining(method):
    graphs = recorded("truth")["lds"]
    values = [graphs[name]["methods"][ROWS[method][2]]["mean"] for name in SMALL_GRAPHS]
    assert str(exams.AGREEMENT[method]) == range_of(values)
    best = [max(graphs[name]["methods"][rule]["mean"] for rule in RULES) for name in SMALL_GRAPHS]
    assert str(exams.BEST_RULE) == range_of(best)
    with_cross_entropy = [graphs[f"{name}-kvsall-inverse-ce-tails"] for name in ("umls", "hetionet")]
    if method == "gauss-newton":  # its influences are on both sides, TracIn's on the tail alone
        with_cross_entropy = [result["both_sides"] for result in with_cross_entropy]
    of_cross_entropy, on_hetionet = (result["methods"] for result in with_cross_entropy)
    assert exams.AGREEMENT_CE[method] == written(of_cross_entropy[ROWS[method][2]]["mean"])
    assert written(max(of_cross_entropy[rule]["mean"] for rule in RULES)) == exams.BEST_RULE_CE[method]
    assert exams.AGREEMENT_HETIONET[method] == written(on_hetionet[ROWS[method][2]]["mean"])
    assert written(max(on_hetionet[rule]["mean"] for rule in RULES)) == exams.BEST_RULE_HETIONET[method]


@pytest.mark.parametrize("method", ROWS)
def test_true_reasons(method):
    reasons = recorded("exams")["reasons"]

    def measured(name):
        return reasons[name]["results"][ROWS[method][1]]["mean"]["reciprocal_rank"]["mean"]

    assert str(exams.PLANTED[method]) == range_of([measured(f"planted graph {number}") for number in range(5)])
    assert exams.ROYALTY[method] == written(measured("French Royalty"))


@pytest.mark.parametrize(
    ("config", "num_entities", "has", "lacks"),
    [
        (RECOMMENDED, 18_503, [".12 to .29", ".53 to .74", ".32"], ["UMLS", "none of its size"]),
        (RECOMMENDED, 400_000, [".12 to .29", "400,000 entities: the method was examined on none"], ["UMLS"]),
        (RECOMMENDED, 135, [".47", ".41", ".76", ".80 to .90"], ["Hetionet", ".63"]),
        (RECOMMENDED, 2_500, [".47", "much smaller than Hetionet"], [".12 to .29"]),
        ({"loss": "bce"}, 135, [".63 to .71", ".55 to .58"], [".47"]),
        ({"loss": "bce"}, 18_503, ["not examined"], [".29", ".63"]),
        ({"loss": "ce"}, 135, ["not examined"], [".63", ".47"]),
        ({}, 135, ["not known"], [".63", ".47"]),
    ],
)  # fmt: skip
def test_a_page_says_what_holds_for_its_graph_and_model(config, num_entities, has, lacks):
    text = " ".join(measured_of("gauss-newton", config, num_entities))
    assert all(part in text for part in has)
    assert not any(part in text for part in lacks)

"""Figures in the documents against what the benchmarks recorded: a figure is the recorded one, rounded."""

import json
import re
from decimal import Decimal
from functools import cache

import pytest
from documents import ROOT, read

NUMBER = r"[−-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?"
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")

TRAINING, INFLUENCE = ("training", "contenders"), ("influence", "pairs_per_second")
TRAINING_ON_GPU = ("training_gpu", "contenders")
RATIO = ("influence", "ratio_to_backward_loop")
KVSALL = ("umls-kvsall-inverse", "kinships-kvsall-inverse", "nations-kvsall-inverse")
LDS_COLUMNS = (*KVSALL, "umls-1vsall", "kinships-1vsall")
LDS_ROWS = {
    "rule: shares (h, r) or (r, t)": "shares (h, r) or (r, t)",
    "rule: same (r, t)": "same (r, t)",
    "TracIn, last layers": "TracIn, last layers",
    "TracIn, all parameters (`--method tracin`)": "TracIn, all parameters",
    "the same, training's objective (`--training-loss`)": "TracIn, all parameters, training's objective",
    "TracIn, embeddings alone": "TracIn, embeddings alone",
    "**`--method gauss-newton`**": "gauss-newton (recommended)",
    "the same, 3 models summed": "gauss-newton (recommended), 3 models summed",
}
REMOVED_ROWS = {
    "nothing": "nothing",
    "random triples that share an entity": "random triples that share an entity",
    "TracIn, last layers": "TracIn, last layers",
    "TracIn, all parameters": "TracIn, all parameters",
    "rule: shares (h, r) or (r, t)": "shares (h, r) or (r, t)",
    "**Gauss–Newton**": "gauss-newton (recommended)",
}


def lds(method, *columns):
    return [("truth", "lds", column, "methods", method, end) for column in columns for end in ("mean", "low", "high")]


def removed(method):
    return [
        ("truth", "remove", column, "removed", method, part)
        for column in KVSALL[:2]
        for part in ("mrr", "mrr_standard_error")
    ]


# (document, words with {} for each figure, where each was recorded: results file and the members that lead to it).
FIGURES = [
    (
        "README.md",
        "takes {} training triples a second for one test triple, and {} pairs a second for sixteen: {} and {} times",
        [(*INFLUENCE, "one test triple"), (*INFLUENCE, "16 test triples"), (*RATIO, "one test triple"),
         (*RATIO, "16 test triples")],
    ),
    ("README.md", "captum's TracInCP ({} a second", [(*INFLUENCE, "captum TracInCP, fc and conv1")]),
    *(
        ("README.md", f"| {name} | {{}} | {{}} |",
         [("accuracy", recipe, "42", metric) for metric in ("mean_reciprocal_rank", "hits@10")])
        for name, recipe in (("UMLS", "umls"), ("Kinships", "kinships"), ("Nations", "nations"),
                             ("FB15k-237", "fb15k-237"), ("WN18RR", "wn18rr"))
    ),
    (
        "README.md", "takes {} seconds a test triple at d = 32 and {} at d = 200, in {} GB",
        [("scale", 0, "influence_seconds"), ("scale", 1, "influence_seconds"), ("scale", 1, "peak_memory_gb")],
    ),
    *(
        ("README.md", f"| {row} | {{}} | {{}} | {{}} |",
         [("truth", "lds", column, "methods", method, "mean") for column in KVSALL])
        for row, method in (("TracIn, last layers", "TracIn, last layers"),
                            ("TracIn, all parameters", "TracIn, all parameters"))
    ),
    (
        "README.md", "| **Gauss–Newton** | **{}** | **{}** | **{}** |",
        [("truth", "lds", column, "methods", "gauss-newton (recommended)", "mean") for column in KVSALL],
    ),
    (
        "README.md", "| best rule that compares labels | {} | {} | {} |",
        [("truth", "lds", KVSALL[0], "methods", "shares (h, r) or (r, t)", "mean"),
         ("truth", "lds", KVSALL[1], "methods", "shares (h, r) or (r, t)", "mean"),
         ("truth", "lds", KVSALL[2], "methods", "same (r, t)", "mean")],
    ),
    *(
        ("docs/tracin.md", f"| {row} |" + (" **{} ({} to {})** |" if "**" in row else " {} ({} to {}) |") * 5,
         lds(method, *LDS_COLUMNS))
        for row, method in LDS_ROWS.items()
    ),
    (
        "docs/tracin.md", "from the seeds' agreement | {} | {} | {} | {} | {} |",
        [("truth", "lds", column, "ceiling") for column in LDS_COLUMNS],
    ),
    (
        "docs/tracin.md", "(paired intervals, from {} on UMLS to {} with 1vsAll)",
        [("truth", "lds", column, "recommended_above_best_baseline", "mean")
         for column in (KVSALL[0], "umls-1vsall")],
    ),
    *(
        ("docs/tracin.md", f"| {row} |" + (" **{} ± {}** |" if "**" in row else " {} ± {} |") * 2, removed(method))
        for row, method in REMOVED_ROWS.items()
    ),
    (
        "docs/tracin.md",
        "trained anew with nothing removed the 100 have an MRR of {}, without random triples that share an entity {}, "
        "without the proponents of `gauss-newton` {}, of TracIn over all parameters {}.",
        [("truth", "remove", "fb15k-237-kvsall-inverse", "removed", name, "mrr")
         for name in ("nothing", "random triples that share an entity", "gauss-newton (recommended)",
                      "TracIn, all parameters")],
    ),
    (
        "docs/tracin.md", "{} on UMLS and {} on Kinships, TracIn's self-influence with {} and {}.",
        [("truth", "planted", column, "auc", name)
         for name in ("loss", "TracIn self-influence, all parameters") for column in KVSALL[:2]],
    ),
    *(
        ("docs/tracin.md", f"| {row} | {{}} | {{}} |", [(*INFLUENCE, name), (*RATIO, name)])
        for row, name in {
            "backward loop": "backward loop",
            "`vmap(grad)`": "vmap(grad)",
            "`vmap(grad)`, `fc` alone": "vmap(grad), fc alone",
            "captum 0.9.0 TracInCP, `fc` and `conv1` alone": "captum TracInCP, fc and conv1",
            "one test triple": "one test triple",
            "16 test triples": "16 test triples",
            "one test triple, mixed precision": "one test triple, mixed precision",
            "16 test triples, mixed precision": "16 test triples, mixed precision",
            "one test triple, `fc` and `conv1` alone": "fc and conv1",
            "one test triple, `fc` alone": "fc alone",
            "self-influence of every training triple": "self-influence",
            "one test triple, `gauss-newton`": "Gauss–Newton, one test triple",
        }.items()
    ),
    (
        "docs/tracin.md", "The largest difference from the loop is {} of",
        [("influence", "largest_difference_from_loop")],
    ),
    (
        "docs/tracin.md", "correlation of 16 test triples with full precision is {},",
        [("influence", "mixed_precision", "lowest_spearman")],
    ),
    (
        "docs/tracin.md",
        "reading its files takes {} s, one test triple {} s at d = 32 and {} s at d = 200, ranking included; peak "
        "memory {} GB. `gauss-newton` takes {} s",
        [("scale", 0, "loading_seconds"), ("scale", 0, "influence_seconds"), ("scale", 1, "influence_seconds"),
         ("scale", 1, "peak_memory_gb"), ("scale", 2, "influence_seconds")],
    ),
    *(
        ("docs/training.md", f"| {row} | {{}} | {{}} GB |",
         [(*TRAINING, name, "queries_per_second"), (*TRAINING, name, "peak_memory_gb")])
        for row, name in {
            "PyKEEN 1.11.1, LCWA, BCE": "pykeen", "plain dense PyTorch loop": "dense",
            "the same in mixed precision": "dense, mixed", "`--use-torch-compile`": "ours, compiled",
        }.items()
    ),
    (
        "docs/training.md", "| `train_pytorch.py`, float32 | {} ({} × PyKEEN, {} × dense) | {} GB |",
        [(*TRAINING, "ours", "queries_per_second"), ("training", "against_pykeen", "ours"),
         ("training", "against_dense", "ours"), (*TRAINING, "ours", "peak_memory_gb")],
    ),
    (
        "docs/training.md", "| `--use-mixed-precision` | {} ({} × dense float32) | {} GB |",
        [(*TRAINING, "ours, mixed", "queries_per_second"), ("training", "against_dense", "ours, mixed"),
         (*TRAINING, "ours, mixed", "peak_memory_gb")],
    ),
    *(
        ("docs/training.md", f"| {row}, on the GPU | {words} | {{}} GB |",
         [(*TRAINING_ON_GPU, name, "queries_per_second"), *(("training_gpu", base, name) for base in bases),
          (*TRAINING_ON_GPU, name, "peak_memory_gb")])
        for row, name, words, bases in (
            ("PyKEEN 1.11.1, LCWA, BCE", "pykeen", "{}", ()),
            ("plain dense PyTorch loop", "dense", "{} ({} × PyKEEN)", ("against_pykeen",)),
            ("the same in mixed precision", "dense, mixed", "{}", ()),
            ("`train_pytorch.py`, float32", "ours", "{} ({} × PyKEEN, {} × dense)",
             ("against_pykeen", "against_dense")),
            ("`--use-mixed-precision`", "ours, mixed", "{} ({} × dense float32)", ("against_dense",)),
        )
    ),
    (
        "docs/training.md",
        "| `--use-mixed-precision --use-torch-compile` | {} ({} × PyKEEN, {} × dense float32) | {} GB |",
        [(*TRAINING_ON_GPU, "ours, compiled, mixed", "queries_per_second"),
         *(("training_gpu", base, "ours, compiled, mixed") for base in ("against_pykeen", "against_dense")),
         (*TRAINING_ON_GPU, "ours, compiled, mixed", "peak_memory_gb")],
    ),
    (
        "docs/training.md", "Ranking takes {} triples per second there, and PyKEEN's evaluator, in batches of 32, {}.",
        [(*TRAINING_ON_GPU, "evaluation", f"{whose}_triples_per_second") for whose in ("ours", "pykeen")],
    ),
    (
        "docs/training.md", "for 10⁴ entities alone: {} GB",
        [("training_gpu", "memory_in_batches_of_4096", 0, "beyond_gb")],
    ),
    (
        "README.md", "takes {} queries a second in float32, {} times the plain dense PyTorch loop, and {} with",
        [(*TRAINING_ON_GPU, "ours", "queries_per_second"), ("training_gpu", "against_dense", "ours"),
         (*TRAINING_ON_GPU, "ours, compiled, mixed", "queries_per_second")],
    ),
    ("README.md", "on an NVIDIA H100 {} at d = 200", [("scale_gpu", "influence_seconds")]),
    ("docs/tracin.md", "An NVIDIA H100 takes {} s at d = 200", [("scale_gpu", "influence_seconds")]),
    (
        "docs/training.md", "Filtered ranking takes {} triples per second, PyKEEN's evaluator {}.",
        [(*TRAINING, "evaluation", "ours_triples_per_second"), (*TRAINING, "evaluation", "pykeen_triples_per_second")],
    ),
    (
        "docs/training.md", "d = 32: {} GB for 10⁴ entities, {} GB for 10⁵, {} GB for 10⁶",
        [("training", "memory_in_batches_of_4096", place, "beyond_gb") for place in range(3)],
    ),
    *(
        ("docs/training.md", f"| {count} | {{}} ± {{}} | {{}} ± {{}} |",
         [("processes", "summary", count, name, place) for name in ("mean_reciprocal_rank", "hits@10")
          for place in range(2)])
        for count in ("1", "2")
    ),
    ("docs/pipeline.md", "reaches a test MRR of {} ", [("pipeline", "test", "mean_reciprocal_rank")]),
    (
        "docs/pipeline.md",
        "a million edges ({} GB) took {} GB of memory and {} seconds of one core, four million ({} GB) {} GB and {} "
        "seconds; each further million takes {} GB and {} seconds",
        [*(("kgx", "runs", place, name) for place in range(2)
           for name in ("gigabytes", "peak_memory_gb", "cpu_seconds")),
         *(("kgx", "per_further_million", name) for name in ("peak_memory_gb", "cpu_seconds"))],
    ),
]  # fmt: skip


@cache
def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def recorded(path):
    value = results(path[0])
    for member in path[1:]:
        value = value[member]
    return value


def written(words):
    """Turn a number as it is written into (value, half a unit of its last digit that is no padding zero)."""
    digits, _, power = words.replace(",", "").replace("−", "-").partition("·10")
    number = Decimal(digits).scaleb(int(power.translate(SUPERSCRIPTS) or 0))
    is_whole = "." not in digits
    exponent = (number.normalize() if is_whole and number else number).as_tuple().exponent
    return float(number), float(Decimal(5).scaleb(exponent - 1))


@pytest.mark.parametrize(("document", "words", "paths"), FIGURES, ids=lambda value: str(value)[:50])
def test_figure_is_the_recorded_one(document, words, paths):
    text = " ".join(read(document).split())
    pattern = f"({NUMBER})".join(map(re.escape, words.split("{}")))
    found = re.findall(pattern, text)
    assert len(found) == 1, f"{document} says {len(found)} times: {words}"
    figures = [found[0]] if isinstance(found[0], str) else found[0]
    for figure, path in zip(figures, paths, strict=True):
        value, tolerance = written(figure)
        assert abs(value - recorded(path)) <= tolerance * 1.0001, f"{figure} is recorded as {recorded(path)} in {path}"


@pytest.mark.parametrize(
    ("words", "value", "tolerance"),
    [("57,700", 57700, 50), (".930", 0.93, 0.0005), ("−.018", -0.018, 0.0005), ("2.5·10⁻⁷", 2.5e-7, 5e-9),
     ("8", 8, 0.5), ("0.10", 0.1, 0.005), ("3.0", 3, 0.05)],
)  # fmt: skip
def test_reading_of_figures(words, value, tolerance):
    assert re.fullmatch(NUMBER, words)
    assert written(words) == pytest.approx((value, tolerance))

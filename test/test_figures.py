"""Figures in the documents against what the benchmarks recorded: a figure is the recorded one, rounded."""

import json
import re
from decimal import Decimal
from functools import cache

import pytest
from documents import ROOT, read

NUMBER = r"[−-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?"
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")

EVIDENCE, NOTES = "docs/evidence.md", "docs/notes.md"
INFLUENCE, TRAINING_ON_GPU = ("influence", "pairs_per_second"), ("training_gpu", "contenders")
RATIO = ("influence", "ratio_to_backward_loop")
RECIPES = {
    "UMLS": "umls", "Kinships": "kinships", "Nations": "nations", "FB15k-237": "fb15k-237", "WN18RR": "wn18rr",
}  # fmt: skip
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


def median(values):
    return sorted(values)[len(values) // 2]


def later_call(place, loop):
    return ("scale", place, "this", f"loop of {loop}", "cpu", lambda seconds: seconds / loop)


def lds(method, *columns):
    return [("truth", "lds", column, "methods", method, end) for column in columns for end in ("mean", "low", "high")]


def removed(method):
    return [
        ("truth", "remove", column, "by_top_k", "10", method, part)
        for column in KVSALL[:2]
        for part in ("mrr", "mrr_standard_error")
    ]


def planted(score):
    return [("truth", "planted", column, "auc", score) for column in KVSALL[:2]]


def accuracy(recipe, *metrics):
    return [("accuracy", recipe, "42", metric) for metric in metrics]


def in_minutes(seconds):
    return seconds / 60


LARGER = ("fb15k-237", "wn18rr")
SMALL = "recommended, as for 1000000"
PATHS_AS_ADVISED = ("exams", "paths", "Hetionet, fold c, as advised", "results", "ranked paths")


def of_own_recipe(name):
    return lambda mrr: mrr / recorded(("accuracy", name, "42", "mean_reciprocal_rank"))


def against_backward_loop(rate):
    return rate / recorded((*INFLUENCE, "backward loop"))


FOLDS = ("fold c", "validation", "fold a", "fold b")
SOFTMAX = ", softmax curvature"


def examined(fold, suffix):
    """The name of an exam; both curvatures of fold c stand in one."""
    return f"Hetionet, {fold}{', held out' if fold == 'fold c' else suffix}"


EXAM_ROWS = {
    "TracIn, last layers": ("", "TracIn, last layers"),
    "TracIn, all parameters (`--method tracin`)": ("", "TracIn, all parameters"),
    "rule: on a path of two triples": ("", "rule: on a path of two hops"),
    "**`--method gauss-newton`**": (SOFTMAX, "gauss-newton"),
}
PATH_ROWS = {
    "chance, two triples a path": ("weaker influence", "no model"),
    "the page, without any model": ("ranked paths", "no model"),
    "**the page**": ("ranked paths", "gauss-newton"),
}
STABILITY_ROWS = {
    "list of `gauss-newton`, fold c": ("fold c", "gauss-newton"),
    "list of `gauss-newton`, validation": ("validation", "gauss-newton"),
    "the page's paths first, fold c": (
        "fold c", "gauss-newton, in the order of ranked paths",
    ),
    "the page's paths first, validation": (
        "validation", "gauss-newton, in the order of ranked paths",
    ),
}  # fmt: skip
WITH_CROSS_ENTROPY = tuple(f"{graph}-kvsall-inverse-ce-tails" for graph in ("umls", "french-royalty", "hetionet"))
# The best of the two rules in each column of the README.
SHARES, SAME_TAIL = "shares (h, r) or (r, t)", "same (r, t)"
BEST_RULES = (SHARES, SHARES, SAME_TAIL, SHARES, SHARES, SHARES)
TAIL_ALONE = [("truth", "lds", column) for column in WITH_CROSS_ENTROPY]
BOTH_SIDES = [(*place, "both_sides") for place in TAIL_ALONE]
NINE_TENTHS = ("truth", "lds", "umls-kvsall-inverse-ce-tails, 0.9 kept", "both_sides")
# Of the README's columns. What a binary model's influences are on is the tail alone.
AGREEMENTS = [*(("truth", "lds", column) for column in KVSALL), *BOTH_SIDES]
CROSS_ENTROPY_ROWS = {
    "rule, shares (h, r) or (r, t)": SHARES,
    "rule, same (r, t)": SAME_TAIL,
    "rule, same (h, r)": "same (h, r)",
    "TracIn, all parameters": "TracIn, all parameters",
    "TracIn, embeddings alone": "TracIn, embeddings alone",
    "**`gauss-newton`**": "gauss-newton (recommended)",
    "the same, 2 models summed": "gauss-newton (recommended), 2 models summed",
    "`--damping 0.1`": "gauss-newton, damping 0.1",
    "`--damping 100`": "gauss-newton, damping 100.0",
}
FOUR_MODELS = "Hetionet, fold c, four models"
HUNDREDFOLD = "gauss-newton, a hundred times the damping"
AGREEMENT = ("heads_own", "tails_own", "ten_strongest")
BY_INFLUENCE = ("exams", "paths", "Hetionet, fold c, held out", "results", "weaker influence, analogies last")


def exam(command, suffix, members, *measures):
    """The means of one row, fold by fold."""
    return [
        ("exams", command, examined(fold, suffix), "results", *members, "mean", measure, "mean")
        for fold in FOLDS
        for measure in measures
    ]


PLANTED_GRAPHS = tuple(f"planted graph {number}" for number in range(5))
THREE_TRIPLES = tuple(f"planted graph {number}, three triples" for number in range(3))
BEST_RULE_OF_THREE = "rule: on a path of two hops, or else of three"
REASONS_ROWS = {
    "rule: joins both ends, or else touches one": "rule: joins both ends, or else touches one",
    "rule: on a path of two triples": "rule: on a path of two hops",
    "TracIn over all parameters": "TracIn, all parameters",
    "TracIn, embeddings alone": "TracIn, embeddings alone",
    "**`gauss-newton`**": "gauss-newton",
}


def in_cells(row, figures, *, graphs=4):
    bold = "**" if row.startswith("**") else ""
    return f"| {row} |" + f" {bold}{', '.join(['{}'] * figures)}{bold} |" * graphs


ON_WN18RR = ("truth", "remove", "wn18rr-kvsall-inverse-ce-tails, conve_wn18rr_random", "by_top_k", "4")
ON_FB15K237 = ("truth", "remove", "fb15k-237-kvsall-inverse-ce-tails, conve_fb15k237_random_nec", "by_top_k", "4")
ON_HETIONET = ("truth", "remove", "hetionet-kvsall-inverse-ce-tails, treats_within_ten", "by_top_k")
ALIKE = "others of the same entities and degrees"
RECOMMENDED = "gauss-newton (recommended)"
TEN_ON_FB15K237 = (*ON_FB15K237[:-1], "10")
WITHOUT = ("exams", "mechanism", "Hetionet, fold a", "results")

# (document, words with {} for each figure, where each was recorded: results file and the members that
# lead to it, or what turns them into the figure).
FIGURES = [
    *(
        (EVIDENCE,
         f"| {row} | {{}} |" + f" {bold}{{}}{bold} |" * 2 + f" {bold}{{}} ({{}} to {{}}){bold} |" * (not control),
         [(*WITHOUT, removed, *name) for name in (
             ("triples_removed",), ("mrr_by_seed", 0), ("hits@1",),
             *(() if control else (("fall_below_others", part) for part in ("mean", "low", "high"))),
         )])
        for row, bold, removed, control in (
            ("none", "", "nothing", False),
            ("the curated edges", "", "known reasons", False),
            ("others of the same entities and relations", "",
             "as many others of the same entities and relations", True),
            ("first on the graph's paths, without any model", "", "first on the graph's paths, without a model", False),
            ("first on the page's paths, `--damping 100`", "",
             "first on the page's paths, a hundred times the damping", False),
            ("strongest proponents, `--damping 100`", "", "strongest proponents, a hundred times the damping", False),
            ("**strongest proponents of `gauss-newton`**", "**", "strongest proponents", False),
        )
    ),
    (
        EVIDENCE, "the first three have {}, {} and {}, and the last {}.",
        [("exams", "mechanism", "Hetionet, fold a, two seeds", "results", removed, "mrr_by_seed", 1)
         for removed in ("nothing", "known reasons", "as many others of the same entities and relations",
                         "strongest proponents")],
    ),
    (
        EVIDENCE, "over both seeds the scores fall by {} ({} to {}) without",
        [("exams", "mechanism", "Hetionet, fold a, two seeds", "results", "strongest proponents", "fall_below_others",
          part) for part in ("mean", "low", "high")],
    ),
    (
        "README.md", "their MRR falls from {} to {}; without as many others it is {} (",
        [(*WITHOUT, removed, "mrr_by_seed", 0)
         for removed in ("nothing", "strongest proponents", "as many others of the same entities and relations")],
    ),
    *(
        (EVIDENCE, f"| {row} |" + f" {bold}{{}}, {{}}, {{}}{bold} |" * 2,
         [(*graph, removed, *name) for graph in (ON_WN18RR, ON_FB15K237) for name in (
             ("triples_removed",), ("first_before", "mrr"), ("first_before", "hits@1"),
         )])
        for row, bold, removed in (
            ("nothing at all", "", "nothing"), ("others of the same entities and degrees", "", ALIKE),
            ("**Gauss–Newton**", "**", RECOMMENDED),
            ("**Gauss–Newton, `--damping 100`**", "**", "gauss-newton, damping 100.0"),
        )
    ),
    *(
        (EVIDENCE, f"| {bold}{row}, French Royalty{bold} |" + f" {bold}{{}}, {{}}{bold} |" * 4,
         [("truth", "remove", "french-royalty-kvsall-inverse-ce-tails", "by_top_k", top_k, removed, name)
          for top_k in ("1", "4", "10", "30") for name in ("mrr", "score")])
        for row, bold, removed in (
            ("nothing", "", "nothing"), ("others of the same entities and degrees", "", ALIKE),
            ("Gauss–Newton", "**", "gauss-newton (recommended)"),
            ("Gauss–Newton, `--damping 100`", "", "gauss-newton, damping 100.0"),
            ("Gauss–Newton, `--damping 0.1`", "", "gauss-newton, damping 0.1"),
        )
    ),
    *(
        (EVIDENCE, f"| {bold}{row}, Hetionet{bold} |" + f" {bold}{{}}, {{}}{bold} |" * 4,
         [(*ON_HETIONET, top_k, removed, name) for top_k in ("1", "4", "10", "30") for name in ("mrr", "score")])
        for row, bold, removed in (
            ("nothing", "", "nothing"), ("others of the same entities and degrees", "", ALIKE),
            ("Gauss–Newton", "**", "gauss-newton (recommended)"),
        )
    ),
    (
        EVIDENCE, "Without ten of each the scores fall by {} ({} to {}), without as many others by {} ({} to {}).",
        [(*ON_HETIONET, "10", removed, "fall_below_nothing", part)
         for removed in ("gauss-newton (recommended)", ALIKE) for part in ("mean", "low", "high")],
    ),
    (
        EVIDENCE, "than without the others by {} ({} to {}), {} ({} to {}), {} ({} to {}) and {} ({} to {}) from one",
        [(*ON_HETIONET, top_k, "gauss-newton (recommended)", "fall_below_others", part)
         for top_k in ("1", "4", "10", "30") for part in ("mean", "low", "high")],
    ),
    (
        EVIDENCE, "One proponent of each, {} triples of",
        [(*ON_HETIONET, "1", "gauss-newton (recommended)", "triples_removed")],
    ),
    (
        EVIDENCE, "the MRR falls by {} from 1, and without as many other triples by {}, less than retraining alone "
        "makes it fall ({}).",
        [(*ON_WN18RR, removed, "first_before", "mrr", lambda mrr: 1 - mrr)
         for removed in ("gauss-newton (recommended)", ALIKE, "nothing")],
    ),
    (
        EVIDENCE, "it falls by {}, and without as many others by {}. What",
        [(*ON_FB15K237, removed, "first_before", "mrr", lambda mrr: 1 - mrr) for removed in (RECOMMENDED, ALIKE)],
    ),
    (
        EVIDENCE, "fall by {} ({} to {}), and without the others by {} ({} to {}): 2.3 times as far, and further for "
        "the same test triple by {} ({} to {}).",
        [(*ON_FB15K237, removed, f"fall_below_{than}", part) for removed, than in (
            (RECOMMENDED, "nothing"), (ALIKE, "nothing"), (RECOMMENDED, "others"),
        ) for part in ("mean", "low", "high")],
    ),
    (
        EVIDENCE, "Without ten of each ({} triples) it falls by {}, and without as many others by {}. The scores fall "
        "by {} ({} to {}), and without the others by {} ({} to {}): eleven times as far.",
        [(*TEN_ON_FB15K237, RECOMMENDED, "triples_removed"),
         *((*TEN_ON_FB15K237, removed, "first_before", "mrr", lambda mrr: 1 - mrr) for removed in (RECOMMENDED, ALIKE)),
         *((*TEN_ON_FB15K237, removed, "fall_below_nothing", part)
           for removed in (RECOMMENDED, ALIKE) for part in ("mean", "low", "high"))],
    ),
    (
        "README.md", "scores fall by {} on FB15k-237 and {} on Hetionet; without as many others by {} and {}.",
        [(*graph, removed, "fall_below_nothing", "mean") for removed in (RECOMMENDED, ALIKE)
         for graph in (TEN_ON_FB15K237, (*ON_HETIONET, "10"))],
    ),
    (
        "README.md", "MRR of 1 to {}, and as many other triples to {}.",
        [(*ON_WN18RR, removed, "first_before", "mrr") for removed in ("gauss-newton (recommended)", ALIKE)],
    ),
    ("README.md", "the 73 predictions have an MRR of {}.", [(*WITHOUT, "known reasons", "mrr_by_seed", 0)]),
    *(
        ("README.md", f"| {row} | {bold}{{}}{bold} | {bold}{{}}{bold} |",
         [("exams", command, examined("fold c", suffix), "results", *members, "mean", measure, "mean")
          for measure in (first, "tail_auc")])
        for row, bold, command, suffix, members, first in (
            ("TracIn, last layers, of all training triples", "", "reasons", "", ["TracIn, last layers"],
             "reciprocal_rank"),
            ("TracIn over all parameters", "", "reasons", "", ["TracIn, all parameters"], "reciprocal_rank"),
            ("**Gauss–Newton's list**", "**", "reasons", SOFTMAX, ["gauss-newton"], "reciprocal_rank"),
            ("**paths of the graph, as the page lists them**", "**", "paths", SOFTMAX, ["ranked paths", "gauss-newton"],
             "first_reason"),
        )
    ),
    (
        "README.md", "without any model, it has {}.",
        [("exams", "paths", examined("fold c", SOFTMAX), "results", "ranked paths", "no model", "mean", "first_reason",
          "mean")],
    ),
    (
        "README.md", "influence alone have {}, in random order {}.",
        [(*BY_INFLUENCE, name, "mean", "first_reason", "mean") for name in ("gauss-newton", "no model")],
    ),
    (
        EVIDENCE, "last, have {} and {} in the order of the weaker influence, and {} and {} in random order. "
        "The differences are {} ({} to {}) and {} ({} to {}).",
        [
            *((*BY_INFLUENCE, name, "mean", measure, "mean")
              for name in ("gauss-newton", "no model") for measure in ("first_reason", "first_whole_path")),
            *((*BY_INFLUENCE, "gauss-newton", "above_no_model", measure, what)
              for measure in ("first_reason", "first_whole_path") for what in ("mean", "low", "high")),
        ],
    ),
    (
        EVIDENCE, "the list of fold c has {}, {} and {}, and two seeds agree more ({}, {}, {});",
        [*(("exams", "reasons", examined("fold c", SOFTMAX), "results", HUNDREDFOLD, "mean", measure, "mean")
           for measure in ("reciprocal_rank", "head_auc", "tail_auc")),
         *(("exams", "stability", examined("fold c", SOFTMAX), "results", HUNDREDFOLD, "1", measure, "mean")
           for measure in AGREEMENT)],
    ),
    *(
        (EVIDENCE, f"| {row} | {{}}, {{}}, {{}} |",
         [("exams", "reasons", FOUR_MODELS, "results", "gauss-newton", sums, measure, "mean")
          for measure in ("reciprocal_rank", "head_auc", "tail_auc")])
        for row, sums in (("one model", "mean"), ("four models summed", "sum"))
    ),
    *(
        (EVIDENCE, f"{before}| {{}}, {{}}, {{}} | {{}}, {{}}, {{}} |",
         [("exams", "stability", FOUR_MODELS, "results", method, models, measure, "mean")
          for method in ("gauss-newton", "gauss-newton, in the order of ranked paths") for measure in AGREEMENT])
        for before, models in (("| .222, .566, .898 ", "1"), ("| two models summed | ", "2"))
    ),
    (
        EVIDENCE, "two models summed have {}, {} and {}.",
        [("exams", "reasons", examined("fold c", SOFTMAX), "results", "gauss-newton", "sum", measure, "mean")
         for measure in ("reciprocal_rank", "head_auc", "tail_auc")],
    ),
    *(
        (EVIDENCE, in_cells(row, 3), exam("reasons", suffix, [method], "reciprocal_rank", "head_auc", "tail_auc"))
        for row, (suffix, method) in EXAM_ROWS.items()
    ),
    *(
        (EVIDENCE, f"| {row} |" + (" **{}** |" if row.startswith("**") else " {} |") * 6,
         [("exams", "reasons", graph, "results", method, "mean", "reciprocal_rank", "mean")
          for graph in (*PLANTED_GRAPHS, "French Royalty")])
        for row, method in REASONS_ROWS.items()
    ),
    *(
        (EVIDENCE, in_cells(row, 1, graphs=len(THREE_TRIPLES)),
         [("exams", "reasons", graph, "results", method, "mean", "reciprocal_rank", "mean") for graph in THREE_TRIPLES])
        for row, method in (
            ("rule: on a path of two triples, or else of three", BEST_RULE_OF_THREE),
            ("TracIn, embeddings alone, three triples", "TracIn, embeddings alone"),
            ("**`gauss-newton`**, three triples", "gauss-newton"),
            ("`--damping 100`, three triples", "gauss-newton, a hundred times the damping"),
            ("`--damping 0.1`, three triples", "gauss-newton, a tenth of the damping"),
        )
    ),
    (
        EVIDENCE, "{}, {} and {} (the rule has {}, {} and {}).",
        [("exams", "reasons", graph, "results", method, "mean", "tail_auc", "mean")
         for method in ("gauss-newton", BEST_RULE_OF_THREE) for graph in THREE_TRIPLES],
    ),
    (
        EVIDENCE, "trained as advised, have {} and {}, which differ by {} ({} to {}).",
        [*(("exams", "paths", "French Royalty, as advised", "results", "ranked paths", method, "mean",
            "first_whole_path", "mean") for method in ("gauss-newton", "no model")),
         *(("exams", "paths", "French Royalty, as advised", "results", "ranked paths", "gauss-newton",
            "above_no_model", "first_whole_path", part) for part in ("mean", "low", "high"))],
    ),
    (
        "README.md", "wholly true path has an MRR of {}, and {} without a model.",
        [("exams", "paths", "French Royalty", "results", "ranked paths", method, "mean", "first_whole_path", "mean")
         for method in ("gauss-newton", "no model")],
    ),
    *(
        (EVIDENCE, in_cells(row, 1, graphs=1 + len(THREE_TRIPLES)),
         [*(("exams", "paths", "French Royalty", "results", of_two, method, "mean", "first_whole_path", "mean"),),
          *(("exams", "paths", graph, "results", of_three, method, "mean", "first_whole_path_of_three", "mean")
            for graph in THREE_TRIPLES)])
        for row, of_two, of_three, method in (
            ("chance", "weaker influence", "three triples, weakest influence", "no model"),
            ("the weakest influence alone", "weaker influence", "three triples, weakest influence", "gauss-newton"),
            ("the page, without any model", "ranked paths", "ranked paths", "no model"),
            ("**the page**", "ranked paths", "ranked paths", "gauss-newton"),
        )
    ),
    (
        EVIDENCE, "{} ({} to {}), {} ({} to {}), {} ({} to {}) and {} ({} to {}).",
        [("exams", "paths", graph, "results", "ranked paths", "gauss-newton", "above_no_model", measure, part)
         for graph, measure in (("French Royalty", "first_whole_path"),
                                *((graph, "first_whole_path_of_three") for graph in THREE_TRIPLES))
         for part in ("mean", "low", "high")],
    ),
    (
        EVIDENCE, "the first true reason has {} in the page's order, {} without a model, and {} in the list.",
        [*(("exams", "paths", "French Royalty", "results", "ranked paths", method, "mean", "first_reason", "mean")
           for method in ("gauss-newton", "no model")),
         ("exams", "reasons", "French Royalty", "results", "gauss-newton", "mean", "reciprocal_rank", "mean")],
    ),
    (
        EVIDENCE, "The seeds of French Royalty have {}, {} and {}.",
        [("exams", "reasons", "French Royalty", "results", "gauss-newton", "by_model", seed, "reciprocal_rank", "mean")
         for seed in range(3)],
    ),
    *(
        (EVIDENCE, in_cells(row, 2), exam("paths", SOFTMAX, members, "first_reason", "first_whole_path"))
        for row, members in PATH_ROWS.items()
    ),
    *(
        (EVIDENCE, f"| {row} | {{}} | {{}} | {{}} |",
         [("exams", "stability", examined(fold, SOFTMAX), "results", method, "1", measure, "mean")
          for measure in AGREEMENT])
        for row, (fold, method) in STABILITY_ROWS.items()
    ),
    *(
        (EVIDENCE, f"| {name}, recommended | {{}} | {{}} | {{}} |",
         [*accuracy(f"{recipe}, recommended", "mean_reciprocal_rank", "hits@10"),
          *accuracy(recipe, "mean_reciprocal_rank")])
        for name, recipe in RECIPES.items()
    ),
    *(
        ("docs/notes.md", f"| {row} |" + " {} ({}) |" * len(names),
         [each for name in names for each in accuracy(name, "mean_reciprocal_rank", "hits@10")])
        for row, names in (
            ("as advised now", ("wn18rr, recommended", "fb15k-237, recommended")),
            ("d = 64, as for a million triples", (f"wn18rr, {SMALL}", f"fb15k-237, {SMALL}")),
            ("the same, 45 epochs, × .97",
             tuple(f"{name}, {SMALL}, num-epochs 45, lr-decay 0.97, entity-sample 4096"
                   for name in ("wn18rr", "fb15k-237"))),
            ("d = 64, 5 × 5 kernels over 4 × 16",
             (f"wn18rr, {SMALL}, embedding-height 4, embedding-width 16, kernel-height 5, kernel-width 5, "
              "entity-sample 4096",)),
        )
    ),
    (
        "docs/notes.md", "| d = 64, `--entity-sample 4096` | | {} ({}) |",
        accuracy(f"fb15k-237, {SMALL}, entity-sample 4096", "mean_reciprocal_rank", "hits@10"),
    ),
    (
        EVIDENCE, "There the advice reaches {} and {} of their own recipes, and takes {} and {} minutes in place of {} "
        "and {}. That",
        [*(("accuracy", f"{name}, recommended", "42", "mean_reciprocal_rank", of_own_recipe(name)) for name in LARGER),
         *(("accuracy", f"{name}{kind}", "42", "training_seconds", in_minutes)
           for kind in (", recommended", "") for name in LARGER)],
    ),
    (
        EVIDENCE, "they have {} ({}, {}, {}), and the two rules {} and {}; two seeds share {} of their",
        [("exams", "reasons", "French Royalty, as advised", "results", *row, "reciprocal_rank", "mean")
         for row in (("gauss-newton", "mean"), *(("gauss-newton", "by_model", seed) for seed in range(3)),
                     ("rule: joins both ends, or else touches one", "mean"), ("rule: on a path of two hops", "mean"))]
        + [("exams", "stability", "French Royalty, as advised", "results", "gauss-newton", "1", "ten_strongest",
            "mean")],
    ),
    (
        EVIDENCE, "| French Royalty, recommended | {} | {} | {}, {}, {} |",
        [*accuracy("french-royalty, recommended", "mean_reciprocal_rank", "hits@10"),
         *(("accuracy", "french-royalty", seed, "mean_reciprocal_rank") for seed in "123")],
    ),
    *(
        (EVIDENCE, f"| {row} | " + ", ".join(["{}"] * len(seeds)) + " | " + ", ".join(["{}"] * len(seeds)) + " |",
         [("accuracy", name, seed, *path)
          for path in (("mean_reciprocal_rank",), ("training_seconds", in_minutes)) for seed in seeds])
        for row, name, seeds in (
            ("Hetionet, its own size, two seeds", "hetionet, recommended", ("1", "2")),
            ("Hetionet, as for a million triples, four seeds", f"hetionet, {SMALL}", ("1", "2", "3", "4")),
            ("FB15k-237, its own size", "fb15k-237, recommended", ("42",)),
            ("FB15k-237, as for a million triples, three seeds", f"fb15k-237, {SMALL}", ("42", "1", "2")),
            ("WN18RR, its own size", "wn18rr, recommended", ("42",)),
            ("WN18RR, as for a million triples", f"wn18rr, {SMALL}", ("42",)),
            ("Hetionet, three seeds", f"hetionet, {SMALL}, entity-sample 4096", ("1", "2", "3")),
            ("FB15k-237, three seeds", f"fb15k-237, {SMALL}, entity-sample 4096", ("42", "1", "2")),
        )
    ),
    *(
        (EVIDENCE, f"| {row} | {{}} | {{}}, {{}}, {{}} | {{}}, {{}} | {{}}, {{}}, {{}} |",
         [("exams", "reasons", fold, "predictions"),
          *(("exams", "reasons", fold, "results", "gauss-newton", "mean", measure, "mean")
            for measure in ("reciprocal_rank", "head_auc", "tail_auc")),
          *(("exams", "paths", fold, "results", "ranked paths", "gauss-newton", "mean", measure, "mean")
            for measure in ("first_reason", "first_whole_path")),
          *(("exams", "stability", fold, "results", "gauss-newton", "1", measure, "mean") for measure in AGREEMENT)])
        for row, fold in (
            ("its own size", "Hetionet, fold c, as advised"),
            ("as for a million triples", "Hetionet, fold c, held out"),
        )
    ),
    (
        EVIDENCE, "| Gauss–Newton, `--damping 0.1`, Hetionet | not run | {}, {} | {}, {} | {}, {} |",
        [(*ON_HETIONET, top_k, "gauss-newton, damping 0.1", name)
         for top_k in ("4", "10", "30") for name in ("mrr", "score")],
    ),
    (
        EVIDENCE, "further than without the others by {}, {} and {} from",
        [(*ON_HETIONET, top_k, "gauss-newton, damping 0.1", "fall_below_others", "mean")
         for top_k in ("4", "10", "30")],
    ),
    (
        EVIDENCE, "about as much (four of each: {} in place of {}).",
        [(*ON_FB15K237, method, "fall_below_others", "mean")
         for method in ("gauss-newton, damping 0.1", "gauss-newton (recommended)")],
    ),
    (
        EVIDENCE, "With `--damping 100` its list has {}, {} and {}, with `--damping 0.1` {}, {} and {}, so that",
        [("exams", "reasons", "Hetionet, fold c, as advised", "results", f"gauss-newton, a {times} the damping", "mean",
          measure, "mean")
         for times in ("hundred times", "tenth of") for measure in ("reciprocal_rank", "head_auc", "tail_auc")],
    ),
    (
        EVIDENCE, "without a model have {} and {} on the {}, so that influences take {} ({} to {}) of the first edge",
        [*((*PATHS_AS_ADVISED, "no model", "mean", measure, "mean")
           for measure in ("first_reason", "first_whole_path")),
         ("exams", "paths", "Hetionet, fold c, as advised", "predictions"),
         *((*PATHS_AS_ADVISED, "gauss-newton", "above_no_model", "first_reason", part, abs)
           for part in ("mean", "high", "low"))],
    ),
    (
        EVIDENCE, "Seeds 1 and 2 of French Royalty have {} and {}.",
        [("accuracy", "french-royalty, recommended", seed, "mean_reciprocal_rank") for seed in "12"],
    ),
    *(
        ("README.md", f"| {row} | {{}} {unit} | {{}} × the backward loop |", [(*INFLUENCE, name), (*RATIO, name)])
        for row, unit, name in (
            ("exact TracIn, one test triple", "training triples a second", "one test triple"),
            ("exact TracIn, 16 test triples", "pairs a second", "16 test triples"),
            ("captum's TracInCP, two layers only", "pairs a second", "captum TracInCP, fc and conv1"),
        )
    ),
    (
        "README.md", "d = 32 | {} seconds a test triple | 2 CPU cores |", [("scale", 0, "influence_seconds")],
    ),
    (
        "README.md", "d = 200 | {} seconds a test triple | 2 CPU cores, {} GB |",
        [("scale", 1, "influence_seconds"), ("scale", 1, "peak_memory_gb")],
    ),
    (
        "docs/tracin.md", "takes {} for a later call on the 16 million triples, {} for three more (",
        [("scale", 10, "this", "second call", "cpu"), ("scale", 10, "this", "loop of 3", "cpu")],
    ),
    ("docs/tracin.md", "and {} for 20 test triples in one call.", [("scale", 10, "this", "one call for 20", "cpu")]),
    (
        "docs/tracin.md", "one relation took {} seconds on two free cores; the version before summed over the entities "
        "in another way and took {} in",
        [("scale", 11, version, "one call for 100", "seconds") for version in ("this", "before")],
    ),
    *(
        (EVIDENCE, f"| {row} | {{}} | {{}} GB |",
         [("training", "large", "contenders", name, figure)
          for figure in ("processor_queries_per_second", "peak_memory_gb")])
        for row, name in (
            ("PyKEEN, sLCWA", "pykeen, sLCWA"), ("`train_pytorch.py`, all entities", "ours"),
            ("`--entity-sample 4096`", "ours, 4,096 entities sampled"),
            ("`--entity-sample 1024`", "ours, 1,024 entities sampled"),
        )
    ),
    ("docs/tracin.md", "on UMLS takes {}, more than half of them to load torch: {} times as fast",
     [later_call(4, 20), ("scale", 4, "ratio of the loops", "cpu")]),
    ("docs/tracin.md", "A later call on FB15k-237 takes {}.", [later_call(8, 2)]),
    *(
        ("docs/training.md", f"| {words} | {{}} | {{}} GB |",
         [("scale", 9, "training", triples, name) for name in ("hours", "peak_memory_gb")])
        for words, triples in (
            ("10⁵ triples, 2,500 entities", "100000"),
            ("10⁶ triples, 25,000 entities", "1000000"),
            ("1.6·10⁷ triples, 400,000 entities", "16000000"),
        )
    ),
    (
        "docs/tracin.md", "such a model takes {} processor seconds, and two more, one of them about a hub, {}.",
        [("scale", 12, "this", "second call", "cpu"), ("scale", 12, "this", "loop of 2", "cpu")],
    ),
    ("README.md", "from the second call on | {} processor seconds", [later_call(3, 10)]),
    (
        "docs/tracin.md", "12 hubs ({} to {} triples) keep {} of their ten strongest ({} at least) and {} of their "
        "hundred strongest ({} at least;",
        [("hubs", "degrees", -1), ("hubs", "degrees", 0),
         *(("hubs", "overlap", top, which) for top in ("10", "100") for which in ("mean", "least"))],
    ),
    ("README.md", "of one relation | {} seconds, start-up", [("scale", 11, "this", "one call for 100", "seconds")]),
    ("README.md", "d = 200 | {} seconds a test triple | NVIDIA H100 |", [("scale_gpu", "influence_seconds")]),
    *(
        ("README.md", f"| training on an H200, {how} | {{}} queries a second | {{}} × a plain dense PyTorch loop |",
         [(*TRAINING_ON_GPU, name, "queries_per_second"), ("training_gpu", "against_dense", name)])
        for how, name in (("float32", "ours"), ("bfloat16, compiled", "ours, compiled, mixed"))
    ),
    *(
        (document, f"| {name} | {{}} | {{}} |", accuracy(recipe, "mean_reciprocal_rank", "hits@10"))
        for document in ("README.md", EVIDENCE) for name, recipe in RECIPES.items()
    ),
    *(
        (EVIDENCE, f"| {name} | {{}} | {{}} | {{}} | {{}} |",
         [*accuracy(recipe, "mean_reciprocal_rank", "hits@10", "epochs"),
          ("accuracy", recipe, "42", "training_seconds", in_minutes)])
        for name, recipe in RECIPES.items()
    ),
    *(
        ("README.md", f"| {row} |" + f" {bold}{{}}{bold} |" * 6,
         [(*place, "methods", method, "mean") for place in AGREEMENTS])
        for row, bold, method in (("TracIn, all parameters", "", "TracIn, all parameters"),
                                  ("**Gauss–Newton**", "**", "gauss-newton (recommended)"))
    ),
    (
        "README.md", "| best rule that compares labels | {} | {} | {} | {} | {} | {} |",
        [(*place, "methods", rule, "mean") for place, rule in zip(AGREEMENTS, BEST_RULES, strict=True)],
    ),
    ("README.md", "alone, Hetionet has {}, as", [(*TAIL_ALONE[2], "methods", "gauss-newton (recommended)", "mean")]),
    ("README.md", "and have {}, {} and {} there.",
     [(*place, "methods", "TracIn, all parameters", "mean") for place in TAIL_ALONE]),
    ("README.md", "A perfect predictor would have {} on", [(*BOTH_SIDES[2], "ceiling")]),
    ("README.md", "Four models together have {}.",
     [("exams", "reasons", FOUR_MODELS, "results", "gauss-newton", "sum", "tail_auc", "mean")]),
    *(
        (EVIDENCE, f"| {row}, both sides |" + (" **{} ({} to {})** |" if "**" in row else " {} ({} to {}) |") * 3,
         [(*place, "methods", method, end) for place in BOTH_SIDES for end in ("mean", "low", "high")])
        for row, method in CROSS_ENTROPY_ROWS.items()
    ),
    *(
        (EVIDENCE, f"| {row}, tail alone |" + (" **{}** |" if "**" in row else " {} |") * 3,
         [(*place, "methods", method, "mean") for place in TAIL_ALONE])
        for row, method in CROSS_ENTROPY_ROWS.items()
    ),
    *(
        (EVIDENCE, f"| perfect predictor, {of_what} | {{}} | {{}} | {{}} |", [(*place, "ceiling") for place in places])
        for of_what, places in (("both sides", BOTH_SIDES), ("tail alone", TAIL_ALONE))
    ),
    (
        EVIDENCE, "by {} ({} to {}) on UMLS, {} ({} to {}) on French Royalty and {} ({} to {}) on Hetionet.",
        [(*place, "recommended_above_best_baseline", part) for place in BOTH_SIDES for part in ("mean", "low", "high")],
    ),
    (
        EVIDENCE,
        "(UMLS, 40 parts), both sides have {} ({} to {}), the best rule {}, and `--damping 0.1` {}, where a perfect "
        "predictor would have {}.",
        [*((*NINE_TENTHS, "methods", "gauss-newton (recommended)", end) for end in ("mean", "low", "high")),
         (*NINE_TENTHS, "methods", SHARES, "mean"), (*NINE_TENTHS, "methods", "gauss-newton, damping 0.1", "mean"),
         (*NINE_TENTHS, "ceiling")],
    ),
    (
        EVIDENCE, "and the lead of {} ({} to {}) is within",
        [(*NINE_TENTHS, "recommended_above_best_baseline", part) for part in ("mean", "low", "high")],
    ),
    (
        EVIDENCE, "as the best rule on Hetionet (by {} ({} to {})),",
        [(*TAIL_ALONE[2], "recommended_above_best_baseline", part) for part in ("mean", "low", "high")],
    ),
    *(
        (EVIDENCE, f"| {row} |" + (" **{} ({} to {})** |" if "**" in row else " {} ({} to {}) |") * 5,
         lds(method, *LDS_COLUMNS))
        for row, method in LDS_ROWS.items()
    ),
    (
        EVIDENCE, "from the seeds' agreement | {} | {} | {} | {} | {} |",
        [("truth", "lds", column, "ceiling") for column in LDS_COLUMNS],
    ),
    (
        EVIDENCE, "(paired intervals, from {} on UMLS to {} with 1vsAll)",
        [("truth", "lds", column, "recommended_above_best_baseline", "mean")
         for column in (KVSALL[0], "umls-1vsall")],
    ),
    *(
        (EVIDENCE, f"| {row} |" + (" **{} ± {}** |" if "**" in row else " {} ± {} |") * 2, removed(method))
        for row, method in REMOVED_ROWS.items()
    ),
    *(
        (EVIDENCE, f"| {row} | {{}} |", [("truth", "remove", "fb15k-237-kvsall-inverse", "by_top_k", "4", name, "mrr")])
        for row, name in {
            "nothing": "nothing",
            "random triples that share an entity": "random triples that share an entity",
            "Gauss–Newton": "gauss-newton (recommended)",
            "TracIn, all parameters": "TracIn, all parameters",
        }.items()
    ),
    *(
        (EVIDENCE, f"| {row} | {{}} | {{}} |", planted(name))
        for row, name in (("the model's loss on the triple", "loss"),
                          ("TracIn's self-influence (`--mode self`)", "TracIn self-influence, all parameters"))
    ),
    *(
        (NOTES, f"| {row} | {{}} | {{}} |", planted(name))
        for row, name in {
            "the model's own loss": "loss",
            "leverage × squared slope": "Gauss–Newton self-influence (leverage × slope²)",
            "TracIn's self-influence": "TracIn self-influence, all parameters",
            "leverage alone": "Gauss–Newton leverage",
            "plain TracIn on clean validation triples": "TracIn on clean validation triples",
            "Gauss–Newton on clean validation triples": "Gauss–Newton on clean validation triples",
        }.items()
    ),
    *(
        (NOTES, f"| {row} | {{}} | {{}} |",
         [("truth", "remove", column, "by_top_k", "10", name, "mrr") for column in KVSALL[:2]])
        for row, name in {
            "labels alone": "Gauss–Newton rows, labels alone",
            "with shares": "gauss-newton (recommended)",
            "with shares, three models summed": "gauss-newton (recommended), 3 models summed",
        }.items()
    ),
    *(
        (EVIDENCE, f"| {row} | {{}} | {{}} |", [(*INFLUENCE, name), (*RATIO, name)])
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
    *(
        (EVIDENCE, f"| dattri 0.3.0 TracIn{layers} | {{}} | {{}} |",
         [(*INFLUENCE, name), (*INFLUENCE, name, against_backward_loop)])
        for layers, name in (("", "dattri TracIn"), (", `fc` alone", "dattri TracIn, fc alone"))
    ),
    (
        EVIDENCE, "The largest difference from the loop is {} of",
        [("influence", "largest_difference_from_loop")],
    ),
    (
        EVIDENCE, "correlation of 16 test triples with full precision is {},",
        [("influence", "mixed_precision", "lowest_spearman")],
    ),
    *(
        (EVIDENCE, f"| {row} | {{}} | {{}} GB |", [(*run, "influence_seconds"), (*run, "peak_memory_gb")])
        for row, run in {
            "TracIn, d = 32 | Xeon": ("scale", 0),
            "TracIn, d = 200 | Xeon": ("scale", 1),
            "`gauss-newton`, d = 32 | Xeon": ("scale", 2),
            "TracIn, d = 200 | H100": ("scale_gpu",),
        }.items()
    ),
    (EVIDENCE, "Reading the files takes another {} s.", [("scale", 0, "loading_seconds")]),
    *(
        ("docs/tracin.md", f"| {row} | {{}} | {{}} GB |",
         [("scale", 3, version, calls, "cpu"), ("scale", 3, version, calls, "peak_memory_gb")])
        for row, version, calls in (
            ("first call, which makes the index", "this", "first call"),
            ("ten later calls", "this", "loop of 10"),
            ("one call for 100 test triples", "this", "one call for 100"),
            ("one call of a version without an index", "other", "loop of 1"),
        )
    ),
    *(
        ("docs/tracin.md", f"| {graph} | {{}} | {{}} | {many}: {{}} | {{}} GB | {{}} GB |",
         [("scale", place, "this", "first call", "cpu"), later_call(place, loop),
          ("scale", place, "this", f"one call for {many}", "cpu"),
          ("scale", place, "this", "first call", "peak_memory_gb"),
          ("scale", place, "this", f"loop of {loop}", "peak_memory_gb")])
        for graph, place, loop, many in (
            ("10⁵ triples, 2,500 entities", 6, 2, 10),
            ("10⁶ triples, 25,000 entities", 5, 2, 10),
            ("1.6·10⁷ triples, 400,000 entities", 3, 10, 100),
        )
    ),
    *(
        (EVIDENCE, f"| {row} | {{}} | | | {{}} GB |",
         [(file, "contenders", "pykeen", "queries_per_second"), (file, "contenders", "pykeen", "peak_memory_gb")])
        for row, file in (("PyKEEN 1.11.1, LCWA, BCE", "training"),
                          ("PyKEEN 1.11.1, LCWA, BCE, on the GPU", "training_gpu"))
    ),
    *(
        (EVIDENCE, f"| {row}{where} | {{}} | {{}} | 1 | {{}} GB |" if name == "dense"
         else f"| {row}{where} | {{}} | {{}} | {{}} | {{}} GB |",
         [(file, "contenders", name, "queries_per_second"), (file, "against_pykeen", name),
          *([] if name == "dense" else [(file, "against_dense", name)]),
          (file, "contenders", name, "peak_memory_gb")])
        for file, where, row, name in (
            *(
                (file, where, row, name)
                for file, where in (("training", ""), ("training_gpu", ", on the GPU"))
                for row, name in (("plain dense PyTorch loop", "dense"),
                                  ("the same in mixed precision", "dense, mixed"),
                                  ("`train_pytorch.py`, float32", "ours"), ("`--use-mixed-precision`", "ours, mixed"))
            ),
            ("training", "", "`--use-torch-compile`", "ours, compiled"),
            ("training_gpu", "", "`--use-mixed-precision --use-torch-compile`", "ours, compiled, mixed"),
        )
    ),
    *(
        (EVIDENCE, words,
         [(file, "contenders", "evaluation", f"{whose}_triples_per_second") for whose in ("ours", "pykeen")])
        for words, file in (("| 2 cores of the EPYC | {} | {} |", "training"),
                            ("| H200 | {} | {}, in batches of 32 |", "training_gpu"))
    ),
    *(
        (EVIDENCE, f"| {row} | {{}} | | {{}} GB |" if ratio is None else f"| {row} | {{}} | {{}} | {{}} GB |",
         [("training", "tiles", *run, "processor_queries_per_second"),
          *([] if ratio is None else [("training", "tiles", *ratio)]), ("training", "tiles", *run, "peak_memory_gb")])
        for row, run, ratio in (
            ("plain dense PyTorch loop, one thread, five rounds", ("one_thread", "contenders", "dense"), None),
            ("`train_pytorch.py` with tiles", ("one_thread", "contenders", "ours"),
             ("one_thread", "processor_against_dense", "ours")),
            ("400,000 entities, d = 32, batch 32,768, one thread, before", ("large", "other"), None),
            ("the same with tiles, one batch", ("large", "this"),
             ("large", "ratios_of_processor_queries_per_second", 0)),
        )
    ),
    (
        EVIDENCE, "train {} times as slowly as without it, in two rounds {} and {}. Before, the rate was anything "
        "from {} to {} queries",
        [("training", "tiles", "neighbour", "this", "slowdown"),
         *(("training", "tiles", "neighbour", "this", "slowdowns", place) for place in range(2)),
         ("training", "tiles", "neighbour", "other", "beside_queries_per_second", 0),
         ("training", "tiles", "neighbour", "other", "alone_queries_per_second", 0)],
    ),
    (
        EVIDENCE, "| 10⁴ | {} GB | {} GB |",
        [(file, "memory_in_batches_of_4096", 0, "beyond_gb") for file in ("training", "training_gpu")],
    ),
    *(
        (EVIDENCE, f"| {entities} | {{}} GB | not measured |",
         [("training", "memory_in_batches_of_4096", place, "beyond_gb")])
        for place, entities in ((1, "10⁵"), (2, "10⁶"))
    ),
    *(
        (EVIDENCE, f"| {count} | {{}} ± {{}} | {{}} ± {{}} |",
         [("processes", "summary", count, name, place) for name in ("mean_reciprocal_rank", "hits@10")
          for place in range(2)])
        for count in ("1", "2")
    ),
    ("docs/pipeline.md", "reaches a test MRR of {} ", [("pipeline", "test", "mean_reciprocal_rank")]),
    (
        "docs/pipeline.md", "each further million edges takes about {} seconds of one core and {} GB",
        [("kgx", "per_further_million", name) for name in ("cpu_seconds", "peak_memory_gb")],
    ),
    *(
        (EVIDENCE, f"| {edges} | {{}} GB | {{}} GB | {{}} GB | {{}} | {{}} GB | {{}} |",
         [*(("kgx", "runs", place, name)
            for name in ("gigabytes", "evidence_gigabytes", "peak_memory_gb", "cpu_seconds")),
          *(("kgx", "runs", place, "without_evidence", name) for name in ("peak_memory_gb", "cpu_seconds"))])
        for place, edges in enumerate(("0.5 million", "2 million"))
    ),
    (
        EVIDENCE, "16 million edges took {} seconds of one core, {} GB of memory and {} minutes, with an "
        "`evidence.tsv.gz` of {} GB",
        [("kgx", "sixteen_million", "cpu_seconds"), ("kgx", "sixteen_million", "peak_memory_gb"),
         ("kgx", "sixteen_million", "wall_seconds", in_minutes), ("kgx", "sixteen_million", "evidence_gigabytes")],
    ),
    *(
        (EVIDENCE, f"| {words} | {{}} of 5 runs | {{}} of 5 runs |",
         [("verification", f"{kind}, {name}") for name in ("beyond_seeds", "control_beyond_seeds")])
        for kind, words in (
            ("few", "a drug treats a disease through one gene"), ("none", "a drug has the side effect of most")
        )
    ),
    (
        EVIDENCE, "| lead below that of all models trained otherwise | {} of 5 runs | {} of 5 runs |",
        [("verification", "umls", f"umls, {name}") for name in ("beyond_seeds", "control_beyond_seeds")],
    ),
    (
        EVIDENCE, "| median rank in each run | {}, {}, {}, {}, {} | {}, {}, {}, {}, {} |",
        [("verification", "umls", "runs", run, kind, "ranks", median)
         for kind in ("without_proponents", "without_others") for run in range(5)],
    ),
    (
        EVIDENCE, "| each further million | | | {} GB | {} | {} GB | {} |",
        [("kgx", "per_further_million", *part, name) for part in ((), ("without_evidence",))
         for name in ("peak_memory_gb", "cpu_seconds")],
    ),
]  # fmt: skip


@cache
def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def recorded(path):
    value = results(path[0])
    for member in path[1:]:
        value = member(value) if callable(member) else value[member]
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

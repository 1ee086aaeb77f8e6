"""The exams' results as one Markdown page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conve_tracin.files import atomic_write
from truth_lib.tables import markdown_table, shortest

MEASURES = {
    "reciprocal_rank": "first reason's MRR",
    "first_place": "first place",
    "average_precision": "mean average precision",
    "jaccard": "Jaccard of the top-|e|",
    "head_auc": "AUC, head's own",
    "tail_auc": "AUC, tail's own",
    "first_reason": "first reason's MRR",
    "first_whole_path": "first whole path's MRR, two hops",
    "first_whole_path_through": "the same, through `--through`",
    "first_whole_path_of_three": "first whole path's MRR, three hops",
    "edges_of_the_pair": "Spearman, edges of the pair",
    "heads_own": "Spearman, head's own",
    "tails_own": "Spearman, tail's own",
    "ten_strongest": "ten strongest in common",
}


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write all exams in `content` ({command: {name: result}}) as one page."""
    lines = ["# Exams of trained models", ""]
    lines += ["Means over predictions, in brackets their 95 % bootstrap interval, then each model's own mean.", ""]
    for name, result in content.get("reasons", {}).items():
        lines += _section(f"{name}: known reasons", result, result["results"])
    for name, result in content.get("paths", {}).items():
        for order, methods in result["results"].items():
            lines += _section(f"{name}: paths, {order}", result, methods)
    for name, result in content.get("stability", {}).items():
        rows = {
            f"{method}, {size} against {size}": {"mean": {k: v for k, v in values.items() if k != "pairs"}}
            for method, sizes in result["results"].items()
            for size, values in sizes.items()
        }
        lines += _section(f"{name}: agreement of seeds", result, rows)
    for name, result in content.get("mechanism", {}).items():
        lines += [f"## {name}: without the known reasons", "", *_examined(result), ""]
        lines += [*markdown_table(list(_MECHANISM), [_removal(*each) for each in result["results"].items()]), ""]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(title: str, result: Mapping[str, Any], methods: Mapping[str, Any]) -> list[str]:
    names = list(next(iter(methods.values()))["mean"])
    rows = []
    for method, values in methods.items():
        rows.append([method, *(_cell(name, values) for name in names)])
        if "above_no_model" in values:
            above = values["above_no_model"]
            rows.append([f"{method}, above no model (paired)", *(_interval(above[name]) for name in names)])
        if "sum" in values:
            rows.append([f"{method}, {result['models']} summed", *(_interval(values["sum"][name]) for name in names)])
    table = markdown_table(["scores", *(MEASURES[name] for name in names)], rows)
    return [f"## {title}", "", *_examined(result), "", *table, ""]


def _examined(result: Mapping[str, Any]) -> list[str]:
    mrr = ", ".join(shortest(value) for value in result["mrr_of_predictions"])
    return [
        f"{result['predictions']} predictions within {result['max_rank']:g} of all {result['models']} models "
        f"(their MRR {mrr}), {result['training_triples']:,} training triples."
    ]


_MECHANISM = (
    "removed", "triples", "mean score of each seed", "MRR of each seed", "Hits@1", "fall below nothing removed",
    "fall below the others removed",
)  # fmt: skip


def _removal(name: str, values: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{values['triples_removed']:,}",
        *(", ".join(shortest(each) for each in values[f"{what}_by_seed"]) for what in ("score", "mrr")),
        shortest(values["hits@1"]),
        *(_interval(values.get(f"fall_below_{than}")) for than in ("nothing", "others")),
    ]


def _cell(name: str, values: Mapping[str, Any]) -> str:
    text = _interval(values["mean"][name])
    by_model = [each[name] for each in values.get("by_model", [])]
    if len(by_model) > 1:
        text += "; " + ", ".join("–" if each is None else shortest(each["mean"]) for each in by_model)
    return text


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{shortest(value['mean'])} ({shortest(value['low'])} to {shortest(value['high'])})"

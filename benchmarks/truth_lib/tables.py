"""Results as JSON and as tables in Markdown."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from conve_tracin.files import atomic_write, write_json


def merge_result(path: Path, keys: Sequence[str], result: dict[str, Any]) -> dict[str, Any]:
    """Put `result` under nested `keys` of a JSON file and return the whole content."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    place = content
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = result
    write_json(path, content)
    return content


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Format a table as lines of Markdown."""
    rows = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(row) + " |" for row in rows]


def shortest(value: float) -> str:
    """Write .731 for 0.731, as the tables of the field do."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write every result in `content` (see `merge_result`) as one Markdown page."""
    lines = ["# How true the scores are", ""]
    lines += [*(f"- {note}" for note in content.get("notes", [])), ""]
    lines += _lds_lines(content.get("lds", {}))
    lines += _removal_lines(content.get("remove", {}))
    lines += _planted_lines(content.get("planted", {}))
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _origin(result: dict[str, Any]) -> str:
    """Say where a result was measured, and with which command."""
    machine = result["machine"]
    kind = f"{machine['processor']}{' with AMX' if machine['amx'] else ''}"
    place = "CPU" if machine["gpu"] is None else machine["gpu"]
    return f"{machine['cores']} cores of an {kind}, torch {machine['torch']}, {place}; `{result['command']}`"


def _lds_lines(results: dict[str, Any]) -> list[str]:
    if not results:
        return []
    of_both = {name: result["both_sides"] for name, result in results.items() if "both_sides" in result}
    counts = [
        f"- {name}: {result['halves']} random parts × {result['seeds']} seeds, {result['test_triples']} test triples, "
        f"{result['models']} models, {result['retraining_minutes']:.0f} minutes of retraining; {_origin(result)}"
        for name, result in results.items()
    ]
    return [
        "## Linear datamodeling score",
        "",
        "Spearman correlation, per test triple, between the summed scores of a random half (or another share) of the "
        "training triples and the score that models trained on it give the test triple: mean and 95 % bootstrap "
        "interval over test triples.",
        "",
        *_lds_table(results),
        "",
        *(_both_sides_lines(of_both) if of_both else ()),
        *counts,
        "",
    ]


def _lds_table(results: dict[str, Any]) -> list[str]:
    setups = list(results)
    methods = dict.fromkeys(method for name in setups for method in results[name]["methods"])
    ceilings = [results[name]["ceiling"] for name in setups]
    rows = [
        ["perfect predictor (from the seeds' agreement)", *("–" if c is None else shortest(c) for c in ceilings)],
    ]
    for method in methods:
        cells = [results[name]["methods"].get(method) for name in setups]
        rows.append([method, *("–" if cell is None else _cell(cell) for cell in cells)])
    above = [results[name]["recommended_above_best_baseline"] for name in setups]
    rows.append(["recommended above the best simple rule, paired", *(_cell(cell) for cell in above)])
    return markdown_table(["scores", *setups], rows)


def _both_sides_lines(results: dict[str, Any]) -> list[str]:
    return [
        "The same for the score of the test triple plus that of its inverse, from the same retrainings. With "
        "cross-entropy, the influences of `gauss-newton` are on this sum.",
        "",
        *_lds_table(results),
        "",
    ]


def _cell(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "–"
    return f"{shortest(interval['mean'])} ({shortest(interval['low'])} to {shortest(interval['high'])})"


_REMOVAL = (
    "of each", "removed", "triples", "filtered tail MRR after", "Hits@1", "mean score",
    "of those ranked first before: MRR, Hits@1", "fall of the score below nothing removed", "below the others removed",
)  # fmt: skip


def _first_before(value: dict[str, Any]) -> str:
    of_first = value.get("first_before")
    if not of_first or not of_first["test_triples"]:
        return "–"
    return f"{shortest(of_first['mrr'])}, {shortest(of_first['hits@1'])}"


def _removal_lines(results: dict[str, Any]) -> list[str]:
    lines = ["## Remove and retrain", ""] if results else []
    for name, result in results.items():
        several = result["seeds"] > 1
        rows = [
            [
                top_k,
                removed,
                str(value["triples_removed"]),
                shortest(value["mrr"]) + (f" ± {shortest(value['mrr_standard_error'])}" if several else ""),
                shortest(value["hits@1"]),
                f"{value['score']:.2f}",
                _first_before(value),
                *(_cell(value.get(f"fall_below_{than}")) for than in ("nothing", "others")),
            ]
            for top_k, by_removal in result["by_top_k"].items()
            for removed, value in by_removal.items()
        ]
        facts = f"the test triples of {result['facts']}" if result.get("facts") else "test triples ranked first"
        before = result.get("before")
        known = (
            f" (MRR {shortest(before['mrr'])}, Hits@1 {shortest(before['hits@1'])} with everything)" if before else ""
        )
        lines += [
            f"{name}: {result['test_triples']} {facts}{known}, the strongest proponents of all removed together, "
            f"{result['seeds']} seed{'s' * several}; {_origin(result)}",
            "",
            *markdown_table(_REMOVAL, rows),
            "",
        ]
    return lines


def _planted_lines(results: dict[str, Any]) -> list[str]:
    if not results:
        return []
    methods = dict.fromkeys(method for result in results.values() for method in result["auc"])
    rows = [[method, *(shortest(result["auc"][method]) for result in results.values())] for method in methods]
    return [
        "## Planted errors",
        "",
        "Area under the ROC curve for finding training triples whose tail was replaced by a false one "
        f"({next(iter(results.values()))['share']:.0%} of all), mean over the draws.",
        "",
        *markdown_table(["suspicion", *results], rows),
        "",
        *(f"- {name}: {result['draws']} draws; {_origin(result)}" for name, result in results.items()),
        "",
    ]

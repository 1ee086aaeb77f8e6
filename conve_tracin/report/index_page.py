"""The page that leads to the reports of several predictions, each of which is a page of its own."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write
from conve_tracin.report.lettering import category_in_words, in_words, plural
from conve_tracin.report.template import render_page
from conve_tracin.settings import HEAD, SIDES, TAIL

# What the index shows of a prediction without a JSON output.
NOTHING_MORE = {"elsewhere": None, "proponent": "", "path": None}


def write_index_page(path: Path, ranks: Path, pages: Sequence[Path]) -> None:
    """Write links to `pages`, the reports of the best-ranked triples in `ranks` in that order.

    A page's JSON output, if it lies beside it under the same name, tells more: the rank among the tail's own kind, the
    strongest proponent and the best path.

    Raises InputError if there are more pages than triples.
    """
    predictions = [
        {
            "number": number,
            "link": quote(Path(os.path.relpath(page, path.parent)).as_posix()),
            "statement": f"{row['head_name']} — {in_words(row['relation_name'])} → {row['tail_name']}",
            "score": float(row["score"]),
            "ranks": {side: _rank(row[f"{side}_rank"]) for side in SIDES},
            **NOTHING_MORE,
            **_explained(page.with_suffix(".json")),
        }
        for number, (page, row) in enumerate(zip(pages, best_rows(ranks, len(pages)), strict=True), start=1)
    ]
    with atomic_write(path) as temporary:
        page = render_page("index.html.j2", script="page.js", predictions=predictions)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _rank(written: str) -> dict[str, Any] | None:
    return {"rank": float(written), "of": "", "of_all": float(written)} if written else None


def _explained(output: Path) -> dict[str, Any]:
    """Read what a prediction's JSON output tells, if there is one: ranks, strongest proponent, best path."""
    try:
        content = json.loads(output.read_text(encoding="utf-8"))
        prediction, paths = content["prediction"], content.get("paths", [])
        strongest = max(content["influences"], key=lambda one: one["influence"], default=None)
        explained = prediction[f"{prediction.get('predicted_side', TAIL)}_standing"]
        return {
            "ranks": {
                TAIL: _rank_among(prediction["tail_standing"], TAIL, prediction["rank"]),
                HEAD: "head_standing" in prediction
                and _rank_among(prediction["head_standing"], HEAD, prediction["head_rank"]),
            },
            "elsewhere": explained["other_questions"]["share"],
            "proponent": "" if strongest is None else _sentence(strongest),
            "path": _short_path(paths[0], content["test_triple"]) if paths else None,
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _rank_among(standing: Mapping[str, Any], side: str, of_all: float) -> dict[str, Any]:
    if "category" not in standing:
        of = f"{standing['possible_answers']:,} {side}s of this relation"
        return {"rank": standing["rank_among_answers"], "of": of, "of_all": of_all}
    of = f"{standing['possible_in_category']:,} {plural(category_in_words(standing['category']))}"
    return {"rank": standing["rank_in_category"], "of": of, "of_all": of_all}


def _sentence(influence: Mapping[str, Any]) -> str:
    head, relation, tail = (influence[f"train_{part}_label"] for part in ("head", "relation", "tail"))
    return f"{head} — {in_words(relation)} → {tail}"


def _short_path(path: Mapping[str, Any], test_triple: Mapping[str, Any]) -> dict[str, Any]:
    """Arrange a path of the JSON output as the index shows it: entities, and which way each triple reads."""
    at, called, steps = test_triple["head"], test_triple["head_label"], []
    for (head, _, tail), (head_name, _, tail_name) in zip(path["triples"], path["labels"], strict=True):
        forward = head == at
        at, name = (tail, tail_name) if forward else (head, head_name)
        steps.append({"forward": forward, "entity": _name(name)})
    return {"start": _name(called), "steps": steps}


def _name(text: str) -> dict[str, Any]:
    return {"text": text, "identifier": "", "label": text, "is_shared": False}


def best_rows(ranks: Path, number: int) -> list[dict[str, str]]:
    """Read the first `number` distinct triples of a table that `ranking.table.write_ranks` has written."""
    distinct: dict[tuple[str, str, str], dict[str, str]] = {}
    with ranks.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            distinct.setdefault((row["head"], row["relation"], row["tail"]), row)
            if len(distinct) == number:
                return list(distinct.values())
    raise InputError(
        f"{ranks}: has {len(distinct)} distinct triples, {number} were explained; run the evaluation again"
    )

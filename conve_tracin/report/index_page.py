"""The page that leads to the reports of several predictions, each of which is a page of its own."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write
from conve_tracin.report.frame import whole_page
from conve_tracin.report.lettering import spoken
from conve_tracin.report.markup import Markup, element


def write_index_page(path: Path, ranks: Path, pages: Sequence[Path]) -> None:
    """Write links to `pages`, the reports of the best-ranked triples in `ranks` in that order.

    Raises InputError where there are more pages than triples.
    """
    rows = best_rows(ranks, len(pages))
    links = [quote(Path(os.path.relpath(page, path.parent)).as_posix()) for page in pages]
    with atomic_write(path) as temporary:
        temporary.write_text(index_page(rows, links), encoding="utf-8", errors="backslashreplace")


def best_rows(ranks: Path, number: int) -> list[dict[str, str]]:
    """Read the first `number` distinct triples of a table that `evaluation.write_ranks` has written."""
    distinct: dict[tuple[str, str, str], dict[str, str]] = {}
    with ranks.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            distinct.setdefault((row["head"], row["relation"], row["tail"]), row)
            if len(distinct) == number:
                return list(distinct.values())
    raise InputError(
        f"{ranks}: has {len(distinct)} distinct triples, {number} were explained; run the evaluation again"
    )


def index_page(rows: Sequence[Mapping[str, str]], links: Sequence[str]) -> Markup:
    """Write the page: a numbered list of predictions with their ranks."""
    entries = [
        element(
            "li",
            element(
                "a",
                element("bdi", f"{row['head_name']} — {spoken(row['relation_name'])} → {row['tail_name']}"),
                href=link,
            ),
            element("span", f"rank {row['tail_rank']}, score {float(row['score']):.2f}", class_="aside"),
        )
        for row, link in zip(rows, links, strict=True)
    ]
    body = element(
        "nav",
        element("p", "Why the model predicts", class_="kicker"),
        element("h1", f"{len(rows)} predictions"),
        element("ol", *entries),
        aria_label="Predictions",
    )
    return whole_page(f"Why the model predicts: {len(rows)} predictions", element("main", body))

"""The page that leads to the reports of several predictions, each of which is a page of its own."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write
from conve_tracin.report.lettering import in_words
from conve_tracin.report.template import render_page


def write_index_page(path: Path, ranks: Path, pages: Sequence[Path]) -> None:
    """Write links to `pages`, the reports of the best-ranked triples in `ranks` in that order.

    Raises InputError if there are more pages than triples.
    """
    predictions = [
        {
            "link": quote(Path(os.path.relpath(page, path.parent)).as_posix()),
            "statement": f"{row['head_name']} — {in_words(row['relation_name'])} → {row['tail_name']}",
            "remark": f"rank {row['tail_rank']}, score {float(row['score']):.2f}",
        }
        for page, row in zip(pages, best_rows(ranks, len(pages)), strict=True)
    ]
    with atomic_write(path) as temporary:
        page = render_page("index.html.j2", predictions=predictions)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


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

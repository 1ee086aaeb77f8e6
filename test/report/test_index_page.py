"""The page that leads to the reports of single predictions."""

from html.parser import HTMLParser

import pytest

from conve_tracin.errors import InputError
from conve_tracin.evaluation import COLUMNS
from conve_tracin.report.index_page import write_index_page


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "a":
            self.found.append(dict(attrs)["href"])

    def handle_data(self, data):
        self.text.append(data)


def write_ranks(path, names):
    rows = [("1", "", "2.5", f"h{name}", "r", "t", name, "treats", "pain") for name in names]
    path.write_text("\n".join("\t".join(row) for row in [COLUMNS, *rows]) + "\n", encoding="utf-8")


def test_links_lead_to_the_pages_and_names_are_text(tmp_path):
    pages = [tmp_path / "explanations #1" / f"{number}.html" for number in (1, 2)]
    write_ranks(
        tmp_path / "ranks.tsv", ['<script>alert(1)</script> "x"', '<script>alert(1)</script> "x"', "ä", "third"]
    )
    write_index_page(tmp_path / "report.html", tmp_path / "ranks.tsv", pages)
    page = Links()
    page.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.found == ["explanations%20%231/1.html", "explanations%20%231/2.html"]
    assert "script" not in page.tags
    assert '<script>alert(1)</script> "x" — treats → pain' in page.text
    assert "ä — treats → pain" in page.text
    assert "third — treats → pain" not in page.text


def test_more_pages_than_triples(tmp_path):
    write_ranks(tmp_path / "ranks.tsv", ["a"])
    with pytest.raises(InputError, match=r"has 1 distinct triples, 2 were explained"):
        write_index_page(tmp_path / "report.html", tmp_path / "ranks.tsv", [tmp_path / "1.html", tmp_path / "2.html"])

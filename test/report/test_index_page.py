"""The page that leads to the reports of single predictions."""

import json
import re
from html.parser import HTMLParser

import pytest

from conve_tracin.errors import InputError
from conve_tracin.ranking.table import COLUMNS
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
    assert page.tags.count("script") == 1
    assert (
        "alert(1)" not in re.search(r"<script>.*</script>", (tmp_path / "report.html").read_text("utf-8"), re.DOTALL)[0]
    )
    assert '<script>alert(1)</script> "x" — treats → pain' in page.text
    assert "ä — treats → pain" in page.text
    assert "third — treats → pain" not in page.text


def test_more_pages_than_triples(tmp_path):
    write_ranks(tmp_path / "ranks.tsv", ["a"])
    with pytest.raises(InputError, match=r"has 1 distinct triples, 2 were explained"):
        write_index_page(tmp_path / "report.html", tmp_path / "ranks.tsv", [tmp_path / "1.html", tmp_path / "2.html"])


def test_what_the_json_beside_a_page_tells_is_shown(tmp_path):
    write_ranks(tmp_path / "ranks.tsv", ["a", "b"])
    triple = {"head": 0, "relation": 0, "tail": 5, "head_label": "drug", "relation_label": "treats"}
    standing = {
        "rank_among_answers": 2, "possible_answers": 7,
        "other_questions": {"num_questions": 90, "num_asked": 40, "num_among_first": 10, "share": 0.25},
    }  # fmt: skip
    content = {
        "test_triple": triple,
        "prediction": {
            "rank": 40.0, "tail_standing": standing | {"category": "AnatomicalEntity", "rank_in_category": 3.5,
                                                       "possible_in_category": 1200},
            "head_rank": 9.0, "head_standing": standing,
        },
        "paths": [{"triples": [[0, 1, 3], [5, 2, 3]], "labels": [["drug", "binds", "gene"], ["pain", "with", "gene"]]}],
        "influences": [
            {"influence": -3.0, "train_head_label": "no", "train_relation_label": "no", "train_tail_label": "no"},
            {"influence": 2.0, "train_head_label": "x", "train_relation_label": "biolink:is_like",
             "train_tail_label": "<i>y</i>"},
        ],
    }  # fmt: skip
    (tmp_path / "1.json").write_text(json.dumps(content), "utf-8")
    (tmp_path / "2.json").write_text('{"prediction": []}', "utf-8")
    write_index_page(tmp_path / "report.html", tmp_path / "ranks.tsv", [tmp_path / "1.html", tmp_path / "2.html"])
    text = (tmp_path / "report.html").read_text("utf-8")
    first, second = re.findall(r"<tr>(?!<th).*?</tr>", text)
    cells = [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", first)]
    assert cells[2:5] == [
        "3.5 of 1,200 anatomical entities; 40 of all",
        "2 of 7 heads of this relation; 9 of all",
        "25 %",
    ]
    assert cells[6:] == ["x — is like → &lt;i&gt;y&lt;/i&gt;", "drug → gene ← pain"]
    assert [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", second)][2:6] == ["1", "–", "–", "2.50"]

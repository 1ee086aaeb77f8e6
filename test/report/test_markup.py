"""Markup: what is no markup is escaped, in text and in attributes."""

from html.parser import HTMLParser

import pytest

from conve_tracin.report.markup import Markup, element, join

HOSTILE = ["<script>alert(1)</script>", "</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='x", "a & b &lt;"]


class Collector(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_text_and_attributes_come_back_as_they_were(text):
    parsed = Collector()
    parsed.feed(element("p", text, element("b", text), title=text, class_="note"))
    assert parsed.found == [("p", {"title": text, "class": "note"}), ("b", {})]
    assert parsed.text == text * 2


def test_markup_stays_and_nothing_is_left_out():
    assert element("p", Markup("<i>x</i>"), None, 3, 0) == "<p><i>x</i>30</p>"
    assert join("<", Markup("<b>"), None) == "&lt;<b>"
    assert isinstance(join("a"), Markup)


def test_attributes():
    assert element("input", type="search", hidden=True, checked=False, value=None) == '<input type="search" hidden>'
    assert element("rect", x=0, y=0.0, stroke_width=1.23456, viewBox="0 0") == (
        '<rect x="0" y="0" stroke-width="1.23" viewBox="0 0"></rect>'
    )

"""Templates: what is no markup is escaped, in text and in attributes, and what is missing is refused."""

import subprocess
import sys
from html.parser import HTMLParser

import jinja2
import pytest
from markupsafe import Markup

from conve_tracin.report import template

HOSTILE = ["<script>alert(1)</script>", "</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='x", "a & b &lt;"]


class Collector(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def fill_in(monkeypatch):
    """Fill in a template that is given as a text."""

    def fill_in(source, **content):
        monkeypatch.setattr(template, "_read", lambda _: source)
        template._environment.cache_clear()
        return template.render("a template", **content)

    yield fill_in
    template._environment.cache_clear()


@pytest.mark.parametrize("text", HOSTILE)
def test_text_and_attributes_come_back_as_they_were(text, fill_in):
    parsed = Collector()
    parsed.feed(fill_in('<p title="{{ text }}" class="note">{{ text }}<b>{{ text }}</b></p>', text=text))
    assert parsed.found == [("p", {"title": text, "class": "note"}), ("b", {})]
    assert parsed.text == text * 2


def test_control_characters_are_written_out_in_text_and_attributes(fill_in):
    text = "a\x1b[2J\x00\u202eb\tc\n"
    part = fill_in('<i title="{{ text }}">{{ text }}</i>', text=text)
    written = "a\\x1b[2J\\x00\\u202eb\tc\n"
    assert part == f'<i title="{written}">{written}</i>'
    assert fill_in("{{ part }}", part=part) == part


def test_markup_stays_and_nothing_is_left_out(fill_in):
    part = fill_in("<i>{{ text }}</i>", text="<")
    assert fill_in("<p>{{ part }}{{ 3 }}{{ 0 }}</p>", part=part) == "<p><i>&lt;</i>30</p>"
    assert isinstance(part, Markup)


@pytest.mark.parametrize("source", ["{{ missing }}", "{{ given.missing }}", "{% if missing %}{% endif %}"])
def test_a_missing_value_is_an_error(source, fill_in):
    with pytest.raises(jinja2.UndefinedError):
        fill_in(source, given={})


def test_line_breaks_between_tags_are_no_spaces(fill_in):
    source = "<p>\n  <b>{{ one }}</b>\n  {% if one %}\n    {{ one }}\n  {% endif %}\n  two\n  words\n</p>"
    assert fill_in(source, one="<1>") == "<p><b>&lt;1&gt;</b>&lt;1&gt;\n  two\n  words\n</p>"


def test_coordinates_are_rounded(fill_in):
    assert fill_in("{{ 0 | px }} {{ 0.0 | px }} {{ 1.23456 | px }} {{ -2.0 | px }}") == "0 0 1.23 -2"


def test_jinja_is_imported_when_a_page_is_written_and_not_before():
    modules = "conve_tracin.report.page, conve_tracin.report.index_page, conve_tracin.report.charts"
    script = f"import sys, {modules}; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\n"

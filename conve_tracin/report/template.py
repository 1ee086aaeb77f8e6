"""Fills in the templates beside this module: pages of one file each, and drawings.

Jinja2 escapes every value, so that no label can become an element, and refuses a value that is missing. Control
characters are written out.
"""

import base64
import functools
import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING

from conve_tracin.data.text import printable
from conve_tracin.report.lettering import count, percent, rank, signed, true_minus
from conve_tracin.report.links import entity_page

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# A name may break after this many letters without a separator.
LONG_WORD = 24


def render(template: str, **content: object) -> "Markup":
    """Fill in a template; the result may become a part of another one as it is."""
    from markupsafe import Markup

    return Markup(_environment().get_template(template).render(content))


def render_page(template: str, *, script: str = "", **content: object) -> str:
    """Fill in a page with its style and the script of that file name; it lets a browser load nothing else."""
    style, script = _read("page.css") + _read("evidence.css"), _read(script) if script else ""
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}"
    if script:
        policy += f"; script-src {_digest(script)}"
    return str(render(template, style=style, script=script, policy=policy, **content)) + "\n"


def _digest(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_read_template), autoescape=True, undefined=StrictUndefined, finalize=_printable
    )
    for filter_ in (breakable, count, entity_page, percent, px, rank, signed, true_minus):
        environment.filters[filter_.__name__] = filter_
    environment.filters["grouped"] = "{:,}".format
    return environment


def _printable(value: object) -> object:
    """Write control characters out, except in what `render` has returned."""
    from markupsafe import Markup

    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _read_template(name: str) -> str:
    """Read a template without the line breaks between its tags: a browser would show them as spaces."""
    return re.sub(r"(?<=[>}])\n\s*(?=[<{])", "", _read(name))


def _read(name: str) -> str:
    return resources.files("conve_tracin.report").joinpath(name).read_text(encoding="utf-8")


def breakable(name: str) -> list[str]:
    """Cut a name where a line may end: after the separators of identifiers, and within very long words.

    Numbers stay in one piece.
    """
    pieces = re.split(r"(?<=[_:/.,-])(?=[^_:/.,-])(?<!\d[.,](?=\d))", name)
    return [part for piece in pieces for part in re.split(rf"(\S{{{LONG_WORD}}})(?=\S)", piece) if part]


def px(value: float) -> str:
    """Write a coordinate with at most two decimals."""
    return f"{round(value, 2):g}"

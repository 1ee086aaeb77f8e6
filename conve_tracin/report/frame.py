"""What all pages share: one file with its style, its script if it has one, and leave to load nothing else."""

import base64
import hashlib
from importlib import resources

from conve_tracin.report.markup import Markup, element, join


def whole_page(title: str, content: Markup, *, script: str | None = None) -> Markup:
    """Put `content` into a page of its own; `script` names a file beside this module that runs below it."""
    source = "" if script is None else _resource(script)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(source)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        # Without it a browser asks the server for /favicon.ico.
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", Markup(_resource("page.css"))),
    )
    body = element("body", content, element("script", Markup(source)) if source else None)
    return join(Markup("<!DOCTYPE html>\n"), element("html", head, body, lang="en"), Markup("\n"))


def _policy(script: str) -> str:
    """Allow the page's own script, by its digest, and nothing from anywhere else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = f" script-src 'sha256-{digest}';" if script else ""
    return f"default-src 'none'; style-src 'unsafe-inline';{scripts} img-src data:"


def _resource(name: str) -> str:
    return resources.files("conve_tracin.report").joinpath(name).read_text(encoding="utf-8")

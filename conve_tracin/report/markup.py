"""HTML and SVG as nested calls: whatever is not markup already is escaped, so that no label can become an element."""

from html import escape

from conve_tracin.data.text import printable


class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Write an element around its children; those that are no `Markup` are escaped.

    Attribute names lose a trailing underscore (`class_`) and have hyphens for the others (`stroke_width`). None and
    False leave an attribute out, True gives it no value, floats are rounded to two decimals.
    """
    given = {name: value for name, value in attributes.items() if value is not None and value is not False}
    written = "".join(_attribute(name, value) for name, value in given.items())
    if tag in _EMPTY:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """Write children one after the other; None is left out, and what is no `Markup` is escaped."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(printable(str(child)))
            for child in children
            if child is not None
        )
    )


_EMPTY = {"meta", "link", "input", "br", "wbr"}


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{round(value, 2):g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(printable(text))}"'

"""HTML and SVG as nested calls: whatever is not markup already is escaped, so that no label can become an element."""

import math
from collections.abc import Sequence
from html import escape


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
        "".join(child if isinstance(child, Markup) else escape(str(child)) for child in children if child is not None)
    )


_EMPTY = {"meta", "link", "input", "br", "wbr"}


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{round(value, 2):g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'


def signed(value: float, *, digits: int = 3) -> str:
    """Write a number with its sign (a true minus), so many significant digits, and powers of ten where it is small."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:+.{digits - 1}e}".replace("-", "−").split("e")
    power = int(exponent.replace("−", "-"))
    if power < -4:
        return f"{mantissa}·10{str(power).translate(_SUPERSCRIPTS)}"
    return f"{value:+,.{max(0, digits - 1 - power)}f}".replace("-", "−")


def signed_column(values: Sequence[float]) -> list[str]:
    """Write the numbers of a table's column with the same decimals; those that would vanish, each with its own."""
    largest = max((abs(value) for value in values), default=0.0)
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    if decimals > 8:
        return [signed(value) for value in values]
    return [
        f"{value:+,.{decimals}f}".replace("-", "−") if abs(value) >= 0.5 * 10**-decimals else signed(value, digits=1)
        for value in values
    ]


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

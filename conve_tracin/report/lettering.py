"""Names and numbers in little room: widths, line breaks, signs and decimals."""

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import chain

# Widths of a character over the font size: the mean of common sans-serif fonts, on the safe side.
LETTER, CAPITAL, BROAD, IDEOGRAPH = 0.58, 0.72, 0.95, 1.05
# Bold letters are wider by this factor.
BOLD = 1.12
# Biolink's values of a direction.
DIRECTIONS = {"increased": "↑", "upregulated": "↑", "decreased": "↓", "downregulated": "↓"}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def text_width(written: str, font_size: float) -> float:
    """Estimate the width of a text in pixels, without its font."""
    return font_size * sum(map(_letter_width, written))


def _letter_width(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return IDEOGRAPH
    if letter in "mwMW%@":
        return BROAD
    return CAPITAL if letter.isupper() else LETTER


def in_words(relation: str) -> str:
    """Write a relation as words: `biolink:gene_associated_with_condition` is "gene associated with condition"."""
    return relation.removeprefix("biolink:").replace("_", " ").strip() or relation


def in_short(relation: str) -> str:
    """Shorten qualifiers: "affects (causes, object expression decreased)" becomes "affects (expression ↓)".

    What says no direction is left out where something else does.
    """
    predicate, bracket, qualifiers = relation.removesuffix(")").partition(" (")
    if not bracket or not relation.endswith(")"):
        return relation
    phrases = qualifiers.split(", ")
    with_arrows = [" ".join(DIRECTIONS.get(word, word) for word in phrase.split(" ")) for phrase in phrases]
    telling = [new for new, old in zip(with_arrows, phrases, strict=True) if new != old] or phrases
    return f"{predicate} ({', '.join(phrase.removeprefix('object ') for phrase in telling)})"


def category_in_words(category: str) -> str:
    """Write a Biolink class as words: `AnatomicalEntity` is "anatomical entity"."""
    words = re.split(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", category)
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in words)


def plural(noun: str) -> str:
    """Write the plural of an English noun."""
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def percent(share: float) -> str:
    """Write a share, 0 to 1: whole percents, or tenths below ten percent."""
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or not share else f"{100 * share:.1f} %"


def wrap(written: str, width: float, font_size: float, *, max_lines: int) -> list[str]:
    """Break a name into lines, after spaces and the separators of identifiers; an ellipsis stands for the rest.

    A word that is longer than a line is broken into parts of about the same length.
    """
    words = re.findall(r"[^\s_:/,.-]*[\s_:/,.-]?", written)
    lines = [""]
    for piece in chain.from_iterable(_parts(word, width, font_size) for word in words):
        if lines[-1] and text_width((lines[-1] + piece).rstrip(), font_size) > width:
            lines.append("")
        for letter in piece:
            if text_width(lines[-1] + letter, font_size) > width and not letter.isspace():
                lines.append("")
            lines[-1] += letter
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while text_width(last + "…", font_size) > width:
            last = last[:-1]
        lines[max_lines - 1 :] = [last.rstrip() + "…"]
    return lines or [""]


def _parts(word: str, width: float, font_size: float) -> list[str]:
    for length in range(len(word), 1, -1):
        parts = [word[at : at + length] for at in range(0, len(word), length)]
        if all(text_width(part.rstrip(), font_size) <= width for part in parts):
            even = math.ceil(len(word) / len(parts))
            return [word[at : at + even] for at in range(0, len(word), even)]
    return [word]


def true_minus(written: str) -> str:
    """Write a number's hyphen as the minus that is as wide as a plus."""
    return written.replace("-", "−")


def rank(value: float) -> str:
    """Write a rank, which may lie halfway between two."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def count(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def signed(value: float, *, digits: int = 3) -> str:
    """Write a number with its sign (a true minus) and `digits` significant digits; small ones get a power of ten."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:+.{digits - 1}e}".partition("e")
    power = int(exponent)
    if power < -4:
        return f"{true_minus(mantissa)}·10{str(power).translate(_SUPERSCRIPTS)}"
    return true_minus(f"{value:+,.{max(0, digits - 1 - power)}f}")


def signed_column(values: Sequence[float]) -> list[str]:
    """Write a table's column with the same decimals throughout; numbers that would become 0 get more of them."""
    largest = max((abs(value) for value in values), default=0.0)
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    if decimals > 8:
        return [signed(value) for value in values]
    return [
        true_minus(f"{value:+,.{decimals}f}") if abs(value) >= 0.5 * 10**-decimals else signed(value, digits=1)
        for value in values
    ]

"""Names and numbers in little room."""

import random

import pytest

from conve_tracin.report.lettering import (
    LETTER,
    category_in_words,
    in_short,
    percent,
    plural,
    signed,
    signed_column,
    text_width,
    wrap,
)

NAMES = [
    "aspirin", "type 2 diabetes mellitus", "biolink:gene_associated_with_condition", "MONDO:0005148",
    "a", "", "x" * 300, "two  spaces",
    "(2S)-2-amino-3-[[(2R)-2,3-dihydroxypropoxy]phosphoryl]", "糖尿病の薬物療法について",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [30, 60, 110, 1000])
@pytest.mark.parametrize("max_lines", [1, 3, 99])
def test_lines_fit_and_hold_the_name_or_end_in_an_ellipsis(name, width, max_lines):
    lines = wrap(name, width, 12, max_lines=max_lines)
    assert 1 <= len(lines) <= max_lines
    assert all(text_width(line, 12) <= width for line in lines)
    written, whole = "".join("".join(lines).split()), "".join(name.split())
    assert written == whole or (written.endswith("…") and whole.startswith(written[:-1]))
    if max_lines == 99:
        assert written == whole


def test_a_long_word_is_broken_in_even_parts():
    assert wrap("nephritic glomerulosclerosis", 128, 13, max_lines=3) == ["nephritic", "glomerulo", "sclerosis"]


def test_lines_break_after_separators():
    assert wrap("gene_associated_with", 12 * LETTER * 12, 12, max_lines=3) == ["gene_", "associated_", "with"]
    assert wrap("CHEBI:15365", 8 * LETTER * 12, 12, max_lines=3) == ["CHEBI:", "15365"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0123456, "+0.0123"), (-0.0123456, "−0.0123"), (0.1, "+0.100"), (1234.5, "+1,234"), (-9.996, "−10.0"),
        (0, "0"), (0.0001, "+0.000100"), (0.00001234, "+1.23·10⁻⁵"), (-2e-12, "−2.00·10⁻¹²"), (12.3456, "+12.3"),
    ],
)  # fmt: skip
def test_signed_numbers(value, written):
    assert signed(value) == written


def test_numbers_of_a_column_have_the_same_decimals():
    assert signed_column([0.348, -0.0214, 0.0]) == ["+0.348", "−0.021", "0"]
    assert signed_column([0.348, -0.00002]) == ["+0.348", "−2·10⁻⁵"]
    assert signed_column([]) == []
    assert signed_column([0.0]) == ["0"]


def test_a_column_says_what_its_numbers_are():
    numbers = [random.Random(seed).gauss(0, 1) * 10 ** (seed % 7 - 4) for seed in range(60)]
    for value, written in zip(numbers, signed_column(numbers), strict=True):
        mantissa, _, power = written.replace("−", "-").replace(",", "").partition("·10")
        exponent = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")) or "0"
        last_digit = 10.0 ** (int(exponent) - len(mantissa.partition(".")[2]))
        assert float(mantissa) * 10.0 ** int(exponent) == pytest.approx(value, rel=1e-9, abs=0.5 * last_digit)
        assert (value < 0) == written.startswith("−")


@pytest.mark.parametrize(
    ("share", "written"),
    [
        (0, "0 %"),
        (0.0004, "<0.1 %"),
        (0.001, "0.1 %"),
        (0.0994, "9.9 %"),
        (0.0996, "10 %"),
        (0.675, "68 %"),
        (1, "100 %"),
    ],
)
def test_percent(share, written):
    assert percent(share) == written


@pytest.mark.parametrize(
    ("relation", "short"),
    [
        ("affects (causes, object expression decreased)", "affects (expression ↓)"),
        ("affects (causes, object activity or abundance increased)", "affects (activity or abundance ↑)"),
        ("affects (subject activity upregulated, object degradation downregulated)",
         "affects (subject activity ↑, degradation ↓)"),
        ("affects (causes, object activity)", "affects (causes, activity)"),
        ("treats", "treats"),
        ("is (open", "is (open"),
        ("(increased)", "(increased)"),
    ],
)  # fmt: skip
def test_what_is_increased_or_decreased_stays_in_short(relation, short):
    assert in_short(relation) == short


def test_categories_are_words():
    assert category_in_words("SmallMolecule") == "small molecule"
    assert category_in_words("RNAProduct") == "RNA product"
    assert [plural(word) for word in ("disease", "biological entity", "class", "pathway")] == [
        "diseases", "biological entities", "classes", "pathways",
    ]  # fmt: skip

"""What trainings without some triples say about a prediction, as JSON, as text, and as a page with one picture."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conve_tracin.data.names import Names
from conve_tracin.data.text import visible
from conve_tracin.influence.explained import Triple
from conve_tracin.influence.verification import Measurement, Removed, Verification, leads_of, median_rank, spread
from conve_tracin.report.charts import Axis, short_count
from conve_tracin.report.lettering import rank, signed
from conve_tracin.report.naming import entity_name, relation_name
from conve_tracin.report.template import render, render_page
from conve_tracin.settings import HEAD

if TYPE_CHECKING:
    from markupsafe import Markup

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
ROW_HEIGHT, LANE_HEIGHT = 30, 13
MOST_LANES = 12


# ---------------------------------------------------------------------------------------------------------------
# Sentences


def sentence(verification: Verification) -> str:
    """Say in one sentence where the models without the proponents, and those without others, rank the prediction."""
    count, seeds = len(verification.proponents), len(verification.without)
    facts = "this fact" if count == 1 else f"these {in_letters(count)} facts"
    others = min(len(places) for places in verification.controls)
    first, second = median_rank(verification.without), median_rank(verification.others)
    return (
        f"Without {facts} the model, trained {times(seeds)}, ranks it {place(first)}; "
        f"without {in_letters(others)} other{'s' * (others != 1)} {'also ' * (first == second)}{place(second)}."
    )


def verdict(verification: Verification) -> str:
    """Say in one sentence whether that is more than what other seeds change."""
    beyond, seeds = verification.beyond_seeds, len(verification.without)
    if beyond is None:
        return "One training of each kind does not tell whether another seed would change as much; give more --seeds."
    if not beyond:
        return (
            "That is no more than what other seeds and other facts change, and so no evidence that the prediction "
            "rests on them."
        )
    words = (
        f"Each of the {in_letters(seeds)} models without them gives it a smaller lead than any of the "
        f"{in_letters(2 * seeds)} others."
    )
    if verification.control_beyond_seeds:
        words += " But the others matter as well: without them its lead falls by more than what seeds change."
    return words


def in_letters(number: int) -> str:
    """Write a small number as a word."""
    return NUMBERS[number] if number < len(NUMBERS) else f"{number:,}"


def times(number: int) -> str:
    """Say how often."""
    return {1: "once", 2: "twice"}.get(number, f"{in_letters(number)} times")


def place(value: float) -> str:
    """Write a rank as a place: 1st, 12th; one between two places as a number."""
    if value != int(value):
        return f"in place {rank(value)}"
    ending = "th" if int(value) % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(int(value) % 10, "th")
    return f"{int(value):,}{ending}"


def duration(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}s" if seconds >= 9.5 * size else f"{seconds / size:.1f} {unit}s"
    return f"{max(1, round(seconds))} second{'s' * (round(seconds) > 1)}"


def kinds_of(verification: Verification) -> dict[str, list[Measurement]]:
    """Return what each kind of training says, by what it is called."""
    count = len(verification.proponents)
    others = min(len(places) for places in verification.controls)
    return {
        "with everything": verification.everything,
        f"without the {count:,} proponent{'s' * (count != 1)}": verification.without,
        f"without {others:,} other{'s' * (others != 1)}": verification.others,
    }


# ---------------------------------------------------------------------------------------------------------------
# JSON and text


def as_json(verification: Verification, names: Names) -> dict[str, Any]:
    """Arrange a verification."""
    head, relation, tail = verification.triple
    test_triple = {"head": head, "relation": relation, "tail": tail}
    return {
        "test_triple": test_triple | names.members(*verification.triple),
        "predicted_side": verification.side,
        "sentence": sentence(verification),
        "verdict": verdict(verification),
        "beyond_seeds": verification.beyond_seeds,
        "control_beyond_seeds": verification.control_beyond_seeds,
        "model": _measurement_as_json(verification.model),
        "everything": _measurements_as_json(verification.everything),
        "without_proponents": _measurements_as_json(verification.without),
        "without_others": _measurements_as_json(verification.others),
        "proponents": [_removed_as_json(row, names) for row in verification.proponents],
        "others": [[_removed_as_json(row, names) for row in rows] for rows in verification.controls],
        "remarks": verification.remarks,
    }


def _measurement_as_json(measured: Measurement) -> dict[str, float | None]:
    return {"score": measured.score, "rank": measured.rank, "lead": _finite(measured.lead)}


def _measurements_as_json(measured: Sequence[Measurement]) -> dict[str, Any]:
    ranks, scores, leads = ([getattr(each, name) for each in measured] for name in ("rank", "score", "lead"))
    return {
        "ranks": ranks,
        "scores": scores,
        "leads": [_finite(lead) for lead in leads],
        "rank": {"median": median_rank(measured), "lowest": min(ranks), "highest": max(ranks)},
        "score": spread(scores),
        "lead": spread(leads),
    }


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None


def _removed_as_json(row: Removed, names: Names) -> dict[str, Any]:
    ends = dict(zip(("train_head", "train_relation", "train_tail"), row.triple, strict=True))
    labels = names.members(*row.triple)
    influence = {} if row.influence is None else {"influence": row.influence}
    count = {"count": row.count} if row.count > 1 else {}
    return ends | influence | count | {f"train_{member}": label for member, label in labels.items()}


def as_text(verification: Verification, names: Names) -> str:
    """Lay out a short table and the sentences as text."""
    kinds = kinds_of(verification)
    width = max(map(len, kinds))
    asked = "heads" if verification.side == HEAD else "tails"
    lines = [f"Prediction: {visible(names.sentence(*verification.triple))}"]
    lines.append(f"  {f'rank among all {asked}':{width}}  median  each seed      lead over the next answer")
    for title, measured in kinds.items():
        ranks = " ".join(rank(each.rank) for each in measured)
        lines.append(
            f"  {title:{width}}  {rank(median_rank(measured)):>6}  {ranks:<13}  {_with_deviation(leads_of(measured))}"
        )
    lines += [f"  {visible(remark)}" for remark in verification.remarks]
    return "\n".join([*lines, sentence(verification), verdict(verification)])


def _with_deviation(values: Sequence[float]) -> str:
    found = spread(values)
    if found["mean"] is None:
        return "—"
    deviation = found["standard_deviation"]
    return signed(found["mean"]) if deviation is None else f"{signed(found['mean'])} ± {deviation:.2g}"


# ---------------------------------------------------------------------------------------------------------------
# The page


def page_of(verifications: Sequence[Verification], names: Names, computation: Mapping[str, object]) -> str:
    """Write the page: for each prediction the sentence, the picture, and what was left out."""
    return render_page(
        "verification.html.j2",
        predictions=[_prediction(number, each, names) for number, each in enumerate(verifications, start=1)],
        computation=[(title, str(value).split("\n")) for title, value in computation.items()],
    )


def _prediction(number: int, verification: Verification, names: Names) -> dict[str, Any]:
    head, relation, tail = verification.triple
    named = {
        "head": entity_name(names, head),
        "relation": relation_name(names, relation),
        "tail": entity_name(names, tail),
    }
    kinds = kinds_of(verification)
    return {
        "number": number,
        "link": f"#prediction-{number}",
        "statement": "{} — {} → {}".format(*(name.text for name in named.values())),
        "remark": sentence(verification),
        **named,
        "identifiers": [name.identifier for name in named.values() if name.identifier],
        "sentence": sentence(verification),
        "verdict": verdict(verification),
        "remarks": verification.remarks,
        "side": verification.side,
        "picture": draw_ranks({title: [each.rank for each in measured] for title, measured in kinds.items()}),
        "kinds": [
            {
                "title": title,
                "median": rank(median_rank(measured)),
                "ranks": ", ".join(rank(each.rank) for each in measured),
                "lead": _with_deviation(leads_of(measured)),
                "score": _with_deviation([each.score for each in measured]),
            }
            for title, measured in kinds.items()
        ],
        "proponents": [_listed(row, names, verification.triple) for row in verification.proponents],
        "controls": [
            (seed, [_listed(row, names, verification.triple) for row in rows])
            for seed, rows in zip(verification.seeds, verification.controls, strict=True)
        ],
    }


def _listed(row: Removed, names: Names, prediction: Triple) -> dict[str, Any]:
    head, relation, tail = row.triple
    ends = (prediction[0], prediction[2])
    return {
        "head": entity_name(names, head, shared_with=ends),
        "relation": relation_name(names, relation, shared_with=prediction[1:2]),
        "tail": entity_name(names, tail, shared_with=ends),
        "count": row.count,
        "influence": None if row.influence is None else signed(row.influence),
    }


def draw_ranks(kinds: Mapping[str, Sequence[float]]) -> "Markup":
    """Draw the rank after each training over a logarithmic axis, a row for each kind, as an SVG for the page."""
    worst = max(max(ranks) for ranks in kinds.values())
    x = Axis(1, max(10.0, worst), 210, 580, logarithmic=True)
    rows, top = [], 20.0
    for number, (title, ranks) in enumerate(kinds.items()):
        lanes = min(len(ranks), MOST_LANES)
        height = LANE_HEIGHT * (lanes - 1) + ROW_HEIGHT
        points = [
            (x.at(value), top + ROW_HEIGHT / 2 + LANE_HEIGHT * (place % lanes)) for place, value in enumerate(ranks)
        ]
        rows.append(
            {
                "title": title, "class": "without" if number == 1 else "with", "points": points, "top": top,
                "bottom": top + height, "middle": top + height / 2, "median": x.at(statistics.median(ranks)),
            }
        )  # fmt: skip
        top += height
    ticks = [(x.at(tick), short_count(tick)) for tick in x.ticks() if tick >= 1]
    return render("ranks.svg.j2", rows=rows, ticks=ticks, left=x.start, right=x.end, top=20, bottom=top)

"""Traces as one self-contained HTML page: what speaks for each prediction, drawn and explained in plain words.

The page loads nothing, names are escaped wherever they stand, and its content security policy allows no script but
the one below it by digest. Tables can be sorted and searched where scripts run; nothing is lost where they do not.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import conve_tracin
from conve_tracin.data.names import Names
from conve_tracin.files import atomic_write, digest_of_file
from conve_tracin.influence.method import Influence
from conve_tracin.influence.summary import Concentration, InfluenceSummary, Prediction, RelationInfluence
from conve_tracin.influence.trace import Trace
from conve_tracin.report.charts import Axis, draw_concentration
from conve_tracin.report.frame import whole_page
from conve_tracin.report.lettering import signed, signed_column, spoken
from conve_tracin.report.markup import Markup, element, join
from conve_tracin.report.path_graph import ACROSS, DOWN, Orientation, assign_lanes, draw_paths
from conve_tracin.report.paths import EvidencePath, find_paths
from conve_tracin.settings import GAUSS_NEWTON, HEAD, TRACIN, TracInOptions

METHODS = {
    TRACIN: "TracIn: learning rate × product of the loss gradients of training triple and prediction, "
    "in eval mode, over the tracked parameters",
    GAUSS_NEWTON: "Gauss–Newton influence: how much the prediction's score rests on the training triple's label, "
    "with the curvature of each embedding row",
}
UNITS = {
    TRACIN: "learning rate × squared gradient; only the order and the sign mean something",
    GAUSS_NEWTON: "of the score: +1 estimates that the score would be lower by 1 without the training triple; "
    "take it as an order of magnitude",
}
LISTED_PATHS = 10
LISTED_RELATIONS = 12
# A name's words may break after so many letters.
LONG_WORD = 24
# Where the curve is read out in words.
STRONGEST = 10


def write_report(path: str | Path, traces: Sequence[Trace], names: Names, computation: Mapping[str, object]) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        traces: with summary and prediction each.
        names: what ids are called.
        computation: how the influences were computed, title and value each; see `describe_computation`.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(report_page(traces, names, computation), encoding="utf-8", errors="backslashreplace")


def settings_of(options: TracInOptions) -> dict[str, str]:
    """Put the members of `options` in words, as far as they have an effect on the influences."""
    settings = {}
    if options.method == GAUSS_NEWTON:
        settings["Damping"] = f"{options.damping:g} × the mean eigenvalue of a row's curvature"
    else:
        settings["Tracked parameters"] = _tracked_parameters(options)
        settings["Engine"] = "forward" if options.use_optimized_tracin else "backward loop"
        if options.training_loss:
            settings["Loss"] = "the training's objective"
    if options.predicted_side == HEAD:
        settings["Explained"] = "the head, as the answer to (tail, inverse of the relation, ?)"
    return settings | {"Matrix products": _precision(options), "Device": str(options.device)}


def _tracked_parameters(options: TracInOptions) -> str:
    if options.last_layer_names:
        return ", ".join(options.last_layer_names)
    return f"the last {options.num_last_layers} before the scoring layer" if options.use_last_layers_only else "all"


def _precision(options: TracInOptions) -> str:
    if options.rounds_to_bfloat16:
        return "bfloat16"
    return "TensorFloat-32" if options.use_tf32 else "full precision"


def describe_computation(
    *, method: str, checkpoints: Mapping[Path, float], train: Path, settings: Mapping[str, object]
) -> dict[str, object]:
    """Collect what makes the influences repeatable.

    Args:
        method: a key of METHODS, or words.
        checkpoints: files and the η of each, which TracIn alone uses.
        train: the training triples.
        settings: further settings, title and value each.
    """
    described: dict[str, object] = {"Method": METHODS.get(method, method)}
    if method in UNITS:
        described["Unit of influence"] = UNITS[method]
    for place, (checkpoint, learning_rate) in enumerate(checkpoints.items(), start=1):
        title = "Checkpoint" if len(checkpoints) == 1 else f"Checkpoint {place}"
        described[title] = f"{checkpoint}\nsha256 {digest_of_file(checkpoint)}"
        if method == TRACIN:
            described[title] += f"\nlearning rate {learning_rate:g}"
    if len(checkpoints) > 1:
        described["Score and rank"] = "by the last checkpoint; the influences are those of all together"
    versions = {"conve-tracin": conve_tracin.__version__, "torch": torch.__version__, "numpy": np.__version__}
    versions["Python"] = platform.python_version()
    described |= {"Training triples": str(train), **settings}
    return described | {"Versions": ", ".join(f"{name} {version}" for name, version in versions.items())}


def report_page(traces: Sequence[Trace], names: Names, computation: Mapping[str, object]) -> Markup:
    """Write the whole page."""
    title = "Why the model predicts: " + (
        _plain(names, *traces[0].test_triple) if len(traces) == 1 else f"{len(traces)} predictions"
    )
    sections = [
        _prediction_section(number, trace, names, is_only=len(traces) == 1) for number, trace in enumerate(traces, 1)
    ]
    index = _index(traces, names) if len(traces) > 1 else None
    return whole_page(title, element("main", index, *sections, _computation(computation)), script="page.js")


# ---------------------------------------------------------------------------------------------------------------
# Names


def _plain(names: Names, head: int, relation: int, tail: int) -> str:
    return f"{names.entity(head)} — {spoken(names.relation(relation))} → {names.entity(tail)}"


def _name(text: str, label: str | None = None, **attributes: object) -> Markup:
    """Write a name that keeps its writing direction to itself and may break after the separators of identifiers.

    Numbers stay in one piece, and words break where they are too long for any line.
    """
    pieces = re.split(r"(?<=[_:/.,-])(?=[^_:/.,-])(?<!\d[.,](?=\d))", text)
    shorter = [part for piece in pieces for part in re.split(rf"(\S{{{LONG_WORD}}})(?=\S)", piece) if part]
    first, *others = shorter or [""]
    broken = join(first, *(part for piece in others for part in (element("wbr"), piece)))
    return element("bdi", broken, title=label if label not in (None, text) else None, **attributes)


def _entity(names: Names, entity: int, **attributes: object) -> Markup:
    return _name(names.entity(entity), names.entities.labels[entity], **attributes)


def _relation(names: Names, relation: int, **attributes: object) -> Markup:
    text = spoken(names.relation(relation))
    return _name(text, " · ".join(_identifiers_of(names, relation)) or None, **attributes)


def _label_of(names: Names, entity: int) -> list[str]:
    label = names.entities.labels[entity]
    return [] if label == names.entity(entity) else [label]


def _identifiers_of(names: Names, relation: int) -> list[str]:
    """List what the files call a relation, as far as it is not what the page calls it."""
    written = dict.fromkeys((names.relation(relation), names.relations.labels[relation]))
    return [name for name in written if name != spoken(names.relation(relation))]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _rank(rank: float) -> str:
    return f"{rank:,.0f}" if rank == int(rank) else f"{rank:,.1f}"


# ---------------------------------------------------------------------------------------------------------------
# The parts of the page


def _index(traces: Sequence[Trace], names: Names) -> Markup:
    entries = [
        element(
            "li",
            element("a", _name(_plain(names, *trace.test_triple)), href=f"#prediction-{place}"),
            element(
                "span",
                f"rank {_rank(trace.prediction.rank)} of {trace.prediction.num_candidates:,}",
                class_="aside",
            ),
        )
        for place, trace in enumerate(traces, start=1)
    ]
    return element(
        "nav",
        element("p", "Why the model predicts", class_="kicker"),
        element("h1", f"{len(traces)} predictions"),
        element("ol", *entries),
        id="index",
        aria_label="Predictions",
    )


def _prediction_section(place: int, trace: Trace, names: Names, *, is_only: bool) -> Markup:
    head, relation, tail = trace.test_triple
    back = None if is_only else element("a", "All predictions", href="#index", class_="back")
    kicker = "Why the model predicts" if is_only else f"Prediction {place}"
    statement = element(
        "h1" if is_only else "h2",
        _entity(names, head),
        " ",
        element("span", _relation(names, relation), element("span", "→", class_="arrow"), class_="relation"),
        " ",
        _entity(names, tail),
        class_="statement",
    )
    identifiers = [
        element("span", _name(" · ".join(labels)))
        for labels in (_label_of(names, head), _identifiers_of(names, relation), _label_of(names, tail))
        if labels
    ]
    return element(
        "article",
        element(
            "header",
            element("p", kicker, back, class_="kicker"),
            statement,
            element("p", *identifiers, class_="identifiers") if identifiers else None,
        ),
        _facts(trace.prediction, trace.summary, names, trace.test_triple),
        _paths(trace, names),
        _strongest(trace, names),
        _relations(trace.summary, names),
        _distribution(trace.summary),
        id=f"prediction-{place}",
    )


def _figure(title: str, reading: str, *content: Markup | None) -> Markup:
    return element("section", element("h3", title), element("p", reading, class_="reading"), *content)


def _facts(
    prediction: Prediction, summary: InfluenceSummary, names: Names, test_triple: tuple[int, int, int]
) -> Markup:
    head, relation, _ = test_triple
    facts = [
        ("Rank", f"{_rank(prediction.rank)}", f"of {prediction.num_candidates:,} possible tails"),
        ("Score", f"{prediction.score:.2f}".replace("-", "−"), "the model's own scale"),
        ("Speaks for it", f"{summary.num_positive:,}", f"training triples, in sum {signed(summary.positive)}"),
        ("Speaks against it", f"{summary.num_negative:,}", f"training triples, in sum {signed(summary.negative)}"),
    ]
    question = f"“{names.entity(head)} — {spoken(names.relation(relation))} → ?”"
    reading = (
        f"Asked {question}, the model put this answer in place {_rank(prediction.rank)} of all entities it knows"
        + (f", passing over {_count(prediction.num_known, 'other answer')} known to be right"
           if prediction.num_known else "")
        + ". The score is no probability; it can be compared with other scores of the same model only."
    )  # fmt: skip
    ahead_title = "Ranked higher:" if len(prediction.ahead) + 1 >= prediction.rank else "Ranked highest:"
    ahead = [element("li", _entity(names, entity)) for entity in prediction.ahead]
    return element(
        "div",
        element(
            "dl",
            *(
                element("div", element("dt", title), element("dd", element("b", value), element("span", note)))
                for title, value, note in facts
            ),
            class_="facts",
        ),
        element("p", reading, class_="reading"),
        element("p", "It is itself one of the training triples.", class_="remark") if prediction.in_training else None,
        element("div", element("p", ahead_title), element("ol", *ahead), class_="ahead") if ahead else None,
    )


def _paths(trace: Trace, names: Names) -> Markup:
    head, _, tail = trace.test_triple
    proponents = trace.summary.strongest_proponents
    paths = find_paths(proponents, head, tail)
    title = f"Paths from {names.entity(head)} to {names.entity(tail)}"
    among = f"the {_count(len(proponents), 'training triple')} of most positive influence"
    if not paths:
        reason = "start and end are the same entity" if head == tail else f"none has up to three steps in {among}"
        return _figure(title, f"No path is shown: {reason}.")
    reading = (
        f"Each path is a chain of up to three statements, taken from {among}, that connects the two ends; an arrow "
        "shows which way its statement reads, and thicker lines have more influence. A path counts as much as its "
        "weakest statement, and the strongest path comes first."
    )
    drawings = [
        _drawing(paths, orientation, names, class_=f"graph {class_}")
        for orientation, class_ in ((ACROSS, "across"), (DOWN, "down"))
    ]
    listed = element("ol", *(_path_item(path, names) for path in paths[:LISTED_PATHS]), class_="path-list")
    more = len(paths) - LISTED_PATHS
    remark = element("p", f"Not listed: {_count(more, 'weaker path')}.", class_="remark") if more > 0 else None
    return _figure(title, reading, *drawings, listed, remark)


def _drawing(paths: Sequence[EvidencePath], orientation: Orientation, names: Names, *, class_: str) -> Markup:
    drawn = len(assign_lanes(paths, orientation.max_lanes)[0])
    return element(
        "div",
        draw_paths(
            paths, orientation, entity_name=names.entity,
            relation_name=lambda relation: spoken(names.relation(relation)),
        ),
        element("p", f"Drawn: the strongest {drawn} of {len(paths):,} paths.", class_="remark")
        if drawn < len(paths) else None,
        class_=class_,
    )  # fmt: skip


def _path_item(path: EvidencePath, names: Names) -> Markup:
    parts: list[object] = [_entity(names, path.entities[0])]
    for hop, entity in zip(path.hops, path.entities[1:], strict=True):
        relation = _relation(names, hop.influence.relation)
        arrow = ("— ", relation, " →") if hop.forward else ("← ", relation, " —")
        parts += [" ", element("span", *arrow, class_="hop"), " ", _entity(names, entity)]
    weakest = element("span", signed(path.strength), class_="number")
    return element("li", element("span", *parts), " ", weakest)


def _strongest(trace: Trace, names: Names) -> Markup:
    reading = (
        "A statement with a positive influence raises the model's belief in the prediction, one with a negative "
        "influence lowers it. A long bar tells what the model relied on, not that the statement is true; names that "
        "also occur in the prediction are bold."
    )
    influences = [*trace.proponents, *trace.opponents]
    scale = bar_scale([influence.influence for influence in influences])
    numbers = signed_column([influence.influence for influence in influences])
    rows = [
        _influence_row(place, influence, names, trace.test_triple, number=number, scale=scale)
        for place, (influence, number) in enumerate(zip(influences, numbers, strict=True), start=1)
    ]
    header = [
        element("th", title, scope="col", data_sort=kind, class_=class_)
        for title, kind, class_ in (
            ("No.", "number", "place"), ("Head", "text", None), ("Relation", "text", None), ("Tail", "text", None),
            ("Influence", "number", "influence"),
        )
    ]  # fmt: skip
    search = element(
        "p",
        element("label", "Search ", element("input", type="search", autocomplete="off")),
        element("span", class_="count", role="status"),
        class_="search",
        hidden=True,
    )
    table = element(
        "table",
        element(
            "caption",
            element("span", f"{_count(len(trace.proponents), 'proponent')}, for the prediction", class_="key for"),
            " ",
            element("span", f"{_count(len(trace.opponents), 'opponent')}, against it", class_="key against"),
            ": the strongest of each",
        ),
        element("thead", element("tr", *header)),
        element("tbody", *rows),
        class_="influences sortable",
    )
    return _figure("The training triples behind it", reading, search, table)


def _influence_row(
    place: int, influence: Influence, names: Names, test_triple: tuple[int, int, int], *, number: str, scale: Axis
) -> Markup:
    head, relation, tail = test_triple

    def mark(is_shared: bool) -> str | None:
        return "shared" if is_shared else None

    return element(
        "tr",
        element("td", place, class_="place", data_value=place),
        element("td", _entity(names, influence.head, class_=mark(influence.head in (head, tail)))),
        element("td", _relation(names, influence.relation, class_=mark(influence.relation == relation))),
        element("td", _entity(names, influence.tail, class_=mark(influence.tail in (head, tail)))),
        element(
            "td",
            element("span", number, class_="number"),
            bar(min(influence.influence, 0.0), max(influence.influence, 0.0), scale),
            class_="influence",
            data_value=repr(influence.influence),
        ),
    )


def bar_scale(values: Sequence[float]) -> Axis:
    """Scale bars of these values, so that zero stands at the same place in all of them."""
    low, high = min([0.0, *values]), max([0.0, *values])
    # The side that has little keeps enough room for its bars to be seen as bars.
    span = (high - low) or 1.0
    return Axis(min(low, -0.12 * span), max(high, 0.12 * span), 0, 200)


def bar(negative: float, positive: float, scale: Axis) -> Markup:
    """Draw a bar from `negative` through zero to `positive`."""
    start, zero, end = scale.at(negative), scale.at(0), scale.at(positive)
    return element(
        "svg",
        element("rect", x=start, width=zero - start, height=10, class_="against") if negative else None,
        element("rect", x=zero, width=end - zero, height=10, class_="for") if positive else None,
        element("line", x1=zero, x2=zero, y1=-2, y2=12),
        class_="bar",
        viewBox="0 -2 200 14",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _relations(summary: InfluenceSummary, names: Names) -> Markup:
    reading = (
        "Here the influence of all training triples is added up by relation: to the right what speaks for the "
        "prediction, to the left what speaks against it. A relation with long bars on both sides is used often "
        "without deciding the matter."
    )
    shown = summary.by_relation[:LISTED_RELATIONS]
    rest = summary.by_relation[LISTED_RELATIONS:]
    rows = [(_relation(names, entry.relation), entry) for entry in shown]
    if rest:
        total = RelationInfluence(
            -1, sum(entry.positive for entry in rest), sum(entry.negative for entry in rest),
            sum(entry.triples for entry in rest),
        )  # fmt: skip
        rows.append((element("i", _count(len(rest), "further relation")), total))
    scale = bar_scale([sum_ for _, entry in rows for sum_ in (entry.negative, entry.positive)])
    against = signed_column([entry.negative for _, entry in rows])
    in_favour = signed_column([entry.positive for _, entry in rows])
    columns = ("Relation", "Triples", "Against", "", "For")
    table = element(
        "table",
        element("thead", element("tr", *(element("th", title, scope="col") for title in columns))),
        element("tbody", *(_relation_row(*row, scale) for row in zip(rows, against, in_favour, strict=True))),
        class_="relations",
    )
    return _figure("Which relations carry the influence", reading, table)


def _relation_row(row: tuple[Markup, RelationInfluence], against: str, in_favour: str, scale: Axis) -> Markup:
    name, entry = row
    return element(
        "tr",
        element("th", name, scope="row"),
        element("td", f"{entry.triples:,}", class_="number"),
        element("td", against, class_="number"),
        element("td", bar(entry.negative, entry.positive, scale)),
        element("td", in_favour, class_="number"),
    )


def _distribution(summary: InfluenceSummary) -> Markup:
    curve = summary.concentration
    if not any(curve.shares):
        return _figure("How influence is distributed", "No training triple has any influence.")
    count = min(STRONGEST, summary.num_triples)
    reading = (
        "A curve that rises early means that the prediction rests on a few statements, which can be checked by hand; "
        "one that rises late means that it rests on a broad pattern. "
        f"Here the {count} strongest of {summary.num_triples:,} training triples carry "
        f"{share_of(curve, count):.0%} of all influence, and half of it lies with the {curve.half:,} strongest."
    )
    return _figure("How influence is distributed", reading, draw_concentration(curve.counts, curve.shares, curve.half))


def share_of(curve: Concentration, count: int) -> float:
    """Read the share of the `count` strongest off the curve, between its points along a line."""
    return float(np.interp(count, curve.counts, curve.shares))


def _computation(computation: Mapping[str, object]) -> Markup:
    entries = [
        element(
            "div",
            element("dt", _name(title)),
            element("dd", *(element("span", _name(line)) for line in str(value).split("\n"))),
        )
        for title, value in computation.items()
    ]
    return element(
        "footer", element("h3", "How it was computed"), element("dl", *entries, class_="computation"), id="computation"
    )

"""Traces as one self-contained HTML page: what speaks for each prediction, drawn and explained in plain words.

This module puts what the page says into plain data, a function for each section; `page.html.j2` lays it out. Tables can
be sorted and searched if scripts run, and nothing is lost if they do not.
"""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import conve_tracin
from conve_tracin.data.names import Names
from conve_tracin.files import atomic_write, digest_of_file
from conve_tracin.influence.paths import GraphPath
from conve_tracin.influence.summary import InfluenceSummary, RelationInfluence
from conve_tracin.influence.trace import Trace
from conve_tracin.report.charts import Axis, draw_concentration
from conve_tracin.report.lettering import in_words, rank, signed_column
from conve_tracin.report.naming import Name
from conve_tracin.report.naming import entity_name as _entity
from conve_tracin.report.naming import relation_name as _relation
from conve_tracin.report.path_graph import ACROSS, DOWN, Orientation, assign_lanes, draw_paths
from conve_tracin.report.template import render_page
from conve_tracin.settings import GAUSS_NEWTON, HEAD, TAIL, TRACIN, TracInOptions

METHODS = {
    TRACIN: "TracIn: learning rate × product of the loss gradients of training triple and prediction, "
    "in eval mode, over the tracked parameters",
    GAUSS_NEWTON: "Gauss–Newton influence: how much the prediction's score rests on the training triple's label, "
    "with the curvature of each embedding row",
}
UNITS = {
    TRACIN: "learning rate × squared gradient; only the order and the sign mean something",
    GAUSS_NEWTON: "of the score, and shrunk by the damping; what was measured is the order",
}
LISTED_RELATIONS = 12
# The curve is put in words for this many of the strongest triples.
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
    """Put the members of `options` that have an effect on the influences into words."""
    settings = {}
    if options.method == GAUSS_NEWTON:
        settings["Damping"] = (
            f"{options.damping:g} × a row's mean eigenvalue, or 100 of them after softmax cross-entropy"
        )
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


def report_page(traces: Sequence[Trace], names: Names, computation: Mapping[str, object]) -> str:
    """Write the whole page."""
    return render_page(
        "page.html.j2",
        script="page.js",
        predictions=[_prediction(number, trace, names) for number, trace in enumerate(traces, start=1)],
        computation=[(title, str(value).split("\n")) for title, value in computation.items()],
    )


# ---------------------------------------------------------------------------------------------------------------
# The sections of the page


def _prediction(number: int, trace: Trace, names: Names) -> dict[str, Any]:
    head, relation, tail = trace.test_triple
    named = {"head": _entity(names, head), "relation": _relation(names, relation), "tail": _entity(names, tail)}
    return {
        "number": number,
        "link": f"#prediction-{number}",
        "statement": "{} — {} → {}".format(*(name.text for name in named.values())),
        "remark": f"rank {rank(trace.prediction.explained.rank)} of {trace.prediction.explained.num_candidates:,}",
        **named,
        "identifiers": [name.identifier for name in named.values() if name.identifier],
        "facts": _facts(trace, names),
        "paths": _paths(trace, names),
        "influences": _influences(trace, names),
        "relations": _relations(trace.summary, names),
        "distribution": _distribution(trace.summary),
    }


def _facts(trace: Trace, names: Names) -> dict[str, Any]:
    head, relation, tail = trace.test_triple
    relation = in_words(names.relation(relation))
    side, place = trace.prediction.side, trace.prediction.explained
    return {
        "question": f"{names.entity(head)} — {relation} → ?"
        if side == TAIL
        else f"? — {relation} → {names.entity(tail)}",
        "prediction": trace.prediction,
        "side": side,
        "place": place,
        "summary": trace.summary,
        "ahead": [_entity(names, entity) for entity in place.ahead],
    }


def _paths(trace: Trace, names: Names) -> dict[str, Any] | None:
    if trace.paths is None:
        return None
    head, _, tail = trace.test_triple
    orientations = {"across": ACROSS, "down": DOWN} if trace.paths else {}
    return {
        "head": names.entity(head),
        "tail": names.entity(tail),
        "head_is_tail": head == tail,
        "drawings": [_drawing(class_, trace.paths, orientation, names) for class_, orientation in orientations.items()],
        "listed": [_listed_path(path, names) for path in trace.paths],
    }


def _drawing(class_: str, paths: Sequence[GraphPath], orientation: Orientation, names: Names) -> dict[str, Any]:
    drawing = draw_paths(
        paths, orientation, entity_name=names.entity,
        relation_name=lambda relation: in_words(names.relation(relation)),
    )  # fmt: skip
    return {"class": class_, "svg": drawing, "num_drawn": len(assign_lanes(paths, orientation.max_lanes)[0])}


def _listed_path(path: GraphPath, names: Names) -> dict[str, Any]:
    start, *others = [_entity(names, entity) for entity in path.entities]
    steps = [
        {
            "relation": _relation(names, hop.influence.relation),
            "forward": hop.forward,
            "influence": hop.influence.influence,
            "entity": entity,
        }
        for hop, entity in zip(path.hops, others, strict=True)
    ]
    return {"start": start, "steps": steps}


def _influences(trace: Trace, names: Names) -> dict[str, Any]:
    influences = [*trace.proponents, *trace.opponents]
    values = [influence.influence for influence in influences]
    bars = _bars([(min(value, 0.0), max(value, 0.0)) for value in values])
    head, relation, tail = trace.test_triple
    rows = [
        {
            "head": _entity(names, influence.head, shared_with=(head, tail)),
            "relation": _relation(names, influence.relation, shared_with=(relation,)),
            "tail": _entity(names, influence.tail, shared_with=(head, tail)),
            "influence": repr(influence.influence),
            "number": number,
            "bar": bar,
            "models": influence.models,
            "count": influence.count,
        }
        for influence, number, bar in zip(influences, signed_column(values), bars, strict=True)
    ]
    return {
        "num_proponents": len(trace.proponents),
        "num_opponents": len(trace.opponents),
        "num_models": trace.num_models,
        "rows": rows,
    }


def _bars(sums: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    """Scale bars from a negative through zero to a positive sum, so that zero is at the same place in all of them."""
    low, high = min([0.0, *(sum_ for sum_, _ in sums)]), max([0.0, *(sum_ for _, sum_ in sums)])
    # The side that has little keeps enough room for its bars to be seen as bars.
    span = (high - low) or 1.0
    scale = Axis(min(low, -0.12 * span), max(high, 0.12 * span), 0, 200)
    return [{"low": scale.at(against), "zero": scale.at(0), "high": scale.at(in_favour)} for against, in_favour in sums]


def _relations(summary: InfluenceSummary, names: Names) -> dict[str, Any]:
    shown, others = summary.by_relation[:LISTED_RELATIONS], summary.by_relation[LISTED_RELATIONS:]
    relations: list[Name | None] = [_relation(names, entry.relation) for entry in shown]
    if others:
        relations.append(None)
        shown = [*shown, _total(others)]
    against, in_favour = [entry.negative for entry in shown], [entry.positive for entry in shown]
    bars = _bars(list(zip(against, in_favour, strict=True)))
    columns = (relations, shown, signed_column(against), bars, signed_column(in_favour))
    names_of_columns = ("relation", "sums", "against", "bar", "in_favour")
    rows = [dict(zip(names_of_columns, row, strict=True)) for row in zip(*columns, strict=True)]
    return {"rows": rows, "num_others": len(others)}


def _total(entries: Sequence[RelationInfluence]) -> RelationInfluence:
    positive, negative = sum(entry.positive for entry in entries), sum(entry.negative for entry in entries)
    return RelationInfluence(-1, positive, negative, sum(entry.triples for entry in entries))


def _distribution(summary: InfluenceSummary) -> dict[str, Any] | None:
    curve = summary.concentration
    if not any(curve.shares):
        return None
    num_strongest = min(STRONGEST, summary.num_triples)
    return {
        "num_strongest": num_strongest,
        "num_triples": summary.num_triples,
        # Between the curve's points, along a line.
        "share": float(np.interp(num_strongest, curve.counts, curve.shares)),
        "half": curve.half,
        "chart": draw_concentration(curve.counts, curve.shares, curve.half),
    }

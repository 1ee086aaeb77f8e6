"""Traces as one self-contained HTML page: what speaks for each prediction, drawn and explained in plain words.

This module puts what the page says into plain data, a function for each section; `page.html.j2` lays it out. Tables can
be sorted and searched if scripts run, and nothing is lost if they do not.
"""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import conve_tracin
from conve_tracin.data.kgx.categories import Categories
from conve_tracin.data.names import Names
from conve_tracin.files import atomic_write, digest_of_file
from conve_tracin.influence.method import Influence
from conve_tracin.influence.paths import GraphPath
from conve_tracin.influence.provenance import HITS_AT_1, HITS_AT_10, MRR, Provenance
from conve_tracin.influence.standing import OTHER_QUESTIONS, Standing
from conve_tracin.influence.summary import InfluenceSummary, Prediction, RelationInfluence
from conve_tracin.influence.trace import Trace
from conve_tracin.report import evidence
from conve_tracin.report.charts import Axis, draw_concentration
from conve_tracin.report.groups import Group, group_influences
from conve_tracin.report.lettering import DIRECTIONS, category_in_words, in_words, plural, signed_column
from conve_tracin.report.naming import Name
from conve_tracin.report.naming import entity_name as _entity
from conve_tracin.report.naming import relation_name as _relation
from conve_tracin.report.notes import Notes
from conve_tracin.report.palette import Palette
from conve_tracin.report.path_graph import ACROSS, DOWN, Orientation, assign_lanes, draw_paths
from conve_tracin.report.tables import prediction_as_json, warnings_about
from conve_tracin.report.template import render_page
from conve_tracin.settings import GAUSS_NEWTON, HEAD, SOFTMAX_DAMPING, TAIL, TRACIN, TracInOptions

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
# Influences below this share of the strongest are not listed.
LEAST_SHARE = 0.01
# The curve is put in words for this many of the strongest triples.
STRONGEST = 10


@dataclass(frozen=True, kw_only=True)
class Background:
    """What a page says besides its traces.

    Attributes:
        categories: of the entities; None if they are unknown.
        warnings: what to be careful about in all predictions.
        model: the checkpoint that ranks, None if nothing is known of it.
        measured: what was measured of the method, in paragraphs.
        notes: what is known of training triples; with evidence, entities link to their pages.
    """

    categories: Categories | None = None
    warnings: Sequence[str] = ()
    model: Provenance | None = None
    measured: Sequence[str] = ()
    notes: Notes = field(default_factory=Notes)


def write_report(
    path: str | Path,
    traces: Sequence[Trace],
    names: Names,
    computation: Mapping[str, object],
    background: Background | None = None,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        traces: with summary and prediction each.
        names: what ids are called.
        computation: how the influences were computed, title and value each; see `describe_computation`.
        background: what else the page says.
    """
    page = report_page(traces, names, computation, background)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def settings_of(options: TracInOptions) -> dict[str, str]:
    """Put the members of `options` that have an effect on the influences into words."""
    settings = {}
    if options.method == GAUSS_NEWTON:
        settings["Damping"] = (
            f"{options.damping:g} × a row's mean eigenvalue, "
            f"or {SOFTMAX_DAMPING:,.0f} of them after softmax cross-entropy"
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


def report_page(
    traces: Sequence[Trace], names: Names, computation: Mapping[str, object], background: Background | None = None
) -> str:
    """Write the whole page; see `write_report`."""
    background = background or Background()
    paths = [path for trace in traces for path in trace.paths or ()]
    palette = Palette.of(background.categories, (entity for path in paths for entity in path.entities))
    return render_page(
        "page.html.j2",
        script="page.js",
        predictions=[
            _prediction(number, trace, names, background, palette) for number, trace in enumerate(traces, start=1)
        ],
        computation=[(title, str(value).split("\n")) for title, value in computation.items()],
        model=_model(background.model),
        measured=background.measured,
        has_links=background.notes.evidence is not None,
    )


def _model(model: Provenance | None) -> dict[str, Any] | None:
    if model is None or MRR not in model.metrics:
        return None
    return {
        "split": model.split,
        "ranked": model.ranked,
        "epoch": model.epoch,
        "mrr": f"{model.metrics[MRR]:.3f}".removeprefix("0"),
        "first": model.metrics.get(HITS_AT_1),
        "among_ten": model.metrics.get(HITS_AT_10),
    }


# ---------------------------------------------------------------------------------------------------------------
# The sections of the page


def _prediction(number: int, trace: Trace, names: Names, background: Background, palette: Palette) -> dict[str, Any]:
    head, relation, tail = trace.test_triple
    named = {"head": _entity(names, head), "relation": _relation(names, relation), "tail": _entity(names, tail)}
    notes = background.notes
    paths, influences = _paths(trace, names, palette, notes), _influences(trace, names, palette, notes)
    return {
        "number": number,
        "link": f"#prediction-{number}",
        "statement": "{} — {} → {}".format(*(name.text for name in named.values())),
        "ranks": _ranks(trace.prediction),
        "score": trace.prediction.score,
        "elsewhere": trace.prediction.explained.standing.elsewhere.share,
        "proponent": _sentence(trace.proponents[0], names) if trace.proponents else "",
        "path": paths["listed"][0] if paths and paths["listed"] else None,
        **named,
        "identifiers": [name.identifier for name in named.values() if name.identifier],
        "data": json.dumps(
            names.keys(head, relation, tail)
            | names.triple(head, relation, tail)
            | prediction_as_json(trace.prediction, names, background.warnings)
        ),
        "warnings": warnings_about(trace.prediction, background.warnings),
        "facts": _facts(trace, names),
        "answers": _answers(trace, names),
        "reasons": evidence.reasons_in_words(notes, trace),
        "paths": paths,
        "influences": influences,
        "relations": _relations(trace.summary, names),
        "distribution": _distribution(trace.summary),
    }


def _sentence(influence: Influence, names: Names) -> str:
    head, relation, tail = _triple_of(influence)
    return f"{names.entity(head)} — {in_words(names.relation(relation))} → {names.entity(tail)}"


def _triple_of(influence: Influence) -> tuple[int, int, int]:
    return influence.head, influence.relation, influence.tail


def _ranks(prediction: Prediction) -> dict[str, Any]:
    """Put both sides' ranks among their own kind beside each other, for the index."""
    places = {"tail": prediction, "head": prediction.head}
    return {
        side: None if place is None else _peers(place.standing, side) | {"of_all": place.rank}
        for side, place in places.items()
    }


def _peers(standing: Standing, side: str) -> dict[str, Any]:
    """Say among what an answer is ranked first of all: its category, or else what the relation has there."""
    if standing.in_category is None:
        peers, kind = standing.among_answers, f"{side}s of this relation"
    else:
        peers = standing.in_category
        kind = plural(category_in_words(peers.category))
    return {"rank": peers.rank, "of": f"{peers.num_candidates:,} {kind}"}


def _facts(trace: Trace, names: Names) -> dict[str, Any]:
    prediction, summary = trace.prediction, trace.summary
    side, place = prediction.side, prediction.explained
    other = HEAD if side == TAIL else TAIL
    opposite = None if prediction.head is None else prediction.head if side == TAIL else prediction
    elsewhere = place.standing.elsewhere
    return {
        "question": _question(trace, names, side),
        "opposite_question": _question(trace, names, other),
        "prediction": prediction,
        "side": side,
        "other_side": other,
        "place": place,
        "peers": _peers(place.standing, side),
        "among_answers": place.standing.among_answers,
        "opposite": opposite,
        "opposite_peers": opposite and _peers(opposite.standing, other),
        "elsewhere": elsewhere,
        "is_sample": elsewhere.num_questions > OTHER_QUESTIONS,
        "summary": summary,
        "half": summary.concentration.half if trace.total else 0,
        "num_models": trace.num_models,
    }


def _question(trace: Trace, names: Names, side: str) -> str:
    head, relation, tail = trace.test_triple
    predicate = in_words(names.relation(relation))
    if side == TAIL:
        return f"{names.entity(head)} — {predicate} → ?"
    return f"? — {predicate} → {names.entity(tail)}"


def _answers(trace: Trace, names: Names) -> list[dict[str, Any]]:
    head, _, tail = trace.test_triple
    place = trace.prediction.explained
    this = tail if trace.prediction.side == TAIL else head
    return [
        {
            "name": _entity(names, answer.entity),
            "score": answer.score,
            "known": answer.known,
            "is_this": answer.entity == this,
        }
        for answer in place.standing.best
    ]


def _paths(trace: Trace, names: Names, palette: Palette, notes: Notes) -> dict[str, Any] | None:
    if trace.paths is None:
        return None
    head, _, tail = trace.test_triple
    orientations = {"across": ACROSS, "down": DOWN} if trace.paths else {}
    weakest = [path.weakest for path in trace.paths]
    return {
        "head": names.entity(head),
        "tail": names.entity(tail),
        "head_is_tail": head == tail,
        "has_zeros": any(hop.influence.influence == 0 for path in trace.paths for hop in path.hops),
        "drawings": [
            _drawing(class_, trace.paths, orientation, names, palette) for class_, orientation in orientations.items()
        ],
        "legend": palette.legend({entity for path in trace.paths for entity in path.entities}),
        "predicates": _predicates((hop.influence for path in trace.paths for hop in path.hops), names),
        "source_choices": _source_choices([hop.influence for path in trace.paths for hop in path.hops], notes),
        "listed": [
            _listed_path(path, names, trace, notes) | {"weakest": value, "number": number}
            for path, value, number in zip(trace.paths, weakest, signed_column(weakest), strict=True)
        ],
    }


def _predicates(influences: Iterable[Influence], names: Names) -> list[tuple[int, str]]:
    """List the relations of triples for a choice: id and words, by words."""
    found = {one.relation: in_words(names.relation(one.relation)) for one in influences}
    return sorted(found.items(), key=lambda item: item[1])


def _drawing(
    class_: str, paths: Sequence[GraphPath], orientation: Orientation, names: Names, palette: Palette
) -> dict[str, Any]:
    drawing = draw_paths(
        paths, orientation, entity_name=names.entity,
        relation_name=lambda relation: in_words(names.relation(relation)),
        entity_class=palette.class_of,
    )  # fmt: skip
    return {
        "class": class_,
        "svg": drawing,
        "num_drawn": len(assign_lanes(paths, orientation.max_lanes)[0]),
        "has_directions": any(arrow in drawing for arrow in DIRECTIONS.values()),
    }


def _source_choices(influences: Iterable[Influence], notes: Notes) -> list[tuple[str, str]]:
    return evidence.choices(evidence.sources_about(notes, influences))


def _sources(influences: Iterable[Influence], notes: Notes) -> str | None:
    """Write the sources behind some training triples for the script; None without evidence."""
    sources = evidence.sources_about(notes, influences)
    return None if sources is None else json.dumps(sources)


def _listed_path(path: GraphPath, names: Names, trace: Trace, notes: Notes) -> dict[str, Any]:
    start, *others = [_entity(names, entity) for entity in path.entities]
    steps = [
        {
            "relation": _relation(names, hop.influence.relation),
            "forward": hop.forward,
            "influence": hop.influence.influence,
            "entity": entity,
            "note": evidence.note(notes, trace.test_triple, hop.influence),
            "statement": _sentence(hop.influence, names),
        }
        for hop, entity in zip(path.hops, others, strict=True)
    ]
    keys = [names.keys(*_triple_of(hop.influence)) for hop in path.hops]
    return {
        "start": start,
        "steps": steps,
        "sources": _sources((hop.influence for hop in path.hops), notes),
        "relations": " ".join(str(one) for one in dict.fromkeys(hop.influence.relation for hop in path.hops)),
        "data": json.dumps(
            [
                [key["head_key"], key["relation_key"], key["tail_key"], float(f"{hop.influence.influence:.6g}")]
                for key, hop in zip(keys, path.hops, strict=True)
            ],
            separators=(",", ":"),
        ),
    }


def _influences(trace: Trace, names: Names, palette: Palette, notes: Notes) -> dict[str, Any]:
    all_listed = [*trace.proponents, *trace.opponents]
    least = LEAST_SHARE * max((abs(one.influence) for one in all_listed), default=0.0)
    sides = [[one for one in side if abs(one.influence) >= least] for side in (trace.proponents, trace.opponents)]
    groups = [group for side in sides for group in group_influences(side)]
    sums = [group.sum for group in groups]
    bars = _bars([(min(value, 0.0), max(value, 0.0)) for value in sums])
    rows = [
        _influence_row(group, trace, names, palette, notes) | {"number": number, "bar": bar}
        for group, number, bar in zip(groups, signed_column(sums), bars, strict=True)
    ]
    return {
        "num_proponents": len(sides[0]),
        "num_opponents": len(sides[1]),
        "num_left_out": len(all_listed) - sum(map(len, sides)),
        "num_models": trace.num_models,
        "num_agreed": sum(one.models == trace.num_models for one in all_listed),
        "predicates": _predicates((one for side in sides for one in side), names),
        "source_choices": _source_choices([one for side in sides for one in side], notes),
        "rows": rows,
    }


def _influence_row(group: Group, trace: Trace, names: Names, palette: Palette, notes: Notes) -> dict[str, Any]:
    head, relation, tail = trace.test_triple
    first = group.influences[0]
    shared = {"shared_with": (head, tail)}
    return {
        "head": _entity(names, first.head, **shared),
        "relation": _relation(names, first.relation, shared_with=(relation,)),
        "tail": _entity(names, first.tail, **shared),
        "relation_id": first.relation,
        "many": group.many,
        "kind": group.many and (palette.kind_of(getattr(one, group.many) for one in group.influences) or "entities"),
        "members": [
            {
                "name": _entity(names, getattr(one, group.many), **shared),
                "influence": repr(one.influence),
                "number": number,
                "models": one.models,
                "count": one.count,
                "note": evidence.note(notes, trace.test_triple, one),
            }
            for one, number in zip(
                group.influences, signed_column([o.influence for o in group.influences]), strict=True
            )
        ]
        if group.many
        else [],
        "influence": repr(group.sum),
        "share": sum(trace.share(one.influence) for one in group.influences),
        "models": first.models,
        "count": first.count,
        "note": evidence.note(notes, trace.test_triple, first),
        "num_reasons": sum(notes.is_reason(trace.test_triple, one) for one in group.influences),
        "sources": _sources(group.influences, notes),
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

"""Traces as JSON, as CSV and as a table to read in a terminal."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conve_tracin.data.names import Names
from conve_tracin.data.text import visible
from conve_tracin.files import atomic_write
from conve_tracin.influence.method import Influence
from conve_tracin.influence.paths import GraphPath
from conve_tracin.influence.standing import Standing
from conve_tracin.influence.summary import Place, Prediction
from conve_tracin.influence.trace import Trace
from conve_tracin.report.lettering import category_in_words, plural
from conve_tracin.report.notes import Notes, ranks_in_words
from conve_tracin.settings import TAIL

CSV_COLUMNS = (
    "TestHead", "TestHead_label", "TestRel", "TestRel_label", "TestTail", "TestTail_label",
    "TrainHead", "TrainHead_label", "TrainRel", "TrainRel_label", "TrainTail", "TrainTail_label",
    "TracInScore", "SelfInfluence",
)  # fmt: skip

NO_NOTES = Notes()

# A spreadsheet takes a cell that begins with one of these for a formula. Apostrophes before them are counted in, so
# that taking one away gives every label back.
FORMULA_START = re.compile(r"'*[=+\-@\t\r]")


def trace_as_json(
    trace: Trace,
    names: Names,
    *,
    top_k: int,
    learning_rate: float | list[float],
    method: dict[str, Any],
    warnings: Sequence[str] = (),
    notes: Notes = NO_NOTES,
) -> dict[str, Any]:
    """Arrange a trace as the documented JSON, with names, `method` and `notes` as further members."""
    head, relation, tail = trace.test_triple
    return {
        "test_triple": {
            "head": head,
            "relation": relation,
            "tail": tail,
            **names.members(*trace.test_triple),
        },
        "top_k": top_k,
        "learning_rate": learning_rate,
        **method,
        **({} if trace.prediction is None else {"prediction": prediction_as_json(trace.prediction, names, warnings)}),
        **_paths_as_json(trace, names, notes),
        **notes.members_of_result(trace),
        "influences": [
            influence_as_json(influence, names)
            | {"share": trace.share(influence.influence)}
            | notes.members(trace.test_triple, influence)
            for influence in trace.influences
        ],
    }


def _paths_as_json(trace: Trace, names: Names, notes: Notes) -> dict[str, Any]:
    if trace.paths is None:
        return {}
    influences = ([hop.influence for hop in path.hops] for path in trace.paths)
    more = (notes.members_of_path(trace.test_triple, each) for each in influences)
    return {"paths": [path_as_json(path, names) | each for path, each in zip(trace.paths, more, strict=True)]}


def path_as_json(path: GraphPath, names: Names) -> dict[str, Any]:
    """Arrange a path: its triples from the prediction's head to its tail, each with its influence and its names."""
    triples = [(hop.influence.head, hop.influence.relation, hop.influence.tail) for hop in path.hops]
    return {
        "triples": [list(triple) for triple in triples],
        "labels": [list(names.triple(*triple).values()) for triple in triples],
        "influences": [hop.influence.influence for hop in path.hops],
        "score": path.score,
    }


def prediction_as_json(prediction: Prediction, names: Names, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """Arrange what the model says about the test triple itself; `warnings` are those of the run."""
    return {
        "score": prediction.score,
        "rank": prediction.rank,
        "possible_tails": prediction.num_candidates,
        "in_training": prediction.in_training,
        **({"untrained": list(prediction.untrained)} if prediction.untrained else {}),
        **({"remark": prediction.remark} if prediction.remark else {}),
        **({} if prediction.head is None else _head_as_json(prediction)),
        "tail_standing": standing_as_json(prediction.standing, names),
        **({} if prediction.head is None else {"head_standing": standing_as_json(prediction.head.standing, names)}),
        "warnings": warnings_about(prediction, warnings),
    }


def warnings_about(prediction: Prediction, warnings: Sequence[str]) -> list[str]:
    """Put a prediction's own remark before the warnings of the run."""
    return [*([prediction.remark] if prediction.remark else []), *warnings]


def _head_as_json(prediction: Prediction) -> dict[str, Any]:
    head = prediction.head
    return {
        "head_score": head.score,
        "head_rank": head.rank,
        "possible_heads": head.num_candidates,
        "predicted_side": prediction.side,
    }


def standing_as_json(standing: Standing, names: Names) -> dict[str, Any]:
    """Arrange how an answer stands among others."""
    category = standing.in_category
    return {
        "rank_among_answers": standing.among_answers.rank,
        "possible_answers": standing.among_answers.num_candidates,
        **(
            {}
            if category is None
            else {
                "category": category.category,
                "rank_in_category": category.rank,
                "possible_in_category": category.num_candidates,
            }
        ),
        "best_answers": [
            {
                "id": answer.entity,
                "label": names.entity(answer.entity),
                "key": names.entities.labels[answer.entity],
                "score": answer.score,
                "known": answer.known,
            }
            for answer in standing.best
        ],
        "other_questions": asdict(standing.elsewhere) | {"share": standing.elsewhere.share},
    }


def influence_as_json(influence: Influence, names: Names) -> dict[str, Any]:
    """Arrange one influence as the documented members and the names behind them."""
    triple = (influence.head, influence.relation, influence.tail)
    labels = names.members(*triple)
    models = {} if influence.models is None else {"models": influence.models}
    return influence.as_dict() | {f"train_{member}": label for member, label in labels.items()} | models


def trace_as_table(trace: Trace, names: Names, *, method: str, rows: int = 5, notes: Notes = NO_NOTES) -> str:
    """Lay out the strongest proponents and opponents as text; `method` names what they were computed with."""
    lines = [f"Prediction: {visible(names.sentence(*trace.test_triple))} (explained by {method})"]
    if trace.prediction is not None:
        lines += [_prediction_line(trace.prediction), _standing_line(trace.prediction)]
    if trace.reasons is not None:
        lines.append(f"  {ranks_in_words(trace.reasons)}")
    if trace.paths is not None:
        lines += _path_lines(trace, names, rows=rows)
    for title, influences in (
        ("Proponents (the model believes it because of)", trace.proponents),
        ("Opponents (the model believes it in spite of)", trace.opponents),
    ):
        lines.append(f"{title}:" if influences else f"{title}: none")
        lines += [
            _influence_line(influence, names) + notes.remark(trace.test_triple, influence)
            for influence in influences[:rows]
        ]
    return "\n".join(lines)


def _prediction_line(prediction: Prediction) -> str:
    places = (
        [_place(prediction, "tails")]
        if prediction.head is None
        else [
            _place(prediction, "tails"),
            _place(prediction.head, "heads"),
            f"the {prediction.side} is explained",
        ]
    )
    if prediction.in_training:
        places.append("it is itself a training triple")
    line = "; ".join(places)
    remark = f"\n  {visible(prediction.remark)}" if prediction.remark else ""
    return f"  {line[0].upper()}{line[1:]}{remark}"


def _place(place: Prediction | Place, answers: str) -> str:
    return f"rank {place.rank:,.10g} of {place.num_candidates:,} possible {answers}, score {place.score:.2f}"


def _standing_line(prediction: Prediction) -> str:
    """Say among which answers the explained side has its rank, and whether the model gives it to others, too."""
    standing, side = prediction.explained.standing, prediction.side
    peers, elsewhere = standing.in_category or standing.among_answers, standing.elsewhere
    of = f"of {peers.num_candidates:,} {side}s of this relation"
    if peers.category is not None:
        of = f"of {peers.num_candidates:,} {plural(category_in_words(peers.category))}"
    line = f"  Rank {peers.rank:,.10g} {of}"
    if elsewhere.share is None:
        return line
    other = "heads" if side == TAIL else "tails"
    return (
        f"{line}; {elsewhere.num_among_first:,} of {elsewhere.num_asked:,} other {other}, for which it is not known to "
        "be right, have it among their first ten"
    )


def _path_lines(trace: Trace, names: Names, *, rows: int) -> list[str]:
    title = "Paths of the graph from head to tail, with the influence of each triple"
    return [f"{title}:" if trace.paths else f"{title}: none", *(_path_line(path, names) for path in trace.paths[:rows])]


def _path_line(path: GraphPath, names: Names) -> str:
    steps = [names.entity(path.entities[0])]
    for hop, entity in zip(path.hops, path.entities[1:], strict=True):
        relation = f"{names.relation(hop.influence.relation)} ({_short(hop.influence.influence)})"
        steps.append(
            f"— {relation} → {names.entity(entity)}" if hop.forward else f"← {relation} — {names.entity(entity)}"
        )
    return f"  {visible(' '.join(steps))}"


def _short(influence: float) -> str:
    return f"{influence:+.2g}" if influence else "0"


def self_influences_as_table(ranked: list[Influence], names: Names, *, rows: int = 10) -> str:
    """Lay out the training triples of highest self-influence as text."""
    title = "Self-influence (what the model learned by itself, and not from other triples):"
    return "\n".join([title, *(_influence_line(influence, names) for influence in ranked[:rows])])


def _influence_line(influence: Influence, names: Names) -> str:
    sentence = names.sentence(influence.head, influence.relation, influence.tail)
    repeated = f" (stands {influence.count} times in the training file)" if influence.count > 1 else ""
    return f"  {influence.influence:+12.5e}  {visible(sentence)}{repeated}"


def trace_as_csv_rows(
    trace: Trace, names: Names, self_influences: Mapping[int, float], notes: Notes = NO_NOTES
) -> Iterator[tuple[str | float, ...]]:
    """Yield a row of CSV_COLUMNS, and of the columns of `notes`, for each influence of a trace.

    `TestHead` and its like are the labels of the mappings (ids mean nothing outside of them), `TestHead_label`
    and its like the readable names; an apostrophe stands before one that a spreadsheet would run as a formula.
    `self_influences` maps positions in the training set to SelfInfluence.
    """
    test_cells = _csv_cells(names, *trace.test_triple)
    for influence in trace.influences:
        train_cells = _csv_cells(names, influence.head, influence.relation, influence.tail)
        numbers = (influence.influence, self_influences[influence.position])
        yield (*test_cells, *train_cells, *numbers, *map(_cell, notes.cells(trace.test_triple, influence)))


def _csv_cells(names: Names, head: int, relation: int, tail: int) -> list[str]:
    cells = (
        names.entities.labels[head],
        names.entity(head),
        names.relations.labels[relation],
        names.relation(relation),
        names.entities.labels[tail],
        names.entity(tail),
    )
    return [_cell(cell) for cell in cells]


def _cell(value: str | bool) -> str | bool:
    return f"'{value}" if isinstance(value, str) and FORMULA_START.match(value) else value


def write_csv(path: str | Path, rows: Iterable[tuple[str | float, ...]], more_columns: Sequence[str] = ()) -> None:
    """Write rows of CSV_COLUMNS and further columns below their names, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        plain = csv.writer(file, lineterminator="\n")
        # Before Python 3.13, a carriage return alone is not quoted, and readers begin a new row there.
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        plain.writerow([*CSV_COLUMNS, *more_columns])
        for row in rows:
            holds_return = any(isinstance(cell, str) and "\r" in cell for cell in row)
            (quoting if holds_return else plain).writerow(row)


def safe_file_name(prefix: str, *labels: str, suffix: str) -> str:
    """Join `prefix`, which makes it unique, and labels to a file name that is safe on every system."""
    plain = [re.sub(r"[^A-Za-z0-9.-]+", "_", label)[:40].strip("._") for label in labels]
    return "_".join([prefix, *filter(None, plain)]) + suffix

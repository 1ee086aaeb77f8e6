"""Answers as a table, as JSON and for the terminal."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conve_tracin.data.names import Names
from conve_tracin.data.resolve import ASKED
from conve_tracin.data.text import require_writable, single_line, visible
from conve_tracin.files import json_text_of_many, write_together
from conve_tracin.prediction.answers import Answers
from conve_tracin.settings import PredictionOptions

# Answers that are printed, if there is one query.
PRINTED = 10


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer to a query, as it is written: the triple by its labels, its names and its ids.

    `rank` counts from 1 among the candidates that are not known, this one included; ties share their mean rank.
    """

    rank: float
    head: str
    relation: str
    tail: str
    score: float
    known: bool
    head_name: str
    relation_name: str
    tail_name: str
    head_id: int
    relation_id: int
    tail_id: int


COLUMNS = tuple(Row.__annotations__)


def rows_of(answers: Answers, names: Names) -> Iterator[Row]:
    """Yield the answers to a query as they are written."""
    entity, relation = answers.query
    columns = (answers.entities, answers.scores, answers.ranks, answers.known)
    for found, score, rank, known in zip(*(column.tolist() for column in columns), strict=True):
        head, tail = (entity, found) if relation >= 0 else (found, entity)
        yield row_of((head, max(relation, ~relation), tail), names, score=score, rank=rank, known=known)


def row_of(triple: tuple[int, int, int], names: Names, *, score: float, rank: float, known: bool) -> Row:
    """Arrange one answer."""
    head, relation, tail = triple
    return Row(
        rank=rank,
        head=names.entities.labels[head],
        relation=names.relations.labels[relation],
        tail=names.entities.labels[tail],
        score=score,
        known=known,
        head_name=single_line(names.entity(head)),
        relation_name=single_line(names.relation(relation)),
        tail_name=single_line(names.entity(tail)),
        head_id=head,
        relation_id=relation,
        tail_id=tail,
    )


def question_of(query: tuple[int, int], names: Names) -> dict[str, str | None]:
    """Return head, relation and tail of a query by their labels, None for what is asked."""
    entity, relation = query
    label = names.entities.labels[entity]
    return {
        "head": label if relation >= 0 else None,
        "relation": names.relations.labels[max(relation, ~relation)],
        "tail": label if relation < 0 else None,
    }


def write_answers(options: PredictionOptions, answers: Iterable[Answers], names: Names) -> None:
    """Write the output: a table, or JSON, by its ending."""
    output = Path(options.output)
    if output.suffix == ".json":
        settings = {"model_path": str(options.model_path), "top_k": options.top_k, "keep_known": options.keep_known}
        text = json_text_of_many(settings, "queries", (answers_as_json(found, names) for found in answers))
    else:
        text = table_lines(output, (row for found in answers for row in rows_of(found, names)))
    write_together({output: text})


def answers_as_json(answers: Answers, names: Names) -> dict[str, Any]:
    """Arrange the answers to one query."""
    return {
        **question_of(answers.query, names),
        "num_candidates": answers.num_candidates,
        "num_known": answers.num_known,
        "predictions": [vars(row) for row in rows_of(answers, names)],
    }


def table_lines(path: Path, rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of the table, which `--test-triples` reads.

    Raises InputError for a label that a tab-separated file cannot hold.
    """
    yield "\t".join(COLUMNS) + "\n"
    for row in rows:
        require_writable(path, row.head, row.relation, row.tail)
        values: Mapping[str, Any] = vars(row) | {
            "rank": f"{row.rank:.12g}", "score": f"{row.score:.9g}", "known": str(row.known).lower(),
        }  # fmt: skip
        yield "\t".join(str(values[name]) for name in COLUMNS) + "\n"


def print_summary(options: PredictionOptions, counts: list[int], to_print: list[Answers], names: Names) -> None:
    """Print the first answers to a single query, and what was written."""
    if len(counts) == 1:
        print(as_text(to_print[0], names))
    queries = "query" if len(counts) == 1 else "queries"
    print(f"Written: {options.output}, {sum(counts):,} predictions for {len(counts):,} {queries}")


def as_text(answers: Answers, names: Names) -> str:
    """Lay out the first answers to a query as text."""
    entity, relation = answers.query
    known, predicate = names.entity(entity), names.relation(max(relation, ~relation))
    asked = f"{known} — {predicate} → {ASKED}" if relation >= 0 else f"{ASKED} — {predicate} → {known}"
    passed_over = f", {answers.num_known:,} known passed over" if answers.num_known else ""
    lines = [f"{visible(asked)} ({answers.num_candidates:,} candidates{passed_over})"]
    columns = (answers.ranks, answers.scores, answers.entities, answers.known)
    for rank, score, found, is_known in zip(*(column[:PRINTED].tolist() for column in columns), strict=True):
        mark = " (known)" if is_known else ""
        lines.append(f"  {rank:>8,.10g}  {score:+10.4f}  {visible(names.entity(found))}{mark}")
    return "\n".join(lines)

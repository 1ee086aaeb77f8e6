"""Asking a model for candidates: which tails, or heads, does it rank first? The work of predict_pytorch.py.

A query is (head, relation) for its tails and (tail, ~relation) for its heads, which a model with inverse triples scores
alike.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from conve_tracin.compute.device import choose_device, compute_in_batches
from conve_tracin.data.candidates import candidates_of_category, read_candidates
from conve_tracin.data.finding import Finder
from conve_tracin.data.index import read_indexed
from conve_tracin.data.names import Names, read_names_from
from conve_tracin.data.prepare import single_line
from conve_tracin.data.queries import group_by_query, inverse_of, pair_keys
from conve_tracin.data.text import require_writable, visible
from conve_tracin.data.triples import ASKED, read_queries, resolve_query
from conve_tracin.errors import InputError
from conve_tracin.files import json_text_of_many, require_usable_outputs, write_together
from conve_tracin.influence.load import CheckpointLoader, find_checkpoints
from conve_tracin.influence.scorers import Scorer
from conve_tracin.ranking.ranks import choose_batch_size
from conve_tracin.settings import PredictionOptions

logger = logging.getLogger(__name__)

# Queries that are scored at once, at most; of many entities fewer.
MAX_BATCH_SIZE = 64
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


@dataclass(frozen=True, eq=False)
class Answers:
    """The best answers to one query, by score, equal scores by id.

    Attributes:
        query: entity and relation, (2,).
        entities, scores, ranks, known: (k,) each, k <= top_k.
        num_candidates: how many entities were ranked, known ones not counted.
        num_known: how many candidates are known answers.
    """

    query: tuple[int, int]
    entities: Tensor
    scores: Tensor
    ranks: Tensor
    known: Tensor
    num_candidates: int
    num_known: int


def predict(options: PredictionOptions) -> None:
    """Do what `predict_pytorch.py` does: read, ask, write.

    Raises InputError for files or options that cannot be used.
    """
    require_usable_outputs({"--output": options.output}, inputs=options.inputs)
    if options.keep_known and not options.known:
        logger.info("--keep-known has no effect without --known FILE, which says what is known")
    names = read_names_from(options)
    queries = queries_from(options, names)
    candidates = candidates_from(options, names)
    scorer = load_scorer(options, names)
    if (queries[:, 1] < 0).any() and not scorer.inverse_triples:
        raise InputError(
            f"{options.model_path}: was trained without inverse triples, so that it ranks no heads; ask for tails "
            "(--head H), or train with --inverse-triples"
        )
    answers = answer(
        scorer,
        queries,
        read_known(options, names, np.unique(np.maximum(queries[:, 1], ~queries[:, 1]))),
        num_entities=len(names.entities),
        top_k=options.top_k,
        keep_known=options.keep_known,
        candidates=candidates,
    )
    counts, to_print = [], []
    write_answers(options, _noting(answers, counts, to_print), names)
    print_summary(options, counts, to_print, names)


# ---------------------------------------------------------------------------------------------------------------
# Reading


def queries_from(options: PredictionOptions, names: Names) -> np.ndarray:
    """Return what is asked, (Q, 2), each query once."""
    reading = {"finder": Finder(names), "given_as": options.given_as}
    if options.queries is None:
        values = [ASKED if value is None else value for value in (options.head, options.relation, options.tail)]
        return np.array([resolve_query(values, names.entities, names.relations, **reading)])
    queries = read_queries(options.queries, names.entities, names.relations, **reading)
    return np.array(list(dict.fromkeys(map(tuple, queries.tolist()))))


def candidates_from(options: PredictionOptions, names: Names) -> np.ndarray | None:
    """Return the entities that may be answers, (C,); None stands for all."""
    if options.candidates is not None:
        return read_candidates(
            options.candidates,
            names.entities,
            finder=Finder(names),
            skip_unknown=options.skip_unknown,
            given_as=options.given_as,
        )
    if options.candidate_category is not None:
        return candidates_of_category(options.nodes, options.candidate_category, names.entities)
    return None


def read_known(options: PredictionOptions, names: Names, relations: np.ndarray) -> np.ndarray:
    """Read the known triples of these relations, ids (N, 3)."""
    found = [np.empty((0, 3), dtype=np.int64)]
    for path in options.known:
        triples = read_indexed(path, names.entities, names.relations, skip_unknown=options.skip_unknown)
        found.append(triples[np.isin(triples[:, 1], relations)])
    return np.concatenate(found)


def load_scorer(options: PredictionOptions, names: Names) -> Scorer:
    """Load the model; of a directory of checkpoints, the latest."""
    *earlier, checkpoint = find_checkpoints([options.model_path])
    if earlier:
        logger.info(f"{checkpoint}: the latest of {len(earlier) + 1} checkpoints answers")
    load = CheckpointLoader(
        options,
        entities=names.entities,
        relations=names.relations,
        learning_rates={},
        device=choose_device(options.device),
    )
    return load.load_model(checkpoint).scorer


# ---------------------------------------------------------------------------------------------------------------
# Answering


def answer(
    scorer: Scorer,
    queries: np.ndarray,
    known_triples: np.ndarray,
    *,
    num_entities: int,
    top_k: int,
    keep_known: bool = False,
    candidates: np.ndarray | None = None,
) -> Iterator[Answers]:
    """Rank the candidates for each query (Q, 2); no more than a batch of answers is in memory.

    Args:
        scorer: the model; queries for heads need one with inverse triples.
        queries: (head, relation), or (tail, ~relation).
        known_triples: what is left out, or marked if `keep_known`, ids (N, 3).
        num_entities: K.
        top_k: how many answers to list.
        keep_known: list known answers, too; no other's rank counts them.
        candidates: the entities that may be answers, (C,); all without.

    Raises InputError if a score is not finite.
    """
    known = known_answers(queries, known_triples)
    is_candidate = torch.ones(num_entities, dtype=torch.bool)
    if candidates is not None:
        is_candidate.fill_(False)[torch.from_numpy(candidates)] = True

    def answer_batch(batch: slice) -> list[Answers]:
        scores = scorer.score_queries(queries[batch], num_entities)  # (B, K)
        if not torch.isfinite(torch.stack(scores.aminmax())).all():
            raise InputError("the model's scores are not finite, as its weights are too large; use another checkpoint")
        return [
            best_answers(
                query, row, is_candidate, known.get(query, np.empty(0, np.int64)), top_k=top_k, keep_known=keep_known
            )
            for query, row in zip(map(tuple, queries[batch].tolist()), scores, strict=True)
        ]

    batch_size = choose_batch_size(num_entities, at_most=MAX_BATCH_SIZE)
    with tqdm(total=len(queries), desc="asking", unit="query", delay=2) as bar:
        for batch in compute_in_batches(answer_batch, len(queries), batch_size=batch_size):
            yield from batch
            bar.update(len(batch))


def known_answers(queries: np.ndarray, known_triples: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Find the known answers to queries (Q, 2) among known triples (N, 3): {query: entities, each once}.

    Queries without a known answer are left out.
    """
    size = int(max(known_triples[:, 1].max(initial=0), np.abs(queries[:, 1]).max())) + 1

    def keys_of(pairs: np.ndarray) -> np.ndarray:
        # Relations go from −size to size − 1.
        return pair_keys(pairs[:, 0], pairs[:, 1] + size, 2 * size)

    wanted = np.unique(keys_of(queries))

    def matching(triples: np.ndarray) -> np.ndarray:
        keys = keys_of(triples)
        return triples[wanted[np.searchsorted(wanted, keys).clip(max=len(wanted) - 1)] == keys]

    found = [matching(known_triples)]
    if (queries[:, 1] < 0).any():
        found.append(matching(inverse_of(known_triples)))
    index = group_by_query(np.concatenate(found) + np.array((0, size, 0)))
    return {
        (entity, relation - size): np.unique(index.tails[start:stop])
        for (entity, relation), start, stop in zip(
            index.queries.tolist(), index.offsets[:-1].tolist(), index.offsets[1:].tolist(), strict=True
        )
    }


def best_answers(
    query: tuple[int, int],
    scores: Tensor,
    is_candidate: Tensor,
    known: np.ndarray,
    *,
    top_k: int,
    keep_known: bool,
) -> Answers:
    """List the answers of highest score to one query, with their filtered ranks.

    Args:
        query: what is asked.
        scores, is_candidate: of all entities, (K,) each.
        known: the known answers, (M,).
        top_k, keep_known: see `answer`.
    """
    is_known = torch.zeros_like(is_candidate)
    is_known[torch.from_numpy(known)] = True
    is_unknown = is_candidate & ~is_known
    is_listed = is_candidate if keep_known else is_unknown
    count = min(top_k, int(is_listed.sum()))
    best = scores.masked_fill(~is_listed, -torch.inf).topk(count).values  # (k,)
    # All that tie with the last one take part in the stable sort, so that equal scores are listed by id.
    strong = scores >= (best[-1] if count else torch.inf)
    entities = (strong & is_listed).nonzero()[:, 0]
    values, order = scores[entities].sort(descending=True, stable=True)
    values, entities = values[:top_k], entities[order][:top_k]
    rivals = scores[(strong & is_unknown).nonzero()[:, 0]].sort().values
    return Answers(
        query=query,
        entities=entities,
        scores=values,
        ranks=ranks_among(rivals, values, is_known[entities]),
        known=is_known[entities],
        num_candidates=int(is_unknown.sum()),
        num_known=int((is_candidate & is_known).sum()),
    )


def ranks_among(rivals: Tensor, scores: Tensor, is_known: Tensor) -> Tensor:
    """Rank scores (k,) among those of the unknown candidates, which rise, (n,): (k,) float64, ties by their mean.

    Unknown answers are among the rivals themselves; known ones are ranked as if they alone had been left in.
    """
    up_to, below = (torch.searchsorted(rivals, scores, right=right) for right in (True, False))
    ties = up_to - below - (~is_known).long()
    return 1 + (len(rivals) - up_to).double() + ties / 2


# ---------------------------------------------------------------------------------------------------------------
# Writing


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


def _noting(answers: Iterable[Answers], counts: list[int], to_print: list[Answers]) -> Iterator[Answers]:
    """Pass answers on, noting how many there are for each query, and those to the first one."""
    for found in answers:
        if not counts:
            to_print.append(found)
        counts.append(len(found.entities))
        yield found


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

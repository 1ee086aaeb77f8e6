"""Asking a model for candidates: which tails, or heads, does it rank first? The work of predict_pytorch.py.

A query is (head, relation) for its tails and (tail, ~relation) for its heads, which a model with inverse triples scores
alike.
"""

import logging
from collections.abc import Iterable, Iterator

import numpy as np

from conve_tracin.compute.device import choose_device
from conve_tracin.data.finding import Finder
from conve_tracin.data.index import read_indexed
from conve_tracin.data.names import Names, read_names_from
from conve_tracin.data.resolve import ASKED, read_queries, resolve_query
from conve_tracin.errors import InputError
from conve_tracin.files import require_usable_outputs
from conve_tracin.influence.load import CheckpointLoader, find_checkpoints
from conve_tracin.influence.scorers import Scorer
from conve_tracin.prediction.answers import Answers, answer
from conve_tracin.prediction.candidates import candidates_of_category, read_candidates
from conve_tracin.prediction.write import print_summary, write_answers
from conve_tracin.settings import PredictionOptions

logger = logging.getLogger(__name__)


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


def _noting(answers: Iterable[Answers], counts: list[int], to_print: list[Answers]) -> Iterator[Answers]:
    """Pass answers on, noting how many there are for each query, and those to the first one."""
    for found in answers:
        if not counts:
            to_print.append(found)
        counts.append(len(found.entities))
        yield found

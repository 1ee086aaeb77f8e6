"""Exams of models that were trained already: against known reasons, and against one another."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from conve_tracin.data.reasons import KnownReasons, read_reasons
from conve_tracin.data.triples import read_triples
from conve_tracin.data.vocabulary import Vocabulary, read_vocabulary
from conve_tracin.errors import InputError
from conve_tracin.influence.graph_paths import Adjacency
from truth_lib.agreement import agreements
from truth_lib.graph_rules import RULES
from truth_lib.known_reasons import measure
from truth_lib.lds import bootstrap
from truth_lib.trained import ScoreCache, TrainedModel

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False, kw_only=True)
class Exam:
    """Predictions with known reasons, and models that make them.

    Attributes:
        entities: labels of the graph's entities.
        train: the training triples (N, 3).
        predictions: all that have reasons, (P, 3); they are scored together, so that the cache serves every rank.
        kept: the places of those that every model ranks high enough, (n,).
        explained: these n predictions.
        models: native checkpoints of one graph, trained with several seeds.
        ranks: of the predictions' tails by each model, filtered: (models, n).
        cache: of scores.
    """

    entities: Vocabulary
    train: np.ndarray
    predictions: np.ndarray
    kept: np.ndarray
    explained: list[KnownReasons]
    models: list[TrainedModel]
    ranks: np.ndarray
    cache: ScoreCache

    @cached_property
    def adjacency(self) -> Adjacency:
        """The training triples around each entity."""
        return Adjacency.of(self.train, len(self.entities))

    def scores(self, method: str) -> np.ndarray:
        """Score the training triples by each model, for each prediction: (models, n, N)."""
        return np.stack([self.cache.scores(model, method, self.predictions)[self.kept] for model in self.models])

    def rule_scores(self, name: str) -> np.ndarray:
        """Score the training triples by a rule, for each prediction: (n, N)."""
        return np.stack([RULES[name](each.triple, self.train, self.adjacency) for each in self.explained])

    def describe(self) -> dict[str, Any]:
        """Return what was examined, for the results."""
        return {
            "predictions": len(self.explained),
            "training_triples": len(self.train),
            "models": len(self.models),
            "mrr_of_predictions": [float((1 / ranks).mean()) for ranks in self.ranks],
        }


def load_exam(
    *,
    data: Path,
    reasons: Path,
    model_paths: Sequence[Path],
    max_rank: float,
    cache: Path,
    test_alone: bool = False,
    whole_alone: bool = False,
) -> Exam:
    """Read a data folder (as `prepare_data.py` writes it), a file of reasons and native checkpoints.

    `test_alone` takes the predictions of the test triples alone, `whole_alone` those of which at least one explanation
    is wholly in training.

    Raises:
        InputError: a file cannot be used, or no prediction is ranked within `max_rank` by every model.
    """
    entities = read_vocabulary(data / "entity_to_id.tsv", "entity")
    relations = read_vocabulary(data / "relation_to_id.tsv", "relation")
    train, valid, test = (read_triples(data / f"{split}.txt", entities, relations) for split in SPLITS)
    edge_map = data / "edge_map.json"
    explained = read_reasons(
        reasons, train, entities=entities, relations=relations, edge_map=edge_map if edge_map.is_file() else None
    )
    if test_alone:
        wanted = set(map(tuple, test.tolist()))
        explained = [each for each in explained if tuple(each.triple.tolist()) in wanted]
    if whole_alone:
        explained = [each for each in explained if any(each.complete)]
    if not explained:
        raise InputError(f"{reasons}: has no prediction of that kind; leave out --test-alone or --whole-alone")
    models = [TrainedModel(path, train) for path in model_paths]
    for model in models:
        model.require_mappings(entities, relations)
    predictions = np.stack([each.triple for each in explained])
    known = np.concatenate([valid, test])
    ranks = np.stack([model.rank_tails(predictions, known) for model in tqdm(models, desc="ranks")])
    kept = np.flatnonzero((ranks <= max_rank).all(axis=0))
    if not len(kept):
        raise InputError(f"{reasons}: none of its predictions is ranked within --max-rank {max_rank:g} by every model")
    return Exam(
        entities=entities,
        train=train,
        predictions=predictions,
        kept=kept,
        explained=[explained[i] for i in kept],
        models=models,
        ranks=ranks[:, kept],
        cache=ScoreCache(cache),
    )


def normalized(scores: np.ndarray) -> np.ndarray:
    """Divide scores (…, N) by the largest size in each row, so that models weigh alike in a sum."""
    return scores / np.maximum(np.abs(scores).max(axis=-1, keepdims=True), 1e-30)


def summarize(values: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Average measures over predictions, those that are NaN left out, with their bootstrap intervals."""
    summary = {}
    for name in values[0]:
        known = np.array([each[name] for each in values if not np.isnan(each[name])])
        summary[name] = asdict(bootstrap(known)) | {"predictions": len(known)} if len(known) else None
    return summary


def measures_of_all(
    exam: Exam, methods: Sequence[str], measured: Callable[[int, np.ndarray], dict[str, float]]
) -> dict[str, Any]:
    """Measure every method with each model and with all models summed, and every rule.

    Args:
        exam: the predictions and models.
        methods: of METHODS.
        measured: the place of a prediction and the scores (N,) of the training triples, to measures.

    Returns:
        {method or rule: {"by_model": [measures of each model], "mean": over models and predictions, "sum": of all}}.
    """
    places = range(len(exam.explained))
    results: dict[str, Any] = {}
    for name in tqdm(methods, desc="methods"):
        scores = exam.scores(name)
        values = [[measured(i, of_model[i]) for i in places] for of_model in scores]
        results[name] = {"by_model": [summarize(each) for each in values], "mean": summarize(averages(values))}
        if len(scores) > 1:
            total = normalized(scores).sum(axis=0)
            results[name]["sum"] = summarize([measured(i, total[i]) for i in places])
    for name in tqdm(RULES, desc="rules"):
        scores = exam.rule_scores(name)
        results[name] = {"mean": summarize([measured(i, scores[i]) for i in places])}
    return results


def averages(values: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """Average each prediction's measures over the models: `values` has a list of predictions for each model."""
    names = values[0][0]
    return [
        {name: float(np.mean([each[name] for each in of_models])) for name in names}
        for of_models in zip(*values, strict=True)
    ]


def reasons_exam(exam: Exam, methods: Sequence[str]) -> dict[str, Any]:
    """Measure how well scores find the known reasons among all training triples."""
    return measures_of_all(exam, methods, lambda i, scores: measure(scores, exam.train, exam.explained[i]))


def stability_exam(
    exam: Exam,
    methods: Sequence[str],
    *,
    transform: Callable[[np.ndarray], np.ndarray],
    transformed: Sequence[str],
) -> dict[str, Any]:
    """Measure how much two models, and two sums of as many, agree about one prediction.

    Args:
        exam: predictions and models.
        methods: of METHODS.
        transform: influences (m, n, N) to scores in the order of ranked paths.
        transformed: the methods whose agreement is also measured in that order.

    Returns:
        {method: {number of models in each sum: measures}}. Own triples are those of relations that reasons have.
    """
    results: dict[str, Any] = {}
    for name in tqdm(methods, desc="methods"):
        scores = normalized(exam.scores(name))
        by_size, in_path_order = {}, {}
        for size in range(1, len(scores) // 2 + 1):
            pairs = list(disjoint_groups(len(scores), size))
            sums = {group: scores[list(group)].sum(axis=0) for pair in pairs for group in pair}
            by_size[str(size)] = _agreement_of_pairs(exam, pairs, sums)
            if name in transformed:
                ordered = transform(np.stack(list(sums.values())))
                in_path_order[str(size)] = _agreement_of_pairs(exam, pairs, dict(zip(sums, ordered, strict=True)))
        results[name] = by_size
        if in_path_order:
            results[f"{name}, in the order of ranked paths"] = in_path_order
    return results


Group = tuple[int, ...]


def _agreement_of_pairs(
    exam: Exam, pairs: Sequence[tuple[Group, Group]], scores: Mapping[Group, np.ndarray]
) -> dict[str, Any]:
    """Average the agreements of pairs of groups of models, whose scores are (n, N) each."""
    relations = np.unique(exam.train[np.concatenate([each.reasons for each in exam.explained]), 1])
    values = [
        [
            agreements(one, other, exam.train, each.triple, relations=relations)
            for one, other, each in zip(scores[left], scores[right], exam.explained, strict=True)
        ]
        for left, right in pairs
    ]
    return summarize(averages(values)) | {"pairs": len(values)}


def disjoint_groups(count: int, size: int) -> Iterator[tuple[Group, Group]]:
    """List pairs of groups of `size` of `count` models that share none, each pair once."""
    for left in itertools.combinations(range(count), size):
        rest = [i for i in range(left[0] + 1, count) if i not in left]
        for right in itertools.combinations(rest, size):
            yield left, right

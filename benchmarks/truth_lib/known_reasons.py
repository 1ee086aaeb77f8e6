"""Scores held against known reasons: triples that are known to make a prediction true.

Read from JSON lines, plain or .gz: {"triple": [h, r, t], "explanations": [{"triples": [[h, r, t], …]}, …]}, or
"reasons": [[h, r, t], …] for one explanation. Labels are those of the triples' files; a relation may also be a KGX
predicate, which stands for every relation of the graph that has it.

Scores that are equal are in no order, and each measure says what it makes of them.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.data.names import read_predicates
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from truth_lib.lds import average_ranks

Labels = tuple[str, str, str]


@dataclass(frozen=True, eq=False)
class Explained:
    """A prediction (3,) in ids, and for each explanation the positions (m,) of its triples in the training set.

    `complete` says for each explanation whether all its triples are in the training set. Explanations without any are
    left out.
    """

    triple: np.ndarray
    explanations: tuple[np.ndarray, ...]
    complete: tuple[bool, ...]

    @property
    def reasons(self) -> np.ndarray:
        """The positions of all triples of all explanations, each once: (m,)."""
        return np.unique(np.concatenate(self.explanations))


def read_reasons(
    path: Path,
    train: np.ndarray,
    *,
    entities: Vocabulary,
    relations: Vocabulary,
    edge_map: Path | None = None,
) -> list[Explained]:
    """Read the predictions of a file and find their reasons among the training triples (N, 3).

    Predictions none of whose reasons is in training are left out.

    Raises:
        InputError: a line is no such object, or its triple has an unknown label.
    """
    relations_of = relations_by_name(relations, edge_map)
    place = {tuple(triple): position for position, triple in reversed(list(enumerate(train.tolist())))}
    found = []
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}:{number}"
        triple, explanations = _parse(line, where)
        ids = _ids(triple, entities, relations_of)
        if not ids:
            raise InputError(f"{where}: {' '.join(triple)} has a label that the mappings lack; give the graph's labels")
        positions, complete = [], []
        for reasons in explanations:
            places = [[place[i] for i in _ids(reason, entities, relations_of) if i in place] for reason in reasons]
            here = np.unique(np.array([position for each in places for position in each], dtype=np.int64))
            if len(here):
                positions.append(here)
                complete.append(all(places))
        if positions:
            found.append(Explained(np.array(ids[0]), tuple(positions), tuple(complete)))
    if not found:
        raise InputError(f"{path}: none of its reasons is in the training triples; give those of this graph")
    return found


def relations_by_name(relations: Vocabulary, edge_map: Path | None) -> Mapping[str, list[int]]:
    """Map each relation label, and each predicate of an edge map, to the ids that it stands for."""
    by_name = {label: [i] for label, i in relations.index.items()}
    if edge_map is not None:
        for label, predicate in read_predicates(edge_map).items():
            name = predicate.partition(" (")[0]
            if label in relations.index:
                by_name.setdefault(name, []).append(relations.index[label])
    return by_name


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return [line for line in content.decode("utf-8").splitlines() if line.strip()]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give JSON lines in UTF-8, plain or .gz") from error


def _parse(line: str, where: str) -> tuple[Labels, list[list[Labels]]]:
    try:
        content = json.loads(line)
        explanations = content.get("explanations", [{"triples": content.get("reasons", [])}])
        return _labels(content["triple"]), [[_labels(t) for t in each["triples"]] for each in explanations]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f'{where}: is no {{"triple": [h, r, t], "explanations": [{{"triples": […]}}]}}; correct the line'
        ) from error


def _labels(triple: Any) -> Labels:
    head, relation, tail = triple
    if not all(isinstance(label, str) for label in triple):
        raise TypeError
    return head, relation, tail


def _ids(triple: Labels, entities: Vocabulary, relations_of: Mapping[str, list[int]]) -> list[tuple[int, int, int]]:
    """Translate labels to ids: a triple for each relation that the name stands for, none for unknown labels."""
    head, relation, tail = triple
    if head not in entities.index or tail not in entities.index:
        return []
    return [(entities.index[head], i, entities.index[tail]) for i in relations_of.get(relation, [])]


def first_rank(scores: np.ndarray, is_reason: np.ndarray) -> float:
    """Return the place of the first reason among triples with scores (N,), highest first.

    Of m triples that tie with the best reason, k reasons among them, in any order, the first reason has the mean place
    (m + 1) / (k + 1).
    """
    best = scores[is_reason].max()
    ties = scores == best
    return float((scores > best).sum() + (ties.sum() + 1) / ((ties & is_reason).sum() + 1))


def first_place(scores: np.ndarray, is_reason: np.ndarray) -> float:
    """Return the chance that a reason comes first, ties in any order."""
    first = scores == scores.max()
    return float(is_reason[first].mean())


def average_precision(scores: np.ndarray, is_reason: np.ndarray) -> float:
    """Average the precision at each reason, where those that tie are taken together: scikit-learn's definition."""
    values, groups = np.unique(-scores, return_inverse=True)
    sizes = np.bincount(groups, minlength=len(values))
    reasons = np.bincount(groups[is_reason], minlength=len(values))
    precision = reasons.cumsum() / sizes.cumsum()
    return float((reasons * precision).sum() / is_reason.sum())


def best_jaccard(scores: np.ndarray, explanations: Sequence[np.ndarray], *, seed: int = 0) -> float:
    """Compare the top |e| with each explanation e; return the largest |both| / |either|. Ties are drawn by lot."""
    largest = min(max(map(len, explanations)), len(scores))
    least = np.partition(scores, -largest)[-largest]
    candidates = np.random.default_rng(seed).permutation(np.flatnonzero(scores >= least))
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    overlaps = [(len(np.intersect1d(order[: len(each)], each)), len(each)) for each in explanations]
    return max(both / (2 * size - both) for both, size in overlaps)


def own_auc(
    scores: np.ndarray, train: np.ndarray, explained: Explained, *, end: int, seen: np.ndarray | None = None
) -> float:
    """Compute the area under the ROC curve of reasons among one entity's own triples of the same relation.

    Args:
        scores: of the training triples, (N,).
        train: (N, 3).
        explained: the prediction.
        end: 0 for the prediction's head, 2 for its tail.
        seen: which training triples count, (N,) bool; all without.

    Returns:
        The mean over the relations, and the places that the entity has in them, for which there are reasons and
        others; NaN where there are none.
    """
    entity = explained.triple[end]
    is_reason = np.zeros(len(train), dtype=bool)
    is_reason[explained.reasons] = True
    areas = []
    for place in (0, 2):
        own = train[:, place] == entity
        if seen is not None:
            own &= seen
        for relation in np.unique(train[own & is_reason, 1]):
            group = own & (train[:, 1] == relation)
            marked = is_reason[group]
            if not marked.all():
                areas.append(area_under_roc(scores[group], marked))
    return float(np.mean(areas)) if areas else float("nan")


def area_under_roc(scores: np.ndarray, marked: np.ndarray) -> float:
    """Compute the chance that a marked one of (n,) has a higher score than another, ties counted as half."""
    ranks = average_ranks(scores)
    positives, others = marked.sum(), (~marked).sum()
    return float((ranks[marked].sum() - positives * (positives + 1) / 2) / (positives * others))


def measure(scores: np.ndarray, train: np.ndarray, explained: Explained) -> dict[str, float]:
    """Compute all measures of one prediction from the scores (N,) of the training triples (N, 3).

    The prediction itself, where it is a training triple, takes no part.
    """
    others = (train != explained.triple).any(axis=1)
    is_reason = np.zeros(len(train), dtype=bool)
    is_reason[explained.reasons] = True
    rest = np.where(others, scores, -np.inf)
    return {
        "reciprocal_rank": 1 / first_rank(rest, is_reason),
        "first_place": first_place(rest, is_reason),
        "average_precision": average_precision(rest, is_reason),
        "jaccard": best_jaccard(rest, explained.explanations),
        "head_auc": own_auc(scores, train, explained, end=0, seen=others),
        "tail_auc": own_auc(scores, train, explained, end=2, seen=others),
    }

"""What to know of a split before its metrics are believed."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from conve_tracin.data.keys import is_among, pair_keys, triple_keys
from conve_tracin.data.splits import SplitGraph, held_out_triples
from conve_tracin.data.text import shown


def remarks_on_splits(graph: SplitGraph) -> list[str]:
    """Return one sentence for each thing in the splits that makes test metrics mean something else."""
    train = graph.splits["train"]
    held_out = held_out_triples(graph)
    remarks = _remark_on_blanks([*graph.relations, *graph.entities])
    never_trained = _number_missing(held_out[:, [0, 2]], train[:, [0, 2]], len(graph.entities))
    if never_trained:
        remarks.append(
            f"{never_trained:,} entities occur in valid or test only: they keep their random start, "
            "as training never sees them"
        )
    never_trained = _number_missing(held_out[:, [1]], train[:, [1]], len(graph.relations))
    if never_trained:
        remarks.append(f"{never_trained:,} relations occur in valid or test only: training never sees them")
    sizes = np.array([len(graph.entities), len(graph.relations), len(graph.entities)])
    repeated = int(
        _found_among(triple_keys(held_out, sizes), (triple_keys(rows, sizes) for rows in _blocks(train))).sum()
    )
    if repeated:
        remarks.append(f"{repeated:,} valid or test triples are training triples too: metrics on them say little")
    if len(held_out):
        remarks += _remark_on_pairs(train, held_out, sizes)
    return remarks


def _remark_on_blanks(labels: Sequence[str]) -> list[str]:
    padded = [label for label in labels if label != label.strip()]
    if not padded:
        return []
    return [
        f"{len(padded):,} labels begin or end with a blank (first: {shown(padded[0])}): they are not those without it"
    ]


def remarks_on_test(train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> list[str]:
    """Say how many of the test triples (n, 3) are training triples, or validation triples, too: one sentence each."""
    sizes = np.max([train.max(axis=0), valid.max(axis=0), test.max(axis=0)], axis=0) + 1
    remarks = []
    for triples, seen in (
        (train, "are training triples, too: metrics on them say little"),
        (valid, "stand in validation, too: they have helped to choose the model"),
    ):
        number = int(np.isin(triple_keys(test, sizes), triple_keys(triples, sizes)).sum())
        remarks += [f"{number:,} of {len(test):,} test triples {seen}"] if number else []
    return remarks


def _remark_on_pairs(train: np.ndarray, held_out: np.ndarray, sizes: np.ndarray) -> list[str]:
    """Say how many held-out triples join two entities that another triple of training joins too."""
    num_entities = int(sizes[2])
    pairs = _keys_of_ends(held_out, num_entities)
    own = np.sort(triple_keys(held_out, sizes))
    others = (rows[~is_among(triple_keys(rows, sizes), own)] for rows in _blocks(train))
    same_way = _found_among(pairs, (_keys_of_ends(rows, num_entities) for rows in others))
    other_way = _found_among(pairs, (_keys_of_ends(rows[:, ::-1], num_entities) for rows in _blocks(train)))
    joined = int((same_way | other_way).sum())
    if not joined:
        return []
    return [
        f"{joined:,} of {len(held_out):,} valid and test triples join two entities that a training triple joins too "
        f"({int(same_way.sum()):,} the same way by another relation, {int(other_way.sum()):,} the other way round), "
        "which flatters their ranks; --hold-out-pairs takes such triples out of training"
    ]


def _keys_of_ends(triples: np.ndarray, num_entities: int) -> np.ndarray:
    return pair_keys(triples[:, 0].astype(np.int64), triples[:, 2], num_entities)


def _blocks(triples: np.ndarray, *, rows_at_a_time: int = 2**20) -> Iterator[np.ndarray]:
    return (triples[start : start + rows_at_a_time] for start in range(0, len(triples), rows_at_a_time))


def _number_missing(wanted: np.ndarray, ids: np.ndarray, size: int) -> int:
    """Count the distinct ids below `size` in `wanted` that are not in `ids`."""
    is_missing = np.zeros(size, dtype=bool)
    is_missing[wanted] = True
    is_missing[ids] = False
    return int(is_missing.sum())


def _found_among(wanted: np.ndarray, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Tell which of the wanted keys (M,) occur in any block of keys: (M,) bool. Memory grows with `wanted` alone."""
    distinct = np.unique(wanted)
    is_found = np.zeros(len(distinct), dtype=bool)
    for keys in blocks:
        is_found[np.searchsorted(distinct, keys[is_among(keys, distinct)])] = True
    return is_found[np.searchsorted(distinct, wanted)]

"""A graph in its splits, and random triples held out of training."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from conve_tracin.data.keys import first_places
from conve_tracin.errors import InputError

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class SplitGraph:
    """Label triples as ids, in their splits.

    `splits` maps train, valid and test to int64 arrays of shape (N, 3); `names` holds the readable names of
    entities that have one besides their label.
    """

    entities: list[str]
    relations: list[str]
    splits: dict[str, np.ndarray]
    names: Mapping[str, str] = field(default_factory=dict)


def hold_out(
    triples: np.ndarray,
    fractions: Mapping[str, float],
    *,
    random_seed: int,
    candidates: np.ndarray | None = None,
    together: bool = False,
) -> dict[str, np.ndarray]:
    """Take random triples out of `triples`, shape (N, 3), that training can spare.

    Returns the held-out triples under the keys of `fractions` (each a share of N) and the rest under "train",
    all in their first order. Every entity and relation stays in "train": in a random order of the triples, the
    first with an entity or relation is never held out. A graph with few triples for each entity can
    spare fewer than asked for; the shares then shrink together, and that is logged.

    Where `candidates`, (N,) bool, is given, only those are held out, and the fractions are shares of them. With
    `together`, all other triples that join the same two entities as a held-out triple are left out of "train".

    Raises InputError for fractions that are no proper shares, and where a share is left without a triple.
    """
    _require_shares(fractions)
    rows = np.arange(len(triples)) if candidates is None else np.flatnonzero(candidates)
    shuffled = np.random.default_rng(random_seed).permutation(rows)
    spare = _spare_rows(triples, shuffled, candidates, together=together)
    counts = _counts_that_fit(fractions, len(shuffled), len(spare))
    splits, start = {}, 0
    for split, count in counts.items():
        splits[split] = np.sort(spare[start : start + count])
        start += count
    kept = np.ones(len(triples), dtype=bool)
    kept[spare[:start]] = False
    if together:
        pairs = pairs_of(triples)
        kept &= ~np.isin(pairs, pairs[spare[:start]])
    return {"train": triples[kept], **{split: triples[rows] for split, rows in splits.items()}}


def _require_shares(fractions: Mapping[str, float]) -> None:
    if min(fractions.values()) <= 0 or sum(fractions.values()) >= 1:
        raise InputError(
            f"the {' and '.join(fractions)} fraction{'s' * (len(fractions) > 1)} "
            f"{', '.join(map(str, fractions.values()))}: each must be above 0, and their sum below 1"
        )


def _spare_rows(
    triples: np.ndarray, shuffled: np.ndarray, candidates: np.ndarray | None, *, together: bool
) -> np.ndarray:
    """Return those of the shuffled rows that training can spare; with `together`, with all others of their pairs."""
    # The triples that stay in any case come first, so that what they hold need not be kept twice.
    order = shuffled if candidates is None else np.concatenate([np.flatnonzero(~candidates), shuffled])
    needed = np.zeros(len(triples), dtype=bool)
    needed[_first_positions(triples[order, 0], triples[order, 2])] = True
    needed[_first_positions(triples[order, 1])] = True
    if together:
        pairs = pairs_of(triples)
        return shuffled[~np.isin(pairs[shuffled], pairs[order[needed]])]
    return shuffled[~needed[len(triples) - len(shuffled) :]]


def _counts_that_fit(fractions: Mapping[str, float], num_candidates: int, num_spare: int) -> dict[str, int]:
    """Return how many triples each split gets: its share of the candidates, or less of all where few can be spared."""
    counts = {split: max(1, round(fraction * num_candidates)) for split, fraction in fractions.items()}
    wanted = sum(counts.values())
    if wanted <= num_spare:
        return counts
    counts = {split: count * num_spare // wanted for split, count in counts.items()}
    if min(counts.values()) == 0:
        raise InputError(
            f"only {num_spare} of {num_candidates} triples can be held out while training keeps every entity and "
            "relation; give a larger graph, or splits of your own with --triples TRAIN VALID TEST"
        )
    logger.warning(
        "only %d of %d triples can be held out while training keeps every entity and relation (%d were asked for)",
        sum(counts.values()),
        num_candidates,
        wanted,
    )
    return counts


def pairs_of(triples: np.ndarray) -> np.ndarray:
    """Return a number for the two entities of each triple (N, 3), whichever is the head: (N,)."""
    ends = np.sort(triples[:, [0, 2]].astype(np.int64), axis=1)
    return ends[:, 0] * (triples[:, [0, 2]].max(initial=0) + 1) + ends[:, 1]


def without_held_out_pairs(graph: SplitGraph) -> SplitGraph:
    """Leave out of training what joins the two entities of a valid or test triple."""
    train, held_out = graph.splits["train"], held_out_triples(graph)
    pairs = pairs_of(np.concatenate([train, held_out]))
    kept = ~np.isin(pairs[: len(train)], pairs[len(train) :])
    if not kept.any():
        raise InputError("--hold-out-pairs leaves no training triple: each joins a pair that is held out; leave it out")
    return replace(graph, splits={**graph.splits, "train": train[kept]})


def held_out_triples(graph: SplitGraph) -> np.ndarray:
    """Return the valid and test triples, (M, 3)."""
    return np.concatenate([graph.splits["valid"], graph.splits["test"]])


def _first_positions(*columns: np.ndarray) -> np.ndarray:
    """Return the first row of each distinct id in `columns`, (N,) each."""
    num_rows = len(columns[0])
    first = np.full(max(column.max() for column in columns) + 1, num_rows)
    for column in columns:
        here = np.full_like(first, num_rows)
        # Of several assignments to one place the last one holds.
        here[column[::-1]] = np.arange(num_rows)[::-1]
        np.minimum(first, here, out=first)
    return first[first < num_rows]


def without_duplicates(triples: np.ndarray) -> np.ndarray:
    """Return the distinct triples, (M, 3), in the order of their first occurrence."""
    return triples[first_places(triples)]

"""One number for each pair or triple of ids: equal ones are found by sorting numbers, in a fraction of rows' time."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

# An array or a tensor.
Ids = TypeVar("Ids")


def pair_keys(first: Ids, second: Ids, size: int) -> Ids:
    """Return one number for each pair of ids (N,), sorted as the pairs are; `size` is above every second id."""
    return first * size + second


def pairs_of_keys(keys: Ids, size: int) -> tuple[Ids, Ids]:
    """Undo `pair_keys`: (N,) twice."""
    return keys // size, keys % size


def triple_keys(triples: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Return one number for each triple (N, 3), sorted as the triples are: (N,) int64; `sizes` are above the ids."""
    keys = triples[:, 0].astype(np.int64)
    for column in (1, 2):
        keys *= int(sizes[column])
        keys += triples[:, column]
    return keys


def is_among(keys: np.ndarray, sorted_keys: np.ndarray) -> np.ndarray:
    """Tell which keys (N,) are among sorted ones, of which there are few beside N: (N,) bool."""
    if not len(sorted_keys):
        return np.zeros(len(keys), dtype=bool)
    # np.isin would sort all of them together.
    return sorted_keys[np.searchsorted(sorted_keys, keys).clip(max=len(sorted_keys) - 1)] == keys


def places_of(triples: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return all places at which one of the wanted triples (m, 3) stands among triples (N, 3), sorted."""
    sizes = np.maximum(wanted.max(axis=0, initial=0), triples.max(axis=0, initial=0)) + 1
    return np.flatnonzero(is_among(triple_keys(triples, sizes), np.sort(triple_keys(wanted, sizes))))


def first_places(triples: np.ndarray) -> np.ndarray:
    """Return where each distinct triple of (N, 3) stands first, in ascending order: (M,)."""
    return first_places_and_counts(triples)[0]


def first_places_and_counts(triples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `first_places` of triples (N, 3) and how often the triple at each stands: (M,) twice."""
    if not len(triples):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    keys = triple_keys(triples, triples.max(axis=0) + 1)
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    order = np.argsort(first)
    return first[order], counts[order]


def merge_repeated_triples(triples: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the distinct triples (M, 3) by their first places, and how often each stands, (M,).

    Triples (N, 3) without a repetition are returned themselves, and None for the counts.
    """
    first, counts = first_places_and_counts(triples)
    if len(first) == len(triples):
        return triples, None
    return triples[first], counts


def distinct_triples(triples: np.ndarray) -> np.ndarray:
    """Return each triple of (N, 3) ids once, sorted; as `np.unique(triples, axis=0)`, and many times faster."""
    triples = np.asarray(triples, dtype=np.int64).reshape(-1, 3)
    sizes = [int(size) for size in triples.max(axis=0, initial=0) + 1]
    if sizes[0] * sizes[1] * sizes[2] >= 2**63:
        return np.unique(triples, axis=0)
    keys = np.sort(triple_keys(triples, sizes))
    queries, tails = pairs_of_keys(keys[np.diff(keys, prepend=-1) > 0], sizes[2])
    return np.stack([*pairs_of_keys(queries, sizes[1]), tails], axis=1)


def digest_of_triples(triples: np.ndarray) -> str:
    """Digest which triples (N, 3) there are, in whatever order and however often: SHA-256 in hexadecimal."""
    return hashlib.sha256(distinct_triples(triples)).hexdigest()

"""What is left out of a training, as places among training triples: listed triples, and others like them."""

from collections.abc import Sequence

import numpy as np

# Which entities of a prediction a training triple shares.
NEITHER, OF_HEAD, OF_TAIL, OF_BOTH = SHARED = range(4)


def entities_shared(triples: np.ndarray, prediction: Sequence[int]) -> np.ndarray:
    """Say which entities of a prediction training triples (N, 3) have at either end: NEITHER to OF_BOTH, (N,)."""
    head, _, tail = prediction
    ends = triples[:, [0, 2]]
    return OF_HEAD * (ends == head).any(axis=1) + OF_TAIL * (ends == tail).any(axis=1)


def draw_control(
    triples: np.ndarray,
    prediction: Sequence[int],
    removed: np.ndarray,
    excluded: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw as many training triples as are removed for a prediction, of those that share an entity with it.

    As many as possible share the head, the tail or both as removed ones do; the others share one or the other. Only if
    the prediction's entities have too few triples, some share none.

    Args:
        triples: the distinct training triples, (N, 3).
        prediction: head, relation and tail.
        removed: places of removed triples, (m,).
        excluded: places that must not be drawn, the removed ones among them, (e,).
        generator: decides.

    Returns:
        Places, sorted: (m,), or fewer if there are not as many triples.
    """
    shared = entities_shared(triples, prediction)
    is_free = np.ones(len(triples), dtype=bool)
    is_free[excluded] = False
    near = generator.permutation(np.flatnonzero(is_free & (shared != NEITHER)))
    wanted = np.bincount(shared[removed], minlength=len(SHARED))
    alike = [near[shared[near] == kind][: wanted[kind]] for kind in SHARED[1:]]
    chosen = np.concatenate(alike)
    others = near[~np.isin(near, chosen)]
    chosen = np.concatenate([chosen, others[: len(removed) - len(chosen)]])
    if len(chosen) < len(removed):
        far = generator.permutation(np.flatnonzero(is_free & (shared == NEITHER)))
        chosen = np.concatenate([chosen, far[: len(removed) - len(chosen)]])
    return np.sort(chosen)


def entities_lost(triples: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the entities that have a triple in (N, 3) but none in (M, 3), sorted."""
    return np.setdiff1d(triples[:, [0, 2]], kept[:, [0, 2]])

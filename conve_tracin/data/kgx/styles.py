"""Which edges of a KGX graph are kept: styles, and the degree of their ends.

**Styles**, by the kinds of subject and object in either order:

- `keepall`: every edge.
- `original`: without `subclass_of`.
- `CD`: chemical-disease.
- `CGGD`: chemical-gene and gene-disease.
- `CCGGDD`: chemical-chemical, gene-gene and disease-disease.
- `rCD`: without chemical-disease.
- `CGGD_alltreat`: CGGD, and every `treats` whatever it connects.
- `CCGGDD_alltreat`: CCGGDD, and every `treats` whatever it connects.
- `clean_baseline`: every `treats` edge and all edges of its ends. Elsewhere no edge that text mining or a database of
  a model organism gave, and no entity with fewer than LOW_DEGREE edges.

**Degree.** The degree of an entity is the number of distinct triples that it stands in. Dropping an entity lowers the
degree of its neighbours; this goes on until no entity with too few edges is left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from conve_tracin.data.kgx.biolink import CHEMICAL, DISEASE, GENE

SUBCLASS_OF, TREATS = "biolink:subclass_of", "biolink:treats"

CLEAN_BASELINE = "clean_baseline"

# Of clean_baseline, where --min-degree says nothing else.
LOW_DEGREE = 5


@dataclass(frozen=True, eq=False)
class EdgeBlock:
    """Some edges as styles look at them: each member is an array of shape (n,)."""

    head_kinds: np.ndarray
    tail_kinds: np.ndarray
    is_subclass: np.ndarray
    is_treats: np.ndarray

    def connects(self, one: int, other: int) -> np.ndarray:
        """Tell which edges go between a node of kind `one` and a node of kind `other`, either way, (n,) bool."""
        forward = (self.head_kinds & one > 0) & (self.tail_kinds & other > 0)
        return forward | ((self.head_kinds & other > 0) & (self.tail_kinds & one > 0))


def _everything(block: EdgeBlock) -> np.ndarray:
    return np.ones(len(block.is_treats), dtype=bool)


def _connects_over_genes(block: EdgeBlock) -> np.ndarray:
    return block.connects(CHEMICAL, GENE) | block.connects(GENE, DISEASE)


def _connects_alike(block: EdgeBlock) -> np.ndarray:
    return block.connects(CHEMICAL, CHEMICAL) | block.connects(GENE, GENE) | block.connects(DISEASE, DISEASE)


# Which edges a style keeps, (n,) bool. What clean_baseline drops shows when all edges have been read.
STYLES: dict[str, Callable[[EdgeBlock], np.ndarray]] = {
    "keepall": _everything,
    "original": lambda block: ~block.is_subclass,
    "CD": lambda block: block.connects(CHEMICAL, DISEASE),
    "CGGD": _connects_over_genes,
    "CCGGDD": _connects_alike,
    "rCD": lambda block: ~block.connects(CHEMICAL, DISEASE),
    "CGGD_alltreat": lambda block: _connects_over_genes(block) | block.is_treats,
    "CCGGDD_alltreat": lambda block: _connects_alike(block) | block.is_treats,
    CLEAN_BASELINE: _everything,
}


def touches_ends_of(triples: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Tell which triples (N, 3) have an end that a chosen one, (N,) bool, has too: (N,) bool."""
    is_end = np.zeros(triples[:, [0, 2]].max(initial=-1) + 1, dtype=bool)
    is_end[triples[chosen, 0]] = True
    is_end[triples[chosen, 2]] = True
    return is_end[triples[:, 0]] | is_end[triples[:, 2]]


def with_degree(triples: np.ndarray, least: int, *, exempt: np.ndarray | None = None) -> np.ndarray:
    """Tell which distinct triples (N, 3) are left when entities in fewer than `least` of them are dropped: (N,) bool.

    Dropping goes on until every entity left has its degree. Triples that are `exempt`, (N,) bool, stay, and count.
    """
    stays = np.zeros(len(triples), dtype=bool) if exempt is None else exempt
    left = np.ones(len(triples), dtype=bool)
    size = triples[:, [0, 2]].max(initial=-1) + 1
    while True:
        heads, tails = triples[left, 0], triples[left, 2]
        # A triple from an entity to itself is one edge of it.
        degrees = np.bincount(heads, minlength=size) + np.bincount(tails[heads != tails], minlength=size)
        is_low = degrees < least
        dropped = left & ~stays & (is_low[triples[:, 0]] | is_low[triples[:, 2]])
        if not dropped.any():
            return left
        left &= ~dropped

"""The training graph, and what is found in it without going through all its triples.

Each of its structures is sorted when it is first asked for. Where the graph has an index (see `index`), they are mapped
from its files instead, with the same content.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from conve_tracin.data.adjacency import Adjacency, triple_weights
from conve_tracin.data.keys import digest_of_triples, first_places, merge_repeated_triples
from conve_tracin.data.sorted_queries import SortedQueries, as_small, starts_of

Arrays = dict[str, np.ndarray]
# Takes the name of a structure and what makes its arrays, and returns them.
Keep = Callable[[str, Callable[[], Arrays]], Arrays]


class Graph:
    """The distinct training triples of a graph, with how often each stands in the file.

    Args:
        triples: the distinct ones by their first places, (N, 3) ids.
        num_entities, num_relations: of the mappings; by default those that the triples have.
        counts: how often each stands in the file, (N,); None where none is repeated.
        listed_triples: as the file has them, (M, 3).
        keep: may return arrays that are kept from an earlier time.
    """

    def __init__(
        self,
        triples: np.ndarray,
        num_entities: int | None = None,
        num_relations: int | None = None,
        *,
        counts: np.ndarray | None = None,
        listed_triples: np.ndarray | None = None,
        keep: Keep = lambda _, make: make(),
    ) -> None:
        self.triples = triples
        self.num_entities = int(triples[:, [0, 2]].max(initial=-1)) + 1 if num_entities is None else num_entities
        self.num_relations = int(triples[:, 1].max(initial=-1)) + 1 if num_relations is None else num_relations
        self.counts = counts
        self.listed_triples = triples if listed_triples is None else listed_triples
        self.keep = keep
        self._queries: dict[tuple[bool, bool], SortedQueries] = {}

    @classmethod
    def of_listed(
        cls, listed_triples: np.ndarray, num_entities: int, num_relations: int, keep: Keep = lambda _, make: make()
    ) -> "Graph":
        """Take the triples of a file (M, 3), of which some may be repeated."""
        merged = keep("distinct", lambda: _merged(listed_triples))
        return cls(
            merged.get("triples", listed_triples),
            num_entities,
            num_relations,
            counts=merged.get("counts"),
            listed_triples=listed_triples,
            keep=keep,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of which triples there are, as `digest_of_triples` has it."""
        arrays = self.keep("digest", lambda: {"digest": np.array(digest_of_triples(self.triples))})
        return str(arrays["digest"])

    @cached_property
    def first_places(self) -> np.ndarray | None:
        """Where each distinct triple stands first in the file, (N,); None where none is repeated."""
        return None if self.counts is None else first_places(self.listed_triples)

    @cached_property
    def places_of_listed(self) -> np.ndarray:
        """Which of the distinct triples each one of the file is, (M,)."""
        _, which = np.unique(self.listed_triples, axis=0, return_inverse=True)
        place = np.empty(len(self.triples), dtype=np.int64)
        place[which[first_places(self.listed_triples)]] = np.arange(len(self.triples))
        return place[which]

    def queries(self, *, inverse_triples: bool, repeated: bool = False) -> SortedQueries:
        """Return the training queries; with `repeated` those of the file's triples, as often as each stands there."""
        repeated = repeated and self.counts is not None
        if (inverse_triples, repeated) not in self._queries:
            name = "queries" + "-both" * inverse_triples + "-listed" * repeated
            self._queries[inverse_triples, repeated] = SortedQueries.of(
                self.listed_triples if repeated else self.triples,
                self.num_entities,
                self.num_relations,
                inverse_triples=inverse_triples,
                kept=lambda sort: self.keep(name, sort),
            )
        return self._queries[inverse_triples, repeated]

    @cached_property
    def adjacency(self) -> Adjacency:
        """The triples around each entity."""
        return Adjacency(**self.keep("around", lambda: vars(Adjacency.of(self.triples, self.num_entities))))

    @cached_property
    def weights(self) -> np.ndarray:
        """The factor of each triple in a path's weight: (N,)."""
        return self.keep("weights", lambda: {"weights": triple_weights(self.triples)})["weights"]

    @cached_property
    def triples_of_relations(self) -> np.ndarray:
        """How many triples each relation has: (R,)."""
        return np.diff(self._by_relation["offsets"])

    def positions_of_relation(self, relation: int) -> np.ndarray:
        """Return where the triples of a relation stand, in ascending order: (k,)."""
        offsets = self._by_relation["offsets"]
        if relation >= self.num_relations:
            return np.empty(0, dtype=np.int64)
        return self._by_relation["order"][int(offsets[relation]) : int(offsets[relation + 1])]

    def tails_of(self, entity: int, relation: int) -> np.ndarray:
        """List the tails of a query, or the heads for a relation that is an inverse, as `inverse_of` has it: (k,)."""
        known, found = (0, 2) if relation >= 0 else (2, 0)
        around = self.adjacency.positions[self.adjacency.around(entity)]
        triples = np.take(self.triples, np.concatenate([around, self._by_relation["loops"]]), axis=0)
        return triples[(triples[:, known] == entity) & (triples[:, 1] == max(relation, ~relation)), found]

    def has_entity(self, entity: int) -> bool:
        """Whether some triple has the entity."""
        loops = self.triples[self._by_relation["loops"], 0]
        return bool(self.adjacency.degrees[entity] or (loops == entity).any())

    @cached_property
    def _by_relation(self) -> Arrays:
        return self.keep("by-relation", self._sort_by_relation)

    def _sort_by_relation(self) -> Arrays:
        relations = self.triples[:, 1]
        # Numbers of 16 bits are sorted in a tenth of the time.
        narrow = relations.astype(np.uint16) if self.num_relations <= 2**16 else relations
        return {
            "order": as_small(np.argsort(narrow, kind="stable")),
            "offsets": starts_of(relations, self.num_relations),
            "loops": np.flatnonzero(self.triples[:, 0] == self.triples[:, 2]),
        }


def _merged(listed_triples: np.ndarray) -> Arrays:
    triples, counts = merge_repeated_triples(listed_triples)
    return {} if counts is None else {"triples": triples, "counts": counts}

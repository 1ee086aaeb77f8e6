"""What a model trained with softmax cross-entropy believes of queries: p = softmax(s) over all entities.

Every sum over p needs log Σ_k exp(s_k), the normalizer, which costs a pass over all entities for each query; for the
many queries of a hub, over a sample of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from conve_tracin.data.graph import Keep
from conve_tracin.data.queries import Queries
from conve_tracin.data.sorted_queries import SortedQueries
from conve_tracin.influence.engine.batches import map_on_all_cores
from conve_tracin.influence.engine.passes import encode_queries
from conve_tracin.model.conve import ConvE

# Query vectors whose scores against a chunk of the entities are held at once.
VECTORS_AT_ONCE = 1024
# Scores that are held at once, so that they stay in a core's cache.
SCORES_AT_ONCE = 2**19
# Queries of an entity from which what is computed for it is kept for later runs.
KEPT_FROM = 64


@dataclass(frozen=True)
class Entities:
    """What sums over entities run over: rows (M, d), their biases (M,), and how many each stands for, (M,).

    None stands for no biases, and for one each.
    """

    rows: Tensor
    bias: Tensor | None
    factors: Tensor | None = None

    @classmethod
    def of(cls, model: ConvE) -> "Entities":
        """Take all entities of a model."""
        bias = model.entity_bias
        return cls(model.entity_embeddings.weight.detach(), None if bias is None else bias.detach())

    def take(self, ids: Tensor, factors: Tensor) -> "Entities":
        """Take some of all entities, (M,)."""
        return Entities(self.rows[ids], None if self.bias is None else self.bias[ids], factors)

    def split(self, size: int) -> Iterator["Entities"]:
        """Go through them, `size` at a time."""
        for start in range(0, len(self.rows), size):
            parts = (None if each is None else each[start : start + size] for each in (self.bias, self.factors))
            yield Entities(self.rows[start : start + size], *parts)

    def scores(self, vectors: Tensor) -> Tensor:
        """Score them for query vectors (B, d): (B, M)."""
        scores = vectors @ self.rows.T
        return scores if self.bias is None else scores.add_(self.bias)

    def softmax_moments(
        self, vectors: Tensor, *, size: int | None = None, draws: "Draws | None" = None
    ) -> tuple[Tensor, Tensor]:
        """Compute log Σ_k exp(s_k) and ē = Σ_k p_k e_k of query vectors (B, d): (B,) and (B, d).

        The sums run with the largest score so far taken off (Milakov and Gimelshein, 2018,
        https://arxiv.org/abs/1805.02867, algorithm 3). `draws` of B queries are filled on the way.
        """

        @torch.no_grad()
        def sums_of(part: Entities) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            scores = part.scores(vectors)
            top = scores.amax(dim=1, keepdim=True)
            exponentials = scores.sub_(top).exp_()
            if part.factors is not None:
                exponentials *= part.factors
            sums = exponentials.sum(dim=1, keepdim=True), exponentials @ part.rows
            return top, *sums, None if draws is None else exponentials

        largest = vectors.new_full((len(vectors), 1), -torch.inf)
        total, weighted = vectors.new_zeros(len(vectors), 1), torch.zeros_like(vectors)
        parts = list(self.split(size or min(4096, _entities_at_once(vectors))))
        for top, added, moved, exponentials in map_on_all_cores(sums_of, parts, vectors.device):
            before, largest = largest, torch.maximum(largest, top)
            shrink, share = (before - largest).exp(), (top - largest).exp()
            total = total * shrink + added * share
            weighted = weighted * shrink + moved * share
            if draws is not None:
                draws.add(exponentials, added * share / total)
        return (largest + total.log())[:, 0], weighted / total


class Draws:
    """Entities that are drawn from p, m for each of B queries, while p's exponentials come chunk by chunk.

    Each chunk takes the place of what was drawn before with its share of the sum so far, so that in the end every
    entity has been drawn with its p.

    Args:
        num_queries, count: B and m.
        generator: of the drawing, on the CPU.

    Attributes:
        entities: what is drawn, (B, m) int64 on the CPU.
    """

    def __init__(self, num_queries: int, count: int, generator: torch.Generator) -> None:
        self.entities = torch.zeros(num_queries, count, dtype=torch.int64)
        self.generator = generator
        self.start = 0

    def add(self, exponentials: Tensor, share: Tensor) -> None:
        """Take the next entities' exponentials (B, k), and their share of the sum of all so far, (B, 1)."""
        chances = torch.rand(self.entities.shape, generator=self.generator).to(share)
        is_new = chances < share
        rows = is_new.any(dim=1).nonzero()[:, 0]
        sums = exponentials[rows].cumsum(dim=1)
        places = torch.rand(len(rows), self.entities.shape[1], generator=self.generator).to(sums) * sums[:, -1:]
        found = torch.searchsorted(sums, places).clamp_(max=sums.shape[1] - 1) + self.start
        rows, is_new = rows.cpu(), is_new.cpu()
        self.entities[rows] = torch.where(is_new[rows], found.cpu(), self.entities[rows])
        self.start += exponentials.shape[1]


class HeadBeliefs(NamedTuple):
    """Of the M queries of a head: log Σ_k exp(s_k) (M,), ē = Σ_k p_k e_k (M, d), and entities drawn from p (M, m)."""

    normalizers: Tensor
    means: Tensor
    drawn: Tensor


class Beliefs:
    """Normalizers and expected entities of the training queries around an entity; each is computed once.

    Args:
        model: ConvE in eval mode.
        queries: the distinct training queries with their tails, in the model's relation ids.
        entities_for: what the normalizers of queries (M,) run over where a tail is in more than `max_exact`.
        max_exact: see there; the normalizers of fewer queries run over all entities.
        draws: entities drawn for all queries of a head together, at least one for each of them unless it is 0.
        seed: of the drawing.
        keep: may return arrays that are kept from an earlier time: those of entities in many queries.
    """

    def __init__(
        self,
        model: ConvE,
        queries: Queries | SortedQueries,
        *,
        entities_for: Callable[[Tensor], Entities],
        max_exact: int,
        draws: int = 0,
        seed: int = 0,
        keep: Keep = lambda _, make: make(),
    ) -> None:
        self.model = model
        self.queries = queries
        self.draws = draws
        self._entities_for = entities_for
        self.max_exact = max_exact
        self.seed = seed
        self._keep = keep
        self._of_heads: dict[int, HeadBeliefs] = {}
        self._of_tails: dict[int, Tensor] = {}

    def of_head(self, head: int) -> HeadBeliefs:
        """Return what the model believes of the queries (head, ·)."""
        if head not in self._of_heads:
            ids = self.queries.of_head(head)
            # Seeded by the head, so that what is drawn does not depend on which heads were asked for before it.
            seed = np.random.SeedSequence([self.seed, head]).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(seed))
            count = -(-self.draws // max(len(ids), 1))
            computed = self._computed(
                f"beliefs-{head}", ids, lambda _, vectors: self._moments(vectors, count, generator)
            )
            self._of_heads[head] = HeadBeliefs(**computed)
        return self._of_heads[head]

    def of_tail(self, tail: int) -> Tensor:
        """Return log Σ_k exp(s_k) of the queries that have a tail: (M,)."""
        if tail not in self._of_tails:
            ids = self.queries.with_tail(tail)
            all_entities = Entities.of(self.model)

            def compute(part: Tensor, vectors: Tensor) -> dict[str, Tensor]:
                entities = all_entities if len(ids) <= self.max_exact else self._entities_for(part)
                return {"normalizers": log_normalizers(entities, vectors)}

            self._of_tails[tail] = self._computed(f"normalizers-{tail}", ids, compute)["normalizers"]
        return self._of_tails[tail]

    def _moments(self, vectors: Tensor, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        draws = Draws(len(vectors), count, generator)
        normalizers, means = Entities.of(self.model).softmax_moments(vectors, draws=draws)
        return {"normalizers": normalizers, "means": means, "drawn": draws.entities}

    def _computed(
        self, name: str, ids: Tensor, compute: Callable[[Tensor, Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Compute something of queries (B,) and vectors (B, d), part by part of `ids`; keep it if they are many."""
        device = self.model.entity_embeddings.weight.device

        def make() -> dict[str, np.ndarray]:
            computed = []
            for part in ids.split(VECTORS_AT_ONCE):  # one empty part where there are none
                heads, relations = (column.to(device) for column in self.queries.pairs(part))
                computed.append(compute(part, encode_queries(self.model, heads, relations)))
            return {key: torch.cat([each[key] for each in computed]).cpu().numpy() for key in computed[0]}

        arrays = make() if len(ids) < KEPT_FROM else self._keep(name, make)
        return {key: torch.from_numpy(array).to(device) for key, array in arrays.items()}


def _entities_at_once(vectors: Tensor) -> int:
    return max(256, SCORES_AT_ONCE // max(len(vectors), 1))


def log_normalizers(entities: Entities, vectors: Tensor) -> Tensor:
    """Compute log Σ_k exp(s_k) of query vectors (B, d): (B,)."""

    @torch.no_grad()
    def of_some(part: Entities) -> Tensor:
        scores = part.scores(vectors)
        if part.factors is not None:
            scores += part.factors.log()
        return scores.logsumexp(dim=1)

    total = vectors.new_full((len(vectors),), -torch.inf)
    parts = list(entities.split(_entities_at_once(vectors)))
    for of_part in map_on_all_cores(of_some, parts, vectors.device):
        total = torch.logaddexp(total, of_part)
    return total

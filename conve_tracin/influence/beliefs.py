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
from conve_tracin.model.tiles import LOG2_E, MAX_TOTAL, MIN_TOTAL

# Query vectors whose scores against a chunk of the entities are held at once.
VECTORS_AT_ONCE = 1024
# Scores that are held at once, so that they stay in a core's cache.
SCORES_AT_ONCE = 2**19
# Numbers of entities' rows that are held at once where each query has entities of its own.
GATHERED_AT_ONCE = 2**22
# Entities of a block that is drawn as one; its scores are computed again for the entity.
DRAWN_BLOCK = 64
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

    def scores(self, vectors: Tensor, scale: float = 1.0) -> Tensor:
        """Score them for query vectors (B, d), times `scale`: (B, M)."""
        scores = (vectors * scale) @ self.rows.T
        return scores if self.bias is None else scores.add_(self.bias * scale)

    def exponentials(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute exp(s_k − c) of query vectors (B, d), times what each entity stands for, their sums, and c.

        c is 0, or the largest scores where a sum would leave the safe range. Returns (B, M), (B, 1) and (B, 1).
        """
        exponentials = self._counted(self.scores(vectors, LOG2_E).exp2_())
        total = exponentials.sum(dim=1, keepdim=True)
        if ((total >= MIN_TOTAL) & (total <= MAX_TOTAL)).all():
            return exponentials, total, torch.zeros_like(total)
        scores = self.scores(vectors)
        top = scores.amax(dim=1, keepdim=True)
        exponentials = self._counted(scores.sub_(top).exp_())
        return exponentials, exponentials.sum(dim=1, keepdim=True), top

    def _counted(self, exponentials: Tensor) -> Tensor:
        return exponentials if self.factors is None else exponentials.mul_(self.factors)

    def logs_of(self, ids: Tensor, vectors: Tensor) -> Tensor:
        """Compute log(exp(s_k), times what k stands for) of query vectors (P, d), each for `ids` of its own: (P, n)."""
        logs = torch.bmm(self.rows[ids], vectors[:, :, None])[:, :, 0]
        if self.bias is not None:
            logs += self.bias[ids]
        return logs if self.factors is None else logs + self.factors[ids].log()

    def softmax_moments(
        self, vectors: Tensor, *, size: int | None = None, draws: "Draws | None" = None
    ) -> tuple[Tensor, Tensor]:
        """Compute log Σ_k exp(s_k) and ē = Σ_k p_k e_k of query vectors (B, d): (B,) and (B, d).

        The sums run with the largest c so far taken off (Milakov and Gimelshein, 2018,
        https://arxiv.org/abs/1805.02867, algorithm 3). `draws` of B queries are filled on the way.
        """

        @torch.no_grad()
        def sums_of(part: Entities) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            exponentials, sums, top = part.exponentials(vectors)
            blocks = None if draws is None else top + draws.sums_of_blocks(exponentials).log()
            return top, sums, exponentials @ part.rows, blocks

        largest = vectors.new_full((len(vectors), 1), -torch.inf)
        total, weighted = vectors.new_zeros(len(vectors), 1), torch.zeros_like(vectors)
        parts = list(self.split(size or min(4096, _entities_at_once(vectors))))
        summed = map_on_all_cores(sums_of, parts, vectors.device)
        for part, (top, added, moved, blocks) in zip(parts, summed, strict=True):
            before, largest = largest, torch.maximum(largest, top)
            shrink, share = (before - largest).exp(), (top - largest).exp()
            total = total * shrink + added * share
            weighted = weighted * shrink + moved * share
            if blocks is not None:
                draws.add(blocks, num_entities=len(part.rows))
        if draws is not None:
            draws.draw(self, vectors)
        return (largest + total.log())[:, 0], weighted / total


class Draws:
    """Entities that are drawn from p = softmax(s), m for each of B queries, by the way of blocks of entities.

    A block is drawn with its share of all exponentials, whose sums are added while another pass has them. Then an
    entity of that block is drawn; only the scores of such blocks are computed again.

    Args:
        count: m.
        generator: of the drawing, on the CPU.
        block_size: entities of a block; what `add` is told of begins with a block of its own.

    Attributes:
        entities: what is drawn, (B, m) int64 on the CPU, after `draw`.
    """

    def __init__(self, count: int, generator: torch.Generator, *, block_size: int = DRAWN_BLOCK) -> None:
        self.count = count
        self.generator = generator
        self.block_size = block_size
        self.entities = torch.zeros(0, count, dtype=torch.int64)
        self._logs: list[Tensor] = []
        self._starts: list[int] = []
        self._ends: list[int] = []

    def sums_of_blocks(self, exponentials: Tensor) -> Tensor:
        """Sum exponentials (B, k) block by block: (B, ⌈k / block_size⌉)."""
        missing = -exponentials.shape[1] % self.block_size
        whole = torch.nn.functional.pad(exponentials, (0, missing)) if missing else exponentials
        return whole.unflatten(1, (-1, self.block_size)).sum(dim=2)

    def add(self, logs: Tensor, *, num_entities: int) -> None:
        """Take the logarithms of the sums of the next entities' blocks, (B, n)."""
        start = self._ends[-1] if self._ends else 0
        starts = range(start, start + num_entities, self.block_size)
        self._logs.append(logs)
        self._starts += starts
        self._ends += [*starts[1:], start + num_entities]

    @torch.no_grad()
    def draw(self, entities: Entities, vectors: Tensor) -> None:
        """Draw from the blocks of all `entities`, for query vectors (B, d)."""
        blocks = self._places(torch.cat(self._logs, dim=1), self.count)  # (B, m)
        limits = torch.tensor([self._starts, self._ends], device=vectors.device)  # (2, n)
        starts, ends = limits[:, blocks.flatten()]
        queries = torch.arange(len(vectors), device=vectors.device).repeat_interleave(self.count)
        at_once = max(1, GATHERED_AT_ONCE // (self.block_size * vectors.shape[1]))
        drawn = []
        for query, start, end in zip(*(each.split(at_once) for each in (queries, starts, ends)), strict=True):
            ids = start[:, None] + torch.arange(self.block_size, device=start.device)  # (P, block_size)
            logs = entities.logs_of(ids.clamp(max=len(entities.rows) - 1), vectors[query])
            drawn.append(start + self._places(logs.masked_fill(ids >= end[:, None], -torch.inf), 1)[:, 0])
        self.entities = torch.cat(drawn).reshape(blocks.shape).cpu()

    def _places(self, logs: Tensor, count: int) -> Tensor:
        """Draw columns of (B, n) by their exponentials, `count` for each row: (B, count)."""
        sums = (logs - logs.amax(dim=1, keepdim=True)).double().exp().cumsum(dim=1)
        chances = torch.rand(len(logs), count, generator=self.generator, dtype=torch.float64).to(sums)
        return torch.searchsorted(sums, chances * sums[:, -1:]).clamp_(max=logs.shape[1] - 1)


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
        draws = Draws(count, generator)
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
    return max(256, SCORES_AT_ONCE // max(len(vectors), 1) // DRAWN_BLOCK * DRAWN_BLOCK)


def log_normalizers(entities: Entities, vectors: Tensor) -> Tensor:
    """Compute log Σ_k exp(s_k) of query vectors (B, d): (B,)."""

    @torch.no_grad()
    def of_some(part: Entities) -> Tensor:
        _, sums, top = part.exponentials(vectors)
        return (top + sums.log())[:, 0]

    total = vectors.new_full((len(vectors),), -torch.inf)
    parts = list(entities.split(_entities_at_once(vectors)))
    for of_part in map_on_all_cores(of_some, parts, vectors.device):
        total = torch.logaddexp(total, of_part)
    return total

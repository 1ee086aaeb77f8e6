"""Curvature of a training objective by single rows of ConvE's embedding tables, all else at rest.

The objective is Σ over queries n_q · L_q, with n_q the number of the query's triples (1vsAll, or KvsAll with weights by
tails) or 1 (KvsAll with equal weights). L_q is Σ_k BCE(s_k, y_k), or the softmax cross-entropy log Σ_k exp(s_k) −
Σ_k y_k·s_k. Labels, smoothed or not, are linear in the scores and leave no trace in the curvature by the scores:

    binary cross-entropy:   C_q = n_q · diag(σ_k(1 − σ_k)),
    softmax cross-entropy:  C_q = n_q · (diag(p) − p pᵀ),  p = softmax(s).

A row has the generalized Gauss–Newton matrix (Martens, 2020, https://arxiv.org/abs/1412.1193, section 8)

- as tail t:     H = Σ_q C_q,tt · q qᵀ                          over all training queries q,
- as head h:     H = Σ_q J_qᵀ (Σ_kl C_q,kl · e_k e_lᵀ) J_q      over the queries (h, ·), with J_q = ∂q/∂(row),
- as relation r: the same over the queries (·, r),

and an entity's row the sum of its curvatures as tail and as head. For the softmax the inner sum is the covariance
n_q(Σ_k p_k e_k e_kᵀ − ē ēᵀ) of the entities, with ē = Σ_k p_k e_k.

ConvE is piecewise linear in a row, so this is the Hessian of the objective itself, with one exception: where an entity
is the head of a query and a possible tail of the same query, the two parts of its row multiply. What that adds
concerns one of K tails in the queries of one head, and is left out (its size is in docs/notes_curvature.md).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conve_tracin.data.graph import Keep
from conve_tracin.data.queries import Queries
from conve_tracin.data.sorted_queries import SortedQueries
from conve_tracin.errors import InputError
from conve_tracin.influence.beliefs import (
    KEPT_FROM,
    SCORES_AT_ONCE,
    VECTORS_AT_ONCE,
    Beliefs,
    Entities,
    log_normalizers,
)
from conve_tracin.influence.engine.jacobians import HEAD, RELATION, Activations, RowJacobians
from conve_tracin.influence.engine.passes import encode_queries
from conve_tracin.model.conve import ConvE

# Rows of Jacobians, or directions, that are held at once; a direction passes through feature maps of size F.
JACOBIAN_ROWS = 16_384
DIRECTIONS = 2048
# Entities whose part of a query's curvature is added at once.
ENTITIES_AT_ONCE = 16_384
# From this many directions for each query on, it is cheaper to multiply them with the whole Jacobian.
WHOLE_JACOBIANS_FROM = 6
# The mean eigenvalue of a row whose scores are all beyond ±70 or so. Its effects would grow without bound as it falls,
# past the largest float32 in the end.
NO_CURVATURE = 1e-30


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig:
    """How the curvature of a row is computed.

    Attributes:
        damping: λ over the mean eigenvalue of H.
        loss: "bce" or "ce", as in `TrainingConfig`.
        weighted_by_triples: n_q is the number of the query's triples (1vsAll, or KvsAll with weights by tails) instead
            of 1 (KvsAll with equal weights).
        repeated_triples_count: a triple that the training set lists twice is two of the query's triples (1vsAll).
        max_tail_queries: queries that a row's curvature as tail is summed over. Where there are more, those that
            have the entity as a known tail stay (their weights are the large ones), up to this number, and as many
            of all are sampled, once for all rows, to stand for the others with weights scaled up to match.
        max_encoded_queries: the same for the queries (h, ·) or (·, r).
        max_exact_tail_queries: queries with a tail up to which their normalizers run over all entities of any graph;
            those of more run over what `max_entities` leaves.
        exact_jacobian_rows: rows of Jacobians, d for each query, up to which Σ_kl C_q,kl e_k e_lᵀ is computed; where
            a row of a table needs more, the sum is estimated without bias from random sign vectors.
        probes: random vectors for a row, at least one for each query.
        max_entities: entities that inner sums run over. Where there are more, the known tails of the queries stay, and
            as many of all are sampled, once for all rows, to stand for the others with weights scaled up to match.
        normalizer_entities: of that sample, the entities that the normalizers of a softmax run over.
        sampled_per_dimension: on such graphs, the most queries (h, ·) or (·, r), and the most probes, for each of the d
            coordinates, as the error of H is about √(d / probes): what 2,048 are at d = 200. Rows of up to d queries
            are exact there.
        seed: of the samples and signs.
    """

    damping: float = 1.0
    loss: str = "bce"
    weighted_by_triples: bool = False
    repeated_triples_count: bool = True
    max_tail_queries: int = 16_384
    max_exact_tail_queries: int = 2_048
    max_encoded_queries: int = 2_048
    exact_jacobian_rows: int = 16_384
    probes: int = 2_048
    max_entities: int = 65_536
    normalizer_entities: int = 32_768
    sampled_per_dimension: int = 10
    seed: int = 0

    def most_queries(self, model: ConvE) -> int:
        """Return how many queries of a head or relation of a model its curvature is computed from."""
        return min(self.max_encoded_queries, self._most_sampled(model))

    def most_probes(self, model: ConvE) -> int:
        """Return how many random vectors a row of a model has."""
        return min(self.probes, self._most_sampled(model))

    def _most_sampled(self, model: ConvE) -> float:
        num_entities, dim = model.entity_embeddings.weight.shape
        return self.sampled_per_dimension * dim if num_entities > self.max_entities else math.inf

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise InputError(f"damping is {self.damping}; give a number above 0")
        if self.loss not in ("bce", "ce"):
            raise InputError(f"loss is {self.loss!r}; the curvature is known for 'bce' and 'ce'")


class RowCurvature:
    """Curvature of the rows of a model's embedding tables; each row is computed once.

    Args:
        model: ConvE in eval mode.
        queries: the distinct training queries with their tails, in the model's relation ids (inverses included
            where the model was trained with them).
        config: see `CurvatureConfig`.
        keep: may return arrays that are kept from an earlier time: those of rows that take long.
    """

    def __init__(
        self,
        model: ConvE,
        queries: Queries | SortedQueries,
        config: CurvatureConfig,
        *,
        keep: Keep = lambda _, make: make(),
    ) -> None:
        self.model = model
        self.queries = queries
        self.config = config
        self._keep = keep
        # Where all entities are summed over, none are drawn.
        draws = config.most_probes(model) if len(model.entity_embeddings.weight) > config.max_entities else 0
        self.beliefs = Beliefs(
            model,
            queries,
            entities_for=self._entities_for,
            max_exact=config.max_exact_tail_queries,
            draws=draws,
            seed=config.seed,
            keep=keep,
        )
        self.table = model.entity_embeddings.weight.detach()
        self._sampled: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._entities: dict[int, Tensor] = {}
        self._relations: dict[int, Tensor] = {}
        self._jacobians: dict[int, RowJacobians] = {}
        self._entity_sample: Tensor | None = None

    def entity(self, entity: int) -> Tensor:
        """Return H of an entity's row, as tail and as head together: (d, d)."""
        if entity not in self._entities:
            self._entities[entity] = self.as_tail(entity) + self.as_head(entity)
        return self._entities[entity]

    def as_head(self, entity: int) -> Tensor:
        """Compute H of an entity as head of its queries: (d, d)."""
        if self.config.loss == "ce" and len(self.table) > self.config.max_entities:
            return self._from_draws(entity)
        return self._kept("head", entity, self.queries.of_head(entity), side=HEAD)

    def relation(self, relation: int) -> Tensor:
        """Return H of a relation's row: (d, d)."""
        if relation not in self._relations:
            of_relation = self.queries.of_relation(relation)
            self._relations[relation] = self._kept("relation", relation, of_relation, side=RELATION)
        return self._relations[relation]

    def _kept(self, name: str, row: int, chosen: Tensor, *, side: int) -> Tensor:
        """Compute `_as_input`; if the queries `chosen` are many, keep the result."""
        if len(chosen) < KEPT_FROM:
            return self._as_input(chosen, side=side, row=row)
        arrays = self._keep(
            f"{name}-{row}", lambda: {"curvature": self._as_input(chosen, side=side, row=row).cpu().numpy()}
        )
        return torch.from_numpy(arrays["curvature"]).to(self.table)

    def precondition(self, curvature: Tensor, gradients: Tensor) -> Tensor:
        """Solve (H + λI) x = g for one (d,) or several (d, m); zero where no label of training can move the row.

        Raises:
            InputError: H is not finite, or λ is lost in its rounding.
        """
        mean_eigenvalue = curvature.diagonal().mean()
        if mean_eigenvalue <= NO_CURVATURE:
            return torch.zeros_like(gradients)
        damped = curvature + self.config.damping * mean_eigenvalue * torch.eye(len(curvature)).to(curvature)
        if not torch.isfinite(damped).all():
            raise InputError("the model's curvature is not finite, as its weights are too large; give another model")
        factor, trouble = torch.linalg.cholesky_ex(damped.double())
        # Where the damping vanishes, rounding alone decides whether a curvature without full rank can be factored.
        if trouble or self.config.damping < torch.finfo(curvature.dtype).eps:
            raise InputError(
                f"damping {self.config.damping:g} is lost in the rounding of the model's curvature; give a larger "
                "--damping, such as 0.0001"
            )
        columns = gradients.double().reshape(len(curvature), -1)
        return torch.cholesky_solve(columns, factor).reshape(gradients.shape).to(gradients)

    @torch.no_grad()
    def as_tail(self, entity: int) -> Tensor:
        """Compute H of an entity as tail of all queries: (d, d)."""
        sample, vectors, normalizers = self._query_sample()
        if len(sample) == len(self.queries):
            return self._weighted_gram(entity, sample, vectors, normalizers)
        # Two strata: the queries with this tail, whose weights are the large ones, and a sample of all others.
        # A query that a repeated triple lists twice is one query.
        known = self.queries.with_tail(entity)
        others = ~torch.isin(sample, known)
        scale = (len(self.queries) - len(known)) / max(int(others.sum()), 1)
        normalizers = None if normalizers is None else normalizers[others]
        curvature = self._weighted_gram(entity, sample[others], vectors[others], normalizers) * scale
        kept = known
        normalizers = self.beliefs.of_tail(entity) if self.config.loss == "ce" else None
        if len(known) > self.config.max_tail_queries:
            places = _sample(torch.arange(len(known)), self.config.max_tail_queries, self._generator(2, entity))
            kept = known[places.to(known.device)]
            normalizers = None if normalizers is None else normalizers[places.to(self.table.device)]
        if len(kept):
            gram = self._weighted_gram(entity, kept, self._encode(kept), normalizers)
            curvature += gram * (len(known) / len(kept))
        return curvature

    def _query_sample(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw queries once for all rows, all where they are few: ids (M,), vectors (M, d) and normalizers (M,)."""
        if self._sampled is None:
            arrays = self._keep("sample", self._draw_sample)
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            normalizers = tensors.get("normalizers")
            self._sampled = (
                tensors["ids"].to(self.queries.device),
                tensors["vectors"].to(self.table),
                None if normalizers is None else normalizers.to(self.table),
            )
        return self._sampled

    def _draw_sample(self) -> dict[str, np.ndarray]:
        ids = torch.arange(len(self.queries), device=self.queries.device)
        if len(ids) > self.config.max_tail_queries:
            ids = _sample(ids, self.config.max_tail_queries, self._generator(3, 0))
        vectors = self._encode(ids)
        arrays = {"ids": ids, "vectors": vectors}
        if self.config.loss == "ce":
            arrays["normalizers"] = self._normalizers(ids, vectors)
        return {name: tensor.cpu().numpy() for name, tensor in arrays.items()}

    def _encode(self, ids: Tensor) -> Tensor:
        return encode_queries(self.model, *self._pairs(ids))  # (M, d)

    def _pairs(self, ids: Tensor) -> list[Tensor]:
        return [column.to(self.table.device) for column in self.queries.pairs(ids)]

    def _importance(self, ids: Tensor) -> Tensor:
        """Return n_q of queries (M,): (M,)."""
        counts = self.queries.count_tails(ids).to(self.table)
        return counts if self.config.weighted_by_triples else torch.ones_like(counts)

    def _normalizers(self, ids: Tensor, vectors: Tensor) -> Tensor | None:
        if self.config.loss != "ce":
            return None
        entities = self._entities_for(ids)
        return torch.cat([log_normalizers(entities, part) for part in vectors.split(VECTORS_AT_ONCE)])

    def _weighted_gram(self, entity: int, ids: Tensor, vectors: Tensor, normalizers: Tensor | None) -> Tensor:
        scores = vectors @ self.table[entity]
        if self.model.entity_bias is not None:
            scores = scores + self.model.entity_bias[entity]
        if normalizers is None:
            weights = _logistic_curvature(scores)
        else:
            # p(1 − p) to its last digits also where p is nearly 1.
            weights = (scores - normalizers).exp() * -torch.expm1((scores - normalizers).clamp(max=0))
        weights = weights * self._importance(ids)  # (M,)
        return (vectors * weights[:, None]).T @ vectors

    @torch.no_grad()
    def _as_input(self, chosen: Tensor, *, side: int, row: int) -> Tensor:
        """Compute H of a row as head (side 0) or relation (side 1) of the queries `chosen`: (d, d)."""
        curvature = self.table.new_zeros(self.table.shape[1], self.table.shape[1])
        if len(chosen) == 0:
            return curvature
        total = len(chosen)
        chosen = chosen[self._sampled_places(total, side, row).to(chosen.device)]
        exact_rows = self.config.exact_jacobian_rows
        if len(self.table) > self.config.max_entities:
            exact_rows = min(exact_rows, len(curvature) ** 2)
        exact = len(chosen) * len(curvature) <= exact_rows
        probes = max(1, -(-self.config.most_probes(self.model) // len(chosen)))
        signs = np.random.default_rng([self.config.seed, side, row])
        rows_at_once = JACOBIAN_ROWS // len(curvature) if exact else DIRECTIONS // probes
        for batch in chosen.split(max(1, rows_at_once)):
            activations = self._activations(batch, side)
            if exact:
                self._add_exactly(curvature, activations, batch)
            else:
                signed = self._signed_sums(activations.vectors, batch, probes, signs)  # (P, B, d)
                pulled = _pull_back(activations, signed).flatten(0, 1)  # (P·B, d)
                curvature += pulled.T @ pulled / probes
        return curvature * (total / len(chosen))

    @torch.no_grad()
    def _from_draws(self, head: int) -> Tensor:
        """Estimate H of a head from entities k that are drawn with their p: n_q Jᵀ(e_k − ē)(e_k − ē)ᵀJ has its mean."""
        curvature = self.table.new_zeros(self.table.shape[1], self.table.shape[1])
        chosen, beliefs = self.queries.of_head(head), self.beliefs.of_head(head)
        total = len(chosen)
        if total == 0:
            return curvature
        places = self._sampled_places(total, HEAD, head)
        count = beliefs.drawn.shape[1]
        for part in places.split(max(1, DIRECTIONS // count)):
            ids, here = chosen[part.to(chosen.device)], part.to(self.table.device)
            directions = self.table[beliefs.drawn[here]] - beliefs.means[here][:, None]  # (B, m, d)
            directions *= self._importance(ids).sqrt()[:, None, None]
            pulled = _pull_back(self._activations(ids, HEAD), directions.transpose(0, 1)).flatten(0, 1)
            curvature += pulled.T @ pulled / count
        return curvature * (total / len(places))

    def _sampled_places(self, total: int, side: int, row: int) -> Tensor:
        """Say which of the `total` queries of a row its curvature is computed from, in some order: (M,)."""
        places, most = torch.arange(total), self.config.most_queries(self.model)
        return places if total <= most else _sample(places, most, self._generator(side, row))

    def _activations(self, ids: Tensor, side: int) -> Activations:
        if side not in self._jacobians:
            self._jacobians[side] = RowJacobians(self.model, side)
        heads, relations = self._pairs(ids)
        return self._jacobians[side](self.table[heads], self.model.relation_embeddings.weight[relations].detach())

    def _entities_for(self, ids: Tensor) -> Entities:
        """Return what the inner sums of queries (B,) run over: all entities, or their tails and a sample of others."""
        whole = Entities.of(self.model)
        if len(self.table) <= self.config.max_entities:
            return whole
        if self._entity_sample is None:
            drawn = torch.randperm(len(self.table), generator=self._generator(4, 0))
            # After binary cross-entropy the sums are over whole matrices, after softmax over the normalizer's terms.
            most = self.config.normalizer_entities if self.config.loss == "ce" else self.config.max_entities
            self._entity_sample = drawn[: min(most, self.config.max_entities)]
        known = self.queries.known_tails(ids).cpu()
        others = self._entity_sample[~torch.isin(self._entity_sample, known)]
        factors = torch.ones(len(known) + len(others))
        factors[len(known) :] = (len(self.table) - len(known)) / max(len(others), 1)
        return whole.take(torch.cat([known, others]).to(self.table.device), factors.to(self.table))

    def _add_exactly(self, curvature: Tensor, activations: Activations, batch: Tensor) -> None:
        """Add Σ_q J_qᵀ (Σ_kl C_q,kl e_k e_lᵀ) J_q of a batch to a curvature (d, d)."""
        vectors, jacobians = activations.vectors, activations.jacobians()  # (B, d) and (B, d, d)
        entities = self._entities_for(batch)
        moments = self._moments(entities, vectors)
        # A coordinate of q whose ReLU is off does not move, so that its part of the entities does not matter.
        active = [place.nonzero()[:, 0] for place in vectors > 0]
        inner = [vectors.new_zeros(len(places), len(places)) for places in active]
        for part in entities.split(ENTITIES_AT_ONCE):
            rows = part.rows.T.contiguous()  # (d, k)
            roots = self._pair_roots(vectors, batch, part, moments)  # (B, k)
            for place, (out, root, coordinates) in enumerate(zip(inner, roots, active, strict=True)):
                moving = rows.index_select(0, coordinates)  # (a, k)
                if moments is not None:
                    moving -= moments[1][place, coordinates, None]
                moving *= root
                out += moving @ moving.T
        for each, jacobian, coordinates in zip(inner, jacobians, active, strict=True):
            moved = jacobian.index_select(0, coordinates)  # (a, d)
            curvature += moved.T @ (each @ moved)

    def _signed_sums(self, vectors: Tensor, batch: Tensor, probes: int, generator: np.random.Generator) -> Tensor:
        """Draw Σ_k ±√c_qk (e_k − ē), whose outer product has the mean Σ_kl C_q,kl e_k e_lᵀ: (P, B, d).

        With binary cross-entropy c_qk = C_q,kk, and nothing is taken off; with the softmax c_qk = n_q·p_k.
        """
        sums = vectors.new_zeros(probes, len(vectors), self.table.shape[1])
        entities = self._entities_for(batch)
        moments = self._moments(entities, vectors)
        for part in entities.split(max(256, SCORES_AT_ONCE // len(vectors))):
            roots = self._pair_roots(vectors, batch, part, moments)  # (B, k)
            for out in sums:
                signed = _random_signs(roots.shape, generator).to(roots).mul_(roots)
                out += signed @ part.rows
                if moments is not None:
                    out -= signed.sum(dim=1, keepdim=True) * moments[1]
        return sums

    def _moments(self, entities: Entities, vectors: Tensor) -> tuple[Tensor, Tensor] | None:
        return entities.softmax_moments(vectors) if self.config.loss == "ce" else None

    def _pair_roots(
        self, vectors: Tensor, batch: Tensor, part: Entities, moments: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Compute √c_qk of queries (B,) and some entities, with the weights of both: (B, k)."""
        scores = part.scores(vectors)  # (B, k)
        roots = _logistic_roots(scores) if moments is None else scores.sub_(moments[0][:, None]).mul_(0.5).exp_()
        if part.factors is not None:
            roots *= part.factors.sqrt()
        return roots.mul_(self._importance(batch).sqrt()[:, None])

    def _generator(self, kind: int, row: int) -> torch.Generator:
        # Seeded by the row, so that its curvature does not depend on which rows were asked for before it.
        seed = np.random.SeedSequence([self.config.seed, kind, row]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))


def _logistic_roots(scores: Tensor) -> Tensor:
    """Compute √(σ(s)(1 − σ(s))) with a single exponential, to its last digits on both sides of zero."""
    small = scores.abs_().mul_(-0.5).exp_()
    return small.div_(small.square().add_(1))


def _logistic_curvature(scores: Tensor) -> Tensor:
    return _logistic_roots(scores.clone()).square_()


def _pull_back(activations: Activations, directions: Tensor) -> Tensor:
    """Multiply directions (P, B, d) by the transposed Jacobians, in the cheaper way: (P, B, d)."""
    if len(directions) < WHOLE_JACOBIANS_FROM:
        return activations.pull_back(directions)
    return torch.bmm(directions.transpose(0, 1), activations.jacobians()).transpose(0, 1)


def _random_signs(shape: tuple[int, int], generator: np.random.Generator) -> Tensor:
    """Draw −1 or 1 with equal chances: int8 of a shape, on the CPU. A random byte holds eight of them."""
    size = shape[0] * shape[1]
    bits = np.unpackbits(np.frombuffer(generator.bytes(-(-size // 8)), dtype=np.uint8), count=size)
    return torch.from_numpy(bits.view(np.int8)).mul_(2).sub_(1).view(shape)


def _sample(ids: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return ids[torch.randperm(len(ids), generator=generator)[:size].to(ids.device)]

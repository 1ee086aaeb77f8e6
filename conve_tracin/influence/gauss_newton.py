"""Gauss–Newton influence: how much lower the test triple's score would be without a training triple.

TracIn follows the plain gradient, in which the many directions that all queries share drown those that tell triples
apart. Here each of the three embedding rows that carry the test triple's gradient is preconditioned with its own
curvature, (H + λI)⁻¹∇s′, as in influence functions (Koh and Liang, 2017, https://arxiv.org/abs/1703.04730) with the
generalized Gauss–Newton matrix (Martens, 2020, https://arxiv.org/abs/1412.1193); all other parameters rest.

The training objective is Σ over queries n_q · Σ_k BCE(s_k, y_k), with n_q = 1 for KvsAll and the number of the
query's triples for 1vsAll. With the weights c_qk = n_q · σ(s_qk)(1 − σ(s_qk)) the curvature of a row is

- as tail t:     H = Σ_q c_qt · q qᵀ                           over all training queries q,
- as head h:     H = Σ_q J_qᵀ (Σ_k c_qk · e_k e_kᵀ) J_q        over the queries (h, ·), with J_q = ∂q/∂(row),
- as relation r: the same over the queries (·, r),

and an entity's row has the sum of its curvatures as tail and as head. λ is relative to H's mean eigenvalue.

A training triple z = (h, r, t) scores, with ṡ for the derivative along the three preconditioned rows,

    ṡ_t − competition · (mean of ṡ_k over the training tails k of (h, r))
        + ṡ′ · (same_tail_share · 1[r = r′ and t = t′] + same_query_share · 1[h = h′ and r = r′]).

- ṡ_t is the effect of z's label: turning it from 1 to 0 adds s_t to the objective, whatever s_t is.
- With 1vsAll the triple's whole row goes, Σ_k softplus(s_k) − s_t, so that Σ_k σ(s_k)ṡ_k comes off. At that
  objective's optimum σ is 1/n on the query's n tails and about 0 elsewhere, which makes it the mean over them: tails
  of one query compete. Theory says competition = 1; .7 agrees best with retraining. KvsAll has none.
- ṡ′ is the effect of the test triple's own label. A model trained anew learns features that bring triples with two
  labels in common closer together than they are to a model whose features rest, hence their shares.

With inverse triples the scores of a triple's two queries add (the shares are given once).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from conve_tracin.data.queries import Queries, examples_of, group_by_query, inverse_of, with_relation_rows
from conve_tracin.errors import InputError
from conve_tracin.influence.engine.passes import iterate_derivatives
from conve_tracin.influence.engine.tangent import ConvETangent
from conve_tracin.model.conve import ConvE

# Rows of a Jacobian (d each) that are held at once; a row passes through feature maps of size F.
JACOBIAN_ROWS = 4096
# The mean eigenvalue of a row whose scores are all beyond ±70 or so. Its effects would grow without bound as it falls,
# past the largest float32 in the end.
NO_CURVATURE = 1e-30


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig:
    """How the curvature of a row is computed.

    Attributes:
        damping: λ over the mean eigenvalue of H.
        weighted_by_triples: n_q is the number of the query's triples (1vsAll) instead of 1 (KvsAll).
        max_tail_queries: queries that a row's curvature as tail is summed over. Where there are more, those that
            have the entity as a known tail stay (their weights are the large ones), up to this number, and as many
            of all are sampled, once for all rows, to stand for the others with weights scaled up to match.
        max_encoded_queries: the same for the queries (h, ·) or (·, r).
        exact_jacobian_rows: rows of Jacobians, d for each query, up to which Σ_k c_qk e_k e_kᵀ is computed; where
            a row of a table needs more, the sum is estimated without bias from random sign vectors.
        probes: random vectors for a row, at least one for each query.
        seed: of the samples and signs.
    """

    damping: float = 1.0
    weighted_by_triples: bool = False
    max_tail_queries: int = 16_384
    max_encoded_queries: int = 2_048
    exact_jacobian_rows: int = 16_384
    probes: int = 2_048
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise InputError(f"damping is {self.damping}; give a number above 0")


class RowCurvature:
    """Curvature of the rows of a model's embedding tables; each row is computed once.

    Args:
        model: ConvE in eval mode.
        queries: the distinct training queries with their tails, in the model's relation ids (inverses included
            where the model was trained with them).
        config: see `CurvatureConfig`.
    """

    def __init__(self, model: ConvE, queries: Queries, config: CurvatureConfig) -> None:
        self.model = model
        self.queries = queries
        self.config = config
        counts = queries.offsets.diff()
        dtype = model.entity_embeddings.weight.dtype
        self._importance = counts.to(dtype) if config.weighted_by_triples else torch.ones_like(counts, dtype=dtype)
        # For each triple its query, to find the queries that have a given tail.
        self._query_of_triple = torch.repeat_interleave(torch.arange(len(queries), device=counts.device), counts)
        self._sampled: tuple[Tensor, Tensor] | None = None
        self._entities: dict[int, Tensor] = {}
        self._relations: dict[int, Tensor] = {}

    def entity(self, entity: int) -> Tensor:
        """Return H of an entity's row, as tail and as head together: (d, d)."""
        if entity not in self._entities:
            of_head = (self.queries.heads == entity).nonzero()[:, 0]
            self._entities[entity] = self.as_tail(entity) + self._as_input(of_head, side=0, row=entity)
        return self._entities[entity]

    def relation(self, relation: int) -> Tensor:
        """Return H of a relation's row: (d, d)."""
        if relation not in self._relations:
            of_relation = (self.queries.relations == relation).nonzero()[:, 0]
            self._relations[relation] = self._as_input(of_relation, side=1, row=relation)
        return self._relations[relation]

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
        sample, vectors = self._query_sample()
        if len(sample) == len(self.queries):
            return self._weighted_gram(entity, sample, vectors)
        # Two strata: the queries with this tail, whose weights are the large ones, and a sample of all others.
        # A query that a repeated triple lists twice is one query.
        known = self._query_of_triple[self.queries.tails == entity].unique()
        others = ~torch.isin(sample, known)
        scale = (len(self.queries) - len(known)) / max(int(others.sum()), 1)
        curvature = self._weighted_gram(entity, sample[others], vectors[others]) * scale
        kept = known
        if len(known) > self.config.max_tail_queries:
            kept = _sample(known, self.config.max_tail_queries, self._generator(2, entity))
        if len(kept):
            curvature += self._weighted_gram(entity, kept, self._encode(kept)) * (len(known) / len(kept))
        return curvature

    def _query_sample(self) -> tuple[Tensor, Tensor]:
        """Draw queries once for all rows, all of them where they are few: ids (M,) and query vectors (M, d)."""
        if self._sampled is None:
            ids = torch.arange(len(self.queries), device=self.queries.heads.device)
            if len(ids) > self.config.max_tail_queries:
                ids = _sample(ids, self.config.max_tail_queries, self._generator(3, 0))
            self._sampled = ids, self._encode(ids)
        return self._sampled

    def _encode(self, ids: Tensor) -> Tensor:
        batches = [self.model.encode(self.queries.heads[i], self.queries.relations[i]) for i in ids.split(256)]
        return torch.cat(batches)  # (M, d)

    def _weighted_gram(self, entity: int, ids: Tensor, vectors: Tensor) -> Tensor:
        scores = vectors @ self.model.entity_embeddings.weight[entity]
        if self.model.entity_bias is not None:
            scores = scores + self.model.entity_bias[entity]
        weights = _logistic_curvature(scores) * self._importance[ids]  # (M,)
        return (vectors * weights[:, None]).T @ vectors

    def _as_input(self, chosen: Tensor, *, side: int, row: int) -> Tensor:
        """Compute H of a row as head (side 0) or relation (side 1) of the queries `chosen`: (d, d)."""
        curvature = self._zeros()
        if len(chosen) == 0:
            return curvature
        generator = self._generator(side, row)
        total = len(chosen)
        if total > self.config.max_encoded_queries:
            chosen = _sample(chosen, self.config.max_encoded_queries, generator)
        exact = len(chosen) * self.model.config.embedding_dim <= self.config.exact_jacobian_rows
        probes = max(1, -(-self.config.probes // len(chosen)))
        step = self.model.config.embedding_dim if exact else probes
        for batch in chosen.split(max(1, JACOBIAN_ROWS // step)):
            rows = self._input_rows(batch)
            rows[side].requires_grad_()
            with torch.enable_grad():
                vectors = self.model.encode_rows(*rows)  # (B, d)
            if exact:
                jacobian = self._pull_back(vectors, rows[side], torch.eye(vectors.shape[1]).to(vectors)[:, None])
                jacobian = jacobian.transpose(0, 1)  # (B, d, d): ∂q_i/∂(row)_j
                inner = self._entity_curvature(vectors.detach(), batch)  # (B, d, d)
                curvature += torch.einsum("bij,bik,bkl->jl", jacobian, inner, jacobian)
            else:
                signed = self._signed_sums(vectors.detach(), batch, probes, generator)  # (P, B, d)
                pulled = self._pull_back(vectors, rows[side], signed).flatten(0, 1)  # (P·B, d)
                curvature += pulled.T @ pulled / probes
        return curvature * (total / len(chosen))

    def _input_rows(self, batch: Tensor) -> list[Tensor]:
        heads, relations = self.queries.heads[batch], self.queries.relations[batch]
        return [
            self.model.entity_embeddings.weight[heads].detach(),
            self.model.relation_embeddings.weight[relations].detach(),
        ]

    @staticmethod
    def _pull_back(vectors: Tensor, rows: Tensor, directions: Tensor) -> Tensor:
        """Multiply directions (P, B or 1, d) with the Jacobian of each query vector: (P, B, d)."""
        directions = directions.expand(-1, len(vectors), -1)
        return torch.autograd.grad(vectors, rows, directions, is_grads_batched=True)[0]

    def _entity_curvature(self, vectors: Tensor, batch: Tensor) -> Tensor:
        """Compute Σ_k c_qk e_k e_kᵀ of each query: (B, d, d)."""
        table = self.model.entity_embeddings.weight.detach()
        inner = vectors.new_zeros(len(vectors), table.shape[1], table.shape[1])
        for start in range(0, len(table), 4096):
            rows = table[start : start + 4096]  # (k, d)
            weights = self._pair_weights(vectors, batch, start, rows)  # (B, k)
            for out, weight in zip(inner, weights, strict=True):
                out += (rows * weight[:, None]).T @ rows
        return inner

    def _signed_sums(self, vectors: Tensor, batch: Tensor, probes: int, generator: torch.Generator) -> Tensor:
        """Draw Σ_k ±√c_qk e_k, whose outer product has the mean Σ_k c_qk e_k e_kᵀ: (P, B, d)."""
        table = self.model.entity_embeddings.weight.detach()
        sums = vectors.new_zeros(probes, len(vectors), table.shape[1])
        for start in range(0, len(table), 16_384):
            rows = table[start : start + 16_384]  # (k, d)
            roots = self._pair_weights(vectors, batch, start, rows).sqrt()  # (B, k)
            for out in sums:
                signs = torch.randint(0, 2, roots.shape, generator=generator, dtype=torch.int8) * 2 - 1
                out += (roots * signs.to(roots)) @ rows
        return sums

    def _pair_weights(self, vectors: Tensor, batch: Tensor, start: int, rows: Tensor) -> Tensor:
        scores = vectors @ rows.T  # (B, k)
        if self.model.entity_bias is not None:
            scores = scores + self.model.entity_bias.detach()[start : start + len(rows)]
        return _logistic_curvature(scores) * self._importance[batch][:, None]

    def _generator(self, kind: int, row: int) -> torch.Generator:
        # Seeded by the row, so that its curvature does not depend on which rows were asked for before it.
        seed = np.random.SeedSequence([self.config.seed, kind, row]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))

    def _zeros(self) -> Tensor:
        dim = self.model.config.embedding_dim
        return self.model.entity_embeddings.weight.new_zeros(dim, dim)


def _logistic_curvature(scores: Tensor) -> Tensor:
    return torch.sigmoid(scores) * torch.sigmoid(-scores)


def _sample(ids: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return ids[torch.randperm(len(ids), generator=generator)[:size].to(ids.device)]


def score_row_gradients(model: ConvE, triple: Iterable[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ∂s/∂ of a triple's head row, relation row and tail row: (d,) three times, kept apart also where h = t."""
    head, relation, tail = (int(value) for value in triple)
    head_row = model.entity_embeddings.weight[head].detach().requires_grad_()
    relation_row = model.relation_embeddings.weight[relation].detach().requires_grad_()
    tail_row = model.entity_embeddings.weight[tail].detach()
    with torch.enable_grad():
        vector = model.encode_rows(head_row[None], relation_row[None])[0]
        by_head, by_relation = torch.autograd.grad(vector @ tail_row, [head_row, relation_row])
    return by_head, by_relation, vector.detach()


def gauss_newton_tangents(model: ConvE, test_triples: np.ndarray, curvature: RowCurvature) -> list[ConvETangent]:
    """Compute (H + λI)⁻¹∇s′ of each test triple's three rows.

    Args:
        model: ConvE in eval mode.
        test_triples: (n, 3) in the model's relation ids.
        curvature: the model's; rows that it lacks are computed and kept.

    Returns:
        For each test triple a tangent that moves one or two entity rows and one relation row.
    """
    tangents = []
    for head, relation, tail in np.asarray(test_triples).tolist():
        by_head, by_relation, by_tail = score_row_gradients(model, (head, relation, tail))
        gradients = {tail: by_tail}
        gradients[head] = by_head + gradients.get(head, 0)
        tangents.append(
            ConvETangent(
                entity_rows={row: curvature.precondition(curvature.entity(row), g) for row, g in gradients.items()},
                relation_rows={relation: curvature.precondition(curvature.relation(relation), by_relation)},
            )
        )
    return tangents


@dataclass(frozen=True, kw_only=True)
class GaussNewtonMethod:
    """The method's constants; `for_training` has those that agree best with retraining (benchmarks/truth.py)."""

    curvature: CurvatureConfig
    competition: float
    same_tail_share: float
    same_query_share: float

    @classmethod
    def for_training(cls, training_approach: str, *, damping: float = 1.0) -> "GaussNewtonMethod":
        """Choose the constants for models trained with "kvsall" or "1vsall"."""
        one_target = training_approach == "1vsall"
        return cls(
            curvature=CurvatureConfig(damping=damping, weighted_by_triples=one_target),
            competition=0.7 if one_target else 0.0,
            same_tail_share=0.8 if one_target else 0.4,
            same_query_share=0.0 if one_target else 0.2,
        )


def gauss_newton_effects(
    model: ConvE,
    test_triples: np.ndarray,
    training_triples: np.ndarray,
    method: GaussNewtonMethod,
    *,
    inverse_triples: bool = False,
    curvature: RowCurvature | None = None,
    batch_size: int = 256,
    progress: str | None = None,
) -> Tensor:
    """Score training triples for each test triple with the formula of the module's docstring.

    Args:
        model: ConvE in eval mode.
        test_triples, training_triples: (n, 3) and (N, 3) in the files' ids; the training triples are all that the
            model was trained on.
        method: its constants.
        inverse_triples: the model was trained with them.
        curvature: use and fill this cache, made by `training_curvature` from the same model and triples.
        batch_size, progress: see `iterate_derivatives`.

    Returns:
        (n, N) on the CPU: how much the test triple's score owes to the training triple; positive is a proponent.
    """
    test_triples = np.asarray(test_triples, dtype=np.int64).reshape(-1, 3)
    if curvature is None:
        curvature = training_curvature(model, training_triples, method.curvature, inverse_triples=inverse_triples)
    model_triples = examples_of(training_triples, inverse_triples=inverse_triples)
    model_tests = with_relation_rows(test_triples, inverse_triples=inverse_triples)
    tangents = gauss_newton_tangents(model, model_tests, curvature)
    effects = label_effects(model, tangents, model_triples, batch_size=batch_size, progress=progress)
    if method.competition:
        effects -= method.competition * query_means(effects, model_triples)
    if inverse_triples:
        effects = effects[:, : len(training_triples)] + effects[:, len(training_triples) :]
    for out, tangent, test, model_test in zip(effects, tangents, test_triples, model_tests, strict=True):
        own_effect = label_effects(model, [tangent], model_test[None])[0, 0]
        out += own_effect * label_shares(test, training_triples, method).to(out)
    return effects


def training_curvature(
    model: ConvE, training_triples: np.ndarray, config: CurvatureConfig, *, inverse_triples: bool
) -> RowCurvature:
    """Make the cache of curvatures for training triples (N, 3) in the files' ids."""
    triples = examples_of(training_triples, inverse_triples=inverse_triples)
    # A repeated triple is one more row of 1vsAll and counts there; with KvsAll no weight depends on it.
    queries = Queries.distinct(triples, model.entity_embeddings.weight.device)
    return RowCurvature(model, queries, config)


def label_effects(
    model: ConvE,
    tangents: list[ConvETangent],
    triples: np.ndarray,
    *,
    batch_size: int = 256,
    progress: str | None = None,
) -> Tensor:
    """Compute ṡ of triples (N, 3), in the model's relation ids, along n tangents: (n, N) on the CPU.

    Turning a label from 1 to 0 changes the training objective by +s, whatever s is, so ṡ is the effect of a label.
    """
    effects = torch.zeros(len(tangents), len(triples), dtype=model.entity_embeddings.weight.dtype)
    for positions, _, derivatives in iterate_derivatives(
        model, tangents, triples, batch_size=batch_size, progress=progress
    ):
        effects[:, positions] = derivatives.cpu()
    return effects


@torch.no_grad()
def leverages(
    model: ConvE,
    triples: np.ndarray,
    curvature: RowCurvature,
    *,
    batch_size: int = 1024,
    progress: str | None = None,
) -> Tensor:
    """Compute ∇s(z)ᵀ(H + λI)⁻¹∇s(z) over the three rows of each triple z: (N,), the effect of its label on itself.

    `triples` (N, 3) have the model's relation ids. A planted error stands out because only its own label supports it.
    `progress` is what to call the work on a progress bar over the rows; none is shown without.
    """
    columns = torch.from_numpy(np.ascontiguousarray(triples)).to(model.entity_embeddings.weight.device)
    by_head, by_relation, by_tail = [], [], []
    for batch in columns.split(batch_size):
        heads, relations, tails = batch.unbind(dim=1)
        head_rows = model.entity_embeddings.weight[heads].detach().requires_grad_()
        relation_rows = model.relation_embeddings.weight[relations].detach().requires_grad_()
        with torch.enable_grad():
            vectors = model.encode_rows(head_rows, relation_rows)  # (B, d)
            scores = (vectors * model.entity_embeddings.weight[tails].detach()).sum()
            gradients = torch.autograd.grad(scores, [head_rows, relation_rows])
        by_head.append(gradients[0])
        by_relation.append(gradients[1])
        by_tail.append(vectors.detach())
    by_head, by_relation, by_tail = torch.cat(by_head), torch.cat(by_relation), torch.cat(by_tail)
    # Where head and tail are one row, its gradient is the sum of both parts.
    one_row = (columns[:, 0] == columns[:, 2])[:, None]
    by_head = torch.where(one_row, by_head + by_tail, by_head)
    by_tail = torch.where(one_row, 0, by_tail)
    own_effects = columns.new_zeros(len(columns), dtype=model.entity_embeddings.weight.dtype)
    sides = (
        (columns[:, 0], by_head, curvature.entity),
        (columns[:, 1], by_relation, curvature.relation),
        (columns[:, 2], by_tail, curvature.entity),
    )
    number_of_rows = sum(len(rows.unique()) for rows, _, _ in sides)
    with tqdm(total=number_of_rows, desc=progress, unit="row", disable=progress is None) as bar:
        for rows, gradients, matrix_of in sides:
            for row in rows.unique().tolist():
                here = (rows == row).nonzero()[:, 0]
                solved = curvature.precondition(matrix_of(row), gradients[here].T).T  # (m, d)
                own_effects[here] += (solved * gradients[here]).sum(dim=1)
                bar.update()
    return own_effects.cpu()


def query_means(effects: Tensor, triples: np.ndarray) -> Tensor:
    """Average effects (n, N) over the triples (N, 3) that share a query (h, r): (n, N)."""
    index = group_by_query(triples)
    counts = np.diff(index.offsets)
    query_of = np.empty(len(triples), dtype=np.int64)
    query_of[index.order] = np.repeat(np.arange(len(counts)), counts)
    query_of = torch.from_numpy(query_of)
    sums = effects.new_zeros(len(effects), len(counts)).index_add_(1, query_of, effects)
    return (sums / torch.from_numpy(counts))[:, query_of]


def label_shares(test_triple: np.ndarray, triples: np.ndarray, method: GaussNewtonMethod) -> Tensor:
    """Say what share of the test triple's own effect the labels of triples (N, 3) earn them: (N,).

    Labels of an inverse test triple (see `inverse_of`) are those of the triples' inverses.
    """
    if test_triple[1] < 0:
        triples = inverse_of(triples)
    head, relation, tail = (triples == test_triple).T
    shares = method.same_tail_share * (relation & tail) + method.same_query_share * (head & relation)
    return torch.from_numpy(shares)

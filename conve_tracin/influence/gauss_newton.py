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

from conve_tracin.influence.conve.engine import iterate_derivatives
from conve_tracin.influence.conve.tangent import ConvETangent
from conve_tracin.influence.curvature import CurvatureConfig, RowCurvature
from conve_tracin.model import ConvE
from conve_tracin.queries import Queries
from conve_tracin.triples import group_by_query, with_inverse_triples


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
        inverse_triples: the model was trained with them; relation r of the files is its row 2r, the inverse 2r + 1.
        curvature: use and fill this cache, made by `training_curvature` from the same model and triples.
        batch_size, progress: see `iterate_derivatives`.

    Returns:
        (n, N) on the CPU: how much the test triple's score owes to the training triple; positive is a proponent.
    """
    test_triples = np.asarray(test_triples, dtype=np.int64).reshape(-1, 3)
    if curvature is None:
        curvature = training_curvature(model, training_triples, method.curvature, inverse_triples=inverse_triples)
    model_triples = with_inverse_triples(training_triples) if inverse_triples else training_triples
    model_tests = test_triples * np.array([1, 2 if inverse_triples else 1, 1])
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
    triples = with_inverse_triples(training_triples) if inverse_triples else training_triples
    # A repeated triple is one more row of 1vsAll and counts there; with KvsAll no weight depends on it.
    queries = Queries.distinct(group_by_query(triples), model.entity_embeddings.weight.device)
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
    """Say what share of the test triple's own effect the labels of triples (N, 3) earn them: (N,)."""
    head, relation, tail = (triples == test_triple).T
    shares = method.same_tail_share * (relation & tail) + method.same_query_share * (head & relation)
    return torch.from_numpy(shares)

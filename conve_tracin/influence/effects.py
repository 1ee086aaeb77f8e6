"""Gauss–Newton influence: how much lower the test triple's score would be without a training triple.

TracIn follows the plain gradient, in which the many directions that all queries share drown those that tell triples
apart. Here each of the embedding rows that carry the test triple's gradient is preconditioned with its own curvature,
(H + λI)⁻¹∇s′, as in influence functions (Koh and Liang, 2017, https://arxiv.org/abs/1703.04730, equation 2); all other
parameters rest. With binary cross-entropy these are the rows of head, relation and tail; with softmax cross-entropy the
relation's rests as well: its part is right only with a pass over all entities for each of the relation's queries, and
adds nothing then (docs/notes_curvature.md).
`curvature` has H, for models trained with either; λ is relative to H's mean eigenvalue. s′ is the score of the test
triple, or with `both_sides` the sum of the scores of its two queries, (h, r, ?) and the inverse (t, r⁻¹, ?), in which
training had a fact twice.

A training triple z = (h, r, t) scores, with ṡ for the derivative along the preconditioned rows,

    w · (ṡ_t − competition · rivals)
        + ṡ′ · (same_tail_share · 1[r = r′ and t = t′] + same_query_share · 1[h = h′ and r = r′]).

What the objective loses with z decides the first part. n is the number of the query's triples, T its tails.

- Binary, KvsAll: turning z's label from 1 to 0 adds s_t, whatever s_t is: w = 1, and no rivals. With weights by tails
  the label weighs n − 1 (the query's weight falls to that with z), so that w = max(n − 1, 1).
- Binary, 1vsAll: z's whole row goes, Σ_k softplus(s_k) − s_t, so that Σ_k σ(s_k)ṡ_k comes off. At that objective's
  optimum σ is 1/n on T and about 0 elsewhere, which makes it the mean over T: the rivals are the query's other tails.
  Theory says competition = 1; .7 agrees best with retraining.
- Softmax, 1vsAll or KvsAll with weights by tails: log Σ_k exp(s_k) − s_t goes: w = 1, and the rivals are Σ_k p_k ṡ_k
  over what the model believes of (h, r) (`expectations`), with competition = 1 as theory says.
- Softmax, KvsAll with equal weights: the labels of the query's other tails grow from 1/n to 1/(n − 1), which adds
  (s_t − Σ_{k∈T} s_k / n) / (n − 1): w = 1/(n − 1), and the rivals are the mean over T. Where n = 1 the query goes:
  w = 1, and the rivals are Σ_k p_k ṡ_k.

ṡ′ is the effect of the test triple's own label. A model trained anew learns features that bring triples with two labels
in common closer together than they are to a model whose features rest, hence their shares with binary cross-entropy.
Label smoothing scales all effects by 1 − ε, which is left out. With inverse triples the scores of a triple's two
queries add (the shares are given once).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from conve_tracin.data.keys import distinct_triples
from conve_tracin.data.queries import (
    Queries,
    QueryIndex,
    examples_of,
    group_by_query,
    inverse_of,
    inverse_rows,
    with_relation_rows,
)
from conve_tracin.data.sorted_queries import SortedQueries
from conve_tracin.influence.curvature import CurvatureConfig, RowCurvature
from conve_tracin.influence.engine.passes import iterate_derivatives
from conve_tracin.influence.engine.tangent import ConvETangent
from conve_tracin.influence.expectations import expected_derivatives
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import SOFTMAX_DAMPING


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


def gauss_newton_tangents(
    model: ConvE,
    test_triples: np.ndarray,
    curvature: RowCurvature,
    *,
    both_sides: bool = False,
    relation_moves: bool = True,
) -> list[ConvETangent]:
    """Compute (H + λI)⁻¹∇s′ of each test triple's rows.

    Args:
        model: ConvE in eval mode.
        test_triples: (n, 3) in the model's relation ids.
        curvature: the model's; rows that it lacks are computed and kept.
        both_sides: s′ is the sum of the scores of the triple and of its inverse.
        relation_moves: the relation's rows do not rest.

    Returns:
        For each test triple a tangent that moves one or two entity rows and up to two relation rows.
    """
    tangents = []
    for head, relation, tail in np.asarray(test_triples).tolist():
        by_entity: dict[int, Tensor] = {}
        by_relation: dict[int, Tensor] = {}
        queries = [(head, relation, tail)]
        if both_sides:
            # Relation r is row 2r, its inverse row 2r + 1.
            queries.append((tail, inverse_rows(relation), head))
        for query in queries:
            gradients = score_row_gradients(model, query)
            for rows, row, gradient in (
                (by_entity, query[0], gradients[0]),
                (by_relation, query[1], gradients[1]),
                (by_entity, query[2], gradients[2]),
            ):
                if rows is by_entity or relation_moves:
                    rows[row] = gradient + rows.get(row, 0)
        tangents.append(
            ConvETangent(
                entity_rows={row: curvature.precondition(curvature.entity(row), g) for row, g in by_entity.items()},
                relation_rows={
                    row: curvature.precondition(curvature.relation(row), g) for row, g in by_relation.items()
                },
            )
        )
    return tangents


@dataclass(frozen=True, kw_only=True)
class GaussNewtonMethod:
    """The method's constants; `for_training` has those that did best in the exams (benchmarks/truth.py).

    Attributes:
        curvature: how H is computed, and λ.
        competition: how much of what its rivals gain is taken off a triple.
        rivals: "tails", the mean over the query's training tails; "beliefs", all entities as the softmax weighs them;
            or "either", beliefs where a query has one tail and else tails.
        label_weights: w as above: "one", "shares" (KvsAll, softmax, equal weights) or "counts" (KvsAll, binary, weights
            by tails).
        same_tail_share, same_query_share: of the test triple's own effect.
        both_sides: s′ is of both queries of the test triple, where the model has inverse relations.
        relation_moves: the relation's rows do not rest.
    """

    curvature: CurvatureConfig
    competition: float
    same_tail_share: float
    same_query_share: float
    rivals: str = "tails"
    label_weights: str = "one"
    both_sides: bool = False
    relation_moves: bool = True

    @classmethod
    def for_training(
        cls, training_approach: str, *, damping: float = 1.0, loss: str = "bce", query_weights: str = "equal"
    ) -> "GaussNewtonMethod":
        """Choose the constants for models trained so; the members of `TrainingConfig` say what can be given."""
        one_target = training_approach == "1vsall"
        softmax = loss == "ce"
        by_tails = one_target or query_weights == "tails"
        curvature = CurvatureConfig(
            damping=damping * (SOFTMAX_DAMPING if softmax else 1),
            loss=loss,
            weighted_by_triples=by_tails,
            repeated_triples_count=one_target,
        )
        if softmax:
            return cls(
                curvature=curvature,
                competition=1.0,
                same_tail_share=0.0,
                same_query_share=0.0,
                rivals="beliefs" if by_tails else "either",
                label_weights="one" if by_tails else "shares",
                both_sides=True,
                relation_moves=False,
            )
        return cls(
            curvature=curvature,
            competition=0.7 if one_target else 0.0,
            same_tail_share=0.8 if one_target else 0.4,
            same_query_share=0.0 if one_target else 0.2,
            label_weights="counts" if by_tails and not one_target else "one",
        )

    def tangents(
        self, model: ConvE, test_triples: np.ndarray, curvature: RowCurvature, *, inverse_triples: bool
    ) -> list[ConvETangent]:
        """Compute `gauss_newton_tangents` of test triples (n, 3), in the model's relation ids, as the constants say."""
        both_sides = self.both_sides and inverse_triples
        return gauss_newton_tangents(
            model, test_triples, curvature, both_sides=both_sides, relation_moves=self.relation_moves
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
    tangents = method.tangents(model, model_tests, curvature, inverse_triples=inverse_triples)
    effects = example_effects(
        tangents,
        model_triples,
        method,
        curvature=curvature,
        queries=torch.arange(len(curvature.queries), device=curvature.queries.device),
        batch_size=batch_size,
        progress=progress,
    )
    if inverse_triples:
        effects = effects[:, : len(training_triples)] + effects[:, len(training_triples) :]
    for out, tangent, test, model_test in zip(effects, tangents, test_triples, model_tests, strict=True):
        add_label_shares(out, model, tangent, test, model_test, training_triples, method)
    return effects


def touched_effects(
    model: ConvE,
    test_triple: np.ndarray,
    queries: SortedQueries,
    method: GaussNewtonMethod,
    *,
    curvature: RowCurvature,
    batch_size: int = 256,
) -> tuple[np.ndarray, Tensor]:
    """Compute `gauss_newton_effects` of one test triple (3,), of the training triples that it touches alone.

    A query's triples are looked at together, as they compete. Those of a query that has neither an entity nor a moved
    relation of the test triple are left out: all that moves for them is a rival that the model hardly believes in.

    Returns:
        Positions of the triples, in ascending order, (m,), and their effects, (m,).
    """
    inverse = queries.inverse_triples
    model_test = with_relation_rows(test_triple[None], inverse_triples=inverse)
    (tangent,) = method.tangents(model, model_test, curvature, inverse_triples=inverse)
    touched = queries.touching(list(tangent.entity_rows), list(tangent.relation_rows))
    examples = queries.examples(touched)
    by_example = example_effects(
        [tangent], queries.rows_of(examples), method, curvature=curvature, queries=touched, batch_size=batch_size
    )[0]
    positions, places = np.unique(examples % len(queries.triples), return_inverse=True)
    effects = by_example.new_zeros(len(positions)).index_add_(0, torch.from_numpy(places), by_example)
    here = np.take(queries.triples, positions, axis=0)
    add_label_shares(effects, model, tangent, test_triple, model_test[0], here, method)
    return positions, effects


def example_effects(
    tangents: list[ConvETangent],
    examples: np.ndarray,
    method: GaussNewtonMethod,
    *,
    curvature: RowCurvature,
    queries: Tensor,
    batch_size: int,
    progress: str | None = None,
) -> Tensor:
    """Compute w · (ṡ_t − competition · rivals) of examples (M, 3) in the model's relation ids: (n, M).

    The examples are all that the `queries` (Q,) have, ids of `curvature.queries` in ascending order.
    """
    effects = label_effects(curvature.model, tangents, examples, batch_size=batch_size, progress=progress)
    effects -= rival_effects(tangents, effects, examples, method, curvature=curvature, queries=queries)
    if method.label_weights != "one":
        effects *= label_weights(examples, method.label_weights).to(effects)
    return effects


def add_label_shares(
    effects: Tensor,
    model: ConvE,
    tangent: ConvETangent,
    test_triple: np.ndarray,
    model_test: np.ndarray,
    triples: np.ndarray,
    method: GaussNewtonMethod,
) -> None:
    """Add what the labels of triples (N, 3) earn of the test triple's own effect to their effects (N,)."""
    if method.same_tail_share or method.same_query_share:
        own_effect = label_effects(model, [tangent], model_test[None])[0, 0]
        effects += own_effect * label_shares(test_triple, triples, method).to(effects)


def rival_effects(
    tangents: list[ConvETangent],
    effects: Tensor,
    examples: np.ndarray,
    method: GaussNewtonMethod,
    *,
    curvature: RowCurvature,
    queries: Tensor,
) -> Tensor:
    """Compute competition · rivals for the label effects (n, M) of examples (M, 3), see `example_effects`: (n, M)."""
    if not method.competition:
        return torch.zeros(())
    if method.rivals == "tails":
        return method.competition * query_means(effects, examples)
    expected = [expected_derivatives(tangent, curvature.beliefs, queries) for tangent in tangents]
    rivals = torch.stack(expected)[:, query_places(group_by_query(examples))]  # (n, M)
    if method.rivals == "either":
        rivals = torch.where(other_tails(examples) > 0, query_means(effects, examples), rivals)
    return method.competition * rivals


def training_curvature(
    model: ConvE, training_triples: np.ndarray, config: CurvatureConfig, *, inverse_triples: bool
) -> RowCurvature:
    """Make the cache of curvatures for training triples (N, 3) in the files' ids."""
    triples = examples_of(training_triples, inverse_triples=inverse_triples)
    if not config.repeated_triples_count:
        triples = distinct_triples(triples)
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
    relation_moves: bool = True,
    batch_size: int = 1024,
    progress: str | None = None,
) -> Tensor:
    """Compute ∇s(z)ᵀ(H + λI)⁻¹∇s(z) over the rows of each triple z: (N,), the effect of its label on itself.

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
    sides = [(columns[:, 0], by_head, curvature.entity), (columns[:, 2], by_tail, curvature.entity)]
    if relation_moves:
        sides.append((columns[:, 1], by_relation, curvature.relation))
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
    places, counts = query_places(index), torch.from_numpy(np.diff(index.offsets))
    sums = effects.new_zeros(len(effects), len(counts)).index_add_(1, places, effects)
    return (sums / counts)[:, places]


def query_places(index: QueryIndex) -> Tensor:
    """Say for each triple that `group_by_query` grouped which query is its own: (N,)."""
    places = np.empty(len(index.order), dtype=np.int64)
    places[index.order] = np.repeat(np.arange(len(index.queries)), np.diff(index.offsets))
    return torch.from_numpy(places)


def other_tails(triples: np.ndarray) -> Tensor:
    """Count the distinct tails of each triple's query besides its own, for triples (N, 3): (N,)."""
    counts = np.diff(group_by_query(distinct_triples(triples)).offsets)
    return torch.from_numpy(counts - 1)[query_places(group_by_query(triples))]


def label_weights(triples: np.ndarray, kind: str) -> Tensor:
    """Compute w of triples (N, 3): 1/(n − 1) for "shares", n − 1 for "counts", n the query's distinct tails; (N,).

    Where n is 1, w is 1.
    """
    others = other_tails(triples).clamp(min=1).double()
    return others if kind == "counts" else 1 / others


def label_shares(test_triple: np.ndarray, triples: np.ndarray, method: GaussNewtonMethod) -> Tensor:
    """Say what share of the test triple's own effect the labels of triples (N, 3) earn them: (N,).

    Labels of an inverse test triple (see `inverse_of`) are those of the triples' inverses.
    """
    if test_triple[1] < 0:
        triples = inverse_of(triples)
    head, relation, tail = (triples == test_triple).T
    shares = method.same_tail_share * (relation & tail) + method.same_query_share * (head & relation)
    return torch.from_numpy(shares)

"""The training loss estimated from some of the entities: the targets of each query, and N others drawn for the batch.

`model.loss` says what the loss L of a query with n targets T among K entities is. Here the N entities S are drawn
without replacement, all sets alike, and a sum over the entities that are no targets becomes

    Σ_{k not in T} f(s_k)  ≈  c · Σ_{k in S, not in T} f(s_k),   c = (K − n) / |S without T|.

- "bce": value and gradient have the full loss's mean, since L is a sum over the entities.
- "ce": the estimate Ẑ of Z = Σ_k exp(s_k) has the right mean, and so log Ẑ is too low by about Var(Ẑ) / (2 Z²), where
  Var(Ẑ) = (K − n)² / m · (1 − m / (K − n)) · the variance of exp(s_k) over the entities that are no targets, and m is
  |S without T|. The bias falls as 1 / N; so does that of the gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from conve_tracin.model.loss import CPU_CHUNK_SCORES_OF_A_THREAD, GPU_CHUNK_SCORES


@dataclass(frozen=True)
class SampledEntities:
    """What a batch is scored against.

    Attributes:
        entities: the sample S, (N,), each once.
        rows, tails: the targets as places in the batch, rising, and entities, (M,) both, each once in its row.
        places: of the tails in the sample, −1 for those that are not in it, (M,).
        num_entities: K.
    """

    entities: Tensor
    rows: Tensor
    tails: Tensor
    places: Tensor
    num_entities: int

    @classmethod
    def draw(cls, size: int, rows: Tensor, tails: Tensor, *, num_entities: int) -> "SampledEntities":
        """Draw `size` of the entities, at most all, for targets."""
        return cls.of(torch.randperm(num_entities, device=tails.device)[:size], rows, tails, num_entities=num_entities)

    @classmethod
    def of(cls, entities: Tensor, rows: Tensor, tails: Tensor, *, num_entities: int) -> "SampledEntities":
        """Take a sample (N,) that is there already."""
        place_of = entities.new_full((num_entities,), -1)
        place_of[entities] = torch.arange(len(entities), device=entities.device)
        return cls(entities, rows, tails, place_of[tails], num_entities)

    def counts(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Count each query's targets, and those of them in the sample: (B,) twice."""
        ones = torch.ones_like(self.rows)
        zeros = self.rows.new_zeros(batch_size)
        return zeros.index_add(0, self.rows, ones), zeros.index_add(0, self.rows, (self.places >= 0).long())


def sampled_loss(
    kind: str,
    queries: Tensor,
    sample_rows: Tensor,
    target_rows: Tensor,
    sampled: SampledEntities,
    *,
    sample_bias: Tensor | None = None,
    target_bias: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """Estimate the loss of query vectors (B, d), holding the scores of some queries at a time.

    Args:
        kind: "bce" or "ce".
        sample_rows, target_rows: rows of the entity table, (N, d) and (M, d).
        sampled: which entities these are.
        sample_bias, target_bias: added to their scores, (N,) and (M,).
        weights: of the queries, (B,); all 1 if None.
        label_smoothing: ε, at least 0 and below 1.
        low_precision: of the matrix products; everything else keeps the precision of the rows.

    Returns:
        A scalar; its gradients are there already, so that they can be had once.
    """
    settings = (kind, weights, label_smoothing, low_precision or sample_rows.dtype)
    return _SampledLoss.apply(queries, sample_rows, target_rows, sample_bias, target_bias, sampled, settings)


class _SampledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, sample_rows, target_rows, sample_bias, target_bias, sampled, settings):
        estimate = _Estimate(
            queries.detach().to(sample_rows.dtype),
            sample_rows.detach(),
            target_rows.detach(),
            None if sample_bias is None else sample_bias.detach(),
            None if target_bias is None else target_bias.detach(),
            sampled,
            *settings,
        )
        total = estimate.compute()
        ctx.query_dtype = queries.dtype
        ctx.gradients = estimate.gradients
        return total.to(sample_rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        queries, *rest = (None if each is None else each * grad_output for each in ctx.gradients)
        return queries.to(ctx.query_dtype), *rest, None, None


class _Estimate:
    """Loss and gradients of a batch, some queries at a time."""

    def __init__(
        self,
        queries: Tensor,
        sample_rows: Tensor,
        target_rows: Tensor,
        sample_bias: Tensor | None,
        target_bias: Tensor | None,
        sampled: SampledEntities,
        kind: str,
        weights: Tensor | None,
        label_smoothing: float,
        low_precision: torch.dtype,
    ) -> None:
        self.queries, self.sample_rows, self.target_rows = queries, sample_rows, target_rows
        self.sample_bias, self.sampled = sample_bias, sampled
        self.terms = {"bce": self._binary_terms, "ce": self._softmax_terms}[kind]
        self.low_precision = low_precision
        # Gradients times the scale would vanish in float16.
        self.gradient_precision = queries.dtype if low_precision == torch.float16 else low_precision
        self.everywhere = label_smoothing / sampled.num_entities
        self.of_labels = 1 - label_smoothing
        num_targets, num_in_sample = sampled.counts(len(queries))
        self.num_targets = num_targets.to(queries.dtype)
        # A sample of nothing but targets stands for no other entity.
        drawn = (len(sample_rows) - num_in_sample).clamp(min=1).to(queries.dtype)
        self.factors = (sampled.num_entities - self.num_targets) / drawn  # c, (B,)
        scale = 1 / (len(queries) * (sampled.num_entities if kind == "bce" else 1))
        self.scales = queries.new_full((len(queries),), scale) if weights is None else weights.to(queries.dtype) * scale
        self.target_scores = (queries[sampled.rows] * target_rows).sum(dim=1)  # (M,)
        if target_bias is not None:
            self.target_scores += target_bias
        self.gradients = (
            torch.empty_like(queries),
            torch.zeros_like(sample_rows),
            torch.empty_like(target_rows),
            None if sample_bias is None else torch.zeros_like(sample_bias),
            None if target_bias is None else torch.empty_like(target_bias),
        )

    def compute(self) -> Tensor:
        """Compute the loss, in float64, and fill the gradients."""
        low_rows = self.sample_rows.to(self.low_precision)
        total = torch.zeros((), dtype=torch.float64, device=self.queries.device)
        for of_queries, of_targets in self._pieces():
            rows = self.sampled.rows[of_targets] - of_queries.start
            in_sample = torch.nonzero(self.sampled.places[of_targets] >= 0)[:, 0]
            hits = rows[in_sample], self.sampled.places[of_targets][in_sample]
            scores = (self.queries[of_queries].to(self.low_precision) @ low_rows.T).to(self.queries.dtype)  # (b, N)
            if self.sample_bias is not None:
                scores += self.sample_bias
            losses, score_grad, target_grad = self.terms(scores, hits, rows, of_queries, of_targets)
            scales = self.scales[of_queries]
            total += (losses * scales).sum(dtype=torch.float64)
            self._accumulate(score_grad.mul_(scales[:, None]), target_grad * scales[rows], rows, of_queries, of_targets)
        return total

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Cut the batch into queries and their targets."""
        on_cpu = self.queries.device.type == "cpu"
        at_once = CPU_CHUNK_SCORES_OF_A_THREAD * torch.get_num_threads() if on_cpu else GPU_CHUNK_SCORES
        step = max(1, at_once // max(1, len(self.sample_rows)))
        starts = torch.arange(0, len(self.queries) + step, step, device=self.sampled.rows.device)
        starts = starts.clamp(max=len(self.queries)).unique()
        ends = torch.searchsorted(self.sampled.rows, starts).tolist()
        starts = starts.tolist()
        for i in range(len(starts) - 1):
            yield slice(starts[i], starts[i + 1]), slice(ends[i], ends[i + 1])

    def _binary_terms(self, scores, hits, rows, of_queries, of_targets) -> tuple[Tensor, Tensor, Tensor]:
        factors, own = self.factors[of_queries], self.target_scores[of_targets]
        linear = self._sum_of_others(scores, hits)
        scores[hits] = -torch.inf
        losses = factors * (F.softplus(scores).sum(dim=1) - self.everywhere * linear)
        losses.index_add_(0, rows, F.softplus(own) - (self.everywhere + self.of_labels) * own)
        score_grad = scores.sigmoid_().sub_(self.everywhere).mul_(factors[:, None])
        score_grad[hits] = 0
        return losses, score_grad, own.sigmoid() - self.everywhere - self.of_labels

    def _softmax_terms(self, scores, hits, rows, of_queries, of_targets) -> tuple[Tensor, Tensor, Tensor]:
        factors, own = self.factors[of_queries], self.target_scores[of_targets]
        linear = factors * self._sum_of_others(scores, hits)
        scores[hits] = -torch.inf
        top = scores.amax(dim=1).scatter_reduce(0, rows, own, reduce="amax")  # (b,)
        exponentials, own_exponentials = scores.sub_(top[:, None]).exp_(), (own - top[rows]).exp()
        total = (factors * exponentials.sum(dim=1)).index_add(0, rows, own_exponentials)
        labels = self.of_labels / self.num_targets[of_queries][rows]
        losses = top + total.log() - self.everywhere * linear
        losses.index_add_(0, rows, -(self.everywhere + labels) * own)
        score_grad = exponentials.div_(total[:, None]).sub_(self.everywhere).mul_(factors[:, None])
        score_grad[hits] = 0
        return losses, score_grad, own_exponentials / total[rows] - self.everywhere - labels

    @staticmethod
    def _sum_of_others(scores: Tensor, hits: tuple[Tensor, Tensor]) -> Tensor:
        """Sum scores (b, N) over the sample without the targets: (b,)."""
        return scores.sum(dim=1).index_add(0, hits[0], scores[hits], alpha=-1)

    def _accumulate(self, score_grad: Tensor, target_grad: Tensor, rows: Tensor, of_queries: slice, of_targets: slice):
        """Add the gradients of the scores, (b, N), and of the targets' scores, (m,)."""
        query_grad, sample_grad, target_row_grad, sample_bias_grad, target_bias_grad = self.gradients
        low = score_grad.to(self.gradient_precision)
        queries = self.queries[of_queries]
        own = (low @ self.sample_rows.to(self.gradient_precision)).to(queries.dtype)
        query_grad[of_queries] = own.index_add_(0, rows, self.target_rows[of_targets] * target_grad[:, None])
        sample_grad += (low.T @ queries.to(self.gradient_precision)).to(queries.dtype)
        target_row_grad[of_targets] = queries[rows] * target_grad[:, None]
        if sample_bias_grad is not None:
            sample_bias_grad += score_grad.sum(dim=0)
            target_bias_grad[of_targets] = target_grad

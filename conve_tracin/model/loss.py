"""The training loss: its definition, of scores that exist, streamed over the entities, and in terms to compile.

A query has scores s over K entities and n targets T among them. Its loss L is the cross-entropy, binary ("bce") or not
("ce"), against labels y_k = (1 − ε) · [k in T] + ε / K; for "ce" the first term is divided by n. The labels are never
built, because they contribute two sums over scores and nothing else:

    bce:  L = (Σ_k softplus(s_k) − ε / K · Σ_k s_k − (1 − ε) · Σ_{t in T} s_t) / K
    ce:   L = log Σ_k exp(s_k) − ε / K · Σ_k s_k − (1 − ε) / n · Σ_{t in T} s_t

The loss of a batch is the mean of L over its B queries, each times the query's weight.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from conve_tracin.model.tiles import LARGE_SCORE, TiledPasses, cut_into_chunks


def loss_without_targets(kind: str, scores: Tensor, label_smoothing: float) -> Tensor:
    """Compute L, K · L for "bce", of scores (B, K) without the targets' sum: (B,)."""
    losses = F.softplus(scores).sum(dim=1) if kind == "bce" else scores.logsumexp(dim=1)
    if label_smoothing:
        losses = losses - label_smoothing / scores.shape[1] * scores.sum(dim=1)
    return losses


def compute_loss_efficient(scores: Tensor, tail: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the bce loss of 1vsAll from scores (B, K) and the one target of each row, (B,).

    Returns a scalar equal to `F.binary_cross_entropy_with_logits` on the dense labels.
    """
    rows = torch.arange(len(scores), device=scores.device)
    return sparse_bce_with_logits(scores, rows, tail, label_smoothing=label_smoothing)


def sparse_bce_with_logits(scores: Tensor, rows: Tensor, tails: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Compute the bce loss of KvsAll, any number of targets a row.

    Args:
        scores: logits of every entity as tail, shape (B, K); lower precisions are summed in float32.
        rows: the row of each target, shape (M,).
        tails: the entity of each target, shape (M,); a target occurs once in its row.
        label_smoothing: ε, at least 0 and below 1.
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    targets = (1 - label_smoothing) * scores[rows, tails].sum()
    return (loss_without_targets("bce", scores, label_smoothing).sum() - targets) / scores.numel()


# Scores in a chunk: on a CPU they and what is made of them stay in each core's second-level cache.
CPU_CHUNK_SCORES_OF_A_THREAD = 2**18

GPU_CHUNK_SCORES = 2**25

MIN_CHUNK_ENTITIES = 256

# A batch with no more scores than these, 64 MiB in float32 and on a GPU 128, keeps what is made of them.
MAX_KEPT_SCORES = 2**24

MAX_KEPT_SCORES_ON_GPU = 2**25

# A GPU multiplies rows that begin at multiples of this many numbers up to eight times as fast.
GPU_ALIGNMENT = 8

TARGETS_AT_ONCE = 2**16


@dataclass(frozen=True)
class Targets:
    """The true tails of a batch: `rows` (M,) are places in the batch, `tails` (M,) entities, each once in its row.

    If `is_target` (M,) is given, the others do not count.
    """

    rows: Tensor
    tails: Tensor
    is_target: Tensor | None = None

    def labels(self, kind: str, batch_size: int, *, label_smoothing: float, dtype: torch.dtype) -> Tensor:
        """Return 1 − ε for each target, with "ce" divided by n, and 0 for what does not count: (M,)."""
        counts = torch.ones_like(self.rows, dtype=dtype) if self.is_target is None else self.is_target.to(dtype)
        labels = (1 - label_smoothing) * counts
        if kind == "bce":
            return labels
        return labels / counts.new_zeros(batch_size).index_add_(0, self.rows, counts)[self.rows]


def streamed_loss(
    kind: str,
    queries: Tensor,
    entities: Tensor,
    targets: Targets,
    *,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    low_precision: torch.dtype | None = None,
    chunk_size: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Compute the loss of query vectors (B, d) against the entity table (K, d) without holding their scores.

    Args:
        kind: "bce" or "ce".
        bias: added to each entity's scores, shape (K,).
        weights: of the queries, shape (B,); all 1 if None.
        label_smoothing: ε, at least 0 and below 1.
        low_precision: of the matrix products; everything else keeps the precision of `entities`.
        chunk_size: entities at a time; if None, what fits the cache or the memory.
        compiled: pass over the scores with compiled functions; raises the compiler's errors.

    Returns:
        A scalar; its backward pass hands out gradients of queries, entities and bias that are there already.
    """
    settings = {"low_precision": low_precision, "chunk_size": chunk_size, "compiled": compiled}
    return _StreamedLoss.apply(queries, entities, bias, targets, kind, weights, label_smoothing, settings)


class _StreamedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, entities, bias, targets, kind, weights, label_smoothing, settings):
        low_precision, chunk_size, compiled = settings["low_precision"], settings["chunk_size"], settings["compiled"]
        batch = _Batch(
            queries.detach().to(entities.dtype),
            entities.detach(),
            None if bias is None else bias.detach(),
            weights=None if weights is None else weights.to(entities.dtype),
            scale=1 / (len(queries) * (len(entities) if kind == "bce" else 1)),
        )
        everywhere = label_smoothing / len(entities)
        if _takes_tiles(entities, low_precision=low_precision, compiled=compiled):
            losses = _losses_in_tiles(kind, batch, everywhere, chunk_size)
        else:
            scorer = _ChunkScorer(
                batch,
                low_precision=low_precision or entities.dtype,
                chunk_size=chunk_size or choose_chunk_size(len(queries), entities.device),
                compiled=compiled,
            )
            losses = _LOSSES[kind](scorer, everywhere)
        labels = targets.labels(kind, len(queries), label_smoothing=label_smoothing, dtype=entities.dtype)
        total = (batch.total(losses) - batch.take_targets(targets, labels)) * batch.scale
        ctx.query_dtype = queries.dtype
        # Not as saved tensors: the backward pass scales them in place, and copies would be as large as the table.
        ctx.gradients = (batch.query_grad, batch.entity_grad, batch.bias_grad)
        return total.to(entities.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a streamed loss can be had once; compute the loss again")
        gradients, ctx.gradients = ctx.gradients, None
        # On the CPU the factor is at hand, and leaving out a factor of 1 saves a pass over the table.
        if grad_output.device.type != "cpu" or grad_output.item() != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient *= grad_output
        query_grad, entity_grad, bias_grad = gradients
        return query_grad.to(ctx.query_dtype), entity_grad, bias_grad, None, None, None, None, None


def choose_chunk_size(batch_size: int, device: torch.device) -> int:
    """Return how many entities to score at a time."""
    on_cpu = device.type == "cpu"
    scores = CPU_CHUNK_SCORES_OF_A_THREAD * torch.get_num_threads() if on_cpu else GPU_CHUNK_SCORES
    chunk_size = max(MIN_CHUNK_ENTITIES, scores // batch_size)
    return chunk_size if on_cpu else chunk_size - chunk_size % GPU_ALIGNMENT


class _Chunk(NamedTuple):
    """Some of the entities: which, their rows (n, d) in the low precision, and their bias (n,)."""

    entities: slice
    rows: Tensor
    bias: Tensor | None


class _Batch:
    """A batch against the entities, and the gradients of both.

    The loss is `scale` times the sum of its terms over the queries, and so are all gradients.
    """

    def __init__(
        self, queries: Tensor, entities: Tensor, bias: Tensor | None, *, weights: Tensor | None = None, scale: float
    ) -> None:
        self.queries, self.entities, self.bias, self.weights = queries, entities, bias, weights
        self.scale = scale
        self.query_grad = torch.zeros_like(queries)
        self.entity_grad = torch.empty_like(entities)
        self.bias_grad = None if bias is None else torch.empty_like(bias)

    def take_targets(self, targets: Targets, weights: Tensor) -> Tensor:
        """Subtract the targets' share from the gradients; returns Σ weight · score over the targets.

        `weights` (M,) are the labels of the targets, beyond what smoothing gives every entity.
        """
        if self.weights is not None:
            weights = weights * self.weights[targets.rows]
            self.query_grad *= self.weights[:, None]
        total = torch.zeros((), dtype=torch.float64, device=weights.device)
        self.query_grad *= self.scale
        pieces = (part.split(TARGETS_AT_ONCE) for part in (targets.rows, targets.tails, weights))
        for rows, tails, weight in zip(*pieces, strict=True):
            query_rows, entity_rows = self.queries[rows], self.entities[tails]  # (m, d) each
            scores = (query_rows * entity_rows).sum(dim=1)
            if self.bias is not None:
                scores += self.bias[tails]
                self.bias_grad.index_add_(0, tails, weight, alpha=-self.scale)
            total += (weight * scores).sum()
            self.query_grad.index_add_(0, rows, entity_rows * weight[:, None], alpha=-self.scale)
            self.entity_grad.index_add_(0, tails, query_rows * weight[:, None], alpha=-self.scale)
        return total

    def total(self, values: Tensor) -> Tensor:
        """Sum values of the queries, (…, B), each times the query's weight: (…)."""
        return values.sum(dim=-1) if self.weights is None else values @ self.weights.to(values.dtype)


class _ChunkScorer:
    """Scores of a batch, a chunk of entities at a time, and the gradients that their gradients add up to."""

    def __init__(self, batch: _Batch, *, low_precision: torch.dtype, chunk_size: int, compiled: bool = False) -> None:
        self.batch, self.dtype, self.low_precision = batch, batch.entities.dtype, low_precision
        alignment = 1 if batch.entities.device.type == "cpu" else GPU_ALIGNMENT
        self._chunks = cut_into_chunks(len(batch.entities), chunk_size, alignment=alignment)
        self.terms = choose_score_terms(compiled=compiled)
        self._low_queries = batch.queries.to(low_precision)
        # Weights on the gradients of the scores, in place of the queries, would make their products overflow in
        # float16, and the scale here would make them vanish there. In other precisions it saves a pass over the table.
        self._late_scale = batch.scale if low_precision == torch.float16 else 1.0
        factor = batch.scale / self._late_scale * (1 if batch.weights is None else batch.weights[:, None])
        self._low_factors = (batch.queries * factor).to(low_precision)  # (B, d)

    def chunks(self) -> Iterator[_Chunk]:
        """Yield the entities, a chunk at a time."""
        for chosen in self._chunks:
            bias = None if self.batch.bias is None else self.batch.bias[chosen]
            yield _Chunk(chosen, self.batch.entities[chosen].to(self.low_precision), bias)

    def products(self, chunk: _Chunk) -> Tensor:
        """Multiply queries and entities: the scores without the bias, (B, n), in the low precision."""
        return self._low_queries @ chunk.rows.T

    def accumulate(self, chunk: _Chunk, score_grad: Tensor, low_score_grad: Tensor) -> None:
        """Add the gradient of a chunk's scores, (B, n), without weights and scale.

        The gradient of the queries waits for these in `_Batch.take_targets`.
        """
        batch = self.batch
        if self.low_precision == self.dtype:
            batch.query_grad.addmm_(low_score_grad, chunk.rows)
        else:
            batch.query_grad += low_score_grad @ chunk.rows
        entity_grad = batch.entity_grad[chunk.entities]
        self._multiply(low_score_grad.T, self._low_factors, out=entity_grad)
        if self._late_scale != 1:
            entity_grad *= self._late_scale
        if batch.bias_grad is not None:
            torch.mul(batch.total(score_grad.T), batch.scale, out=batch.bias_grad[chunk.entities])

    @staticmethod
    def _multiply(left: Tensor, right: Tensor, *, out: Tensor) -> None:
        if left.dtype == out.dtype:
            torch.mm(left, right, out=out)
        else:
            out.copy_(left @ right)


def _takes_tiles(entities: Tensor, *, low_precision: torch.dtype | None, compiled: bool) -> bool:
    # A compiled function makes one pass of all it does, and products of low precision need copies.
    return entities.device.type == "cpu" and not compiled and low_precision in (None, entities.dtype)


def _losses_in_tiles(kind: str, batch: _Batch, everywhere: float, chunk_size: int | None) -> Tensor:
    weights = batch.queries.new_ones(len(batch.queries)) if batch.weights is None else batch.weights
    passes = TiledPasses(
        batch.queries,
        batch.entities,
        batch.bias,
        factors=batch.scale * weights,
        everywhere=everywhere,
        entity_grad=batch.entity_grad,
        bias_grad=batch.bias_grad,
        chunk_size=chunk_size,
    )
    losses, batch.query_grad = passes.binary() if kind == "bce" else passes.softmax(keep=_keeps_scores(batch))
    return losses


def _keeps_scores(batch: _Batch) -> bool:
    on_cpu = batch.queries.device.type == "cpu"
    return len(batch.queries) * len(batch.entities) <= (MAX_KEPT_SCORES if on_cpu else MAX_KEPT_SCORES_ON_GPU)


def _stream_bce(scorer: _ChunkScorer, everywhere: float) -> Tensor:
    precisions = {"dtype": scorer.dtype, "low_precision": scorer.low_precision}
    queries = scorer.batch.queries
    losses = queries.new_zeros(len(queries), dtype=torch.float64)
    for chunk in scorer.chunks():
        sums, *gradients = scorer.terms.binary_terms(
            scorer.products(chunk), chunk.bias, everywhere=everywhere, **precisions
        )
        losses += sums
        scorer.accumulate(chunk, *gradients)
        del gradients  # their memory is the next chunk's
    return losses


def _stream_ce(scorer: _ChunkScorer, everywhere: float) -> Tensor:
    queries = scorer.batch.queries
    keep = _keeps_scores(scorer.batch)
    kept: deque[tuple[Tensor, Tensor]] = deque()  # exponentials of each chunk, and what they are relative to
    top = queries.new_full((len(queries),), -torch.inf)
    total, linear = torch.zeros_like(top), torch.zeros_like(top, dtype=torch.float64)
    for chunk in scorer.chunks():
        old_top = top
        chunk_linear, top, exponentials, chunk_total = scorer.terms.normalizer_terms(
            scorer.products(chunk), chunk.bias, old_top, dtype=scorer.dtype
        )
        linear += chunk_linear
        total = total * (old_top - top).exp() + chunk_total
        if keep:
            kept.append((exponentials, top))
        del exponentials  # its memory is the next chunk's, unless it is kept
    for chunk in scorer.chunks():
        if keep:
            exponentials, relative_to = kept.popleft()
        else:
            relative_to = top
            exponentials = scorer.terms.relative_exponentials(
                scorer.products(chunk), chunk.bias, relative_to, dtype=scorer.dtype
            )
        factors = (relative_to - top).exp() / total
        gradients = scorer.terms.softmax_gradient(
            exponentials, factors, everywhere=everywhere, low_precision=scorer.low_precision
        )
        scorer.accumulate(chunk, *gradients)
        del exponentials, gradients
    return top.double() + total.double().log() - everywhere * linear


_LOSSES = {"bce": _stream_bce, "ce": _stream_ce}


def binary_terms(
    products: Tensor, bias: Tensor | None, *, everywhere: float, dtype: torch.dtype, low_precision: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum softplus(s) − everywhere · s over the scores of each query, (B,), and take the derivative.

    That is σ(s) − everywhere, (B, n), returned in both precisions. One exponential serves both: with e = exp(s),
    σ(s) = e / (1 + e) and softplus(s) = log(1 + e).
    """
    scores = _biased(products, bias, dtype)
    linear = scores.sum(dim=1)
    excess = _excess(scores)
    exponentials = scores.clamp_(max=LARGE_SCORE).exp_()
    ones_plus = exponentials + 1
    gradient = exponentials.div_(ones_plus)
    if everywhere:
        gradient -= everywhere
    return ones_plus.log_().sum(dim=1) + excess - everywhere * linear, gradient, gradient.to(low_precision)


def normalizer_terms(
    products: Tensor, bias: Tensor | None, top: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prepare a softmax: return Σ s, the maximum m of `top` (B,) and the scores, exp(s − m), and its sum.

    The exponentials are (B, n), all else is (B,).
    """
    scores = _biased(products, bias, dtype)
    linear = scores.sum(dim=1)
    new_top = torch.maximum(top, scores.amax(dim=1))
    exponentials = scores.sub_(new_top[:, None]).exp_()
    return linear, new_top, exponentials, exponentials.sum(dim=1)


def relative_exponentials(products: Tensor, bias: Tensor | None, top: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Compute exp(s − top), (B, n), with `top` of each query, (B,)."""
    return _biased(products, bias, dtype).sub_(top[:, None]).exp_()


def softmax_gradient(
    exponentials: Tensor, factors: Tensor, *, everywhere: float, low_precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Turn exponentials (B, n) into probabilities minus `everywhere`, with a factor for each query, (B,).

    Returned in both precisions.
    """
    gradient = exponentials.mul_(factors[:, None])
    if everywhere:
        gradient -= everywhere
    return gradient, gradient.to(low_precision)


class ScoreTerms(NamedTuple):
    """The functions above, plain or compiled."""

    binary_terms: Callable[..., tuple[Tensor, Tensor, Tensor]] = binary_terms
    normalizer_terms: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = normalizer_terms
    relative_exponentials: Callable[..., Tensor] = relative_exponentials
    softmax_gradient: Callable[..., tuple[Tensor, Tensor]] = softmax_gradient


@functools.cache
def choose_score_terms(*, compiled: bool) -> ScoreTerms:
    """Return the functions; compiled ones are compiled when they are first called, and fail then."""
    plain = ScoreTerms()
    return ScoreTerms(*(torch.compile(function, dynamic=True) for function in plain)) if compiled else plain


def _biased(products: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    scores = products.to(dtype)
    return scores if bias is None else scores.add_(bias)


def _excess(scores: Tensor) -> Tensor | float:
    """Sum what the scores have above LARGE_SCORE over each query's: (B,)."""
    # Such scores are rare; but looking for them would make a GPU wait, and cut a compiled function in two.
    if not torch.compiler.is_compiling() and scores.device.type == "cpu" and scores.amax() <= LARGE_SCORE:
        return 0.0
    return (scores - LARGE_SCORE).clamp_(min=0).sum(dim=1)

"""Passes over all scores of a batch on a CPU, in tiles that stay in a core's cache.

A tile is the scores of some queries against some entities. While it is in the cache it is multiplied, turned into its
gradient and added up. Threads take blocks of entities and meet only at the end of a pass: work on a busy core delays
its own block, not every small step. Each block has its own sums for the queries, and these are added in order, so no
result depends on which thread was faster.

Exponentials are powers of two, which torch computes faster: queries and bias are multiplied with log₂(e) for them.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from conve_tracin.compute.workers import torch_threads

TILE_SCORES = 2**19

TILE_QUERIES = 1024

# A thread that finishes early takes another block.
BLOCKS_OF_A_THREAD = 4

# Tiles are cut to fill all blocks, but not to fewer entities than these.
MIN_TILE_ENTITIES = 256

# The blocks' sums for the queries hold no more numbers than these, unless each thread has only one block.
MAX_BLOCK_SUMS = 2**24

# One logarithm is taken of the product of 2⁴ numbers 1 + exp(s).
FOLDS = 4

# Sums of exponentials within these limits need not be relative to the largest score.
MIN_TOTAL, MAX_TOTAL = 2.0**-80, 2.0**80

LOG2_E = 1 / math.log(2)

# Above this, softplus(s) = s and σ(s) = 1 even in float64, and exp(s) is still finite in float32.
LARGE_SCORE = 60.0

Part = TypeVar("Part")
Result = TypeVar("Result")


def cut_into_chunks(count: int, chunk_size: int, *, alignment: int = 1) -> list[slice]:
    """Cut `count` entities into chunks of `chunk_size`, a multiple of the alignment, and the rest.

    What does not fill the alignment is a chunk of its own.

    >>> cut_into_chunks(21, 8, alignment=4)
    [slice(0, 8, None), slice(8, 16, None), slice(16, 20, None), slice(20, 21, None)]
    """
    aligned = count - count % alignment
    ends = [*range(chunk_size, aligned, chunk_size), aligned, count]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if start < end]


def compute_in_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Call `work` on each part, in as many threads as torch has, and return the results in order.

    Each thread takes the next part when it is free, and does torch's operations alone.
    """
    threads = min(torch.get_num_threads(), len(parts))
    if threads == 1:
        return [work(part) for part in parts]
    # New threads take this number over.
    with torch_threads(1), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


class TiledPasses:
    """The passes over the scores of queries (B, d) against entities (K, d) with a bias (K,).

    Args:
        factors: of each query's scores in the gradients of entities and bias, (B,).
        everywhere: times each score is subtracted from the losses, and so from the gradient of every score.
        entity_grad: gets the gradient of the entities, (K, d).
        bias_grad: gets the gradient of the bias, (K,).
        chunk_size: entities in a tile; if None, what fits the cache.
    """

    def __init__(
        self,
        queries: Tensor,
        entities: Tensor,
        bias: Tensor | None,
        *,
        factors: Tensor,
        everywhere: float,
        entity_grad: Tensor,
        bias_grad: Tensor | None,
        chunk_size: int | None = None,
    ) -> None:
        self.queries, self.entities, self.bias = queries, entities, bias
        self.factors, self.everywhere = factors, everywhere
        self.entity_grad, self.bias_grad = entity_grad, bias_grad
        self._log2_queries = queries * LOG2_E
        self._log2_bias = None if bias is None else bias * LOG2_E
        tile_queries = min(len(queries), TILE_QUERIES)
        tile_entities = chunk_size or self._entities_in_a_tile(TILE_SCORES // tile_queries)
        self._rows = cut_into_chunks(len(queries), tile_queries)
        self._tile_scores = tile_queries * min(tile_entities, len(entities))
        chunks = cut_into_chunks(len(entities), tile_entities)
        self._blocks = [chunks[block] for block in cut_into_chunks(len(chunks), self._chunks_in_a_block(len(chunks)))]

    def _most_blocks(self) -> int:
        threads = torch.get_num_threads()
        most = max(threads, min(BLOCKS_OF_A_THREAD * threads, MAX_BLOCK_SUMS // self.queries.numel()))
        return 1 if threads == 1 else most

    def _entities_in_a_tile(self, most: int) -> int:
        """Return how many entities, at most so many, give all blocks equally many tiles."""
        blocks = self._most_blocks()
        if blocks == 1:
            return most
        tiles_of_a_block = math.ceil(len(self.entities) / (most * blocks))
        equal = math.ceil(len(self.entities) / (tiles_of_a_block * blocks))
        return max(equal, min(most, MIN_TILE_ENTITIES))

    def _chunks_in_a_block(self, chunks: int) -> int:
        return math.ceil(chunks / self._most_blocks())

    def binary(self) -> tuple[Tensor, Tensor]:
        """Sum softplus(s) − everywhere · s over the scores of each query, (B,) in float64, and take the derivative.

        Returns the sums and the gradient of the queries, (B, d), without their factors.
        """
        gradients = _EntityGradients(self, self.factors)
        softplus, query_grads = zip(
            *compute_in_threads(lambda block: self._binary_block(block, gradients), self._blocks), strict=True
        )
        return self._smoothed(sum(softplus) / LOG2_E, _add_up(query_grads))

    def softmax(self, *, keep: bool) -> tuple[Tensor, Tensor]:
        """Compute log Σ exp(s) − everywhere · Σ s over the scores of each query, (B,) in float64, and the derivative.

        Returns the logarithms and the gradient of the queries, (B, d), without their factors. With `keep`, all
        exponentials are kept; without it they are computed again when their sums are known.
        """
        top = None
        totals, query_grad, kept = self._sum_exponentials(top, keep=keep)
        if not ((totals > MIN_TOTAL) & (totals < MAX_TOTAL)).all():
            del query_grad, kept  # their memory is needed again
            top = torch.stack(compute_in_threads(self._largest_of_block, self._blocks)).amax(dim=0)
            totals, query_grad, kept = self._sum_exponentials(top, keep=keep)
        reciprocals = totals.reciprocal().to(query_grad.dtype)
        gradients = _EntityGradients(self, self.factors, of_exponentials=reciprocals)
        compute_in_threads(
            lambda place: self._softmax_gradient_block(self._blocks[place], kept[place], top, gradients),
            range(len(self._blocks)),
        )
        logarithms = totals.log2() if top is None else totals.log2() + top
        return self._smoothed(logarithms / LOG2_E, query_grad.mul_(reciprocals[:, None]))

    def _smoothed(self, losses: Tensor, query_grad: Tensor) -> tuple[Tensor, Tensor]:
        if self.everywhere:
            # Σ_k q · e_k = q · Σ_k e_k
            all_entities = self.entities.sum(dim=0, dtype=torch.float64)
            all_bias = 0.0 if self.bias is None else self.bias.sum(dtype=torch.float64)
            losses -= self.everywhere * (self.queries.double() @ all_entities + all_bias)
            query_grad -= (self.everywhere * all_entities).to(query_grad.dtype)
        return losses, query_grad

    def _binary_block(self, block: list[slice], gradients: "_EntityGradients") -> tuple[Tensor, Tensor]:
        losses, query_grad = self._sums_of_block()
        scores, ones_plus = self._tile_buffer(), self._tile_buffer()
        for chunk in block:
            gradients.start(chunk)
            for rows in self._rows:
                gradient, softplus = self._binary_tile(rows, chunk, scores, ones_plus)
                losses[rows] += softplus
                query_grad[rows].addmm_(gradient, self.entities[chunk])
                gradients.add(rows, chunk, gradient)
        return losses, query_grad

    def _binary_tile(self, rows: slice, chunk: slice, scores: Tensor, ones_plus: Tensor) -> tuple[Tensor, Tensor]:
        """Return σ(s) and log₂ of the products of 1 + exp(s) over each query's scores."""
        tile = self._log2_scores(rows, chunk, scores)
        softplus = _sigmoid_and_softplus(tile, ones_plus, folds=FOLDS)
        if not softplus.sum().isfinite():
            large = LARGE_SCORE * LOG2_E
            self._log2_scores(rows, chunk, scores)
            excess = (tile - large).clamp_(min=0).sum(dim=1)
            softplus = _sigmoid_and_softplus(tile.clamp_(max=large), ones_plus, folds=0) + excess
        return tile, softplus

    def _sum_exponentials(self, top: Tensor | None, *, keep: bool) -> tuple[Tensor, Tensor, list[list[Tensor] | None]]:
        totals, query_grads, kept = zip(
            *compute_in_threads(lambda block: self._exponentials_block(block, top, keep=keep), self._blocks),
            strict=True,
        )
        return sum(totals), _add_up(query_grads), list(kept)

    def _exponentials_block(
        self, block: list[slice], top: Tensor | None, *, keep: bool
    ) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        totals, query_grad = self._sums_of_block()
        buffer = None if keep else self._tile_buffer()
        kept = []
        for chunk in block:
            if keep:
                kept.append(self.queries.new_empty(len(self.queries), chunk.stop - chunk.start))
            for rows in self._rows:
                exponentials = self._exponentials(rows, chunk, top, kept[-1][rows].view(-1) if keep else buffer)
                totals[rows] += exponentials.sum(dim=1)
                query_grad[rows].addmm_(exponentials, self.entities[chunk])
        return totals, query_grad, kept if keep else None

    def _softmax_gradient_block(
        self, block: list[slice], kept: list[Tensor] | None, top: Tensor | None, gradients: "_EntityGradients"
    ) -> None:
        buffer = self._tile_buffer() if kept is None else None
        for place, chunk in enumerate(block):
            gradients.start(chunk)
            for rows in self._rows:
                exponentials = self._exponentials(rows, chunk, top, buffer) if kept is None else kept[place][rows]
                gradients.add(rows, chunk, exponentials)

    def _exponentials(self, rows: slice, chunk: slice, top: Tensor | None, buffer: Tensor) -> Tensor:
        scores = self._log2_scores(rows, chunk, buffer)
        if top is not None:
            scores -= top[rows, None]
        return scores.exp2_()

    def _largest_of_block(self, block: list[slice]) -> Tensor:
        largest = self.queries.new_full((len(self.queries),), -torch.inf)
        buffer = self._tile_buffer()
        for chunk in block:
            for rows in self._rows:
                scores = self._log2_scores(rows, chunk, buffer)
                torch.maximum(largest[rows], scores.amax(dim=1), out=largest[rows])
        return largest

    def _log2_scores(self, rows: slice, chunk: slice, buffer: Tensor) -> Tensor:
        """Compute s · log₂(e) of a tile in the buffer: (b, n)."""
        shape = (rows.stop - rows.start, chunk.stop - chunk.start)
        scores = buffer[: math.prod(shape)].view(shape)
        queries, entities = self._log2_queries[rows], self.entities[chunk].T
        if self._log2_bias is None:
            return torch.mm(queries, entities, out=scores)
        return torch.addmm(self._log2_bias[chunk], queries, entities, out=scores)

    def _tile_buffer(self) -> Tensor:
        return self.queries.new_empty(self._tile_scores)

    def _sums_of_block(self) -> tuple[Tensor, Tensor]:
        return self.queries.new_zeros(len(self.queries), dtype=torch.float64), torch.zeros_like(self.queries)


class _EntityGradients:
    """The gradients of entities and bias, from the gradients of scores: of s, or of exponentials times a factor."""

    def __init__(self, passes: TiledPasses, factors: Tensor, *, of_exponentials: Tensor | None = None) -> None:
        self.entity_grad, self.bias_grad = passes.entity_grad, passes.bias_grad
        self.bias_start = -passes.everywhere * factors.sum()
        self.entity_start = -passes.everywhere * (factors @ passes.queries)  # (d,)
        self.factors = factors if of_exponentials is None else factors * of_exponentials
        self.queries = passes.queries * self.factors[:, None]  # (B, d)

    def start(self, chunk: slice) -> None:
        """Set a chunk's gradients to what every entity has."""
        self.entity_grad[chunk].zero_().add_(self.entity_start)
        if self.bias_grad is not None:
            self.bias_grad[chunk].fill_(self.bias_start)

    def add(self, rows: slice, chunk: slice, score_grad: Tensor) -> None:
        """Add what the scores of a tile, (b, n), contribute."""
        self.entity_grad[chunk].addmm_(score_grad.T, self.queries[rows])
        if self.bias_grad is not None:
            self.bias_grad[chunk].addmv_(score_grad.T, self.factors[rows])


def _sigmoid_and_softplus(scores: Tensor, ones_plus: Tensor, *, folds: int) -> Tensor:
    """Turn s · log₂(e), (b, n), into σ(s) = e / (1 + e) in its place, and return Σ log₂(1 + e) of each row, (b,).

    With each fold, one logarithm is taken of twice as many numbers.
    """
    exponentials = scores.exp2_()
    products = torch.add(exponentials, 1, out=ones_plus[: scores.numel()].view(scores.shape))
    exponentials /= products
    for _ in range(folds):
        half, odd = divmod(products.shape[1], 2)
        if odd:
            break
        products = products[:, :half].mul_(products[:, half:])
    return products.log2_().sum(dim=1)


def _add_up(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total += tensor
    return total

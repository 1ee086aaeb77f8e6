"""What the engine computes of each (head, relation) pair, and shares among pairs.

A pair's query vector needs the product of its features with `fc.weight`. The shares that the head alone and the
relation alone have in it (see `strips`) are computed once for each of them, together with how they move along tangents.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from conve_tracin.influence.engine import folding
from conve_tracin.influence.engine.batches import PairBatch
from conve_tracin.influence.engine.strips import MovedImages, Strip, StripSizes, mask_where_inactive
from conve_tracin.influence.engine.tangent import ConvETangent
from conve_tracin.model.conve import ConvE

# Products of odd width take a CPU longer (docs/notes.md).
EVEN_WIDTH = 8

# The feature maps of a batch should stay in a CPU core's cache. Large batches keep a GPU busy, within its memory: each
# feature of a pair is there in at most four triples, and these in up to four arrays of float32.
CPU_BATCH_FEATURES = 1_400_000

GPU_BATCH_FEATURES = 2**26

GPU_BYTES_PER_FEATURE = 4 * 4 * 4

# The most numbers that are kept of all relations; with more, each batch computes those of its own.
RELATION_NUMBERS = 2**26


def features_at_once(device: torch.device) -> int:
    """Return how many features to hold at once."""
    if device.type == "cpu":
        return CPU_BATCH_FEATURES
    if device.type != "cuda":
        return GPU_BATCH_FEATURES
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return min(GPU_BATCH_FEATURES, free_bytes // GPU_BYTES_PER_FEATURE)


class SharedQueries:
    """The shared parts of the pairs' linear products, and what follows them.

    Args:
        model: ConvE in eval mode.
        tangents: the n directions; the factors of their `fc.weight` directions have k rows together.
        relations: the ids of all relations that will come, (R,).
        low_precision: bfloat16 or float16 for the convolution and the products with `fc.weight`, or None.
        sizes: how the feature maps are cut into strips; by default as the model allows it.
    """

    def __init__(
        self,
        model: ConvE,
        tangents: list[ConvETangent],
        *,
        relations: Tensor,
        low_precision: torch.dtype | None = None,
        sizes: StripSizes | None = None,
    ) -> None:
        self.model = model
        self.tangents = tangents
        self.table = model.entity_embeddings.weight.detach()
        self.relation_table = model.relation_embeddings.weight.detach()
        self.precision = low_precision or self.table.dtype
        self.convolution = folding.folded_convolution(model)
        bn2 = model.bn2
        self.deviation = torch.sqrt(bn2.running_var + bn2.eps)
        self.scale = bn2.weight.detach() / self.deviation
        self.center = bn2.running_mean - model.fc.bias.detach()
        self.shift = bn2.bias.detach()

        self.sizes = sizes or StripSizes.of(model.config)
        # Behind the rows of fc.weight come the factors that its directions multiply the features with.
        factors = [tangent.linear_weight[1] for tangent in tangents if tangent.linear_weight is not None]
        self.ranks = [0 if tangent.linear_weight is None else len(tangent.linear_weight[1]) for tangent in tangents]
        weight = torch.cat([model.fc.weight.detach(), *factors]).to(self.precision)  # (d + k, F)
        weight = F.pad(weight, (0, 0, 0, -len(weight) % EVEN_WIDTH))
        of_heads, self.weight_of_both, of_relations = (part.T.contiguous() for part in self.sizes.split(weight))
        self.folded_tangents = folding.folded_tangents(model, tangents)
        self.stacked_convolution = folding.stack([self.convolution, *self.folded_tangents]).to(self.precision)
        self.kernel = self.convolution.kernel.to(self.precision)
        self.head_strip, self.relation_strip = (
            Strip(self.stacked_convolution, self.kernel, part, len(tangents)) for part in (of_heads, of_relations)
        )
        features_of_image = max(1, self.sizes.features_alone * (1 + len(self.folded_tangents)) // 2)
        self.images_at_once = max(1, features_at_once(self.table.device) // features_of_image)
        self.relation_products = None
        if self.sizes.rows_alone and len(relations) * (1 + len(tangents)) * len(weight) <= RELATION_NUMBERS:
            self.place_of_relation = relations.new_zeros(len(self.relation_table))
            self.place_of_relation[relations] = torch.arange(len(relations), device=relations.device)
            with torch.no_grad():
                self.relation_products = self._products_of_relations(relations)

    @property
    def dimension(self) -> int:
        """The width d of embeddings and query vectors."""
        return self.table.shape[1]

    def products_alone(self, batch: PairBatch) -> Tensor:
        """Multiply the features that see one embedding with `fc.weight` and the factors: (B, 1 + n, at least d + k).

        The pairs' own products come first, then how they move along each tangent; the factors' are of use for the
        pairs' own alone.
        """
        if not self.sizes.rows_alone:
            return self.table.new_zeros(len(batch.heads), 1 + len(self.tangents), self.weight_of_both.shape[1])
        heads, head_of_pair = batch.heads.unique_consecutive(return_inverse=True)
        entity_rows = [tangent.entity_rows for tangent in self.tangents]
        of_heads = self._products_alone(self.head_strip, self.table, heads, entity_rows)
        if self.relation_products is None:
            relations, place = batch.relations.unique(return_inverse=True)
            of_relations = self._products_of_relations(relations)
        else:
            of_relations, place = self.relation_products, self.place_of_relation[batch.relations]
        return of_heads.index_select(0, head_of_pair).add_(of_relations.index_select(0, place))

    def _products_of_relations(self, relations: Tensor) -> Tensor:
        """Multiply the features that see the relations (R,) alone: (R, 1 + n, …)."""
        relation_rows = [tangent.relation_rows for tangent in self.tangents]
        return self._products_alone(self.relation_strip, self.relation_table, relations, relation_rows)

    def _products_alone(self, strip: Strip, table: Tensor, ids: Tensor, directions: list[dict[int, Tensor]]) -> Tensor:
        """Multiply the features that see the embeddings `ids` (S,) of a table alone: (S, 1 + n, …)."""
        products = [table.new_zeros(0, 1 + len(self.tangents), strip.weight.shape[1])]
        for part in ids.split(self.images_at_once):
            moved = (
                MovedImages(place, here, self.sizes.images(direction.to(self.precision)).expand(len(here), -1, -1, -1))
                for place, rows in enumerate(directions)
                for row, direction in rows.items()
                if len(here := (part == row).nonzero()[:, 0])
            )
            images = self.sizes.images(table.index_select(0, part)).to(self.precision)
            products.append(strip(images, moved, dtype=table.dtype))
        return torch.cat(products)

    def images(self, batch: PairBatch) -> Tensor:
        """Lay the pairs' embeddings as images, the head's above the relation's: (B, 1, 2 · height, width)."""
        heads, relations = self.table.index_select(0, batch.heads), self.relation_table.index_select(0, batch.relations)
        return torch.cat([self.sizes.images(heads), self.sizes.images(relations)], dim=2).to(self.precision)

    def images_of_both(self, batch: PairBatch) -> Tensor:
        """Lay what the strip in the middle sees of the pairs: (B, 1, h, w)."""
        heads, relations = self.table.index_select(0, batch.heads), self.relation_table.index_select(0, batch.relations)
        images = self.sizes.images_of_both(heads, relations)
        return images.to(self.precision)

    def moved_images_of_both(self, batch: PairBatch) -> Iterator[MovedImages]:
        """Collect how the tangents move what the strip in the middle sees of the pairs."""
        for place, tangent in enumerate(self.tangents):
            moved_heads, heads_move = _rows_at(tangent.entity_rows, batch.heads, like=self.table)
            moved_relations, relations_move = _rows_at(tangent.relation_rows, batch.relations, like=self.table)
            pairs = (heads_move | relations_move).nonzero()[:, 0]
            if len(pairs):
                images = self.sizes.images_of_both(moved_heads[pairs], moved_relations[pairs])
                yield MovedImages(place, pairs, images.to(self.precision))

    def normalised(self, linear: Tensor) -> Tensor:
        """Normalise the linear products (B, d), whose bias is still missing, with bn2's statistics."""
        return (linear - self.center) / self.deviation

    def before_relu(self, linear: Tensor) -> Tensor:
        """Apply fc.bias and bn2 to the linear products (B, d)."""
        return (linear - self.center) * self.scale + self.shift

    @property
    def features_of_pair(self) -> int:
        """How many features, and numbers that take as much, the query vector of a pair takes."""
        return max(self.sizes.features_of_both, self.dimension)

    def query_vectors(self, batch: PairBatch) -> Tensor:
        """Compute the query vectors of the pairs: (B, d)."""
        products = self.products_alone(batch)[:, 0]
        if self.sizes.features_of_both:
            features = F.relu_(self.convolution(self.images_of_both(batch))).flatten(start_dim=1)  # (B, F′)
            products = products + features @ self.weight_of_both
        return F.relu(self.before_relu(products[:, : self.dimension]))

    def triples(self, linear: Tensor, batch: PairBatch) -> "TripleScores":
        """Score the triples of pairs whose linear products are known, (B, d)."""
        before_relu = self.before_relu(linear).index_select(0, batch.rows)  # (M, d)
        queries = F.relu(before_relu)
        tail_rows = self.table.index_select(0, batch.tails)  # (M, d)
        scores = (queries * tail_rows).sum(dim=1)
        if self.model.entity_bias is not None:
            scores = scores + self.model.entity_bias[batch.tails]
        by_before_relu = mask_where_inactive(tail_rows, before_relu)
        return TripleScores(scores, queries, by_before_relu, by_before_relu * self.scale)

    def add_tail_terms(self, derivatives: Tensor, queries: Tensor, tails: Tensor) -> None:
        """Add q·ė_t + ḃ_t of the triples' query vectors (M, d) to the derivatives (n, M)."""
        for tangent, out in zip(self.tangents, derivatives, strict=True):
            for entity, direction in tangent.entity_rows.items():
                here = (tails == entity).nonzero()[:, 0]
                out[here] += queries[here] @ direction.to(queries)
            for entity, direction in tangent.entity_bias.items():
                out += torch.where(tails == entity, direction.to(out), 0)


@dataclass(frozen=True)
class TripleScores:
    """Scores of M triples and what they are made of.

    Attributes:
        scores: (M,).
        queries: the query vectors, (M, d).
        by_before_relu, by_linear: gradients of the scores by what comes before the last ReLU, and by the linear
            products, (M, d) each.
    """

    scores: Tensor
    queries: Tensor
    by_before_relu: Tensor
    by_linear: Tensor


def _rows_at(rows: dict[int, Tensor], ids: Tensor, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Place {id: direction (d,)} at the ids (B,): (B, d), and which ids are among them: (B,) bool."""
    placed = like.new_zeros(len(ids), like.shape[1])
    moves = torch.zeros_like(ids, dtype=torch.bool)
    for row, direction in rows.items():
        here = ids == row
        placed[here] = direction.to(like)
        moves |= here
    return placed, moves

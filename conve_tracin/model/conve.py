"""ConvE (Dettmers et al., 2018, https://arxiv.org/abs/1707.01476): head and relation to a query, query to scores."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conve_tracin.settings import ConvEConfig


def weight_shapes(config: ConvEConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a ConvE's state dict, in its order, without building the model."""
    dim, channels = config.embedding_dim, config.output_channels
    return {
        **({"entity_bias": (config.num_entities,)} if config.entity_bias else {}),
        "entity_embeddings.weight": (config.num_entities, dim),
        "relation_embeddings.weight": (config.num_relations, dim),
        **_batch_norm_shapes("bn0", 1),
        "conv1.weight": (channels, 1, config.kernel_height, config.kernel_width),
        "conv1.bias": (channels,),
        **_batch_norm_shapes("bn1", channels),
        "fc.weight": (dim, config.feature_map_size),
        "fc.bias": (dim,),
        **_batch_norm_shapes("bn2", dim),
    }


def _batch_norm_shapes(name: str, size: int) -> dict[str, tuple[int, ...]]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{vector}": (size,) for vector in vectors} | {f"{name}.num_batches_tracked": ()}


def is_statistic(name: str) -> bool:
    """Whether a tensor of the state dict is counted or averaged by BatchNorm, so not trained."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


class ConvE(nn.Module):
    """ConvE with the layer names of the native checkpoint format.

    A query vector q(h, r) is computed from the embeddings of head and relation; the score of a triple is
    q(h, r) · e_t, plus the tail's bias if the model has one. Takes the members of `ConvEConfig` as keywords.
    """

    def __init__(self, **sizes: int | float | bool) -> None:
        super().__init__()
        config = self.config = ConvEConfig(**sizes)
        self.entity_embeddings = nn.Embedding(config.num_entities, config.embedding_dim)
        self.relation_embeddings = nn.Embedding(config.num_relations, config.embedding_dim)
        self.bn0 = nn.BatchNorm2d(1)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.conv1 = nn.Conv2d(1, config.output_channels, (config.kernel_height, config.kernel_width))
        self.bn1 = nn.BatchNorm2d(config.output_channels)
        self.feature_map_dropout = nn.Dropout2d(config.feature_map_dropout)
        self.fc = nn.Linear(config.feature_map_size, config.embedding_dim)
        self.output_dropout = nn.Dropout(config.output_dropout)
        self.bn2 = nn.BatchNorm1d(config.embedding_dim)
        bias = nn.Parameter(torch.zeros(config.num_entities)) if config.entity_bias else None
        self.register_parameter("entity_bias", bias)
        nn.init.xavier_normal_(self.entity_embeddings.weight)
        nn.init.xavier_normal_(self.relation_embeddings.weight)

    @classmethod
    def with_empty_tables(cls, config: ConvEConfig) -> "ConvE":
        """Build a model to load weights into: its embeddings are whatever the memory holds.

        Random ones for a large graph take longer to draw than those of a checkpoint to read.
        """
        model = cls(**config.as_dict() | {"num_entities": 1, "num_relations": 1})
        model.config = config
        for name, rows in (("entity", config.num_entities), ("relation", config.num_relations)):
            table = nn.Embedding.from_pretrained(torch.empty(rows, config.embedding_dim), freeze=False)
            setattr(model, f"{name}_embeddings", table)
        if config.entity_bias:
            model.entity_bias = nn.Parameter(torch.empty(config.num_entities))
        return model

    def encode(self, head: Tensor, relation: Tensor) -> Tensor:
        """Compute the query vectors q(h, r); head and relation are ids of shape (B,), the result is (B, d)."""
        return self.encode_rows(self.entity_embeddings(head), self.relation_embeddings(relation))

    def encode_rows(self, head_rows: Tensor, relation_rows: Tensor) -> Tensor:
        """Compute the query vectors of embeddings that are given themselves: (B, d) twice to (B, d)."""
        return self.project(self.extract_features(head_rows, relation_rows))

    def extract_features(self, head_rows: Tensor, relation_rows: Tensor) -> Tensor:
        """Run the convolution: embeddings (B, d) twice to flattened feature maps (B, F)."""
        image_shape = (-1, 1, self.config.embedding_height, self.config.embedding_width)
        # Head above relation, as in PyKEEN and in the original code.
        image = torch.cat([head_rows.view(image_shape), relation_rows.view(image_shape)], dim=2)
        image = self.input_dropout(self.bn0(image))  # (B, 1, 2 · height, width)
        maps = F.relu(self.bn1(self.conv1(image)))  # (B, C, 2 · height − kh + 1, width − kw + 1)
        return self.feature_map_dropout(maps).flatten(start_dim=1)  # (B, F)

    def project(self, features: Tensor) -> Tensor:
        """Turn feature maps (B, F) into query vectors (B, d)."""
        return F.relu(self.bn2(self.output_dropout(self.fc(features))))

    def score_queries(self, queries: Tensor) -> Tensor:
        """Score every entity as tail: queries (B, d) to scores (B, K)."""
        scores = queries @ self.entity_embeddings.weight.T
        return scores if self.entity_bias is None else scores + self.entity_bias

    def forward(self, head: Tensor, relation: Tensor) -> Tensor:
        """Score every entity as tail of (head, relation): ids (B,) to scores (B, K)."""
        return self.score_queries(self.encode(head, relation))

    def score(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        """Score the triples themselves: ids (B,) three times to scores (B,)."""
        scores = (self.encode(head, relation) * self.entity_embeddings(tail)).sum(dim=1)
        return scores if self.entity_bias is None else scores + self.entity_bias[tail]

"""The training loss of a batch as a function of the model's parameters."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from conve_tracin.model import ConvE
from conve_tracin.queries import Queries
from conve_tracin.streamed_loss import Targets, streamed_loss
from conve_tracin.training_state import TrainingConfig, autocast, mixed_precision_dtype


class BatchLoss(nn.Module):
    """The mean loss of some queries, as they weigh; a module, as `distributed.average_gradients` wraps modules.

    Args:
        model: whose parameters get the gradients.
        config: how to train.
        encode_rows: embeddings of heads and relations, (B, d) twice, to query vectors (B, d).
    """

    def __init__(
        self, model: ConvE, config: TrainingConfig, encode_rows: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.encode_rows = encode_rows or model.encode_rows

    def forward(self, queries: Queries, chosen: Tensor) -> Tensor:
        """Compute the loss of the queries `chosen` (B,); a scalar."""
        model, config = self.model, self.config
        table = model.entity_embeddings.weight
        # Sparse, or the heads would have a second gradient of the table's size.
        head_rows = F.embedding(queries.heads[chosen], table, sparse=True)
        with autocast(config, chosen.device):
            query_vectors = self.encode_rows(head_rows, model.relation_embeddings(queries.relations[chosen]))
        return streamed_loss(
            config.loss,
            query_vectors,
            table,
            Targets(*queries.tails_of(chosen)),
            bias=model.entity_bias,
            weights=queries.weights_by_tails(chosen) if config.query_weights == "tails" else None,
            label_smoothing=config.label_smoothing,
            low_precision=mixed_precision_dtype(config, chosen.device),
        )

"""The training loss of a batch as a function of the model's parameters, and the fastest encoder on each device.

On a CPU in float32 the encoder multiplies patches (`encode_rows_by_patches`); elsewhere it is the model's own, compiled
on a GPU if the config asks for it.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from conve_tracin.compute import parallel
from conve_tracin.data.queries import Queries
from conve_tracin.errors import first_line_of
from conve_tracin.model.conve import ConvE
from conve_tracin.model.loss import Targets, streamed_loss
from conve_tracin.model.sampled_loss import SampledEntities, sampled_loss
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.state import autocast, device_of, mixed_precision_dtype

logger = logging.getLogger(__name__)


class BatchLoss(nn.Module):
    """The weighted mean loss of some queries; a module, because `parallel.average_gradients` wraps modules.

    Args:
        encode_rows: embeddings of heads and relations, (B, d) twice, to query vectors (B, d); by default the model's.
        compiled: whether the loss passes over the scores with compiled functions.
    """

    def __init__(
        self,
        model: ConvE,
        config: TrainingConfig,
        *,
        encode_rows: Callable[[Tensor, Tensor], Tensor] | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.encode_rows = encode_rows or model.encode_rows
        self.compiled = compiled

    def forward(self, queries: Queries, chosen: Tensor, *, room: int | None = None) -> Tensor:
        """Compute the loss of the queries `chosen` (B,); a scalar.

        With `room`, at least the number of their tails, no shape depends on these (see `Queries.padded_tails_of`).
        """
        model, config = self.model, self.config
        chosen = chosen.to(queries.heads.device)
        if samples_entities(config, model):
            return self._of_sample(queries, chosen)
        tails = queries.tails_of(chosen) if room is None else queries.padded_tails_of(chosen, room)
        head_rows, table = _RowsAndTable.apply(model.entity_embeddings.weight, queries.heads[chosen])
        with autocast(config, chosen.device):
            query_vectors = self.encode_rows(head_rows, model.relation_embeddings(queries.relations[chosen]))
        return streamed_loss(
            config.loss,
            query_vectors,
            table,
            Targets(*tails),
            bias=model.entity_bias,
            compiled=self.compiled,
            **self._settings(queries, chosen),
        )

    def _of_sample(self, queries: Queries, chosen: Tensor) -> Tensor:
        model, config = self.model, self.config
        table, bias = model.entity_embeddings, model.entity_bias
        sampled = SampledEntities.draw(
            config.entity_sample, *queries.tails_of(chosen), num_entities=model.config.num_entities
        )
        parts = [queries.heads[chosen], sampled.entities, sampled.tails]
        # One gradient as large as the table, not three.
        head_rows, sample_rows, target_rows = table(torch.cat(parts)).split([len(part) for part in parts])
        with autocast(config, chosen.device):
            query_vectors = self.encode_rows(head_rows, model.relation_embeddings(queries.relations[chosen]))
        return sampled_loss(
            config.loss,
            query_vectors,
            sample_rows,
            target_rows,
            sampled,
            sample_bias=None if bias is None else bias[sampled.entities],
            target_bias=None if bias is None else bias[sampled.tails],
            **self._settings(queries, chosen),
        )

    def _settings(self, queries: Queries, chosen: Tensor) -> dict[str, Any]:
        return {
            "weights": queries.weights_by_tails(chosen) if self.config.query_weights == "tails" else None,
            "label_smoothing": self.config.label_smoothing,
            "low_precision": mixed_precision_dtype(self.config, chosen.device),
        }


def samples_entities(config: TrainingConfig, model: ConvE) -> bool:
    """Whether the loss is estimated from a sample: one as large as the table is the full loss."""
    return 0 < config.entity_sample < model.config.num_entities


class _RowsAndTable(torch.autograd.Function):
    """Take rows (B, d) of a table (K, d), and hand the table on, for a use whose gradient nobody else needs.

    The rows' gradients are added to that one in its place. Left to autograd, the sum of both would be a third tensor as
    large as the table.
    """

    @staticmethod
    def forward(ctx, table, chosen):
        ctx.save_for_backward(chosen)
        return table[chosen], table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(ctx, row_grad, table_grad):
        (chosen,) = ctx.saved_tensors
        return table_grad.index_add_(0, chosen, row_grad), None


def new_batch_loss(model: ConvE, config: TrainingConfig) -> BatchLoss:
    """Make the loss that training takes: what is fastest on the model's device, compiled if the config asks for it.

    The encoder is compiled only on a GPU: on a CPU that made it slower (docs/notes.md).
    """
    device = device_of(model)
    encode_rows = choose_encoder(model, config)
    compiled = (
        config.use_torch_compile
        and not samples_entities(config, model)
        and all_succeed("loss", lambda: try_compiled_loss(model, config))
    )
    # Synchronized statistics would make processes wait for one that fails.
    may_compile_encoder = (
        config.use_torch_compile
        and device.type != "cpu"
        and not config.use_gradient_checkpointing
        and not parallel.synchronizes_batch_norm(device)
    )
    if may_compile_encoder:
        compiled_encoder = compiled_for(config.batch_size, encode_rows)
        if all_succeed("encoder", lambda: try_encoder(compiled_encoder, model, config)):
            encode_rows = compiled_encoder
    return BatchLoss(model, config, encode_rows=encode_rows, compiled=compiled)


def choose_encoder(model: ConvE, config: TrainingConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what turns embeddings of heads and relations, (B, d) twice, into query vectors (B, d) in training."""
    encode_rows = model.encode_rows
    device = device_of(model)
    if device.type == "cpu" and mixed_precision_dtype(config, device) is None:
        # Elsewhere, passes over the feature maps cost less than many small products.
        encode_rows = functools.partial(encode_rows_by_patches, model)
    return recomputing(model, encode_rows) if config.use_gradient_checkpointing else encode_rows


def recomputing(model: ConvE, encode_rows: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Wrap `encode_rows` so that the backward pass computes its activations again."""

    def encode_rows_twice(head_rows: Tensor, relation_rows: Tensor) -> Tensor:
        return recompute_in_backward(
            encode_rows,
            head_rows,
            relation_rows,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), untracked_statistics(model)),
        )

    return encode_rows_twice


def compiled_for(
    batch_size: int, encode_rows: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Compile `encode_rows` for batches of one size; others, such as an epoch's last, take it as it is.

    Code for all sizes took an H100 twice as long (docs/notes.md).
    """
    compiled = torch.compile(encode_rows, dynamic=False)
    return lambda head_rows, relation_rows: (compiled if len(head_rows) == batch_size else encode_rows)(
        head_rows, relation_rows
    )


def all_succeed(what: str, attempt: Callable[[], None]) -> bool:
    """Whether compiled code works in all processes; a line in the log says why it does not."""
    reason = None
    try:
        attempt()
    except Exception as error:  # the compiler and its tools fail in many ways
        reason = first_line_of(error)
    reasons = [reason for reason in parallel.all_gather(reason) if reason is not None]
    if reasons:
        logger.warning("--use-torch-compile has no effect on the %s: %s", what, reasons[0])
    return not reasons


def try_compiled_loss(model: ConvE, config: TrainingConfig) -> None:
    """Compute a loss of training's size with compiled functions; raises whatever fails."""
    table = model.entity_embeddings.weight.detach()
    first = torch.zeros(1, dtype=torch.int64, device=table.device)
    streamed_loss(
        config.loss,
        table.new_zeros(batch_of_one_process(config), table.shape[1]),
        table,
        Targets(first, first),
        bias=None if model.entity_bias is None else model.entity_bias.detach(),
        label_smoothing=config.label_smoothing,
        low_precision=mixed_precision_dtype(config, table.device),
        compiled=True,
    )


def try_encoder(encode_rows: Callable[[Tensor, Tensor], Tensor], model: ConvE, config: TrainingConfig) -> None:
    """Encode forward and backward in training's size, without a trace in the model; raises whatever fails."""
    table = model.entity_embeddings.weight.detach()
    shape = (batch_of_one_process(config), table.shape[1])
    # Code for one tensor that is given twice would not fit two.
    head_rows, relation_rows = (table.new_zeros(shape, requires_grad=True) for _ in range(2))
    was_training = model.training
    try:
        with (
            torch.random.fork_rng([table.device] if table.device.type == "cuda" else []),
            untracked_statistics(model),
            autocast(config, table.device),
        ):
            model.train()
            encode_rows(head_rows, relation_rows).sum().backward()
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)


def batch_of_one_process(config: TrainingConfig) -> int:
    """Return how many queries of a batch a process has; BatchNorm needs two."""
    return max(2, config.batch_size // parallel.world_size())


@contextlib.contextmanager
def untracked_statistics(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics: the second pass over a batch must not count again.

    It works on copies, because without statistics it would save other tensors than the first pass.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    statistics = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, statistics, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, statistics, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def encode_rows_by_patches(model: ConvE, head_rows: Tensor, relation_rows: Tensor) -> Tensor:
    """Compute what `model.encode_rows` computes in training mode: (B, d) twice to (B, d), running statistics included.

    Equal up to rounding; dropout draws other random numbers from the same generator.
    """
    config = model.config
    image_shape = (-1, 1, config.embedding_height, config.embedding_width)
    image = torch.cat([head_rows.view(image_shape), relation_rows.view(image_shape)], dim=2)
    image = model.input_dropout(model.bn0(image))  # (B, 1, 2 · height, width)
    patches = F.unfold(image, (config.kernel_height, config.kernel_width))  # (B, kernel, positions)
    patch_mean = patches.mean(dim=(0, 2))  # (kernel,)
    centred = patches - patch_mean[:, None]
    weight, bias = normalized_convolution(model.conv1, model.bn1, centred, patch_mean)
    ones = centred.new_ones(len(image), config.output_channels, 1)
    kept = F.dropout(ones, model.feature_map_dropout.p)  # (B, channels, 1)
    maps = torch.baddbmm(bias[:, None] * kept, weight * kept, centred).relu_()  # (B, channels, positions)
    return model.project(maps.flatten(start_dim=1))


def normalized_convolution(
    convolution: nn.Conv2d, norm: nn.BatchNorm2d, centred: Tensor, patch_mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weight (channels, kernel) and bias (channels,) that turn centred patches into normalized maps.

    `centred` are the patches (B, kernel, positions) minus their mean (kernel,). Updates the running statistics.
    """
    weight = convolution.weight.flatten(start_dim=1)  # (channels, kernel)
    samples = centred.transpose(0, 1).flatten(start_dim=1)  # (kernel, B · positions)
    count = samples.shape[1]
    covariance = samples @ samples.T / count
    variance = ((weight @ covariance) * weight).sum(dim=1)  # (channels,)
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(weight @ patch_mean + convolution.bias, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    # The convolution's bias goes with the mean; it keeps a gradient, of zero, for the optimizer.
    return weight * scale[:, None], norm.bias + 0 * convolution.bias

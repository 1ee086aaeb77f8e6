"""What changes while training: model, optimizer, schedule, average and history."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from conve_tracin.compute import parallel
from conve_tracin.compute.device import is_out_of_memory, supports_bfloat16
from conve_tracin.errors import InputError
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import TrainingConfig


@dataclass
class TrainingState:
    """All that changes while training and that exact resumption needs.

    Attributes:
        average: of the model's weights and statistics, if the config asks for it.
        history: a record for each epoch, with nothing that a longer run would not have written: a run that is resumed
            after its end must agree with it.
        metrics_of_the_end: those of the last epoch if it was evaluated only because it was the last.
    """

    model: ConvE
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    shuffle: torch.Generator
    batch_size: int
    average: AveragedModel | None = None
    epoch: int = 0
    best_mrr: float = -math.inf
    evaluations_without_improvement: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics_of_the_end: dict[str, Any] | None = None

    @property
    def evaluated_model(self) -> ConvE:
        """The model that is ranked and kept: the average, if there is one."""
        return self.model if self.average is None else self.average.module

    def latest_metrics(self) -> dict[str, Any] | None:
        """Return the validation metrics of the latest epoch; None if it was not evaluated."""
        return self.metrics_of_the_end or (self.history[-1].get("valid") if self.history else None)

    def history_with_the_end(self) -> list[dict[str, Any]]:
        """Return the history with all that was evaluated, for people to read."""
        if self.metrics_of_the_end is None:
            return self.history
        return [*self.history[:-1], self.history[-1] | {"valid": self.metrics_of_the_end}]


def new_state(model_config: dict[str, Any], config: TrainingConfig, device: torch.device) -> TrainingState:
    """Make the state before the first epoch; raise InputError if memory is too small."""
    model = new_model(model_config, device)
    if parallel.synchronizes_batch_norm(device):
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = new_optimizer(model, config)
    return TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=new_scheduler(optimizer, config),
        scaler=torch.amp.GradScaler(device.type, enabled=mixed_precision_dtype(config, device) is torch.float16),
        shuffle=torch.Generator().manual_seed(config.random_seed),
        batch_size=config.batch_size,
        average=new_average(model, config),
    )


def new_average(model: ConvE, config: TrainingConfig) -> AveragedModel | None:
    """Start the average of a model's weights if the config asks for it; raise InputError if memory is too small."""
    if not config.weight_averaging:
        return None
    with refusing_what_no_memory_holds(model.config.as_dict()):
        # BatchNorm's statistics are averaged, too: those of the last weights would not fit the average.
        average = AveragedModel(model, multi_avg_fn=moving_average(config.weight_averaging), use_buffers=True)
    average.n_averaged.fill_(1)
    return average


def moving_average(kept_share: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Return the update of an average, of which `kept_share` stays after a batch.

    At first less stays: the average covers about the last tenth of the batches so far, not the random start.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], num_averaged: Tensor) -> None:
        # As a tensor: reading the number would make a GPU wait.
        step = (10 / (num_averaged + 10)).clamp(min=1 - kept_share)
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, step.to(average.dtype))
            else:
                average.copy_(weight)

    return update


def new_model(model_config: dict[str, Any], device: torch.device) -> ConvE:
    """Make a model with fresh weights; raise InputError if it does not fit into memory."""
    with refusing_what_no_memory_holds(model_config):
        return ConvE(**model_config).to(device)


@contextlib.contextmanager
def refusing_what_no_memory_holds(model_config: dict[str, Any]) -> Iterator[None]:
    """Raise InputError if the memory does not suffice for a model of these sizes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"a model of {model_config['num_entities']:,} entities and embedding_dim {model_config['embedding_dim']:,} "
            "does not fit into memory; lower --embedding-dim or --output-channels"
        ) from error


def seed_own_dropout(config: TrainingConfig, *, epoch: int = 0) -> None:
    """Give each process but the first random numbers of its own, after all have made the same weights."""
    if not parallel.is_main_process():
        mixed = np.random.SeedSequence([config.random_seed, epoch, parallel.rank()])
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))


def new_optimizer(model: ConvE, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer; fused kernels pass over the embedding tables once instead of five times."""
    settings = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adagrad":
        return torch.optim.Adagrad(model.parameters(), **settings, fused=device_of(model).type == "cpu" or None)
    return torch.optim.Adam(model.parameters(), **settings, fused=True)


def new_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """Make the schedule of the learning rate."""
    if config.lr_scheduler == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.lr_decay, patience=config.lr_patience, threshold=0.0
        )
    gamma = config.lr_decay if config.lr_scheduler == "exponential" else 1.0
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=gamma)


def mixed_precision_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """Return the lower precision: bfloat16 if the device has it, else float16 on a GPU; None if it is off.

    A processor that has no bfloat16 took seven times as long with it as without.
    """
    if not config.use_mixed_precision or (device.type == "cpu" and not supports_bfloat16("cpu")):
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def autocast(config: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context of the model's forward pass: lower precision if the config asks for it."""
    dtype = mixed_precision_dtype(config, device)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def is_evaluation_due(epoch: int, config: TrainingConfig) -> bool:
    """Whether an epoch is evaluated in every run, not only because it is the last.

    Only such evaluations move the schedule, the best MRR and the counter of early stopping: a run that is resumed after
    its last epoch must equal one that never ended there.
    """
    return epoch % config.eval_frequency == 0


def note_evaluation(state: TrainingState, mrr: float) -> bool:
    """Count an evaluation that is due; True if it is the best so far."""
    if mrr > state.best_mrr:
        state.best_mrr = mrr
        state.evaluations_without_improvement = 0
        return True
    state.evaluations_without_improvement += 1
    return False


def is_finished(state: TrainingState, config: TrainingConfig) -> bool:
    """Whether training ends here, at the last epoch or early."""
    return state.epoch >= config.num_epochs or stops_early(state, config)


def stops_early(state: TrainingState, config: TrainingConfig) -> bool:
    """Whether the evaluations have gone without a better MRR for as long as the config allows."""
    return 0 < config.early_stopping_patience <= state.evaluations_without_improvement


def validation_mrr(record: dict[str, Any]) -> float:
    """Return the validation MRR of an epoch; −∞ if it was not evaluated."""
    return record.get("valid", {}).get("mean_reciprocal_rank", -math.inf)


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device

"""The training loop: batches and epochs.

Several processes (see `parallel`) each compute a share of every batch and then take the same step; process 0 writes.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from conve_tracin.compute import parallel
from conve_tracin.compute.device import is_out_of_memory
from conve_tracin.compute.memory import release_memory
from conve_tracin.data.keys import distinct_triples
from conve_tracin.data.queries import Queries, examples_of
from conve_tracin.errors import InputError
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.batch_loss import new_batch_loss
from conve_tracin.training.cuda_graph import CUDAGraphLoss, can_replay
from conve_tracin.training.state import TrainingState, device_of, is_evaluation_due, is_finished

logger = logging.getLogger(__name__)

# Reading the loss makes a GPU wait.
BATCHES_BETWEEN_LOSS_CHECKS = 100


def run_epochs(
    state: TrainingState, queries: Queries, config: TrainingConfig, *, validate: Callable[[], dict[str, Any]]
) -> Iterator[dict[str, Any] | None]:
    """Train until the last epoch or an early stop; yield each epoch's metrics from `validate`, or None.

    Only epochs that are due for evaluation and the last have metrics. The consumer notes the evaluation in `state`
    before it asks for the next epoch. Shows a progress bar.
    """
    if is_finished(state, config):
        return
    batch_loss = choose_batch_loss(state, config)
    # In a log file each refresh is one more line.
    interval_seconds = 0.2 if sys.stderr.isatty() else 10
    with tqdm(
        total=config.num_epochs * queries.num_visits,
        initial=state.epoch * queries.num_visits,
        unit="query",
        unit_scale=True,
        mininterval=interval_seconds,
        maxinterval=interval_seconds,
        disable=not parallel.is_main_process(),
    ) as bar:
        while not is_finished(state, config):
            state.epoch += 1
            bar.set_description(f"epoch {state.epoch}/{config.num_epochs}", refresh=False)
            record = run_epoch(state, queries, config, batch_loss=batch_loss, on_batch=bar.update)
            state.history.append(record)
            if is_evaluation_due(state.epoch, config):
                record["valid"] = validate()
                if config.lr_scheduler == "plateau":
                    state.scheduler.step(record["valid"]["mean_reciprocal_rank"])
            elif state.epoch == config.num_epochs:
                state.metrics_of_the_end = validate()
            yield state.latest_metrics()
            show_progress(bar, record, state.best_mrr)


def choose_batch_loss(state: TrainingState, config: TrainingConfig) -> Callable[[Queries, Tensor], Tensor]:
    """Return the loss that trains fastest here; several processes average its gradients."""
    batch_loss = new_batch_loss(state.model, replace(config, batch_size=state.batch_size))
    if can_replay(config, device_of(state.model)):
        return CUDAGraphLoss(batch_loss, batch_size=state.batch_size)
    return parallel.average_gradients(batch_loss)


def training_queries(triples: np.ndarray, config: TrainingConfig, device: torch.device) -> Queries:
    """Arrange the training triples (N, 3) as queries; raises InputError if they are too few for BatchNorm."""
    triples = examples_of(triples, inverse_triples=config.inverse_triples)
    # A triple that the file repeats must not count as two labels of one query.
    if config.training_approach == "kvsall":
        queries = Queries.distinct(distinct_triples(triples), device)
        if config.query_weights == "tails" and config.tails_per_visit:
            queries = queries.visited_by_tails(config.tails_per_visit)
    else:
        queries = Queries.one_per_triple(triples, device)
    if len(queries) < smallest_batch():
        processes = " in each process" if parallel.world_size() > 1 else ""
        raise InputError(
            f"training needs at least two queries (head, relation) for BatchNorm{processes}; add triples to --train"
        )
    return queries


def smallest_batch() -> int:
    """Return how many queries a batch needs: two in each process, for BatchNorm."""
    return 2 * parallel.world_size()


def next_batch(start: int, num_queries: int, batch_size: int, *, at_least: int = 2) -> slice:
    """Return the batch that begins at `start`; fewer than `at_least` queries left over join it."""
    end = start + max(batch_size, at_least)
    return slice(start, num_queries if num_queries - end < at_least else end)


def run_epoch(
    state: TrainingState,
    queries: Queries,
    config: TrainingConfig,
    *,
    batch_loss: Callable[[Queries, Tensor], Tensor],
    on_batch: Callable[[int], Any] = lambda _: None,
) -> dict[str, Any]:
    """Train `state` for one epoch on `training_queries` and return the epoch's record for the history.

    `batch_loss` is a `BatchLoss` or from `choose_batch_loss`; `on_batch` is told the number of queries in each batch.

    Raises InputError if the loss or a weight is no longer finite, or memory does not suffice.
    """
    started = time.perf_counter()
    state.model.train()
    order = queries.shuffled_visits(state.shuffle)
    losses: list[Tensor] = []
    sizes: list[int] = []
    start = 0
    while start < len(order):
        batch = next_batch(start, len(order), state.batch_size, at_least=smallest_batch())
        loss = None
        try:
            loss = train_batch(state, queries, order[batch], batch_loss)
        except (RuntimeError, MemoryError) as error:
            if not holds_a_recording(batch_loss):
                require_smaller_batches_can_help(state, config, error)
            elif not is_out_of_memory(error):
                raise
        if loss is None:
            # Outside of the except block, whose traceback holds the failed attempt's tensors, their memory is free.
            if not free_recording(state, batch_loss):
                halve_batch_size(state)
            continue
        losses.append(loss)
        start = batch.stop
        sizes.append(batch.stop - batch.start)
        if len(losses) % BATCHES_BETWEEN_LOSS_CHECKS == 0:
            require_finite_losses(sum_of_shares(losses), epoch=state.epoch)
        on_batch(sizes[-1])
    losses_of_all = sum_of_shares(losses)
    require_finite_losses(losses_of_all, epoch=state.epoch)
    parallel.average_statistics(state.model)
    if state.average is not None:
        parallel.average_statistics(state.average.module)
    require_finite_weights(state.model, epoch=state.epoch)
    learning_rate = state.optimizer.param_groups[0]["lr"]
    if config.lr_scheduler != "plateau":
        state.scheduler.step()
    return {
        "epoch": state.epoch,
        "loss": float(np.average(losses_of_all.tolist(), weights=sizes)),
        "learning_rate": learning_rate,
        "seconds": round(time.perf_counter() - started, 3),
    }


def train_batch(
    state: TrainingState, queries: Queries, chosen: Tensor, batch_loss: Callable[[Queries, Tensor], Tensor]
) -> Tensor:
    """Take one optimizer step on the queries `chosen` (B,).

    Returns this process's share of their mean loss, a scalar without gradient; the shares add up to it.
    """
    state.optimizer.zero_grad(set_to_none=True)
    own = parallel.share_of_batch(chosen)
    loss = batch_loss(queries, own)
    # A `CUDAGraphLoss` has set the gradients.
    if loss.requires_grad:
        # The gradients are averaged over the processes, with different numbers of queries.
        weight = len(own) * parallel.world_size() / len(chosen)
        state.scaler.scale(loss * weight).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.model)
    return loss.detach() * (len(own) / len(chosen))


def sum_of_shares(losses: list[Tensor]) -> Tensor:
    """Sum the shares of all processes in the batches' losses: (number of batches,)."""
    return parallel.all_reduce(torch.stack(losses))


def require_smaller_batches_can_help(
    state: TrainingState, config: TrainingConfig, error: RuntimeError | MemoryError
) -> None:
    """Raise the error again if it is not about memory, and InputError if batches cannot or must not become smaller."""
    if not is_out_of_memory(error):
        raise error
    # The other processes are waiting for this batch's gradients.
    is_alone = parallel.world_size() == 1
    if not (config.auto_batch_size and is_alone) or state.batch_size <= 2:
        remedies = "--auto-batch-size or --use-gradient-checkpointing" if is_alone else "--use-gradient-checkpointing"
        raise InputError(
            f"out of memory with batches of {state.batch_size} queries; lower --batch-size, or add {remedies}"
        ) from error


def holds_a_recording(batch_loss: Callable[[Queries, Tensor], Tensor]) -> bool:
    """Whether a loss holds memory for a recorded batch."""
    return isinstance(batch_loss, CUDAGraphLoss) and batch_loss.is_recorded


def free_recording(state: TrainingState, batch_loss: Callable[[Queries, Tensor], Tensor]) -> bool:
    """Continue without the recorded batch, and give back its memory; False if there is none."""
    if not holds_a_recording(batch_loss):
        return False
    batch_loss.stop_replaying()
    logger.warning("out of memory: going on without CUDA graphs, and more slowly")
    give_back_what_a_batch_left(state)
    return True


def halve_batch_size(state: TrainingState) -> None:
    """Continue with smaller batches, and give back what the last attempt left."""
    state.batch_size //= 2
    logger.warning("out of memory: going on with batches of %d queries", state.batch_size)
    give_back_what_a_batch_left(state)


def give_back_what_a_batch_left(state: TrainingState) -> None:
    """Free the gradients, and a GPU's cached memory."""
    state.optimizer.zero_grad(set_to_none=True)
    release_memory(device_of(state.model))


def require_finite_losses(losses: Tensor, *, epoch: int) -> None:
    """Raise InputError if one of the batches' losses (n,) is NaN or infinite."""
    broken = (~torch.isfinite(losses)).nonzero()
    if len(broken):
        raise InputError(
            f"the training loss is not finite in epoch {epoch}, batch {broken[0].item() + 1}; "
            "resume from the last checkpoint with a lower --learning-rate"
        )


def require_finite_weights(model: ConvE, *, epoch: int) -> None:
    """Raise InputError if the last step of an epoch broke a weight, which its loss cannot show yet."""
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"{name} is not finite after epoch {epoch}; resume from the last checkpoint with a lower "
                "--learning-rate"
            )


def show_progress(bar: tqdm, record: dict[str, Any], best_mrr: float) -> None:
    """Put loss and validation MRR behind the progress bar."""
    values = {"loss": f"{record['loss']:.4f}"}
    if math.isfinite(best_mrr):
        values["best valid MRR"] = f"{best_mrr:.4f}"
    bar.set_postfix(values, refresh=False)

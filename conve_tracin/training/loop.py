"""The training loop: triples and settings to checkpoints, metrics and a history.

Several processes (see `parallel`) each compute a share of every batch and then take the same step; process 0 writes.
"""

import ctypes
import functools
import gc
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from conve_tracin.checkpoint.epochs import epoch_checkpoint
from conve_tracin.checkpoint.native import load_checkpoint, save_checkpoint
from conve_tracin.compute import parallel
from conve_tracin.compute.device import is_out_of_memory
from conve_tracin.data.keys import digest_of_triples, distinct_triples
from conve_tracin.data.queries import Queries, count_relation_rows, examples_of, known_tails
from conve_tracin.errors import InputError
from conve_tracin.files import write_json
from conve_tracin.model.conve import ConvE
from conve_tracin.ranking.ranks import choose_batch_size, rank_triples, ranking_metrics
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.batch_loss import new_batch_loss
from conve_tracin.training.cuda_graph import CUDAGraphLoss, can_replay
from conve_tracin.training.resume import (
    checkpoint_content,
    keep_best_model,
    keep_counted_best_model,
    restore,
    warn_of_another_run,
)
from conve_tracin.training.state import (
    TrainingState,
    device_of,
    is_evaluation_due,
    is_finished,
    new_state,
    note_evaluation,
    seed_own_dropout,
    stops_early,
)

logger = logging.getLogger(__name__)

# What `train` writes into its output directory, besides checkpoints.
OUTPUT_FILES = (
    "best_model.pt", "final_model.pt", "config.json", "test_results.json", "training_history.json",
    "training_curves.svg",
)  # fmt: skip

# Reading the loss makes a GPU wait.
BATCHES_BETWEEN_LOSS_CHECKS = 100


@dataclass(frozen=True)
class TrainingData:
    """The three splits as (N, 3) int64 ids of the files, the number of labels, and the digests of the mappings."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    num_entities: int
    num_relations: int
    mapping_digest: dict[str, str]


def train(
    data: TrainingData,
    config: TrainingConfig,
    *,
    model_sizes: dict[str, int | float | bool],
    output_dir: Path,
    checkpoint_dir: Path | None = None,
    resume_from: Path | None = None,
    device: torch.device | str = "cpu",
    clean_memory: bool = True,
    draw_curves: Callable[[Path, list[dict[str, Any]]], None] | None = None,
) -> dict[str, Any]:
    """Train ConvE, write all output files into `output_dir` and return the content of `test_results.json`.

    Every process of a run calls it with the same arguments.

    Args:
        model_sizes: members of `ConvEConfig` other than the counts of entities and relations.
        output_dir: gets config.json, best_model.pt, final_model.pt, training_history.json, test_results.json.
        checkpoint_dir: gets checkpoint_epoch_N.pt; by default `output_dir`/checkpoints.
        resume_from: a checkpoint to continue; on the CPU the result is bit for bit that of one run.
        clean_memory: give a GPU's cached memory back after each epoch.
        draw_curves: writes training_curves.svg, given its path and the history, when training ends or is stopped.

    Raises InputError if sizes, data and checkpoint do not fit each other.
    """
    run = set_up(
        data,
        config,
        model_sizes=model_sizes,
        output_dir=output_dir,
        checkpoint_dir=checkpoint_dir or output_dir / "checkpoints",
        device=torch.device(device),
    )
    queries = training_queries(data.train, config, run.device)
    resume_or_start(run, resume_from)
    if parallel.is_main_process():
        write_json(
            output_dir / "config.json",
            {"model_config": run.state.model.config.as_dict(), "training_config": asdict(config)},
        )
    with drawing_at_the_end(run, draw_curves):
        for metrics in run_epochs(run.state, queries, config, validate=lambda: run.evaluate(data.valid)):
            if metrics is not None:
                keep_if_best(run, metrics["mean_reciprocal_rank"])
            write_progress(run)
            if clean_memory:
                release_memory(run.device)
    if stops_early(run.state, config):
        logger.info(
            "stopped after epoch %d: %d evaluations without a better validation MRR than %.4f",
            run.state.epoch, run.state.evaluations_without_improvement, run.state.best_mrr,
        )  # fmt: skip
    run.save(output_dir / "final_model.pt")
    return rank_test_triples(run)


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What training changes, settings, triples, the tails known to be true, and where files go."""

    state: TrainingState
    config: TrainingConfig
    data: TrainingData
    training_triples_digest: str
    known: Queries
    output_dir: Path
    checkpoint_dir: Path

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return device_of(self.state.model)

    def evaluate(self, triples: np.ndarray, progress: str | None = None) -> dict[str, Any]:
        """Rank triples (N, 3) with the model as it is."""
        return evaluate_model(
            self.state.evaluated_model,
            triples,
            self.known,
            inverse_triples=self.config.inverse_triples,
            progress=progress if parallel.is_main_process() else None,
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint, to which all processes contribute."""
        content = checkpoint_content(
            self.state,
            self.config,
            mapping_digest=self.data.mapping_digest,
            training_triples_digest=self.training_triples_digest,
        )
        if parallel.is_main_process():
            save_checkpoint(path, content)


def set_up(
    data: TrainingData,
    config: TrainingConfig,
    *,
    model_sizes: dict[str, int | float | bool],
    output_dir: Path,
    checkpoint_dir: Path,
    device: torch.device,
) -> TrainingRun:
    """Make a run before its first epoch, from the arguments of `train`."""
    num_relations = count_relation_rows(data.num_relations, inverse_triples=config.inverse_triples)
    model_config = {**model_sizes, "num_entities": data.num_entities, "num_relations": num_relations}
    torch.manual_seed(config.random_seed)
    state = new_state(model_config, config, device)
    seed_own_dropout(config)
    return TrainingRun(
        state=state,
        config=config,
        data=data,
        training_triples_digest=digest_of_triples(data.train),
        known=known_tails([data.train, data.valid, data.test], inverse_triples=config.inverse_triples, device=device),
        output_dir=output_dir,
        checkpoint_dir=checkpoint_dir,
    )


def resume_or_start(run: TrainingRun, resume_from: Path | None) -> None:
    """Put the checkpoint, if there is one, into the run's state and its best model into place."""
    if resume_from is None:
        warn_of_another_run(run.checkpoint_dir)
        return
    restore(
        run.state,
        resume_from,
        config=run.config,
        mapping_digest=run.data.mapping_digest,
        training_triples_digest=run.training_triples_digest,
    )
    if parallel.is_main_process():
        keep_best_model(
            run.state, output_dir=run.output_dir, checkpoint_dir=run.checkpoint_dir, resumed_from=resume_from
        )
    run.state.best_mrr = parallel.broadcast(run.state.best_mrr)
    # The history on disk may lack the checkpoint's own epoch, which may be the last.
    write_history(run)


def keep_if_best(run: TrainingRun, mrr: float) -> None:
    """Write best_model.pt if the latest epoch is the best; count the evaluation if it was due."""
    if is_evaluation_due(run.state.epoch, run.config):
        is_best = note_evaluation(run.state, mrr)
    else:
        is_best = mrr > run.state.best_mrr
        if is_best and parallel.is_main_process():
            keep_counted_best_model(run.state, output_dir=run.output_dir, checkpoint_dir=run.checkpoint_dir)
    if is_best:
        run.save(run.output_dir / "best_model.pt")


def write_progress(run: TrainingRun) -> None:
    """Write what is due after the latest epoch: a checkpoint, and the history."""
    state, config = run.state, run.config
    if is_finished(state, config) or state.epoch % config.checkpoint_frequency == 0:
        run.save(epoch_checkpoint(run.checkpoint_dir, state.epoch))
    write_history(run)


def write_history(run: TrainingRun) -> None:
    """Write the history."""
    if parallel.is_main_process():
        write_json(run.output_dir / "training_history.json", run.state.history_with_the_end())


@contextmanager
def drawing_at_the_end(
    run: TrainingRun, draw_curves: Callable[[Path, list[dict[str, Any]]], None] | None
) -> Iterator[None]:
    """Draw the history when the block ends, even if it is interrupted or fails; its error is then the one to raise."""

    def draw() -> None:
        history = run.state.history_with_the_end()
        if draw_curves is not None and history and parallel.is_main_process():
            draw_curves(run.output_dir / "training_curves.svg", history)

    try:
        yield
    except BaseException:
        with suppress(InputError):
            draw()
        raise
    draw()


def rank_test_triples(run: TrainingRun) -> dict[str, Any]:
    """Load best_model.pt into the run and rank the test triples with it; write and return the metrics."""
    epoch = None
    # The others may not see the file yet.
    if parallel.is_main_process():
        best = load_checkpoint(run.output_dir / "best_model.pt")
        run.state.evaluated_model.load_state_dict(best["model_state_dict"])
        epoch = best["epoch"]
    parallel.broadcast_weights(run.state.evaluated_model)
    results = run.evaluate(run.data.test, progress="test") | {"epoch": parallel.broadcast(epoch)}
    if parallel.is_main_process():
        write_json(run.output_dir / "test_results.json", results)
    return results


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


def evaluate_model(
    model: ConvE, triples: np.ndarray, known: Queries, *, inverse_triples: bool, progress: str | None = None
) -> dict[str, Any]:
    """Rank `triples` (N, 3) in eval mode: MRR, mean rank, Hits@k, and which sides were ranked."""
    model.eval()
    rank = functools.partial(
        rank_triples,
        model,
        known=known,
        num_relations=model.config.num_relations,
        batch_size=choose_batch_size(model.config.num_entities),
        progress=progress,
    )
    ranks = parallel.compute_shared(rank, examples_of(triples, inverse_triples=inverse_triples))
    sides = "heads and tails" if inverse_triples else "tails only (no inverse triples)"
    return ranking_metrics(ranks) | {"ranked": sides, "num_ranks": len(ranks)}


def show_progress(bar: tqdm, record: dict[str, Any], best_mrr: float) -> None:
    """Put loss and validation MRR behind the progress bar."""
    values = {"loss": f"{record['loss']:.4f}"}
    if math.isfinite(best_mrr):
        values["best valid MRR"] = f"{best_mrr:.4f}"
    bar.set_postfix(values, refresh=False)


def release_memory(device: torch.device) -> None:
    """Give a GPU's cached memory back to other processes; the CPU caches none."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def keep_freed_memory(device: torch.device | str) -> None:
    """Let glibc keep what a CPU's tensors free: otherwise each batch pays for its large ones in page faults.

    This changes the whole process, so programs ask for it, not the library. Other C libraries stay as they are.
    """
    if torch.device(device).type != "cpu":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    # The gradient of a very large table is given back all the same, or small tensors would take its place. This is the
    # largest threshold that glibc takes.
    for parameter, value in ((mmap_threshold, 2**25), (trim_threshold, 2**31 - 1), (top_pad, 2**22)):
        mallopt(parameter, value)

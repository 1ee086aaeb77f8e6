"""Training again: the settings of a checkpoint, on other triples or with another seed, without files or evaluation."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conve_tracin.errors import InputError
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import TrainingConfig, stored_settings
from conve_tracin.training.loop import choose_batch_loss, next_batch, run_epoch, train_batch, training_queries
from conve_tracin.training.state import TrainingState, new_state, validation_mrr

# Training ends with the epoch whose validation MRR first came this close to the best one.
SHARE_OF_BEST_MRR = 0.99
SECONDS_OF_TRIAL = 2.0


def retrain(
    triples: np.ndarray,
    config: TrainingConfig,
    *,
    model_config: Mapping[str, Any],
    device: torch.device | str = "cpu",
    learning_rates: Sequence[float] = (),
    on_epoch: Callable[[], Any] = lambda: None,
) -> ConvE:
    """Train a new model and return it as it is after the last epoch, in eval mode.

    The weights are those of `train_pytorch.py` with these settings after as many epochs, bit for bit on a CPU.

    Args:
        triples: in the files' ids, (N, 3).
        config: early stopping and all that has to do with evaluation and files is passed over.
        model_config: the sizes, as in a checkpoint.
        device: where to train; the model stays there.
        learning_rates: of the first epochs; later epochs follow the schedule in `config`.
        on_epoch: called after each epoch.

    Raises InputError if the loss or a weight is no longer finite, or memory does not suffice.
    """
    state, queries = _begin(triples, config, model_config, device)
    batch_loss = choose_batch_loss(state, config)
    while state.epoch < config.num_epochs:
        state.epoch += 1
        if state.epoch <= len(learning_rates):
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rates[state.epoch - 1]
        run_epoch(state, queries, config, batch_loss=batch_loss)
        on_epoch()
    return state.evaluated_model.eval()


def _begin(
    triples: np.ndarray, config: TrainingConfig, model_config: Mapping[str, Any], device: torch.device | str
) -> tuple[TrainingState, Any]:
    torch.manual_seed(config.random_seed)
    state = new_state(dict(model_config), config, torch.device(device))
    return state, training_queries(triples, config, torch.device(device))


def seconds_of_an_epoch(
    triples: np.ndarray, config: TrainingConfig, *, model_config: Mapping[str, Any], device: torch.device | str = "cpu"
) -> float:
    """Estimate how long `retrain` takes for an epoch, from batches of about two seconds."""
    state, queries = _begin(triples, config, model_config, device)
    state.model.train()
    batch_loss, order = choose_batch_loss(state, config), queries.shuffled_visits(state.shuffle)
    started, trained, start = None, 0, 0
    while start < len(order):
        batch = next_batch(start, len(order), state.batch_size)
        # Reading the loss waits for a GPU.
        train_batch(state, queries, order[batch], batch_loss).item()
        if started is None:
            # The first batch takes longer than the others.
            started = time.perf_counter()
        else:
            trained += batch.stop - batch.start
        start = batch.stop
        if time.perf_counter() - started > SECONDS_OF_TRIAL and trained:
            break
    return (time.perf_counter() - started) * len(order) / max(trained, 1)


def settings_of(checkpoint: Mapping[str, Any], *, source: Path) -> TrainingConfig:
    """Return the settings that a native checkpoint was trained with.

    Raises InputError if the checkpoint does not tell them, or tells of one that is unknown here.
    """
    stored = checkpoint.get("training_config")
    if not stored or "learning_rate" not in stored:
        raise InputError(
            f"{source}: does not tell how it was trained (training_config), so it cannot be trained again; "
            "give a checkpoint that train_pytorch.py wrote"
        )
    unknown = sorted(set(stored) - {each.name for each in fields(TrainingConfig)})
    if unknown:
        raise InputError(
            f"{source}: was trained with {unknown[0]}, which is no setting of this version; use the version that "
            "wrote it"
        )
    try:
        return TrainingConfig(**stored_settings(TrainingConfig, stored))
    except InputError as error:
        raise InputError(f"{source}: {error}; use an undamaged checkpoint") from error


def with_fixed_schedule(
    config: TrainingConfig, checkpoint: Mapping[str, Any], *, source: Path
) -> tuple[TrainingConfig, list[float]]:
    """Replace a schedule that follows the validation MRR by the learning rates that the checkpoint's epochs had.

    Returns the settings and the rates; none are needed for other schedules.

    Raises InputError if the checkpoint lacks its history.
    """
    if config.lr_scheduler != "plateau":
        return config, []
    rates = [record.get("learning_rate") for record in checkpoint.get("history") or ()]
    if not rates or None in rates:
        raise InputError(
            f"{source}: was trained with --lr-scheduler plateau and lacks its history of learning rates; give a "
            "checkpoint that train_pytorch.py wrote"
        )
    return replace(config, lr_scheduler="none"), rates


def epochs_until_nearly_best(checkpoint: Mapping[str, Any], config: TrainingConfig) -> int:
    """Return after how many epochs the validation MRR first was within 1 % of the best one until the checkpoint.

    Without evaluations in its history, these are all epochs of the checkpoint.
    """
    epoch = checkpoint.get("epoch") or config.num_epochs
    rates = {record["epoch"]: validation_mrr(record) for record in checkpoint.get("history") or ()}
    best = max(rates.values(), default=float("-inf"))
    if best <= 0:
        return epoch
    return next((found for found, rate in sorted(rates.items()) if rate >= SHARE_OF_BEST_MRR * best), epoch)

"""Training state to checkpoint and back: what is saved, exact resumption, the newest and the best checkpoint."""

import logging
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from conve_tracin.checkpoint.epochs import EPOCH_CHECKPOINTS, epoch_checkpoint, epoch_in
from conve_tracin.checkpoint.native import (
    history_as_text,
    load_checkpoint,
    read_checkpoint_outline,
    require_same_digests,
    save_checkpoint,
    take_model,
)
from conve_tracin.checkpoint.schema import (
    first_difference,
    is_plain_tensor,
    require_names,
    require_shapes,
    require_sound_weights,
)
from conve_tracin.compute import parallel
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write
from conve_tracin.settings import Change, TrainingConfig, changes_on_resuming, flag_of
from conve_tracin.training.state import TrainingState, device_of, new_scheduler, seed_own_dropout, validation_mrr

logger = logging.getLogger(__name__)

RESUMABLE_MEMBERS = (
    "epoch", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "training_config", "history",
    "best_mrr", "evaluations_without_improvement", "random_state",
)  # fmt: skip

MOVING_PARTS_OF_SCHEDULES = ("last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter")


def checkpoint_content(
    state: TrainingState, config: TrainingConfig, *, mapping_digest: dict[str, str], training_triples_digest: str
) -> dict[str, Any]:
    """Collect what a checkpoint holds after a finished epoch. All processes are to call it; process 0's is whole."""
    first, *others = parallel.all_gather(random_numbers_of(device_of(state.model)))
    return {
        "epoch": state.epoch,
        "model_state_dict": state.evaluated_model.state_dict(),
        **average_content(state),
        "optimizer_state_dict": state.optimizer.state_dict(),
        "model_config": state.model.config.as_dict(),
        "training_config": asdict(config),
        "learning_rate": state.history[-1]["learning_rate"] if state.history else config.learning_rate,
        "metrics": state.latest_metrics() or {},
        "history": state.history,
        "best_mrr": state.best_mrr,
        "evaluations_without_improvement": state.evaluations_without_improvement,
        "batch_size": state.batch_size,
        "scheduler_state_dict": state.scheduler.state_dict(),
        "scaler_state_dict": state.scaler.state_dict(),
        "random_state": {
            "shuffle": state.shuffle.get_state(),
            **first,
            **({"other_processes": others} if others else {}),
        },
        "mapping_digest": mapping_digest,
        "training_triples_digest": training_triples_digest,
    }


def average_content(state: TrainingState) -> dict[str, Any]:
    """Return the further members of a checkpoint whose weights are a moving average."""
    if state.average is None:
        return {}
    return {"trained_state_dict": state.model.state_dict(), "num_averaged": int(state.average.n_averaged)}


def random_numbers_of(device: torch.device) -> dict[str, torch.Tensor | None]:
    """Return the state of this process's random numbers for dropout."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore(
    state: TrainingState,
    path: Path,
    *,
    config: TrainingConfig,
    mapping_digest: dict[str, str],
    training_triples_digest: str,
) -> None:
    """Put a checkpoint's content into `state`.

    A learning rate, decay or dropout that differs from the checkpoint's takes effect from here on. The log names
    settings and training triples that differ.

    Raises InputError if the checkpoint has other sizes or mappings, is past the last epoch, or lacks what
    resumption needs.
    """
    checkpoint = load_checkpoint(path)
    missing = [member for member in RESUMABLE_MEMBERS if member not in checkpoint]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}, so training cannot go on from it; train anew")
    require_same_digests(checkpoint, mapping_digest, source=path)
    changed = list(changes_on_resuming(checkpoint["training_config"], config))
    require_same_training(changed, source=path)
    sizes = take_model(checkpoint, source=path).config.as_dict()
    resized = list(changes_on_resuming(sizes, state.model.config))
    require_same_sizes(resized, source=path)
    if checkpoint["epoch"] > config.num_epochs:
        raise InputError(
            f"{path}: has {checkpoint['epoch']} epochs behind it, --num-epochs is {config.num_epochs} in all; "
            "give more epochs or an earlier checkpoint"
        )
    for change in (*resized, *changed):
        told = "resuming with %s %s; the checkpoint was trained with %s"
        logger.info(told, change.name, change.now, change.before)
    if checkpoint.get("training_triples_digest", training_triples_digest) != training_triples_digest:
        logger.warning("%s: was trained on other triples than those of --train; going on with these", path)
    try:
        load_into(state, checkpoint, config)
        restore_schedule(state, checkpoint, config)
        if state.epoch == config.num_epochs and state.latest_metrics() is None:
            state.metrics_of_the_end = checkpoint.get("metrics") or None
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be resumed ({reason}); use another checkpoint") from error
    logger.info("going on after epoch %d of %s", state.epoch, path)


def require_same_training(changes: Iterable[Change], *, source: Path) -> None:
    """Raise InputError for a setting of training that cannot change on the way."""
    for name, before in ((change.name, change.before) for change in changes if change.is_refused):
        if isinstance(before, bool):
            words = "with" if before else "without"
            raise InputError(f"{source}: was trained {words} {flag_of(name)}; resume it {words} them")
        raise InputError(f"{source}: was trained with {flag_of(name)} {before}; resume it with the same")


def require_same_sizes(changes: Iterable[Change], *, source: Path) -> None:
    """Raise InputError for a size of the model that is not the checkpoint's."""
    for change in changes:
        if change.is_refused:
            sizes = f"has {change.name} {change.before}, this run has {change.now}"
            raise InputError(f"{source}: {sizes}; give the same settings")


def load_into(state: TrainingState, checkpoint: dict[str, Any], config: TrainingConfig) -> None:
    """Copy what training changes from a checkpoint into `state`."""
    if [record["epoch"] for record in checkpoint["history"]] != list(range(1, checkpoint["epoch"] + 1)):
        raise InputError("its history does not have one record for each of its epochs; use an undamaged checkpoint")
    if state.average is not None:
        state.average.module.load_state_dict(checkpoint["model_state_dict"])
        state.average.n_averaged.fill_(checkpoint.get("num_averaged", 1))
    trained = checkpoint.get("trained_state_dict", checkpoint["model_state_dict"])
    own = state.model.state_dict()
    require_names(trained, own)
    require_shapes(trained, state.model.config)
    # What the model's precision cannot hold becomes infinite.
    trained = {name: weight.to(own[name].dtype) for name, weight in trained.items()}
    require_sound_weights(trained, source="trained_state_dict")
    state.model.load_state_dict(trained)
    load_optimizer(state.optimizer, checkpoint["optimizer_state_dict"])
    # A checkpoint of another precision has no scale.
    if checkpoint["scaler_state_dict"]:
        require_like("scaler_state_dict", checkpoint["scaler_state_dict"], state.scaler.state_dict())
        state.scaler.load_state_dict(checkpoint["scaler_state_dict"])
    state.epoch = checkpoint["epoch"]
    state.history = checkpoint["history"]
    state.best_mrr = checkpoint["best_mrr"]
    state.evaluations_without_improvement = checkpoint["evaluations_without_improvement"]
    if checkpoint["training_config"].get("batch_size") == state.batch_size:
        # The memory may have forced a smaller one.
        state.batch_size = checkpoint.get("batch_size", state.batch_size)
    random_state = checkpoint["random_state"]
    state.shuffle.set_state(random_state["shuffle"])
    of_processes = [random_state, *random_state.get("other_processes", [])]
    if parallel.rank() >= len(of_processes):
        seed_own_dropout(config, epoch=state.epoch)
        return
    own = of_processes[parallel.rank()]
    torch.set_rng_state(own["cpu"])
    device = device_of(state.model)
    if device.type == "cuda" and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"], device)


def load_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Copy the moments and the learning rate of a checkpoint's optimizer, not its other settings.

    Raises InputError if the moments do not fit the parameters.
    """
    settings = [{**group} for group in optimizer.param_groups]
    optimizer.load_state_dict(stored)
    for group, fresh in zip(optimizer.param_groups, settings, strict=True):
        group.update({name: value for name, value in fresh.items() if name not in ("params", "lr")})
    for place, parameter in enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]):
        if not moments_fit(optimizer, parameter):
            raise InputError(
                f"its optimizer_state_dict does not fit parameter {place} of the model; use an undamaged checkpoint"
            )


def moments_fit(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> bool:
    """Whether a parameter has all moments that the optimizer's next step needs, or none, which Adam allows."""
    moments = optimizer.state.get(parameter, {})
    names = ("sum",) if isinstance(optimizer, torch.optim.Adagrad) else ("exp_avg", "exp_avg_sq")
    if not moments and isinstance(optimizer, torch.optim.Adam):
        return True
    shapes = {"step": torch.Size(), **dict.fromkeys(names, parameter.shape)}
    return moments.keys() == shapes.keys() and all(
        is_plain_tensor(moments[name])
        and moments[name].shape == shape
        and moments[name].is_floating_point()
        and bool(torch.isfinite(moments[name]).all())
        and (name == "exp_avg" or bool((moments[name] >= 0).all()))
        for name, shape in shapes.items()
    )


def require_like(name: str, stored: Any, example: Any) -> None:
    """Raise InputError if a member of a checkpoint is of another kind than this run's own."""
    difference = first_difference(stored, example, name=name)
    if difference is not None:
        raise InputError(f"its {difference} is not what training writes; use an undamaged checkpoint")


def restore_schedule(state: TrainingState, checkpoint: dict[str, Any], config: TrainingConfig) -> None:
    """Continue the checkpoint's schedule, or start another if settings differ."""
    stored, scheduler_state = checkpoint["training_config"], checkpoint["scheduler_state_dict"]
    ratio = config.learning_rate / stored["learning_rate"]
    for group in state.optimizer.param_groups:
        group["weight_decay"] = config.weight_decay
        if ratio != 1:
            group["lr"] *= ratio
            group["initial_lr"] = config.learning_rate
    names = ("lr_scheduler", "lr_decay", "lr_patience")
    if all(stored.get(name, getattr(TrainingConfig, name)) == getattr(config, name) for name in names):
        # Without the settings, which are the run's own.
        moving = {name: value for name, value in scheduler_state.items() if name in MOVING_PARTS_OF_SCHEDULES}
        require_like("scheduler_state_dict", moving, state.scheduler.state_dict())
        state.scheduler.load_state_dict(moving)
    else:
        # A new schedule starts at the rate that the old one has reached.
        state.scheduler = new_scheduler(state.optimizer, config)


def newest_checkpoint(directory: Path) -> Path | None:
    """Find the whole checkpoint_epoch_N.pt of the last epoch of the run that wrote last; None if there is none.

    The log names damaged ones, which are skipped. An earlier run may have left higher epochs, so the times of the files
    decide. A copied directory has lost them, so a checkpoint that continues the newest counts as newer.
    """
    candidates = sorted(
        directory.glob(EPOCH_CHECKPOINTS),
        key=lambda path: (path.stat().st_mtime_ns, epoch_in(path)),
        reverse=True,
    )
    newest = next(filter(is_whole, candidates), None)
    if newest is None:
        return None
    older = candidates[candidates.index(newest) + 1 :]
    later_epochs = sorted((path for path in older if epoch_in(path) > epoch_in(newest)), key=epoch_in, reverse=True)
    return next((path for path in later_epochs if is_whole(path) and goes_on_from(newest, path)), newest)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read; the log says why not."""
    try:
        load_checkpoint(path)
    except InputError as error:
        logger.warning("passed over: %s", error)
        return False
    return True


def goes_on_from(earlier: Path, later: Path) -> bool:
    """Whether the history of `later` begins with that of `earlier`, to the second that each epoch took."""
    first, second = (history_as_text(read_checkpoint_outline(path)) for path in (earlier, later))
    return bool(first) and second[: len(first)] == first


def warn_of_another_run(directory: Path) -> None:
    """Warn of checkpoints in the directory of a new run: influence over the directory would mix the two."""
    left = sorted(epoch_in(path) for path in directory.glob(EPOCH_CHECKPOINTS))
    if left:
        logger.warning(
            "%s holds %d checkpoints of another run, up to epoch %d, and influence over the directory would mix the "
            "two; remove them, or give another --checkpoint-dir",
            directory, len(left), left[-1],
        )  # fmt: skip


def keep_best_model(state: TrainingState, *, output_dir: Path, checkpoint_dir: Path, resumed_from: Path) -> None:
    """Make best_model.pt the best epoch of the resumed history.

    The file may be missing, or of a later epoch, which the resumed run may never reach. If no file of the best epoch
    is left, the resumed checkpoint replaces it, with its own MRR to beat.
    """
    best = best_epoch(state)
    if best is None:
        return
    path = output_dir / "best_model.pt"
    for candidate in (path, epoch_checkpoint(checkpoint_dir, best), resumed_from):
        content = load_if_whole(candidate)
        # The losses in the history tell runs apart.
        if content is not None and content.get("history") == state.history[:best]:
            if candidate != path:
                save_checkpoint(path, content)
            return
    logger.info("no model of the best epoch, %d, is left: epoch %d stands in for it", best, state.epoch)
    state.best_mrr = validation_mrr(state.history[-1])
    save_checkpoint(path, load_checkpoint(resumed_from) | {"best_mrr": state.best_mrr})


def keep_counted_best_model(state: TrainingState, *, output_dir: Path, checkpoint_dir: Path) -> None:
    """Copy best_model.pt to the checkpoints, since a last epoch that a longer run would not evaluate replaces it."""
    best = first_epoch_with(state.best_mrr, state.history)
    if best is None:
        return
    source, path = output_dir / "best_model.pt", epoch_checkpoint(checkpoint_dir, best)
    content = load_if_whole(path)
    if content is None or content.get("history") != state.history[:best]:
        # With its time, so that it does not count as the newest checkpoint.
        with atomic_write(path) as temporary:
            shutil.copy2(source, temporary)


def best_epoch(state: TrainingState) -> int | None:
    """Return the first epoch that has the best validation MRR; None before the first evaluation."""
    if validation_mrr({"valid": state.metrics_of_the_end or {}}) > state.best_mrr:
        return state.epoch
    return first_epoch_with(state.best_mrr, state.history)


def first_epoch_with(mrr: float, history: list[dict[str, Any]]) -> int | None:
    """Return the first epoch with this validation MRR; None if there is none."""
    found = (record["epoch"] for record in history if validation_mrr(record) == mrr)
    return next(found, None) if math.isfinite(mrr) else None


def load_if_whole(path: Path) -> dict[str, Any] | None:
    """Load a checkpoint; None if it is missing or damaged."""
    try:
        return load_checkpoint(path)
    except InputError:
        return None

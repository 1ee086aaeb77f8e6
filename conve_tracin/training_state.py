"""What changes while training, how it goes into a checkpoint, and how it comes back for an exact continuation."""

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from conve_tracin import distributed
from conve_tracin.checkpoint import (
    build_model,
    history_as_text,
    load_checkpoint,
    read_checkpoint_outline,
    require_same_digests,
    save_checkpoint,
)
from conve_tracin.checkpoint_schema import (
    first_difference,
    is_plain_tensor,
    require_names,
    require_shapes,
    require_sound_weights,
)
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write
from conve_tracin.memory import is_out_of_memory
from conve_tracin.model import DROPOUTS, ConvE

logger = logging.getLogger(__name__)

RESUMABLE_MEMBERS = (
    "epoch", "optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "training_config", "history",
    "best_mrr", "evaluations_without_improvement", "random_state",
)  # fmt: skip

MOVING_PARTS_OF_SCHEDULES = ("last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train. Stored in every checkpoint as `training_config`.

    Attributes:
        training_approach: "1vsall", one query with one target per triple, or "kvsall", one query with all its
            targets per distinct (head, relation).
        query_weights: the weights of kvsall's queries: "equal", or "tails", each its number of targets, so that
            cross-entropy is that of 1vsall.
        tails_per_visit: with weights by tails, an epoch comes to a query once for so many of its tails, each time for
            a part of its weight; 0 comes to each once. A batch with a query that counts for thousands is that query's
            alone, and Adam then takes smaller steps for all.
        inverse_triples: also train (t, inverse of r, h); relation r becomes row 2r, its inverse row 2r + 1.
        loss: "bce" or "ce", see `streamed_loss`.
        label_smoothing: ε of the loss.
        optimizer: "adam" or "adagrad".
        weight_averaging: the model that is ranked and kept has the moving average of the weights, w̄ ← αw̄ + (1 − α)w
            after each batch (after Polyak & Juditsky, 1992); 0 keeps the weights themselves.
        weight_decay: λ of the L2 penalty λ/2·‖w‖², added to the gradient by the optimizer.
        lr_scheduler: the learning rate is multiplied by `lr_decay` after each epoch ("exponential"), after more
            than `lr_patience` evaluations without a better validation MRR ("plateau"), or never ("none").
        early_stopping_patience: stop after this many evaluations without a better validation MRR; 0 never stops.
        eval_frequency, checkpoint_frequency: in epochs.
        auto_batch_size: halve the batch size, for the rest of the run, where the memory does not suffice.

    Raises InputError where the settings contradict each other.
    """

    num_epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.001
    loss: str = "bce"
    optimizer: str = "adam"
    weight_averaging: float = 0.0
    weight_decay: float = 0.0
    lr_scheduler: str = "exponential"
    lr_decay: float = 1.0
    lr_patience: int = 2
    label_smoothing: float = 0.1
    training_approach: str = "1vsall"
    query_weights: str = "equal"
    tails_per_visit: int = 16
    inverse_triples: bool = False
    early_stopping_patience: int = 0
    eval_frequency: int = 1
    checkpoint_frequency: int = 2
    random_seed: int = 42
    use_mixed_precision: bool = False
    use_gradient_checkpointing: bool = False
    use_torch_compile: bool = False
    auto_batch_size: bool = False

    # What may differ between the run that wrote a checkpoint and the one that resumes it, without a remark.
    FREE_ON_RESUME = ("num_epochs", "early_stopping_patience", "eval_frequency", "checkpoint_frequency")
    # What checkpoints without a member were trained with, where that is not the default.
    BEFORE_IT_COULD_BE_CHOSEN = MappingProxyType({"tails_per_visit": 0})

    def __post_init__(self) -> None:
        if self.lr_scheduler == "plateau" and not self.lr_decay < 1:
            raise InputError(f"--lr-scheduler plateau with --lr-decay {self.lr_decay} changes nothing; give 0.5, say")


@dataclass
class TrainingState:
    """All that changes while training and that exact resumption needs.

    Attributes:
        average: of the model's weights and statistics, where the config asks for it.
        history: a record for each epoch. It holds what a longer run would have written too, so that the checkpoints
            of a run that was resumed after its end agree on it.
        metrics_of_the_end: those of the last epoch where it was evaluated only because it was the last.
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
        """The model that is ranked and kept: the average, where there is one."""
        return self.model if self.average is None else self.average.module

    def latest_metrics(self) -> dict[str, Any] | None:
        """Return the validation metrics of the latest epoch; None where it was not evaluated."""
        return self.metrics_of_the_end or (self.history[-1].get("valid") if self.history else None)

    def history_with_the_end(self) -> list[dict[str, Any]]:
        """Return the history with all that was evaluated, for people to read."""
        if self.metrics_of_the_end is None:
            return self.history
        return [*self.history[:-1], self.history[-1] | {"valid": self.metrics_of_the_end}]


def new_state(model_config: dict[str, Any], config: TrainingConfig, device: torch.device) -> TrainingState:
    """Make model, optimizer and their companions for the first epoch; raise InputError where memory is too small."""
    model = new_model(model_config, device)
    if distributed.synchronizes_batch_norm(device):
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
    """Make the average of a model's weights, which starts with these; None where the config asks for none.

    Raises InputError where it does not fit into memory.
    """
    if not config.weight_averaging:
        return None
    with refusing_what_no_memory_holds(model.config.as_dict()):
        # BatchNorm's statistics are averaged, too: those of the weights would not be the average's.
        average = AveragedModel(model, multi_avg_fn=moving_average(config.weight_averaging), use_buffers=True)
    average.n_averaged.fill_(1)
    return average


def moving_average(kept_share: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Return what takes the weights after a batch into their average, of which `kept_share` stays.

    At first less stays: the average is one over about the last tenth of all batches so far, not of the random start.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], num_averaged: Tensor) -> None:
        # A tensor, since reading its number would make a GPU wait.
        step = (10 / (num_averaged + 10)).clamp(min=1 - kept_share)
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight, step.to(average.dtype))
            else:
                average.copy_(weight)

    return update


def new_model(model_config: dict[str, Any], device: torch.device) -> ConvE:
    """Make a model with fresh weights; raise InputError where it does not fit into memory."""
    with refusing_what_no_memory_holds(model_config):
        return ConvE(**model_config).to(device)


@contextlib.contextmanager
def refusing_what_no_memory_holds(model_config: dict[str, Any]) -> Iterator[None]:
    """Raise InputError where the memory does not suffice for a model of these sizes."""
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
    if not distributed.is_main():
        mixed = np.random.SeedSequence([config.random_seed, epoch, distributed.rank()])
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))


def new_optimizer(model: ConvE, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer; the fused kernels go over the embedding tables once, not five times."""
    settings = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adagrad":
        return torch.optim.Adagrad(model.parameters(), **settings, fused=device_of(model).type == "cpu" or None)
    return torch.optim.Adam(model.parameters(), **settings, fused=True)


def new_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """Make what lowers the learning rate."""
    if config.lr_scheduler == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=config.lr_decay, patience=config.lr_patience, threshold=0.0
        )
    gamma = config.lr_decay if config.lr_scheduler == "exponential" else 1.0
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=gamma)


def mixed_precision_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """Choose the lower precision: bfloat16 where the device has it, else float16; None where it is off."""
    if not config.use_mixed_precision:
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def autocast(config: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context in which the model runs: lower precision where the config asks for it."""
    dtype = mixed_precision_dtype(config, device)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def is_evaluation_due(epoch: int, config: TrainingConfig) -> bool:
    """Whether an epoch is evaluated in every run, not only because it is the last.

    Only such evaluations move the schedule, the best MRR and the counter of early stopping: a run that was resumed
    after what was to be its last epoch must equal one that never ended there.
    """
    return epoch % config.eval_frequency == 0


def note_evaluation(state: TrainingState, mrr: float) -> bool:
    """Count an evaluation that is due; True where it is the best so far."""
    if mrr > state.best_mrr:
        state.best_mrr = mrr
        state.evaluations_without_improvement = 0
        return True
    state.evaluations_without_improvement += 1
    return False


def is_finished(state: TrainingState, config: TrainingConfig) -> bool:
    """Whether all epochs are done, or early stopping has had enough."""
    return state.epoch >= config.num_epochs or stops_early(state, config)


def stops_early(state: TrainingState, config: TrainingConfig) -> bool:
    """Whether the evaluations have gone without a better MRR for as long as the config allows."""
    return 0 < config.early_stopping_patience <= state.evaluations_without_improvement


def checkpoint_content(
    state: TrainingState, config: TrainingConfig, *, mapping_digest: dict[str, str], training_triples_digest: str
) -> dict[str, Any]:
    """Collect what a checkpoint holds after a finished epoch. All processes are to call it; process 0's is whole."""
    first, *others = distributed.gather(random_numbers_of(device_of(state.model)))
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
    """Return what a checkpoint holds besides where its weights are a moving average; nothing where they are not."""
    if state.average is None:
        return {}
    return {"trained_state_dict": state.model.state_dict(), "num_averaged": int(state.average.n_averaged)}


def random_numbers_of(device: torch.device) -> dict[str, torch.Tensor | None]:
    """Return the state of the random numbers that a process draws for its dropout."""
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

    A learning rate, decay or dropout that differs from the checkpoint's takes effect from here on. Settings that
    differ are named in the log, and so are other training triples.

    Raises InputError where the checkpoint has other sizes or mappings, is past the last epoch, or lacks what
    resumption needs.
    """
    checkpoint = load_checkpoint(path)
    missing = [member for member in RESUMABLE_MEMBERS if member not in checkpoint]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}, so training cannot go on from it; train anew")
    require_same_digests(checkpoint, mapping_digest, source=path)
    if checkpoint["training_config"].get("inverse_triples", False) != config.inverse_triples:
        with_or_without = "without" if config.inverse_triples else "with"
        raise InputError(f"{path}: was trained {with_or_without} --inverse-triples; resume it {with_or_without} them")
    require_same_sizes(checkpoint, state.model, source=path)
    if checkpoint["epoch"] > config.num_epochs:
        raise InputError(
            f"{path}: has {checkpoint['epoch']} epochs behind it, --num-epochs is {config.num_epochs} in all; "
            "give more epochs or an earlier checkpoint"
        )
    stored_optimizer = checkpoint["training_config"].get("optimizer", "adam")
    if stored_optimizer != config.optimizer:
        raise InputError(f"{path}: was trained with --optimizer {stored_optimizer}; resume it with the same")
    report_changed_settings(checkpoint["training_config"], config)
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


def require_same_sizes(checkpoint: dict[str, Any], model: ConvE, *, source: Path) -> None:
    """Raise InputError where the checkpoint has other sizes or broken weights; name other dropouts in the log."""
    stored = build_model(checkpoint, source=source).config.as_dict()
    for name, value in model.config.as_dict().items():
        if stored[name] == value:
            continue
        if name in DROPOUTS:
            report_change(name, value, stored[name])
        else:
            raise InputError(f"{source}: has {name} {stored[name]}, this run has {value}; give the same settings")


def report_changed_settings(stored: dict[str, Any], config: TrainingConfig) -> None:
    """Name the settings that differ from the checkpoint's in the log."""
    for setting in fields(config):
        given = getattr(config, setting.name)
        before = stored.get(setting.name, config.BEFORE_IT_COULD_BE_CHOSEN.get(setting.name, setting.default))
        if before != given and setting.name not in config.FREE_ON_RESUME:
            report_change(setting.name, given, before)


def report_change(name: str, given: object, before: object) -> None:
    """Name a setting that is not the checkpoint's in the log."""
    logger.info("resuming with %s %s; the checkpoint was trained with %s", name, given, before)


def load_into(state: TrainingState, checkpoint: dict[str, Any], config: TrainingConfig) -> None:
    """Copy every member that training changes from a checkpoint into `state`."""
    if [record["epoch"] for record in checkpoint["history"]] != list(range(1, checkpoint["epoch"] + 1)):
        raise InputError("its history does not have one record for each of its epochs; use an undamaged checkpoint")
    if state.average is not None:
        state.average.module.load_state_dict(checkpoint["model_state_dict"])
        state.average.n_averaged.fill_(checkpoint.get("num_averaged", 1))
    trained = checkpoint.get("trained_state_dict", checkpoint["model_state_dict"])
    own = state.model.state_dict()
    require_names(trained, own)
    require_shapes(trained, state.model.config)
    # Numbers that the model's do not hold become infinite.
    trained = {name: weight.to(own[name].dtype) for name, weight in trained.items()}
    require_sound_weights(trained, source="trained_state_dict")
    state.model.load_state_dict(trained)
    load_optimizer(state.optimizer, checkpoint["optimizer_state_dict"])
    # A checkpoint of another precision has no scale to go on with.
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
    if distributed.rank() >= len(of_processes):
        seed_own_dropout(config, epoch=state.epoch)
        return
    own = of_processes[distributed.rank()]
    torch.set_rng_state(own["cpu"])
    device = device_of(state.model)
    if device.type == "cuda" and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"], device)


def load_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Copy the moments and the learning rate of a checkpoint's optimizer; its other settings are those of the run.

    Raises InputError where the moments are not those of this optimizer's parameters.
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
    """Whether a parameter has all that the next step of its optimizer takes up, or a fresh start where it may."""
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
    """Raise InputError where a member of a checkpoint is of another kind than this run's own."""
    difference = first_difference(stored, example, name=name)
    if difference is not None:
        raise InputError(f"its {difference} is not what training writes; use an undamaged checkpoint")


def restore_schedule(state: TrainingState, checkpoint: dict[str, Any], config: TrainingConfig) -> None:
    """Go on with the checkpoint's schedule, or bring settings into force that differ from it."""
    stored, scheduler_state = checkpoint["training_config"], checkpoint["scheduler_state_dict"]
    ratio = config.learning_rate / stored["learning_rate"]
    for group in state.optimizer.param_groups:
        group["weight_decay"] = config.weight_decay
        if ratio != 1:
            group["lr"] *= ratio
            group["initial_lr"] = config.learning_rate
    names = ("lr_scheduler", "lr_decay", "lr_patience")
    if all(stored.get(name, getattr(TrainingConfig, name)) == getattr(config, name) for name in names):
        # What moves; the settings beside it are those of the run, which are the same.
        moving = {name: value for name, value in scheduler_state.items() if name in MOVING_PARTS_OF_SCHEDULES}
        require_like("scheduler_state_dict", moving, state.scheduler.state_dict())
        state.scheduler.load_state_dict(moving)
    else:
        # A new schedule starts at the rate that the old one has reached.
        state.scheduler = new_scheduler(state.optimizer, config)


def newest_checkpoint(directory: Path) -> Path | None:
    """Find the whole checkpoint_epoch_N.pt of the last epoch of the run that wrote last; None where there is none.

    Damaged ones are named in the log and passed over. Times tell which run wrote last, as an earlier one may have left
    higher epochs behind. In a copied directory they tell nothing, so a checkpoint that goes on from the newest counts.
    """
    candidates = sorted(
        directory.glob("checkpoint_epoch_*.pt"),
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
    """Say that a run which starts anew finds checkpoints: influence over the directory would mix the two."""
    left = sorted(epoch_in(path) for path in directory.glob("checkpoint_epoch_*.pt"))
    if left:
        logger.warning(
            "%s holds %d checkpoints of another run, up to epoch %d, and influence over the directory would mix the "
            "two; remove them, or give another --checkpoint-dir",
            directory, len(left), left[-1],
        )  # fmt: skip


def epoch_in(path: Path) -> int:
    """Read N out of the name checkpoint_epoch_N.pt; −1 where there is no number."""
    number = path.stem.rpartition("_")[2]
    return int(number) if number.isdecimal() else -1


def keep_best_model(state: TrainingState, *, output_dir: Path, checkpoint_dir: Path, resumed_from: Path) -> None:
    """Make best_model.pt the best epoch of the resumed history.

    The file may be missing, or of a later epoch, which the resumed run may never reach again. Where no file of
    the best epoch is left, the resumed checkpoint stands in for it, with its own MRR to beat.
    """
    best = best_epoch(state)
    if best is None:
        return
    path = output_dir / "best_model.pt"
    for candidate in (path, checkpoint_dir / f"checkpoint_epoch_{best}.pt", resumed_from):
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
    """Copy best_model.pt to the checkpoints before that of the last epoch, which a longer run forgets, replaces it."""
    best = first_epoch_with(state.best_mrr, state.history)
    if best is None:
        return
    source, path = output_dir / "best_model.pt", checkpoint_dir / f"checkpoint_epoch_{best}.pt"
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
    """Return the first epoch that has this validation MRR; None where none has, or where it is −∞, that of no epoch."""
    found = (record["epoch"] for record in history if validation_mrr(record) == mrr)
    return next(found, None) if math.isfinite(mrr) else None


def validation_mrr(record: dict[str, Any]) -> float:
    """Return the validation MRR of an epoch; −∞ where it was not evaluated."""
    return record.get("valid", {}).get("mean_reciprocal_rank", -math.inf)


def load_if_whole(path: Path) -> dict[str, Any] | None:
    """Load a checkpoint; None where it is missing or damaged."""
    try:
        return load_checkpoint(path)
    except InputError:
        return None


def device_of(model: torch.nn.Module) -> torch.device:
    """Return where the model's parameters are."""
    return next(model.parameters()).device

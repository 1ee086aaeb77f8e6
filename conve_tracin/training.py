"""The training loop: triples and settings to checkpoints, metrics and a history."""

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute_in_backward
from tqdm import tqdm

from conve_tracin.checkpoint import build_model, load_checkpoint, require_same_digests, save_checkpoint
from conve_tracin.errors import InputError
from conve_tracin.files import write_json
from conve_tracin.loss import sparse_bce_with_logits
from conve_tracin.model import ConvE
from conve_tracin.queries import Queries
from conve_tracin.ranking import rank_both_sides, ranking_metrics
from conve_tracin.triples import group_by_query, with_inverse_triples

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train. Stored in every checkpoint as `training_config`.

    Attributes:
        training_approach: "1vsall", one query with one target per triple, or "kvsall", one query with all its
            targets per distinct (head, relation).
        inverse_triples: also train (t, inverse of r, h); relation r becomes row 2r, its inverse row 2r + 1.
        label_smoothing: ε of the loss.
        lr_decay: the learning rate is multiplied by this after each epoch.
        early_stopping_patience: stop after this many evaluations without a better validation MRR; 0 never stops.
        eval_frequency, checkpoint_frequency: in epochs.
    """

    num_epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.001
    lr_decay: float = 1.0
    label_smoothing: float = 0.1
    training_approach: str = "1vsall"
    inverse_triples: bool = False
    early_stopping_patience: int = 0
    eval_frequency: int = 1
    checkpoint_frequency: int = 2
    random_seed: int = 42
    use_mixed_precision: bool = False
    use_gradient_checkpointing: bool = False

    # What may differ between the run that wrote a checkpoint and the one that resumes it, without a remark.
    FREE_ON_RESUME = ("num_epochs", "early_stopping_patience", "eval_frequency", "checkpoint_frequency")


@dataclass(frozen=True)
class TrainingData:
    """The three splits as (N, 3) int64 ids of the files, the number of labels, and the digests of the mappings."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    num_entities: int
    num_relations: int
    mapping_digest: dict[str, str]


@dataclass
class TrainingState:
    """All that changes while training and that exact resumption needs."""

    model: ConvE
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    shuffle: torch.Generator
    epoch: int = 0
    best_mrr: float = -math.inf
    evaluations_without_improvement: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


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
) -> dict[str, Any]:
    """Train ConvE, write all output files into `output_dir` and return the content of `test_results.json`.

    Args:
        data: triples and counts.
        config: how to train.
        model_sizes: members of `ConvEConfig` other than the counts of entities and relations.
        output_dir: gets config.json, best_model.pt, final_model.pt, training_history.json, test_results.json.
        checkpoint_dir: gets checkpoint_epoch_N.pt; `output_dir`/checkpoints without.
        resume_from: a checkpoint to go on from; on the CPU the result is bit for bit that of one run.
        device: where to train.
        clean_memory: release cached memory after each evaluation.

    Raises:
        InputError: sizes, data and checkpoint do not fit each other.
    """
    device = torch.device(device)
    checkpoint_dir = checkpoint_dir or output_dir / "checkpoints"
    num_relations = data.num_relations * (2 if config.inverse_triples else 1)
    model_config = {**model_sizes, "num_entities": data.num_entities, "num_relations": num_relations}
    torch.manual_seed(config.random_seed)
    state = new_state(model_config, config, device)
    if resume_from is not None:
        restore(state, resume_from, config=config, mapping_digest=data.mapping_digest)
        if not (output_dir / "best_model.pt").is_file():
            logger.info("no best_model.pt in %s: the best model is chosen among the epochs from here on", output_dir)
            state.best_mrr = -math.inf
    write_json(
        output_dir / "config.json",
        {"model_config": state.model.config.as_dict(), "training_config": asdict(config)},
    )

    queries = training_queries(data.train, config, device)
    known = known_tails(data, inverse_triples=config.inverse_triples, device=device)
    encode = choose_encoder(state.model, config)

    def evaluate(triples: np.ndarray, progress: str | None = None) -> dict[str, Any]:
        return evaluate_model(state.model, triples, known, inverse_triples=config.inverse_triples, progress=progress)

    def snapshot() -> dict[str, Any]:
        return checkpoint_content(state, config, mapping_digest=data.mapping_digest)

    batches_per_epoch = len(split_batches(len(queries), config.batch_size))
    bar = tqdm(total=config.num_epochs * batches_per_epoch, initial=state.epoch * batches_per_epoch, unit="batch")
    with bar:
        while state.epoch < config.num_epochs:
            state.epoch += 1
            bar.set_description(f"epoch {state.epoch}/{config.num_epochs}")
            record = run_epoch(state, queries, config, encode=encode, on_batch=bar.update)
            last = state.epoch == config.num_epochs
            if last or state.epoch % config.eval_frequency == 0:
                record["valid"] = evaluate(data.valid)
                improved = note_evaluation(state, record["valid"]["mean_reciprocal_rank"])
                if clean_memory:
                    release_memory(device)
            state.history.append(record)
            show_progress(bar, record, state.best_mrr)
            if "valid" in record and improved:
                save_checkpoint(output_dir / "best_model.pt", snapshot())
            if last or state.epoch % config.checkpoint_frequency == 0:
                save_checkpoint(checkpoint_dir / f"checkpoint_epoch_{state.epoch}.pt", snapshot())
            write_json(output_dir / "training_history.json", state.history)
            if 0 < config.early_stopping_patience <= state.evaluations_without_improvement:
                logger.info(
                    "stopped after epoch %d: %d evaluations without a better validation MRR than %.4f",
                    state.epoch, state.evaluations_without_improvement, state.best_mrr,
                )  # fmt: skip
                break

    save_checkpoint(output_dir / "final_model.pt", snapshot())
    best = load_checkpoint(output_dir / "best_model.pt")
    state.model.load_state_dict(best["model_state_dict"])
    results = evaluate(data.test, progress="test") | {"epoch": best["epoch"]}
    write_json(output_dir / "test_results.json", results)
    return results


def new_state(model_config: dict[str, Any], config: TrainingConfig, device: torch.device) -> TrainingState:
    """Make model, optimizer and their companions for the first epoch."""
    model = ConvE(**model_config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    return TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=config.lr_decay),
        scaler=torch.amp.GradScaler(device.type, enabled=mixed_precision_dtype(config, device) is torch.float16),
        shuffle=torch.Generator().manual_seed(config.random_seed),
    )


def training_queries(triples: np.ndarray, config: TrainingConfig, device: torch.device) -> Queries:
    """Arrange the training triples (N, 3) as the queries that one epoch goes through.

    Raises InputError where a single query is left: BatchNorm in training needs two.
    """
    if config.inverse_triples:
        triples = with_inverse_triples(triples)
    # A triple that the file repeats must not count as two labels of one query.
    if config.training_approach == "kvsall":
        queries = Queries.distinct(group_by_query(np.unique(triples, axis=0)), device)
    else:
        queries = Queries.one_per_triple(triples, device)
    if len(queries) < 2:
        raise InputError("training needs at least two queries (head, relation) for BatchNorm; add triples")
    return queries


def known_tails(data: TrainingData, *, inverse_triples: bool, device: torch.device) -> Queries:
    """Collect the true tails of every query in train, valid and test: what filtered ranking leaves out."""
    triples = np.concatenate([data.train, data.valid, data.test])
    if inverse_triples:
        triples = with_inverse_triples(triples)
    return Queries.distinct(group_by_query(np.unique(triples, axis=0)), device)


def split_batches(num_queries: int, batch_size: int) -> list[slice]:
    """Cut `num_queries` into batches; one left over joins the batch before it, since BatchNorm needs two."""
    starts = list(range(0, num_queries, max(batch_size, 2)))
    if len(starts) > 1 and num_queries - starts[-1] == 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], num_queries], strict=True)]


def run_epoch(
    state: TrainingState,
    queries: Queries,
    config: TrainingConfig,
    *,
    encode: Callable[[Tensor, Tensor], Tensor],
    on_batch: Callable[[], Any],
) -> dict[str, Any]:
    """Train one epoch and return its record for the history."""
    started = time.perf_counter()
    device = queries.heads.device
    state.model.train()
    order = torch.randperm(len(queries), generator=state.shuffle).to(device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in split_batches(len(queries), config.batch_size):
        chosen = order[batch]
        with autocast(config, device):
            query_vectors = encode(queries.heads[chosen], queries.relations[chosen])
            scores = state.model.score_queries(query_vectors)
        rows, tails = queries.tails_of(chosen)
        loss = sparse_bce_with_logits(scores, rows, tails, label_smoothing=config.label_smoothing)
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        total += loss.detach() * len(chosen)
        on_batch()
    mean_loss = (total / len(queries)).item()
    if not math.isfinite(mean_loss):
        raise InputError(
            f"the training loss is not finite in epoch {state.epoch}; lower --learning-rate and resume from the "
            "last checkpoint"
        )
    learning_rate = state.optimizer.param_groups[0]["lr"]
    state.scheduler.step()
    return {
        "epoch": state.epoch,
        "loss": mean_loss,
        "learning_rate": learning_rate,
        "seconds": round(time.perf_counter() - started, 3),
    }


def evaluate_model(
    model: ConvE, triples: np.ndarray, known: Queries, *, inverse_triples: bool, progress: str | None = None
) -> dict[str, Any]:
    """Rank `triples` (N, 3) in eval mode: MRR, mean rank, Hits@k, and which sides were ranked."""
    model.eval()
    ranks = rank_both_sides(
        model,
        triples,
        known,
        num_relations=model.config.num_relations,
        inverse_triples=inverse_triples,
        progress=progress,
    )
    sides = "heads and tails" if inverse_triples else "tails only (no inverse triples)"
    return ranking_metrics(ranks) | {"ranked": sides, "num_ranks": len(ranks)}


def note_evaluation(state: TrainingState, mrr: float) -> bool:
    """Count an evaluation; True where it is the best so far."""
    if mrr > state.best_mrr:
        state.best_mrr = mrr
        state.evaluations_without_improvement = 0
        return True
    state.evaluations_without_improvement += 1
    return False


def show_progress(bar: tqdm, record: dict[str, Any], best_mrr: float) -> None:
    """Put loss and validation MRR behind the progress bar."""
    values = {"loss": f"{record['loss']:.4f}"}
    if math.isfinite(best_mrr):
        values["best valid MRR"] = f"{best_mrr:.4f}"
    bar.set_postfix(values)


def checkpoint_content(
    state: TrainingState, config: TrainingConfig, *, mapping_digest: dict[str, str]
) -> dict[str, Any]:
    """Collect what a checkpoint holds after a finished epoch."""
    device = next(state.model.parameters()).device
    return {
        "epoch": state.epoch,
        "model_state_dict": state.model.state_dict(),
        "optimizer_state_dict": state.optimizer.state_dict(),
        "model_config": state.model.config.as_dict(),
        "training_config": asdict(config),
        "learning_rate": state.history[-1]["learning_rate"] if state.history else config.learning_rate,
        "metrics": state.history[-1].get("valid", {}) if state.history else {},
        "history": state.history,
        "best_mrr": state.best_mrr,
        "evaluations_without_improvement": state.evaluations_without_improvement,
        "scheduler_state_dict": state.scheduler.state_dict(),
        "scaler_state_dict": state.scaler.state_dict(),
        "random_state": {
            "shuffle": state.shuffle.get_state(),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        },
        "mapping_digest": mapping_digest,
    }


def restore(state: TrainingState, path: Path, *, config: TrainingConfig, mapping_digest: dict[str, str]) -> None:
    """Put a checkpoint's content into `state`.

    Raises InputError where the checkpoint has other sizes or mappings, or cannot be resumed. Settings that
    differ are named in the log.
    """
    checkpoint = load_checkpoint(path)
    require_same_digests(checkpoint, mapping_digest, source=path)
    restored = build_model(checkpoint, source=path)
    for name, value in state.model.config.as_dict().items():
        stored = getattr(restored.config, name)
        if stored != value:
            raise InputError(f"{path}: has {name} {stored}, the command line says {value}; give the same sizes")
    missing = [key for key in ("optimizer_state_dict", "random_state", "scheduler_state_dict") if key not in checkpoint]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}, so training cannot go on from it; train anew")
    for setting in fields(config):
        stored = checkpoint["training_config"].get(setting.name)
        given = getattr(config, setting.name)
        if stored != given and setting.name not in config.FREE_ON_RESUME:
            logger.info("resuming with %s %s; the checkpoint was trained with %s", setting.name, given, stored)
    state.model.load_state_dict(checkpoint["model_state_dict"])
    state.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    state.scheduler.load_state_dict(checkpoint["scheduler_state_dict"])
    state.scaler.load_state_dict(checkpoint["scaler_state_dict"])
    state.epoch = checkpoint["epoch"]
    state.history = checkpoint["history"]
    state.best_mrr = checkpoint["best_mrr"]
    state.evaluations_without_improvement = checkpoint["evaluations_without_improvement"]
    random_state = checkpoint["random_state"]
    state.shuffle.set_state(random_state["shuffle"])
    torch.set_rng_state(random_state["cpu"])
    device = next(state.model.parameters()).device
    if device.type == "cuda" and random_state["cuda"] is not None:
        torch.cuda.set_rng_state(random_state["cuda"], device)


def mixed_precision_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """Choose the lower precision: bfloat16 where the device has it, else float16; None where it is off."""
    if not config.use_mixed_precision:
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


def autocast(config: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context in which the model runs: lower precision where the config asks for it."""
    dtype = mixed_precision_dtype(config, device)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def choose_encoder(model: ConvE, config: TrainingConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the model's `encode`, wrapped so that its activations are recomputed where the config asks for it."""
    if not config.use_gradient_checkpointing:
        return model.encode

    def encode(head: Tensor, relation: Tensor) -> Tensor:
        return recompute_in_backward(
            model.encode,
            head,
            relation,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), untracked_statistics(model)),
        )

    return encode


@contextlib.contextmanager
def untracked_statistics(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are: the second pass over a batch must not count twice."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def release_memory(device: torch.device) -> None:
    """Give cached memory back, so that other processes on the device can have it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

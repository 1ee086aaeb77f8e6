"""The training loop: triples and settings to checkpoints, metrics and a history."""

import contextlib
import gc
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute_in_backward
from tqdm import tqdm

from conve_tracin.charts import write_training_curves
from conve_tracin.checkpoint import load_checkpoint, save_checkpoint
from conve_tracin.errors import InputError
from conve_tracin.files import write_json
from conve_tracin.loss import sparse_bce_with_logits
from conve_tracin.model import ConvE
from conve_tracin.queries import Queries
from conve_tracin.ranking import rank_both_sides, ranking_metrics
from conve_tracin.training_state import (
    TrainingConfig,
    TrainingState,
    checkpoint_content,
    is_finished,
    keep_best_model,
    mixed_precision_dtype,
    new_state,
    note_evaluation,
    restore,
    stops_early,
)
from conve_tracin.triples import group_by_query, with_inverse_triples

logger = logging.getLogger(__name__)

# Looking at the loss makes a GPU wait, so it is looked at once in so many batches.
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
) -> dict[str, Any]:
    """Train ConvE, write all output files into `output_dir` and return the content of `test_results.json`.

    Args:
        data: triples and counts.
        config: how to train.
        model_sizes: members of `ConvEConfig` other than the counts of entities and relations.
        output_dir: gets config.json, best_model.pt, final_model.pt, training_history.json, training_curves.svg,
            test_results.json.
        checkpoint_dir: gets checkpoint_epoch_N.pt; `output_dir`/checkpoints without.
        resume_from: a checkpoint to go on from; on the CPU the result is bit for bit that of one run.
        device: where to train.
        clean_memory: give a GPU's cached memory back after each epoch.

    Raises:
        InputError: sizes, data and checkpoint do not fit each other.
    """
    device = torch.device(device)
    checkpoint_dir = checkpoint_dir or output_dir / "checkpoints"
    num_relations = data.num_relations * (2 if config.inverse_triples else 1)
    model_config = {**model_sizes, "num_entities": data.num_entities, "num_relations": num_relations}
    torch.manual_seed(config.random_seed)
    state = new_state(model_config, config, device)
    queries = training_queries(data.train, config, device)
    known = known_tails(data, inverse_triples=config.inverse_triples, device=device)

    def evaluate(triples: np.ndarray, progress: str | None = None) -> dict[str, Any]:
        return evaluate_model(state.model, triples, known, inverse_triples=config.inverse_triples, progress=progress)

    def save(path: Path) -> None:
        save_checkpoint(path, checkpoint_content(state, config, mapping_digest=data.mapping_digest))

    if resume_from is not None:
        restore(state, resume_from, config=config, mapping_digest=data.mapping_digest)
        keep_best_model(state, output_dir=output_dir, checkpoint_dir=checkpoint_dir, resumed_from=resume_from)
    write_json(
        output_dir / "config.json",
        {"model_config": state.model.config.as_dict(), "training_config": asdict(config)},
    )
    for record in run_epochs(state, queries, config, validate=lambda: evaluate(data.valid)):
        if "valid" in record and note_evaluation(state, record["valid"]["mean_reciprocal_rank"]):
            save(output_dir / "best_model.pt")
        if is_finished(state, config) or state.epoch % config.checkpoint_frequency == 0:
            save(checkpoint_dir / f"checkpoint_epoch_{state.epoch}.pt")
        write_json(output_dir / "training_history.json", state.history)
        if "valid" in record:
            write_training_curves(output_dir / "training_curves.svg", state.history)
        if clean_memory:
            release_memory(device)

    if stops_early(state, config):
        logger.info(
            "stopped after epoch %d: %d evaluations without a better validation MRR than %.4f",
            state.epoch, state.evaluations_without_improvement, state.best_mrr,
        )  # fmt: skip
    save(output_dir / "final_model.pt")
    best = load_checkpoint(output_dir / "best_model.pt")
    state.model.load_state_dict(best["model_state_dict"])
    results = evaluate(data.test, progress="test") | {"epoch": best["epoch"]}
    write_json(output_dir / "test_results.json", results)
    return results


def run_epochs(
    state: TrainingState, queries: Queries, config: TrainingConfig, *, validate: Callable[[], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Train until the epochs are done or early stopping has had enough; yield each epoch's record of the history.

    A record that is due for evaluation has the metrics of `validate` as "valid". Whoever consumes the records
    notes the evaluation in `state` before asking for the next one. Shows a progress bar.
    """
    encode = choose_encoder(state.model, config)
    batches = len(split_batches(len(queries), config.batch_size))
    # In a log file each refresh is one more line.
    interval_seconds = 0.2 if sys.stderr.isatty() else 10
    with tqdm(
        total=config.num_epochs * batches,
        initial=state.epoch * batches,
        unit="batch",
        mininterval=interval_seconds,
        maxinterval=interval_seconds,
    ) as bar:
        while not is_finished(state, config):
            state.epoch += 1
            bar.set_description(f"epoch {state.epoch}/{config.num_epochs}", refresh=False)
            record = run_epoch(state, queries, config, encode=encode, on_batch=bar.update)
            if state.epoch == config.num_epochs or state.epoch % config.eval_frequency == 0:
                record["valid"] = validate()
            state.history.append(record)
            yield record
            show_progress(bar, record, state.best_mrr)


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
    """Train one epoch and return its record for the history.

    Raises InputError where the loss or a weight is no longer finite.
    """
    started = time.perf_counter()
    device = queries.heads.device
    state.model.train()
    order = torch.randperm(len(queries), generator=state.shuffle).to(device)
    batches = split_batches(len(queries), config.batch_size)
    losses = torch.zeros(len(batches), dtype=torch.float64, device=device)
    for number, batch in enumerate(batches):
        losses[number] = train_batch(state, queries, order[batch], config, encode=encode)
        if (number + 1) % BATCHES_BETWEEN_LOSS_CHECKS == 0:
            require_finite_losses(losses[: number + 1], epoch=state.epoch)
        on_batch()
    require_finite_losses(losses, epoch=state.epoch)
    require_finite_weights(state.model, epoch=state.epoch)
    learning_rate = state.optimizer.param_groups[0]["lr"]
    state.scheduler.step()
    sizes = torch.tensor([batch.stop - batch.start for batch in batches], dtype=torch.float64)
    return {
        "epoch": state.epoch,
        "loss": (losses.cpu() @ sizes / len(queries)).item(),
        "learning_rate": learning_rate,
        "seconds": round(time.perf_counter() - started, 3),
    }


def train_batch(
    state: TrainingState,
    queries: Queries,
    chosen: Tensor,
    config: TrainingConfig,
    *,
    encode: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Take one optimizer step on the queries `chosen` (B,); returns the loss, a scalar without gradient."""
    rows, tails = queries.tails_of(chosen)
    with autocast(config, chosen.device):
        query_vectors = encode(queries.heads[chosen], queries.relations[chosen])
        scores = state.model.score_queries(query_vectors)
    loss = sparse_bce_with_logits(scores, rows, tails, label_smoothing=config.label_smoothing)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return loss.detach()


def require_finite_losses(losses: Tensor, *, epoch: int) -> None:
    """Raise InputError that names the first batch, counted from 1, with a loss that is NaN or infinite."""
    broken = (~torch.isfinite(losses)).nonzero()
    if len(broken):
        raise InputError(
            f"the training loss is not finite in epoch {epoch}, batch {broken[0].item() + 1}; "
            "resume from the last checkpoint with a lower --learning-rate"
        )


def require_finite_weights(model: ConvE, *, epoch: int) -> None:
    """Raise InputError where the last step of an epoch broke a weight, which its loss cannot show yet."""
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


def show_progress(bar: tqdm, record: dict[str, Any], best_mrr: float) -> None:
    """Put loss and validation MRR behind the progress bar."""
    values = {"loss": f"{record['loss']:.4f}"}
    if math.isfinite(best_mrr):
        values["best valid MRR"] = f"{best_mrr:.4f}"
    bar.set_postfix(values, refresh=False)


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
    """Keep BatchNorm's running statistics as they are: the second pass over a batch must not count twice.

    The pass works on copies, because without statistics it would save other tensors than the first.
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


def release_memory(device: torch.device) -> None:
    """Give a GPU's cached memory back, so that other processes can have it; the CPU caches none."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()

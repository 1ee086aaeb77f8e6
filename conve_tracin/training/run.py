"""One run of training: triples and settings to checkpoints, metrics and a history, written epoch by epoch."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conve_tracin.checkpoint.epochs import epoch_checkpoint
from conve_tracin.checkpoint.native import load_checkpoint, save_checkpoint
from conve_tracin.compute import parallel
from conve_tracin.compute.memory import release_memory
from conve_tracin.data.keys import digest_of_triples
from conve_tracin.data.queries import Queries, count_relation_rows, examples_of, known_tails
from conve_tracin.errors import InputError
from conve_tracin.files import write_json
from conve_tracin.model.conve import ConvE
from conve_tracin.ranking.ranks import choose_batch_size, rank_triples, ranking_metrics
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.loop import run_epochs, training_queries
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

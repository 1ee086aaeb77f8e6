"""Doing the trainings of a verification, and going on where a killed run stopped."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from conve_tracin.compute.memory import keep_freed_memory, release_memory
from conve_tracin.compute.workers import available_cores, compute_in_workers, count_step, torch_threads
from conve_tracin.data.keys import places_of
from conve_tracin.influence.journal import Journal, digest_of
from conve_tracin.influence.verification import Measurement
from conve_tracin.report import verification as report
from conve_tracin.training.retrain import retrain, seconds_of_an_epoch
from conve_tracin.verification.run import Recipe, Run, Training

logger = logging.getLogger(__name__)


def train_all(run: Run, trainings: Sequence[Training], journal: Journal) -> dict[int, list[Measurement]]:
    """Do the trainings that the journal lacks; return what each model says about each prediction, by place."""
    measured = {
        record["training"]: [Measurement(*values) for values in record["measured"]] for record in journal.records
    }
    missing = [place for place in range(len(trainings)) if place not in measured]
    if measured:
        logger.info(f"{journal.path}: goes on, {len(measured)} of {len(trainings)} trainings are finished")
    if not missing:
        return measured
    jobs = [job_of(run, trainings[place]) for place in missing]
    # Dropout depends on the number of threads, which must not depend on what is finished.
    workers = min(len(trainings), run.options.num_workers or (1 if run.recipe.device != "cpu" else available_cores()))
    threads = max(1, torch.get_num_threads() // workers)
    epochs = run.recipe.config.num_epochs
    announce(run, len(jobs), workers=workers, threads=threads)
    finished, total = len(measured) * epochs, len(trainings) * epochs
    with tqdm(initial=finished, total=total, unit="epoch", desc=progress_of(measured, trainings)) as bar:
        for place, found in results_of(run.recipe, jobs, workers=workers, threads=threads, bar=bar):
            measured[missing[place]] = found
            journal.add([{"training": missing[place], "measured": [astuple(each) for each in found]}])
            bar.set_description(progress_of(measured, trainings))
    return measured


def job_of(run: Run, training: Training) -> tuple[int, np.ndarray]:
    """Return the seed of a training and the rows of the file that it leaves out, all copies of a triple among them."""
    return training.seed, places_of(run.recipe.triples, run.triples[training.removed])


def progress_of(measured: dict[int, Any], trainings: Sequence[Training]) -> str:
    """Say how many trainings are finished."""
    return f"{len(measured)} of {len(trainings)} trainings"


def results_of(
    recipe: Recipe, jobs: list[tuple[int, np.ndarray]], *, workers: int, threads: int, bar: tqdm
) -> Iterator[tuple[int, list[Measurement]]]:
    """Train and measure, in this process or in workers; yield the place of each job and what its model says."""
    if workers > 1:
        initial = bar.n
        yield from compute_in_workers(
            train_and_measure, jobs, workers=workers, threads=threads, shared=(recipe,),
            on_steps=lambda steps: bar.update(initial + steps - bar.n),
        )  # fmt: skip
        return
    with torch_threads(threads):
        for place, job in enumerate(jobs):
            yield place, train_and_measure(job, recipe, on_epoch=bar.update)


def train_and_measure(job: tuple[int, np.ndarray], recipe: Recipe, *, on_epoch: Any = count_step) -> list[Measurement]:
    """Train with a seed and without some rows of the training triples; return what the model says."""
    seed, removed = job
    keep_freed_memory(recipe.device)
    model = retrain(
        np.delete(recipe.triples, removed, axis=0),
        replace(recipe.config, random_seed=seed),
        model_config=recipe.model_config,
        device=recipe.device,
        learning_rates=recipe.learning_rates,
        on_epoch=on_epoch,
    )
    measured = recipe.measure(model)
    del model
    release_memory(torch.device(recipe.device))
    return measured


def announce(run: Run, count: int, *, workers: int, threads: int) -> None:
    """Say how many trainings lie ahead, and how long they will take."""
    recipe, epochs = run.recipe, run.recipe.config.num_epochs
    keep_freed_memory(recipe.device)
    with torch_threads(threads):
        seconds = seconds_of_an_epoch(
            recipe.triples, recipe.config, model_config=recipe.model_config, device=recipe.device
        )
    at_a_time = f", {workers} at a time" if workers > 1 else ""
    rounds = -(-count // workers)
    logger.info(
        f"{count} trainings of {epochs} epochs{at_a_time}: about {report.duration(rounds * epochs * seconds)} "
        f"({seconds:.2g} seconds an epoch)"
    )


def digest_of_run(run: Run) -> str:
    """Digest all that the trainings depend on."""
    recipe = run.recipe
    settings = {
        "config": asdict(recipe.config),
        "model_config": recipe.model_config,
        "learning_rates": recipe.learning_rates,
        "device": recipe.device,
        "seeds": run.seeds,
        "remove": run.options.remove,
        "together": run.options.together,
        "predictions": [(each.triple, each.side, each.proponents(run.options.remove)) for each in run.predictions],
    }
    return digest_of(settings=settings, files=[], arrays=[recipe.triples, recipe.known])

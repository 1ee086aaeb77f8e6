"""Checking an explanation: is the prediction lost without its proponents? The work of verify_tracin.py.

The model's training is repeated with everything, without the strongest proponents, and without as many random triples
that share an entity with the prediction, each with several seeds.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from conve_tracin.checkpoint.native import (
    CONVERTED,
    PYKEEN_STATE_DICT,
    PYKEEN_TRAINING_LOOP,
    detect_format,
    read_checkpoint_file,
    require_matching_mappings,
    require_native,
    take_model,
)
from conve_tracin.compute.device import choose_device
from conve_tracin.compute.workers import available_cores, compute_in_workers, count_step, torch_threads
from conve_tracin.data.names import Names, read_names_from
from conve_tracin.data.queries import digest_of_triples, inverse_of, known_tails, with_relation_rows
from conve_tracin.data.triples import merge_repeated_triples, read_triples
from conve_tracin.errors import InputError
from conve_tracin.files import json_text, require_usable_outputs, write_together
from conve_tracin.influence.explained import Explained, Triple, read_explained
from conve_tracin.influence.journal import Journal, digest_of
from conve_tracin.influence.removal import NEITHER, draw_control, entities_lost, entities_shared, rows_of
from conve_tracin.influence.verification import Measurement, Removed, Verification, measure
from conve_tracin.model.conve import ConvE
from conve_tracin.report import verification as report
from conve_tracin.report.page import describe_computation
from conve_tracin.settings import HEAD, TrainingConfig, VerificationOptions
from conve_tracin.training.loop import keep_freed_memory, release_memory
from conve_tracin.training.retrain import (
    epochs_until_nearly_best,
    retrain,
    seconds_of_an_epoch,
    settings_of,
    with_fixed_schedule,
)

logger = logging.getLogger(__name__)

# What a training leaves out.
NOTHING, PROPONENTS, OTHERS = "nothing", "proponents", "others"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all trainings have in common, sent to each worker once.

    Attributes:
        triples: the training triples as the file has them, (N, 3).
        config, model_config, learning_rates, device: see `retrain`.
        predictions: in the files' ids, (n, 3).
        questions: what each model is asked about them, in relation rows, (n, 3).
        known: true triples in the files' ids, (M, 3), which ranks pass over. The other predictions are none of them,
            as in the explanation.
    """

    triples: np.ndarray
    config: TrainingConfig
    model_config: dict[str, Any]
    learning_rates: list[float]
    device: str
    predictions: np.ndarray
    questions: np.ndarray
    known: np.ndarray

    def measure(self, model: ConvE) -> list[Measurement]:
        """Score and rank each prediction with a model."""
        found = []
        for place, (head, relation, tail) in enumerate(self.predictions):
            heads, relations, tails = self.known.T
            near = self.known[(relations == relation) & ((heads == head) | (tails == tail))]
            known = known_tails(
                [near, self.predictions[place : place + 1]],
                inverse_triples=self.config.inverse_triples,
                device=self.device,
            )
            found += measure(model, self.questions[place : place + 1], known)
        return found


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: what it leaves out, for which prediction, and its seed.

    `removed` are places among the distinct training triples, (m,); `prediction` is None for all predictions.
    """

    leaves_out: str
    prediction: int | None
    seed: int
    removed: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run works on.

    Attributes:
        options: what was asked for.
        names: the mappings and what they call things.
        recipe: what all trainings have in common.
        model: what the given model says about each prediction.
        predictions: with the influences listed for each, at least one of them positive.
        skipped: predictions without a proponent.
        triples, counts: the distinct training triples (N, 3), and how often each stands in the file (N,).
        seeds: one for each training of a kind.
    """

    options: VerificationOptions
    names: Names
    recipe: Recipe
    model: list[Measurement]
    predictions: list[Explained]
    skipped: list[Explained]
    triples: np.ndarray
    counts: np.ndarray
    seeds: list[int]


def verify(options: VerificationOptions) -> dict[str, Any]:
    """Do what `verify_tracin.py` does; return the content of the JSON.

    Raises InputError for files or options that cannot be used, and if a training fails.
    """
    require_usable_outputs({"--output": options.output, "--report": options.report}, inputs=options.inputs)
    run = read(options)
    trainings = plan(run)
    with Journal(Path(f"{options.output}.unfinished"), digest_of_run(run)) as journal:
        measured = train_all(run, trainings, journal)
        verifications = [verification_of(run, trainings, measured, place) for place in range(len(run.predictions))]
        content = content_of(run, verifications)
        files = {Path(options.output): json_text(content)}
        if options.report is not None:
            files[Path(options.report)] = [report.page_of(verifications, run.names, computation_of(run))]
        write_together(files)
        print_results(run, verifications)
        journal.remove()
    return content


# ---------------------------------------------------------------------------------------------------------------
# Reading


def read(options: VerificationOptions) -> Run:
    """Read all inputs, and ask the given model for its own opinion."""
    names = read_names_from(options)
    checkpoint, model = read_model(options, names)
    explained = read_explained(options.influences, names.entities, names.relations)
    triples, *known = (
        read_triples(path, names.entities, names.relations, skip_unknown=options.skip_unknown)
        for path in (options.train, *options.known)
    )
    warn_of_other_triples(checkpoint, triples, options)
    config, rates = with_fixed_schedule(
        settings_of(checkpoint, source=options.model_path), checkpoint, source=options.model_path
    )
    seed = config.random_seed + 1 if options.seed is None else options.seed
    epochs = options.num_epochs or epochs_until_nearly_best(checkpoint, config)
    predictions = [each for each in explained if each.proponents(1)]
    if not predictions:
        raise InputError(
            f"{explained[0].source}: lists no proponent (positive influence), so there is nothing to leave out; "
            "list more influences with --top-k"
        )
    asked = np.array([each.triple for each in predictions])
    device = choose_device(options.device)
    recipe = Recipe(
        triples=triples,
        config=replace(config, num_epochs=epochs),
        model_config=model.config.as_dict(),
        learning_rates=rates,
        device=device,
        predictions=asked,
        questions=questions_of(predictions, config, source=options.model_path),
        known=np.concatenate([triples, *known]),
    )
    distinct, counts = merge_repeated_triples(triples)
    return Run(
        options=options,
        names=names,
        recipe=recipe,
        model=recipe.measure(model.to(device)),
        predictions=predictions,
        skipped=[each for each in explained if not each.proponents(1)],
        triples=distinct,
        counts=np.ones(len(distinct), dtype=np.int64) if counts is None else counts,
        seeds=list(range(seed, seed + options.seeds)),
    )


def read_model(options: VerificationOptions, names: Names) -> tuple[dict[str, Any], ConvE]:
    """Read a native checkpoint of the given mappings, and build its model.

    Raises InputError for PyKEEN's checkpoints, with the remedy.
    """
    path = Path(options.model_path)
    checkpoint = read_checkpoint_file(path)
    if detect_format(checkpoint) == CONVERTED:
        raise InputError(
            f"{path}: is converted for PyKEEN; give the native checkpoint, or turn it back with convert_checkpoint.py "
            "--to native"
        )
    if detect_format(checkpoint) in (PYKEEN_STATE_DICT, PYKEEN_TRAINING_LOOP):
        raise InputError(
            f"{path}: is PyKEEN's and does not tell how it was trained, so it cannot be trained again; explain and "
            "verify a model of train_pytorch.py"
        )
    require_native(checkpoint, source=path)
    model = take_model(checkpoint, source=path)
    require_matching_mappings(checkpoint, names.entities, names.relations, source=path)
    return checkpoint, model


def warn_of_other_triples(checkpoint: dict[str, Any], triples: np.ndarray, options: VerificationOptions) -> None:
    """Warn if the model was trained on other triples (N, 3)."""
    stored = checkpoint.get("training_triples_digest")
    if stored is not None and stored != digest_of_triples(triples):
        logger.warning(
            f"{options.model_path}: was trained on other triples than those of --train, on which it is trained again; "
            "unless that is meant, give the file of its training run"
        )


def questions_of(predictions: Sequence[Explained], config: TrainingConfig, *, source: Path | str) -> np.ndarray:
    """Return the predictions as questions for their tails, in relation rows: (n, 3)."""
    inverse = config.inverse_triples
    questions = []
    for each in predictions:
        if each.side == HEAD and not inverse:
            raise InputError(
                f"{each.source}: explains the head, and {source} was trained without inverse triples, so that it ranks "
                "no heads; give the model that was explained"
            )
        triple = np.array([each.triple])
        questions.append(
            with_relation_rows(inverse_of(triple) if each.side == HEAD else triple, inverse_triples=inverse)
        )
    return np.concatenate(questions)


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


# ---------------------------------------------------------------------------------------------------------------
# What is left out


def plan(run: Run) -> list[Training]:
    """List the trainings: with everything, and for each prediction, or all together, without proponents and others."""
    removed = [places_of_proponents(run, each) for each in run.predictions]
    trainings = [
        Training(leaves_out=NOTHING, prediction=None, seed=seed, removed=np.empty(0, np.int64)) for seed in run.seeds
    ]
    if run.options.together:
        groups: list[tuple[int | None, list[int]]] = [(None, list(range(len(removed))))]
    else:
        groups = [(place, [place]) for place in range(len(removed))]
    for prediction, places in groups:
        proponents = np.unique(np.concatenate([removed[place] for place in places]))
        for seed in run.seeds:
            trainings.append(Training(leaves_out=PROPONENTS, prediction=prediction, seed=seed, removed=proponents))
        for seed in run.seeds:
            control = control_of(run, {place: removed[place] for place in places}, seed)
            trainings.append(Training(leaves_out=OTHERS, prediction=prediction, seed=seed, removed=control))
    return trainings


def places_of_proponents(run: Run, explained: Explained) -> np.ndarray:
    """Return where the strongest proponents of a prediction are among the distinct training triples, sorted: (m,).

    Raises InputError if one of them is no training triple.
    """
    # A file that was put together by hand may list one twice.
    proponents = np.array(list(dict.fromkeys(triple for triple, _ in explained.proponents(run.options.remove))))
    places = rows_of(run.triples, proponents)
    if len(places) < len(proponents):
        found = set(map(tuple, run.triples[places].tolist()))
        missing = next(triple for triple in map(tuple, proponents.tolist()) if triple not in found)
        raise InputError(
            f"{explained.source}: its proponent {run.names.sentence(*missing)} is not in {run.options.train}; give the "
            "training triples of the run that wrote it"
        )
    return places


def control_of(run: Run, removed: Mapping[int, np.ndarray], seed: int) -> np.ndarray:
    """Draw as many others as all proponents `removed`, {prediction: places (m,)}, none twice: places, sorted."""
    generator = np.random.default_rng([seed, len(run.triples)])
    own = rows_of(run.triples, np.array([run.predictions[prediction].triple for prediction in removed]))
    counted, drawn = np.empty(0, np.int64), np.empty(0, np.int64)
    for prediction, places in removed.items():
        # A triple that several predictions rest on is removed once.
        new = np.setdiff1d(places, counted)
        counted = np.union1d(counted, new)
        excluded = np.concatenate([*removed.values(), own, drawn])
        found = draw_control(run.triples, run.predictions[prediction].triple, new, excluded, generator)
        drawn = np.concatenate([drawn, found])
    return np.sort(drawn)


# ---------------------------------------------------------------------------------------------------------------
# Training


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
    return training.seed, rows_of(run.recipe.triples, run.triples[training.removed])


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


# ---------------------------------------------------------------------------------------------------------------
# What the trainings say


def verification_of(
    run: Run, trainings: Sequence[Training], measured: dict[int, list[Measurement]], prediction: int
) -> Verification:
    """Collect what was left out for a prediction and what the models say about it."""
    by_kind: dict[str, list[int]] = {NOTHING: [], PROPONENTS: [], OTHERS: []}
    for place, training in enumerate(trainings):
        if training.prediction in (None, prediction):
            by_kind[training.leaves_out].append(place)
    found = {kind: [measured[place][prediction] for place in places] for kind, places in by_kind.items()}
    explained = run.predictions[prediction]
    removed = trainings[by_kind[PROPONENTS][0]].removed
    controls = [trainings[place].removed for place in by_kind[OTHERS]]
    return Verification(
        triple=explained.triple,
        side=explained.side,
        seeds=run.seeds,
        model=run.model[prediction],
        everything=found[NOTHING],
        without=found[PROPONENTS],
        others=found[OTHERS],
        proponents=removed_triples(run, removed),
        controls=[removed_triples(run, places, with_influence=False) for places in controls],
        remarks=list(remarks_on(run, explained, removed, controls)),
    )


def removed_triples(run: Run, places: np.ndarray, *, with_influence: bool = True) -> list[Removed]:
    """Describe what was left out; proponents come with their highest influence, strongest first."""
    influence_of: dict[Triple, float] = {}
    if with_influence:
        for explained in run.predictions:
            for triple, influence in explained.influences:
                influence_of[triple] = max(influence, influence_of.get(triple, influence))
    rows = [
        Removed(tuple(triple), count, influence_of.get(tuple(triple)))
        for triple, count in zip(run.triples[places].tolist(), run.counts[places].tolist(), strict=True)
    ]
    return sorted(rows, key=lambda row: -row.influence) if with_influence else rows


def remarks_on(run: Run, explained: Explained, removed: np.ndarray, controls: Sequence[np.ndarray]) -> Iterator[str]:
    """Say what readers of the result have to know, a sentence each."""
    wanted, listed = run.options.remove, len(explained.proponents(run.options.remove))
    if listed < wanted:
        yield (
            f"The file lists {listed} proponent{'s' * (listed != 1)}, fewer than the {wanted} asked for; explain the "
            "prediction with a larger --top-k to list more."
        )
    own = rows_of(run.triples, np.array([explained.triple]))
    if np.isin(own, removed).any():
        yield "The prediction is itself a training triple, and among those that were left out."
    elif len(own):
        yield "The prediction is itself a training triple, and was never left out."
    if run.options.together and len(run.predictions) > 1:
        yield f"The proponents of all {len(run.predictions)} predictions were left out together."
    copies = int((run.counts[removed] - 1).sum())
    if copies:
        yield f"Some stand in the training file several times; all copies were left out ({copies} more lines)."
    yield from _remarks_on_lost_entities(run, removed, controls)
    far = max(int((entities_shared(run.triples[places], explained.triple) == NEITHER).sum()) for places in controls)
    if far and not run.options.together:
        yield (f"The prediction's entities have too few other triples: {far} of the others share neither of them.")
    short = len(removed) - min(len(places) for places in controls)
    if short:
        yield f"The graph has too few triples: {short} fewer others were left out."


def _remarks_on_lost_entities(run: Run, removed: np.ndarray, controls: Sequence[np.ndarray]) -> Iterator[str]:
    for places, what in [(removed, "these facts"), *((places, "the others") for places in controls)]:
        lost = entities_lost(run.triples[places], np.delete(run.triples, places, axis=0))
        if len(lost):
            names = ", ".join(run.names.entity(entity) for entity in lost[:5].tolist())
            more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
            yield f"Without {what}, no training triple is left of {names}{more}: models cannot know them."
            if what == "the others":
                return


# ---------------------------------------------------------------------------------------------------------------
# Writing


def content_of(run: Run, verifications: Sequence[Verification]) -> dict[str, Any]:
    """Return the content of the JSON."""
    return {
        "model_path": str(run.options.model_path),
        "num_epochs": run.recipe.config.num_epochs,
        "remove": run.options.remove,
        "seeds": run.seeds,
        "together": run.options.together,
        "results": [report.as_json(each, run.names) for each in verifications],
        "without_proponents_listed": [run.names.sentence(*each.triple) for each in run.skipped],
    }


def computation_of(run: Run) -> dict[str, object]:
    """Collect what makes the result repeatable, for the page."""
    files = "\n".join(str(path) for path in run.options.influences)
    return describe_computation(
        method="Trained again, with everything, without the strongest proponents, and without as many others",
        checkpoints={Path(run.options.model_path): 0.0},
        train=Path(run.options.train),
        settings={
            "Influences": files,
            "Trainings": f"{len(run.seeds)} of each kind, seeds {', '.join(map(str, run.seeds))}",
            "Epochs": str(run.recipe.config.num_epochs),
            "Known triples": "\n".join(map(str, run.options.known)) or "the training triples alone",
            "Device": run.recipe.device,
        },
    )


def print_results(run: Run, verifications: Sequence[Verification]) -> None:
    """Print a short table and a sentence for each prediction, and what was written."""
    for each in run.skipped:
        print(f"Passed over, as no proponent is listed: {run.names.sentence(*each.triple)}")
    for each in verifications:
        print(report.as_text(each, run.names))
    print(f"Written: {run.options.output}")
    if run.options.report is not None:
        print(f"Written: {run.options.report}")

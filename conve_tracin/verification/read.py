"""Reading all inputs of a verification, and asking the given model for its own opinion."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

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
from conve_tracin.data.keys import digest_of_triples, merge_repeated_triples
from conve_tracin.data.names import Names, read_names_from
from conve_tracin.data.queries import inverse_of, with_relation_rows
from conve_tracin.data.triples import read_triples
from conve_tracin.errors import InputError
from conve_tracin.influence.explained import Explained, read_explained
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import HEAD, TrainingConfig, VerificationOptions
from conve_tracin.training.retrain import epochs_until_nearly_best, settings_of, with_fixed_schedule
from conve_tracin.verification.run import Recipe, Run

logger = logging.getLogger(__name__)


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
    warn_of_few_epochs(epochs, checkpoint, options)
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


def warn_of_few_epochs(epochs: int, checkpoint: dict[str, Any], options: VerificationOptions) -> None:
    """Warn if models are trained for less than half of the epochs of the one that was explained."""
    explained = checkpoint.get("epoch") or 0
    if 2 * epochs < explained:
        reason = "asked for" if options.num_epochs else "by then its validation MRR was within 1 % of its best"
        logger.warning(
            f"{options.model_path}: has trained for {explained} epochs, and is trained again for {epochs} ({reason}); "
            f"models of so few may rank otherwise, so give --num-epochs {explained} if ranks with everything differ"
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

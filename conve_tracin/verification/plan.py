"""The trainings of a verification: what each of them leaves out."""

from collections.abc import Mapping

import numpy as np

from conve_tracin.data.keys import places_of
from conve_tracin.errors import InputError
from conve_tracin.influence.explained import Explained
from conve_tracin.influence.removal import draw_control
from conve_tracin.verification.run import NOTHING, OTHERS, PROPONENTS, Run, Training


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
    places = places_of(run.triples, proponents)
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
    own = places_of(run.triples, np.array([run.predictions[prediction].triple for prediction in removed]))
    counted, drawn = np.empty(0, np.int64), np.empty(0, np.int64)
    for prediction, places in removed.items():
        # A triple that several predictions rest on is removed once.
        new = np.setdiff1d(places, counted)
        counted = np.union1d(counted, new)
        excluded = np.concatenate([*removed.values(), own, drawn])
        found = draw_control(run.triples, run.predictions[prediction].triple, new, excluded, generator)
        drawn = np.concatenate([drawn, found])
    return np.sort(drawn)

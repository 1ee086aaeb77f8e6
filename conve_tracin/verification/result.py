"""What the trainings of a verification say: the JSON, what the page tells of them, and the terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.data.keys import places_of
from conve_tracin.influence.explained import Explained, Triple
from conve_tracin.influence.removal import NEITHER, entities_lost, entities_shared
from conve_tracin.influence.verification import Measurement, Removed, Verification
from conve_tracin.report import verification as report
from conve_tracin.report.page import describe_computation
from conve_tracin.verification.run import NOTHING, OTHERS, PROPONENTS, Run, Training


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
    own = places_of(run.triples, np.array([explained.triple]))
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

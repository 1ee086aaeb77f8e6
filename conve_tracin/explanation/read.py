"""Reading what a run works on: all inputs but the models."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.checkpoint.pykeen import find_training_mappings
from conve_tracin.compute import parallel
from conve_tracin.compute.device import choose_device, set_tf32, supports_bfloat16, supports_tf32
from conve_tracin.data.evidence import read_evidence, require_evidence_of
from conve_tracin.data.finding import Finder
from conve_tracin.data.graph import Graph
from conve_tracin.data.index import Index, IndexPlace
from conve_tracin.data.kgx.categories import read_categories
from conve_tracin.data.names import Names, read_names_from
from conve_tracin.data.reasons import KnownReasons, by_prediction, read_reasons
from conve_tracin.data.resolve import read_test_triples, resolve_triple
from conve_tracin.data.triples import label_blocks, read_triples, read_triples_and_dropped, read_triples_and_places
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.explanation.run import Run, Script, Triple
from conve_tracin.files import require_usable_outputs
from conve_tracin.influence.load import choose_learning_rates, find_checkpoints
from conve_tracin.influence.trace import Trace
from conve_tracin.report import trapi
from conve_tracin.report.notes import Notes, shown_triples
from conve_tracin.settings import GAUSS_NEWTON, TracInOptions

logger = logging.getLogger(__name__)


def require_outputs(options: TracInOptions, script: Script) -> None:
    """Raise InputError if the outputs are unusable, before hours are spent on them."""
    directory = options.output_directory
    if script.tells_index and directory is None and Path(options.output).is_dir():
        raise InputError(f"{options.output}: is a directory; name a file, or add --output-per-triple")
    outputs = {"--csv-output": options.csv_path, "--report": options.report, "--trapi": options.trapi}
    require_usable_outputs(
        outputs if directory is not None else {"--output": options.output} | outputs,
        directory=None if directory is None else (script.directory_flag, directory),
        inputs=options.inputs,
    )


def read(options: TracInOptions, script: Script, logged: list[str]) -> Run:
    """Read all inputs except the models, which `Run.load` reads."""
    checkpoints = find_checkpoints(options.model_path)
    options = find_mappings(options, checkpoints[0])
    place = place_of_index(options)
    stamps = None if place is None else place.stamps()
    index = None if place is None else place.find()
    names = read_names_from(options, None if index is None else index.vocabularies)
    if options.trapi is not None and options.mode != "self":
        trapi.require_curies(names)
    device = choose_device(options.device)
    options = choose_tf32(choose_bfloat16(options, device), device)
    rates = choose_learning_rates(checkpoints, options)
    load = script.loader(
        options,
        entities=names.entities,
        relations=names.relations,
        learning_rates=dict(zip(checkpoints, rates, strict=True)),
        device=device,
    )
    if len(checkpoints) > 1:
        for checkpoint in checkpoints:
            load.require_fitting(checkpoint)
    test_triples, test_indices = read_test(options, names)
    if index is None:
        graph, index = read_graph(options, names, place, stamps)
    else:
        graph = index.graph
    known = [
        read_triples(path, names.entities, names.relations, skip_unknown=options.skip_unknown) for path in options.known
    ]
    load.graph, load.index = graph, index
    for checkpoint in checkpoints:
        load.warn(checkpoint)
    mappings = {"entities": names.entities, "relations": names.relations}
    if options.evidence is not None and options.mode != "self":
        require_evidence_of(Path(options.evidence), graph.triples, **mappings)
    return Run(
        script=script,
        options=options,
        names=names,
        checkpoints=checkpoints,
        learning_rates=rates,
        graph=graph,
        known_triples=np.concatenate([graph.triples[:0], *known]),
        test_triples=test_triples,
        test_indices=test_indices,
        load=load,
        notes=Notes(explained=read_explained(options, graph.triples, test_triples, **mappings)),
        logged=logged,
        categories=None if options.nodes is None else read_categories(options.nodes, names.entities),
    )


def find_mappings(options: TracInOptions, checkpoint: Path) -> TracInOptions:
    """Name the mappings beside a PyKEEN pipeline's model if none are given."""
    if options.entity_to_id is not None:
        return options
    mappings = find_training_mappings(checkpoint)
    if mappings is None:
        raise InputError(
            f"{checkpoint}: has no training_triples/ of a PyKEEN pipeline beside it; "
            "give --entity-to-id and --relation-to-id"
        )
    return replace(options, entity_to_id=mappings[0], relation_to_id=mappings[1])


def place_of_index(options: TracInOptions) -> IndexPlace | None:
    """Say where the index of the training triples is or goes; None if none is wanted."""
    if options.no_index or Path(options.train).is_dir():
        return None
    return IndexPlace.of((options.train, options.entity_to_id, options.relation_to_id), options.index_dir)


def read_graph(
    options: TracInOptions, names: Names, place: IndexPlace | None, stamps: Any
) -> tuple[Graph, Index | None]:
    """Read the training triples from their file, and leave an index of them if there are many and none is dropped.

    `stamps` are those of before the mappings were read.
    """
    triples, dropped = read_triples_and_dropped(
        Path(options.train), names.entities, names.relations, skip_unknown=options.skip_unknown
    )
    index = None
    if place is not None and not len(dropped) and parallel.is_main_process():
        index = place.make_if_many(triples, names.entities, names.relations, stamps)
    if index is not None:
        return index.graph, index
    return Graph.of_listed(triples, len(names.entities), len(names.relations)), None


def read_explained(
    options: TracInOptions,
    training_triples: np.ndarray,
    test_triples: np.ndarray,
    *,
    entities: Vocabulary,
    relations: Vocabulary,
) -> dict[Triple, KnownReasons] | None:
    """Read the known reasons of the test triples (n, 3); None if none are asked for."""
    if options.reasons is None or options.mode == "self":
        return None
    path = Path(options.reasons)
    known = by_prediction(
        read_reasons(
            path, training_triples, entities=entities, relations=relations, edge_map=options.edge_map,
            skip_unknown=options.skip_unknown,
        )
    )  # fmt: skip
    wanted = list(dict.fromkeys(map(tuple, test_triples.tolist())))
    found = {triple: known[triple] for triple in wanted if triple in known}
    if len(found) < len(wanted):
        logger.info("%s: has no reason among the training triples for %d of %d test triples", path,
                    len(wanted) - len(found), len(wanted))  # fmt: skip
    return found


def read_test(options: TracInOptions, names: Names) -> tuple[np.ndarray, list[int]]:
    """Read the wanted test triples (n, 3) and their places in the test file."""
    if options.mode == "self":
        return np.empty((0, 3), dtype=np.int64), []
    if options.mode == "single":
        indices = list(dict.fromkeys(options.test_indices))
        return read_rows(Path(options.test), indices, names), indices
    if options.test_triple is not None:
        triples = np.array(
            [
                resolve_triple(
                    options.test_triple, names.entities, names.relations, finder=Finder(names),
                    given_as=options.given_as,
                )
            ]
        )  # fmt: skip
        places = np.arange(1)
    elif options.test_triples is not None:
        triples = read_test_triples(
            options.test_triples, names.entities, names.relations, finder=Finder(names),
            given_as=options.given_as,
        )  # fmt: skip
        places = np.arange(len(triples))
    else:
        triples, places = read_triples_and_places(
            options.test, names.entities, names.relations, skip_unknown=options.skip_unknown
        )
    return triples[: options.max_test_triples], places[: options.max_test_triples].tolist()


def read_rows(path: Path, indices: Sequence[int], names: Names) -> np.ndarray:
    """Read the triples at some places of a triples file, counted from 0: ids (n, 3).

    Other lines may hold unknown labels, so that a place means the same line with and without --skip-unknown.

    Raises InputError for an index that is out of range, or a label that is unknown.
    """
    wanted = dict.fromkeys(indices)
    count = 0
    for first_line, columns in label_blocks(path):
        count = first_line - 1 + len(columns[0])
        for index in wanted:
            if first_line - 1 <= index < count:
                wanted[index] = [column[index - first_line + 1] for column in columns]
    vocabularies = (names.entities, names.relations, names.entities)
    rows = []
    for index, labels in wanted.items():
        if labels is None:
            raise InputError(f"--test-indices {index}: {path} has {count} triples, with the indices 0 to {count - 1}")
        try:
            rows.append([vocabulary.id_of(label) for vocabulary, label in zip(vocabularies, labels, strict=True)])
        except InputError as error:
            raise InputError(f"{path}:{index + 1}: {error}") from None
    return np.array(rows, dtype=np.int64)


def choose_bfloat16(options: TracInOptions, device: str) -> TracInOptions:
    """Keep to full precision, and say so, if bfloat16 is asked for on a device without it; return what holds."""
    if not options.rounds_to_bfloat16 or supports_bfloat16(device):
        return options
    logger.info(f"--use-mixed-precision has no effect: this {device} does not compute in bfloat16")
    return replace(options, use_mixed_precision=False)


def choose_tf32(options: TracInOptions, device: str) -> TracInOptions:
    """Let the device multiply in TensorFloat-32 if the options ask for it and it makes sense; return what holds."""
    if not options.use_tf32:
        return options
    obstacle = _obstacle_to_tf32(options, device)
    if obstacle is not None:
        logger.info(f"--use-tf32 has no effect {obstacle}")
    set_tf32(allowed=obstacle is None)
    return replace(options, use_tf32=obstacle is None)


def _obstacle_to_tf32(options: TracInOptions, device: str) -> str | None:
    if options.method == GAUSS_NEWTON:
        return f"with --method {GAUSS_NEWTON}, which inverts what it multiplies"
    if not options.use_optimized_tracin:
        return "on the reference loop, which defines the exact scores"
    if options.use_mixed_precision:
        return "beside --use-mixed-precision, which scores the strongest again in full precision"
    return None if supports_tf32(device) else f"on this {device}, which has no TensorFloat-32"


def with_evidence(run: Run, traces: Iterable[Trace]) -> Run:
    """Read the edges behind the training triples that the outputs show, if they are asked for."""
    if run.options.evidence is None:
        return run
    shown = shown_triples(traces)
    counts = run.graph.counts
    evidence = read_evidence(
        Path(run.options.evidence), shown, entities=run.names.entities, relations=run.names.relations,
        total=len(run.training_triples) if counts is None else int(counts.sum()),
    )  # fmt: skip
    if shown and not evidence.edges:
        logger.info("%s: tells nothing of the %d training triples that are shown", run.options.evidence, len(shown))
    return replace(run, notes=replace(run.notes, evidence=evidence))

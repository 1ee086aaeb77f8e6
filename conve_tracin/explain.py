"""Explaining predictions: read, trace, write. The work of tracin_pytorch.py and of run_tracin.py.

Modes: "test" traces the test triples, "single" those with the given indices, "self" ranks the training triples by
their self-influence.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conve_tracin import parallel
from conve_tracin.checkpoint.pykeen import find_training_mappings
from conve_tracin.data.categories import Categories, read_categories
from conve_tracin.data.evidence import read_evidence, require_evidence_of
from conve_tracin.data.finding import Finder
from conve_tracin.data.graph import Graph
from conve_tracin.data.index import Index, IndexPlace
from conve_tracin.data.names import Names, read_edge_map, read_names_from
from conve_tracin.data.reasons import Explained, by_prediction, read_reasons
from conve_tracin.data.triples import (
    label_blocks,
    read_test_triples,
    read_triples,
    read_triples_and_dropped,
    read_triples_and_places,
    resolve_triple,
)
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.device import choose_device, set_tf32, supports_bfloat16, supports_tf32
from conve_tracin.errors import InputError
from conve_tracin.files import json_text_of_many, require_usable_outputs, write_json, write_together
from conve_tracin.influence import known_reasons
from conve_tracin.influence import trace as trace_module
from conve_tracin.influence.journal import Journal, StoredTraces, digest_of, open_in_directory, resume_traces
from conve_tracin.influence.load import (
    CheckpointLoader,
    NativeCheckpointLoader,
    choose_learning_rates,
    find_checkpoints,
)
from conve_tracin.influence.method import Influence, module_of, rank_influences
from conve_tracin.influence.paths import PathFinder
from conve_tracin.influence.provenance import Provenance, doubts_about, provenance_of
from conve_tracin.influence.summary import SummarySettings
from conve_tracin.influence.trace import Trace, trace, with_counts
from conve_tracin.report import page, trapi
from conve_tracin.report.exams import measured_of
from conve_tracin.report.notes import Notes, shown_triples, summary_as_json, summary_in_words
from conve_tracin.report.overview import overview_lines, where_the_rest_is
from conve_tracin.report.tables import (
    influence_as_json,
    safe_file_name,
    self_influences_as_table,
    trace_as_csv_rows,
    trace_as_json,
    trace_as_table,
    write_csv,
)
from conve_tracin.settings import GAUSS_NEWTON, TRACIN, NativeEngine, TracInOptions, settings_without_effect

logger = logging.getLogger(__name__)

Triple = tuple[int, int, int]

# Backward passes that take about a minute; from there on the forward engine is worth a word.
MANY_BACKWARD_PASSES = 10_000


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the two scripts do differently with the same traces.

    Attributes:
        loader: the checkpoints that the script reads.
        directory_flag: the flag of a directory with one file for each test triple.
        file_name: the name of such a file, for a trace and the test triple's place in its file.
        tells_index: each result holds that place, and a file of several holds what they have in common.
        without_effect: says which given flags change nothing, one line each.
    """

    loader: type[CheckpointLoader]
    directory_flag: str
    file_name: Callable[[Trace, int, Names], str]
    tells_index: bool
    without_effect: Callable[[TracInOptions], Iterator[str]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run works on.

    Attributes:
        script: which one runs.
        options: what was asked for.
        names: the mappings and what they call things.
        checkpoints, learning_rates: the models, one η each.
        graph: of the training triples.
        known_triples: those of --known, ids, (M, 3).
        test_triples: ids, (n, 3); none in mode "self".
        test_indices: their places in the test file.
        load: reads a checkpoint.
        logged: the warnings that were logged, which grow while the run works.
        categories: of the entities; None if no nodes were given.
        notes: what else is known of training triples; the edges behind them once it is known which are shown.
    """

    script: Script
    options: TracInOptions
    names: Names
    checkpoints: list[Path]
    learning_rates: list[float]
    graph: Graph
    known_triples: np.ndarray
    test_triples: np.ndarray
    test_indices: list[int]
    load: CheckpointLoader
    logged: list[str]
    categories: Categories | None = None
    notes: Notes = field(default_factory=Notes)

    @property
    def training_triples(self) -> np.ndarray:
        """The distinct ones, ids, (N, 3)."""
        return self.graph.triples

    @cached_property
    def find_paths(self) -> PathFinder | None:
        """Finds the paths of a test triple in the training graph; None if none are asked for."""
        if not self.options.paths:
            return None
        return PathFinder(
            self.training_triples,
            len(self.names.entities),
            limit=self.options.paths,
            max_hops=self.options.max_hops,
            graph=self.graph,
        )

    @cached_property
    def provenances(self) -> list[Provenance]:
        """What is known of each checkpoint."""
        return [provenance_of(path) for path in self.checkpoints]

    @property
    def warnings(self) -> list[str]:
        """What to be careful about in all results: what was logged, and doubts about the models."""
        return list(dict.fromkeys((*self.logged, *doubts_about(self.provenances, method=self.options.method))))

    @property
    def rank_reasons(self) -> Callable[[np.ndarray, torch.Tensor], known_reasons.ReasonRanks | None] | None:
        """Ranks the known reasons of a test triple; None if none are given."""
        if self.notes.explained is None:
            return None

        def rank(test_triple: np.ndarray, scores: torch.Tensor) -> known_reasons.ReasonRanks | None:
            explained = self.notes.explained.get(tuple(test_triple.tolist()))
            if explained is None:
                return None
            return known_reasons.rank_reasons(scores.numpy(), self.training_triples, explained)

        return rank

    @property
    def method(self) -> str:
        """What the influences are computed with, in words."""
        return module_of(self.options.method).title(self.options)

    @property
    def settings(self) -> dict[str, Any]:
        """The members that all JSON outputs have in common."""
        rates = self.learning_rates
        return {
            "top_k": self.options.top_k,
            "learning_rate": rates[0] if len(rates) == 1 else rates,
            "method": self.options.method,
            **module_of(self.options.method).members(self.options),
            "checkpoints": [str(path) for path in self.checkpoints],
        }


def run_tracin_analysis(**keywords: Any) -> dict[str, Any]:
    """Do what `run_tracin.py` does; the keywords are the members of `TracInOptions`.

    Returns the content of the JSON output; with `output_per_triple` the same, though it is written as one file
    for each test triple.

    Raises InputError for files or options that cannot be used.
    """
    return explain(TracInOptions(**keywords), RUN_TRACIN, keep_content=True)


def explain(options: TracInOptions, script: Script, *, keep_content: bool = False) -> dict[str, Any]:
    """Do what a script does.

    Returns the content of the JSON output, or {} without `keep_content`: results of many test triples then go to the
    disk only.

    Raises InputError for files or options that cannot be used.
    """
    with noting_warnings() as logged:
        return explain_noting(options, script, logged, keep_content=keep_content)


def explain_noting(options: TracInOptions, script: Script, logged: list[str], *, keep_content: bool) -> dict[str, Any]:
    """Do what `explain` does; `logged` gets the warnings meanwhile."""
    require_outputs(options, script)
    run = read(options, script, logged)
    if not parallel.is_main_process():
        return follow(run)
    for message in script.without_effect(run.options):
        logger.info(message)
    if run.options.mode == "self":
        return rank_by_self_influence(run)
    return trace_test_triples(run, keep_content=keep_content)


@contextmanager
def noting_warnings() -> Iterator[list[str]]:
    """Collect the package's warnings, which are logged as ever: the results are to tell them, too."""
    noted: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: noted.append(record.getMessage())
    package = logging.getLogger("conve_tracin")
    package.addHandler(handler)
    try:
        yield noted
    finally:
        package.removeHandler(handler)


def follow(run: Run) -> dict[str, Any]:
    """Compute this process's share of what process 0 works on; write nothing."""
    if run.options.mode == "self":
        sum_self_influences(run, run.training_triples, progress=False)
    else:
        list(trace_rest(run, None))
    return {}


# ---------------------------------------------------------------------------------------------------------------
# Reading


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
    load.training_triples, load.graph, load.index = graph.listed_triples, graph, index
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
) -> dict[Triple, Explained] | None:
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


# ---------------------------------------------------------------------------------------------------------------
# Tracing


def trace_test_triples(run: Run, *, keep_content: bool) -> dict[str, Any]:
    """Trace the test triples (modes "test" and "single") and write the results; return them if they are kept."""
    say_that_it_takes_long(run)
    with open_journal(run) as journal:
        traces = collect_traces(run, journal)
        run = with_evidence(run, traces)
        if run.notes.evidence is not None and run.options.output_directory is not None:
            for index, traced in zip(run.test_indices, traces, strict=True):
                write_result(run, index, traced)
        results = results_of(run, traces)
        if keep_content:
            results = list(results)
        common = run.settings | summarise_reasons(run, traces)
        written = [write_results(run, results, common), *write_more(run, traces)]
        try:
            print_results(*printed(run, traces), written)
        finally:
            if journal is not None:
                journal.remove()
    return content_of(run, results, common) if keep_content else {}


def printed(run: Run, traces: list[Trace] | StoredTraces) -> tuple[Iterable[str], list[str]]:
    """Return what people read of the traces, and notes for below: a table for one, a line each for several."""
    if len(run.test_triples) == 1:
        return [trace_as_table(traced, run.names, method=run.method, notes=run.notes) for traced in traces], []
    lines = overview_lines(traces, run.names, number=len(run.test_triples), method=run.method)
    ranks = [traced.reasons for traced in traces if traced.reasons is not None] if run.notes.explained else []
    found = [summary_in_words(known_reasons.summarise_reasons(ranks))] if len(ranks) > 1 else []
    return lines, [*found, where_the_rest_is(has_report=run.options.report is not None)]


def say_that_it_takes_long(run: Run) -> None:
    """Point to the faster engine if the backward loop will take minutes."""
    passes = len(run.training_triples) * len(run.checkpoints) * -(-len(run.test_triples) // trace_module.GROUP_SIZE)
    backward = run.options.method == TRACIN and not run.options.use_optimized_tracin
    if run.script.tells_index and backward and passes > MANY_BACKWARD_PASSES:
        logger.info(
            f"{passes:,} backward passes lie ahead; --use-optimized-tracin computes the same scores in far less time"
        )


def collect_traces(run: Run, journal: Journal | None) -> list[Trace] | StoredTraces:
    """Trace what is missing; return all traces, which stay on the disk if this run has a journal.

    A file for each test triple is written as soon as its trace is there, unless the edges behind it are to be in it:
    these are read once, for all.
    """
    kept = []
    traces = resume_traces(journal, run.test_triples, lambda rest: trace_rest(run, rest))
    for index, traced in zip(run.test_indices, traces, strict=True):
        if run.options.output_directory is not None and run.options.evidence is None:
            write_result(run, index, traced)
        # Whether another process has the journal shows when the first traces are to be added.
        if journal is None or journal.has_other_writer:
            kept.append(traced)
    return kept if journal is None or journal.has_other_writer else StoredTraces(journal)


def trace_rest(run: Run, test_triples: np.ndarray | None) -> Iterator[Trace]:
    """Trace some of the run's test triples, (m, 3)."""
    traces = trace(
        run.load,
        run.checkpoints,
        test_triples,
        run.training_triples,
        top_k=run.options.top_k,
        batch_size=run.options.batch_size,
        describe=SummarySettings.of(
            run.names,
            run.known_triples,
            run.training_triples,
            side=run.options.predicted_side,
            categories=run.categories,
            graph=run.graph,
        ),
        summarised=run.options.report is not None,
        side=run.options.predicted_side,
        find_paths=run.find_paths if parallel.is_main_process() else None,
        rank_reasons=run.rank_reasons,
    )
    return (with_counts(traced, run.graph.counts) for traced in traces)


def open_journal(run: Run) -> Any:
    """Open what a killed run with these inputs and settings has finished, beside its output; None for single ones."""
    directory = run.options.output_directory
    if directory is not None:
        return open_in_directory(directory, digest_of_run(run))
    if run.options.mode == "single" or run.options.test_triple is not None:
        return nullcontext()
    output = Path(run.options.output)
    return Journal(output.with_name(f"{output.name}.unfinished"), digest_of_run(run))


def digest_of_run(run: Run) -> str:
    """Digest all that the traces depend on."""
    # Names, and what is read after tracing.
    passed_over = {
        "output", "csv_output", "output_per_triple", "edge_map", "node_name_dict", "report", "evidence", "reasons",
        "trapi",
    }  # fmt: skip
    settings = {name: value for name, value in asdict(run.options).items() if name not in passed_over}
    return digest_of(
        settings=settings
        | {"checkpoints": run.checkpoints, "learning_rates": run.learning_rates}
        # Results of earlier versions tell nothing, or less, of the prediction.
        | {"summarised": run.options.report is not None, "described": "standing"}
        | ({} if run.notes.explained is None else {"reasons": known_positions(run.notes.explained)}),
        files=[*run.checkpoints, *([] if run.options.nodes is None else [Path(run.options.nodes)])],
        arrays=[run.load.training_triples, run.known_triples, run.test_triples],
    )


def known_positions(explained: dict[Triple, Explained]) -> list[Any]:
    """List the known reasons by their positions in the training set, as plain values."""
    return [[triple, [each.tolist() for each in known.explanations]] for triple, known in explained.items()]


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


def summarise_reasons(run: Run, traces: Iterable[Trace]) -> dict[str, Any]:
    """Return the member of the JSON that all results share, if reasons are asked for: what holds of all together."""
    if run.notes.explained is None:
        return {}
    ranks = [traced.reasons for traced in traces if traced.reasons is not None]
    return {"reasons": summary_as_json(known_reasons.summarise_reasons(ranks)) if ranks else None}


# ---------------------------------------------------------------------------------------------------------------
# Writing


def write_result(run: Run, index: int, traced: Trace) -> None:
    """Write the file of one test triple."""
    name = run.script.file_name(traced, index, run.names)
    write_json(run.options.output_directory / name, result_of(run, index, traced))


def result_of(run: Run, index: int, traced: Trace) -> dict[str, Any]:
    """Arrange a trace as the documented JSON."""
    settings = run.settings
    top_k, learning_rate = settings.pop("top_k"), settings.pop("learning_rate")
    if run.script.tells_index:
        settings["test_index"] = index
    if run.provenances[-1].metrics:
        settings["model_metrics"] = run.provenances[-1].as_json()
    return trace_as_json(
        traced, run.names, top_k=top_k, learning_rate=learning_rate, method=settings, warnings=run.warnings,
        notes=run.notes,
    )  # fmt: skip


def results_of(run: Run, traces: Iterable[Trace]) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each trace."""
    return (result_of(run, index, traced) for index, traced in zip(run.test_indices, traces, strict=True))


def content_of(run: Run, results: list[dict[str, Any]], common: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the JSON as one file, with what is `common`: a single result itself in mode "single"."""
    if run.options.mode == "single" and len(results) == 1:
        return results[0]
    return {"mode": run.options.mode, **common, "results": results}


def write_results(run: Run, results: Iterable[dict[str, Any]], common: dict[str, Any]) -> str:
    """Write the JSON as one file, unless each test triple has its own; return what is written, in words."""
    directory, output = run.options.output_directory, Path(run.options.output)
    if directory is not None:
        return f"{len(run.test_indices)} files in {directory}"
    if not run.script.tells_index:
        (result,) = results
        write_json(output, result)
    elif run.options.mode == "single":
        write_json(output, content_of(run, list(results), common))
    else:
        text = json_text_of_many({"mode": run.options.mode, **common}, "results", results)
        write_together({output: text})
    return str(output)


def write_more(run: Run, traces: list[Trace] | StoredTraces) -> list[Path]:
    """Write the table and the page if they are wanted; return their paths."""
    options, written = run.options, []
    if options.csv_path is not None:
        own = self_influences_of(run, {influence.position for result in traces for influence in result.influences})
        rows = (row for result in traces for row in trace_as_csv_rows(result, run.names, own, run.notes))
        write_csv(options.csv_path, rows, run.notes.columns)
        written.append(options.csv_path)
    if options.report is not None:
        write_report(run, list(traces))
        written.append(options.report)
    if options.trapi is not None:
        write_trapi(run, traces)
        written.append(options.trapi)
    return written


def write_report(run: Run, traces: list[Trace]) -> None:
    """Write the page of --report."""
    settings = page.settings_of(run.options) | {"Device": str(run.load.device)}
    if run.options.known:
        settings["Known triples"] = "\n".join(map(str, run.options.known))
    computation = page.describe_computation(
        method=run.options.method,
        checkpoints=dict(zip(run.checkpoints, run.learning_rates, strict=True)),
        train=Path(run.options.train),
        settings=settings,
    )
    last = run.provenances[-1]
    background = page.Background(
        categories=run.categories,
        warnings=run.warnings,
        model=last,
        measured=measured_of(run.options.method, last.training_config, len(run.names.entities)),
        notes=run.notes,
    )
    page.write_report(run.options.report, traces, run.names, computation, background)


def write_trapi(run: Run, traces: Iterable[Trace]) -> None:
    """Write the response of --trapi."""
    edge_map = run.options.edge_map
    response = trapi.trapi_response(
        traces, run.names, meanings={} if edge_map is None else read_edge_map(edge_map), notes=run.notes,
        categories=run.categories, method=run.method,
    )  # fmt: skip
    write_json(run.options.trapi, response)


def print_results(tables: Iterable[str], notes: Iterable[str], written: Iterable[Path | str]) -> None:
    """Print what people read, after all files are written: the reader of a pipe may leave."""
    for table in tables:
        print(table)
    for output in written:
        print(f"Written: {output}")
    for note in notes:
        print(note)


# ---------------------------------------------------------------------------------------------------------------
# Self-influence


def rank_by_self_influence(run: Run) -> dict[str, Any]:
    """Rank the training triples by Σ η‖∇ℓ(w; z)‖² (mode "self"), highest first; write the result and return it."""
    scores = sum_self_influences(run, run.training_triples, progress=True)
    ranked = rank_influences(scores, run.training_triples, run.options.top_k)
    ranked = with_counts(Trace((0, 0, 0), ranked, [], []), run.graph.counts).influences
    rows = [_as_self_influence(influence_as_json(influence, run.names)) for influence in ranked]
    content = {"mode": "self", **run.settings, "self_influences": rows}
    write_json(run.options.output, content)
    written = [run.options.output]
    if run.options.csv_path is not None:
        own = {influence.position: influence.influence for influence in ranked}
        write_csv(run.options.csv_path, _self_csv_rows(run, ranked, own))
        written.append(run.options.csv_path)
    print_results([self_influences_as_table(ranked, run.names)], [], written)
    return content


def _as_self_influence(row: dict[str, Any]) -> dict[str, Any]:
    return {"self_influence" if name == "influence" else name: value for name, value in row.items()}


def _self_csv_rows(run: Run, ranked: list[Influence], own: dict[int, float]) -> Iterator[tuple]:
    # The influence of a training triple on itself: it stands in the place of the test triple, too.
    for influence in ranked:
        itself = Trace((influence.head, influence.relation, influence.tail), [influence], [], [])
        yield from trace_as_csv_rows(itself, run.names, own)


def self_influences_of(run: Run, positions: Iterable[int]) -> dict[int, float]:
    """Compute the self-influence of the training triples at these positions: {position: Σ η‖∇ℓ(w; z)‖²}."""
    ordered = sorted(positions)
    # Few triples, known to process 0 alone: they are not shared.
    scores = sum_self_influences(run, run.training_triples[ordered], progress=True, shared=False)
    return dict(zip(ordered, scores.tolist(), strict=True))


def sum_self_influences(run: Run, triples: np.ndarray, *, progress: bool, shared: bool = True) -> torch.Tensor:
    """Compute Σ_k η_k‖∇ℓ(w_k; z)‖² of triples (N, 3), `shared` between all processes or here: (N,)."""
    total: torch.Tensor | float = 0.0
    for path in run.checkpoints:
        loaded = run.load(path)
        compute = partial(
            loaded.method.self_products,
            batch_size=run.options.batch_size,
            progress=f"{path.name}: self-influence" if progress else None,
        )
        shared = shared and loaded.method.shares_training_triples
        with trace_module.naming_the_checkpoint(path):
            products = parallel.compute_shared(compute, triples) if shared else compute(triples)
        trace_module.require_finite_influences(products, path)
        total = total + loaded.weight * products
    return total


# ---------------------------------------------------------------------------------------------------------------
# The two scripts


def _numbered_file(traced: Trace, index: int, names: Names) -> str:
    head, relation, tail = traced.test_triple
    labels = (names.entities.labels[head], names.relations.labels[relation], names.entities.labels[tail])
    return safe_file_name(f"test_{index}", *labels, suffix=".json")


def _file_of_ids(traced: Trace, _: int, __: Names) -> str:
    return "triple_{}_{}_{}.json".format(*traced.test_triple)


def run_tracin_without_effect(options: TracInOptions) -> Iterator[str]:
    """Say which given options change nothing in this run, one line each."""
    yield from settings_without_effect(options)
    yield from multi_gpu_without_effect(options)


def multi_gpu_without_effect(options: TracInOptions) -> Iterator[str]:
    """Say where --enable-multi-gpu changes nothing, and why."""
    if options.enable_multi_gpu and parallel.world_size() == 1:
        obstacle = parallel.obstacle_to_several_gpus(device=options.device, gpus=torch.cuda.device_count())
        yield f"--enable-multi-gpu has no effect: {obstacle or 'the scripts start several processes, not functions'}"


def tracin_pytorch_without_effect(options: TracInOptions) -> Iterator[str]:
    """Say which given flags of tracin_pytorch.py change nothing in this run, one line each."""
    # The flags of its own stand for this option.
    yield from settings_without_effect(replace(options, cache_test_gradients=None))
    yield from settings_without_effect(NativeEngine.of(options), options)
    yield from multi_gpu_without_effect(options)


TRACIN_PYTORCH = Script(
    loader=NativeCheckpointLoader,
    directory_flag="--output-dir",
    file_name=_file_of_ids,
    tells_index=False,
    without_effect=tracin_pytorch_without_effect,
)
RUN_TRACIN = Script(
    loader=CheckpointLoader,
    directory_flag="--output-per-triple",
    file_name=_numbered_file,
    tells_index=True,
    without_effect=run_tracin_without_effect,
)

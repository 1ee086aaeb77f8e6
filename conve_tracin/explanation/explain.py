"""Explaining predictions: read, trace, write. The work of tracin_pytorch.py and of run_tracin.py.

Modes: "test" traces the test triples, "single" those with the given indices, "self" ranks the training triples by
their self-influence.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conve_tracin.compute import parallel
from conve_tracin.explanation.read import read, require_outputs, with_evidence
from conve_tracin.explanation.run import Run, Script
from conve_tracin.explanation.scripts import RUN_TRACIN
from conve_tracin.explanation.self_influence import sum_self_influences
from conve_tracin.explanation.trace import open_journal, trace_rest
from conve_tracin.explanation.write import (
    content_of,
    print_results,
    printed,
    results_of,
    summarise_reasons,
    write_more,
    write_result,
    write_results,
    write_self_influences,
)
from conve_tracin.influence import trace as trace_module
from conve_tracin.influence.journal import Journal, StoredTraces, resume_traces
from conve_tracin.influence.method import rank_influences
from conve_tracin.influence.trace import Trace, with_counts
from conve_tracin.settings import TRACIN, TracInOptions

logger = logging.getLogger(__name__)


# Backward passes that take about a minute; from there on the forward engine is worth a word.
MANY_BACKWARD_PASSES = 10_000


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


def rank_by_self_influence(run: Run) -> dict[str, Any]:
    """Rank the training triples by Σ η‖∇ℓ(w; z)‖² (mode "self"), highest first; write the result and return it."""
    scores = sum_self_influences(run, run.training_triples, progress=True)
    ranked = rank_influences(scores, run.training_triples, run.options.top_k)
    return write_self_influences(run, with_counts(Trace((0, 0, 0), ranked, [], []), run.graph.counts).influences)

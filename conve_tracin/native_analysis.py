"""The work of tracin_pytorch.py: native checkpoints, one JSON file for each test triple."""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from conve_tracin import parallel
from conve_tracin.analysis import (
    Run,
    digest_of_run,
    follow,
    multi_gpu_without_effect,
    prepare,
    print_results,
    trace_rest,
    write_report,
)
from conve_tracin.files import require_usable_outputs, write_json
from conve_tracin.influence.journal import open_in_directory, resume_traces
from conve_tracin.influence.load import NativeCheckpointLoader
from conve_tracin.influence.trace import Trace
from conve_tracin.report.tables import trace_as_json, trace_as_table
from conve_tracin.settings import NativeEngine, TracInOptions, settings_without_effect

logger = logging.getLogger(__name__)


def run_native_analysis(**options: Any) -> None:
    """Do what `tracin_pytorch.py` does; the keywords are members of `TracInOptions`.

    `test_triple` goes with a file as `output`; `test_triples` goes with a directory, and with `output_per_triple`.

    Raises InputError for files or options that cannot be used.
    """
    run = prepare_native(TracInOptions(**options))
    if not parallel.is_main():
        follow(run)
        return
    for message in without_effect(run.options):
        logger.info(message)
    output = Path(run.options.output)
    many = run.options.output_per_triple
    traces = []
    with open_in_directory(output, digest_of_run(run)) if many else nullcontext() as journal:
        for traced in resume_traces(journal, run.test_triples, lambda rest: trace_rest(run, rest)):
            path = output / "triple_{}_{}_{}.json".format(*traced.test_triple) if many else output
            write_json(path, as_json(run, traced))
            if run.options.report is None:
                print_results([trace_as_table(traced, run.names, method=run.method)], [path])
            else:
                traces.append(traced)
        if run.options.report is not None:
            write_report(run, traces)
        if journal is not None:
            journal.remove()
    if run.options.report is not None:
        print_results(
            [trace_as_table(traced, run.names, method=run.method) for traced in traces], [output, run.options.report]
        )


def prepare_native(options: TracInOptions) -> Run:
    """Read all inputs but the models.

    Raises InputError for outputs that are unusable, before anything is read.
    """
    many = options.output_per_triple
    require_usable_outputs(
        {"--report": options.report} | ({} if many else {"--output": options.output}),
        directory=("--output-dir", options.output) if many else None,
        inputs=options.inputs,
    )
    return prepare(options, loader=NativeCheckpointLoader)


def as_json(run: Run, traced: Trace) -> dict[str, Any]:
    """Arrange a trace as the documented JSON."""
    settings = run.settings
    top_k, learning_rate = settings.pop("top_k"), settings.pop("learning_rate")
    return trace_as_json(traced, run.names, top_k=top_k, learning_rate=learning_rate, method=settings)


def without_effect(options: TracInOptions) -> Iterator[str]:
    """Say which given flags of tracin_pytorch.py change nothing in this run, one line each."""
    # The flags of its own stand for these two options.
    yield from settings_without_effect(replace(options, cache_test_gradients=None))
    yield from settings_without_effect(NativeEngine.of(options), options)
    yield from multi_gpu_without_effect(options)

"""Writing and printing what was traced."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from conve_tracin.data.names import read_edge_map
from conve_tracin.explanation.run import Run
from conve_tracin.explanation.self_influence import self_influences_of
from conve_tracin.files import json_text_of_many, write_json, write_together
from conve_tracin.influence import known_reasons
from conve_tracin.influence.journal import StoredTraces
from conve_tracin.influence.method import Influence
from conve_tracin.influence.trace import Trace
from conve_tracin.report import page, trapi
from conve_tracin.report.exams import measured_of
from conve_tracin.report.notes import summary_as_json, summary_in_words
from conve_tracin.report.overview import overview_lines, where_the_rest_is
from conve_tracin.report.tables import (
    influence_as_json,
    self_influences_as_table,
    trace_as_csv_rows,
    trace_as_json,
    trace_as_table,
    write_csv,
)


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


def summarise_reasons(run: Run, traces: Iterable[Trace]) -> dict[str, Any]:
    """Return the member of the JSON that all results share, if reasons are asked for: what holds of all together."""
    if run.notes.explained is None:
        return {}
    ranks = [traced.reasons for traced in traces if traced.reasons is not None]
    return {"reasons": summary_as_json(known_reasons.summarise_reasons(ranks)) if ranks else None}


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


def write_self_influences(run: Run, ranked: list[Influence]) -> dict[str, Any]:
    """Write and print the training triples of mode "self"; return the content of the JSON."""
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


def printed(run: Run, traces: list[Trace] | StoredTraces) -> tuple[Iterable[str], list[str]]:
    """Return what people read of the traces, and notes for below: a table for one, a line each for several."""
    if len(run.test_triples) == 1:
        return [trace_as_table(traced, run.names, method=run.method, notes=run.notes) for traced in traces], []
    lines = overview_lines(traces, run.names, number=len(run.test_triples), method=run.method)
    ranks = [traced.reasons for traced in traces if traced.reasons is not None] if run.notes.explained else []
    found = [summary_in_words(known_reasons.summarise_reasons(ranks))] if len(ranks) > 1 else []
    return lines, [*found, where_the_rest_is(has_report=run.options.report is not None)]


def print_results(tables: Iterable[str], notes: Iterable[str], written: Iterable[Path | str]) -> None:
    """Print what people read, after all files are written: the reader of a pipe may leave."""
    for table in tables:
        print(table)
    for output in written:
        print(f"Written: {output}")
    for note in notes:
        print(note)

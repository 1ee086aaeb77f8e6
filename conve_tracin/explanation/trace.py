"""Tracing test triples, and going on where a killed run stopped."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from conve_tracin.compute import parallel
from conve_tracin.data.reasons import KnownReasons
from conve_tracin.explanation.run import Run, Triple
from conve_tracin.influence.journal import Journal, digest_of, open_in_directory
from conve_tracin.influence.summary import SummarySettings
from conve_tracin.influence.trace import Trace, trace, with_counts


def trace_rest(run: Run, test_triples: np.ndarray | None) -> Iterator[Trace]:
    """Trace some of the run's test triples, (m, 3)."""
    traces = trace(
        run.load,
        run.checkpoints,
        test_triples,
        run.training_triples,
        top_k=run.options.top_k,
        batch_size=run.options.batch_size,
        describe=SummarySettings(
            graph=run.graph,
            known_triples=run.known_triples,
            side=run.options.predicted_side,
            categories=run.categories,
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
        | {"summarised": run.options.report is not None, "described": "standing and kinds"}
        | ({} if run.notes.explained is None else {"reasons": known_positions(run.notes.explained)}),
        files=[*run.checkpoints, *([] if run.options.nodes is None else [Path(run.options.nodes)])],
        arrays=[run.graph.listed_triples, run.known_triples, run.test_triples],
    )


def known_positions(explained: dict[Triple, KnownReasons]) -> list[Any]:
    """List the known reasons by their positions in the training set, as plain values."""
    return [[triple, [each.tolist() for each in known.explanations]] for triple, known in explained.items()]

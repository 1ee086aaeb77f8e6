"""Mode "self": the training triples in the order of their self-influence."""

from collections.abc import Iterator
from typing import Any

from conve_tracin.explanation.run import Run
from conve_tracin.explanation.trace import sum_self_influences
from conve_tracin.explanation.write import print_results
from conve_tracin.files import write_json
from conve_tracin.influence.method import Influence, rank_influences
from conve_tracin.influence.trace import Trace, with_counts
from conve_tracin.report.tables import influence_as_json, self_influences_as_table, trace_as_csv_rows, write_csv


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

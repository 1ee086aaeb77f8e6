"""What is known of training triples besides their influence: the edges behind them, and whether they are known reasons.

For JSON, CSV and terminal; `report.evidence` has it for the page.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from conve_tracin.data.evidence import Edge, Evidence, as_text
from conve_tracin.data.reasons import KnownReasons
from conve_tracin.data.text import visible
from conve_tracin.influence.known_reasons import ReasonRanks, ReasonsSummary
from conve_tracin.influence.method import Influence
from conve_tracin.influence.trace import Trace
from conve_tracin.report.lettering import count
from conve_tracin.report.links import source_name

Triple = tuple[int, int, int]
SOURCE = "primary_knowledge_source"

UNKNOWN_SOURCE = "unknown source"
# What else than a person's assertion an edge can be.
MARKS = {("agent_type", "text_mining_agent"): "text-mined", ("knowledge_level", "prediction"): "predicted"}

REASON_COLUMNS = ("IsGroundTruth", "InPath", "OnSpecificPath")
# Between what a column says of several edges.
BETWEEN_EDGES = " || "


@dataclass(frozen=True, eq=False)
class Notes:
    """What --evidence and --reasons tell; None for what was not given.

    Attributes:
        evidence: the edges behind the triples that the outputs show.
        explained: the known reasons of test triples.
    """

    evidence: Evidence | None = None
    explained: Mapping[Triple, KnownReasons] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the CSV has more."""
        of_reasons = () if self.explained is None else REASON_COLUMNS
        return of_reasons + (() if self.evidence is None else self.evidence.columns)

    def members(self, test_triple: Triple, influence: Influence) -> dict[str, Any]:
        """Return the members that an influence has more in the JSON."""
        return {
            **({} if self.explained is None else {"is_reason": self.is_reason(test_triple, influence)}),
            **({} if self.evidence is None else {"evidence": self.edges(influence)}),
        }

    def members_of_path(self, test_triple: Triple, influences: Iterable[Influence]) -> dict[str, list[Any]]:
        """Return the members that a path has more: lists that are parallel to its triples."""
        members = [self.members(test_triple, influence) for influence in influences]
        return {name: [each[name] for each in members] for name in members[0]}

    def members_of_result(self, trace: Trace) -> dict[str, Any]:
        """Return the members that a result has more: where the known reasons stand, or None without any."""
        if self.explained is None:
            return {}
        return {"reasons": None if trace.reasons is None else ranks_as_json(trace.reasons)}

    def cells(self, test_triple: Triple, influence: Influence) -> tuple[str | bool, ...]:
        """Return the values of `columns`; those of several edges are joined by BETWEEN_EDGES."""
        of_reasons = () if self.explained is None else self._reason_cells(test_triple, influence)
        if self.evidence is None:
            return of_reasons
        edges = self.edges(influence)
        return of_reasons + tuple(_joined([edge.get(column, "") for edge in edges]) for column in self.evidence.columns)

    def _reason_cells(self, test_triple: Triple, influence: Influence) -> tuple[bool, bool, bool]:
        explained = self.explained.get(test_triple)
        if explained is None:
            return False, False, False
        complete = explained.is_complete.get(influence.position)
        return complete is not None, {influence.head, influence.tail} <= explained.entities, bool(complete)

    def is_reason(self, test_triple: Triple, influence: Influence) -> bool:
        """Whether a training triple is a known reason of a test triple."""
        explained = None if self.explained is None else self.explained.get(test_triple)
        return explained is not None and influence.position in explained.is_complete

    def edges(self, influence: Influence) -> list[Edge]:
        """Return the edges behind a training triple."""
        if self.evidence is None:
            return []
        return self.evidence.of((influence.head, influence.relation, influence.tail))

    def remark(self, test_triple: Triple, influence: Influence) -> str:
        """Say it in a few words, in brackets, for a line in the terminal."""
        words = ["known reason"] if self.is_reason(test_triple, influence) else []
        edges = self.edges(influence)
        words += [
            " ".join([name_of_source(source), *(f"({mark})" for mark in marks)])
            for source, marks in sources_of(edges).items()
        ]
        publications = publications_of(edges)
        if publications:
            words.append(publications[0] if len(publications) == 1 else count(len(publications), "publication"))
        return visible(f"  [{', '.join(words)}]") if words else ""


def _joined(values: list[Any]) -> str:
    return BETWEEN_EDGES.join(map(as_text, values)) if any(value != "" for value in values) else ""


def sources_of(edges: Iterable[Edge]) -> dict[str, list[str]]:
    """List the primary sources of edges, "" for an unknown one, and of each what all its edges are: see MARKS."""
    by_source: dict[str, list[Edge]] = {}
    for edge in edges:
        by_source.setdefault(str(edge.get(SOURCE, "")), []).append(edge)
    return {
        source: [mark for (column, value), mark in MARKS.items() if all(one.get(column) == value for one in own)]
        for source, own in by_source.items()
    }


def name_of_source(source: str) -> str:
    """Return the readable name of a source in `sources_of`."""
    return source_name(source) if source else UNKNOWN_SOURCE


def publications_of(edges: Iterable[Edge]) -> list[str]:
    """List the publications of some edges, each once."""
    return list(dict.fromkeys(publication for edge in edges for publication in edge.get("publications", [])))


def shown_triples(traces: Iterable[Trace]) -> set[Triple]:
    """Return the training triples that the outputs show."""
    return {
        (influence.head, influence.relation, influence.tail)
        for trace in traces
        for influence in (
            *trace.influences, *trace.proponents, *trace.opponents,
            *(hop.influence for path in trace.paths or [] for hop in path.hops),
        )
    }  # fmt: skip


def ranks_as_json(reasons: ReasonRanks) -> dict[str, Any]:
    """Arrange where the known reasons of a prediction stand."""
    return {
        "ranks": list(reasons.ranks),
        "training_triples": reasons.num_triples,
        "reciprocal_rank": reasons.reciprocal_rank,
        "average_precision": reasons.average_precision,
        "head_auc": reasons.head_auc,
        "tail_auc": reasons.tail_auc,
        "p_value": reasons.p_value,
    }


def summary_as_json(summary: ReasonsSummary) -> dict[str, Any]:
    """Arrange what holds of the known reasons of several predictions."""
    return asdict(summary)


def ranks_in_words(reasons: ReasonRanks) -> str:
    """Say where the known reasons of a prediction stand, in one sentence."""
    ranks = [f"{rank:,.10g}" for rank in reasons.ranks]
    listed = ", ".join(ranks[:5]) + (f" and {len(ranks) - 5:,} more" if len(ranks) > 5 else "")
    ranked = "reason has rank" if len(ranks) == 1 else "reasons have the ranks"
    return (
        f"{len(ranks):,} known {ranked} {listed} of {reasons.num_triples:,} training triples{_areas_in_words(reasons)}."
    )


def summary_in_words(summary: ReasonsSummary) -> str:
    """Say what holds of the known reasons of several predictions, in one line."""
    return (
        f"Known reasons of {count(summary.predictions, 'prediction')}: MRR {summary.mean_reciprocal_rank:.3f}, "
        f"MAP {summary.mean_average_precision:.3f}{_areas_in_words(summary)}"
    )


def _areas_in_words(reasons: ReasonRanks | ReasonsSummary) -> str:
    areas = [
        f"{value:.2f} among the {end}'s own" for end, value in (("head", reasons.head_auc), ("tail", reasons.tail_auc))
        if value is not None
    ]  # fmt: skip
    if not areas:
        return ""
    return f"; AUC {' and '.join(areas)} (0.5 is chance; p = {reasons.p_value:.2g} against random order)"

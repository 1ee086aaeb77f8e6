"""What is known of training triples, for the page: sources, publications, how an edge came about, known reasons."""

from collections.abc import Iterable, Sequence
from typing import Any

from conve_tracin.data.evidence import Edge
from conve_tracin.influence.method import Influence
from conve_tracin.influence.trace import Trace
from conve_tracin.report.links import publication_page, source_name
from conve_tracin.report.notes import SOURCE, Notes, Triple, name_of_source, publications_of, ranks_in_words, sources_of

SOURCE_COLUMNS = (SOURCE, "aggregator_knowledge_source")
# Columns of words from a fixed list.
BIOLINK_TERMS = ("knowledge_level", "agent_type")
# Without unfolding.
SHOWN_PUBLICATIONS = 3


def note(notes: Notes, test_triple: Triple, influence: Influence) -> dict[str, Any] | None:
    """Arrange what is known of a training triple beside a prediction; None if nothing was given."""
    if notes.evidence is None and notes.explained is None:
        return None
    edges = notes.edges(influence)
    publications = publications_of(edges)
    return {
        "is_reason": notes.is_reason(test_triple, influence),
        "sources": [
            {"id": source, "name": name_of_source(source), "marks": marks}
            for source, marks in sources_of(edges).items()
        ],
        "publications": [_publication(each) for each in publications[:SHOWN_PUBLICATIONS]],
        "num_more": max(0, len(publications) - SHOWN_PUBLICATIONS),
        "edges": [_columns(edge) for edge in edges],
    }


def sources_about(notes: Notes, influences: Iterable[Influence]) -> list[str] | None:
    """List the primary sources behind some training triples, to choose among; None without evidence."""
    if notes.evidence is None:
        return None
    return list(sources_of(edge for influence in influences for edge in notes.edges(influence)))


def choices(sources: Sequence[str] | None) -> list[tuple[str, str]]:
    """Pair sources with their readable names, by these."""
    return sorted(
        ((source, source_name(source)) for source in sources or () if source), key=lambda one: one[1].casefold()
    )


def reasons_in_words(notes: Notes, trace: Trace) -> str | None:
    """Say where the known reasons of a prediction stand; None if none were given."""
    if notes.explained is None:
        return None
    return "No training triple is a known reason of it." if trace.reasons is None else ranks_in_words(trace.reasons)


def _publication(identifier: str) -> dict[str, str | None]:
    return {"text": identifier, "page": publication_page(identifier)}


def _columns(edge: Edge) -> list[dict[str, Any]]:
    return [{"title": column.replace("_", " "), "parts": _parts(column, value)} for column, value in edge.items()]


def _parts(column: str, value: str | float | list[str]) -> list[dict[str, str | None]]:
    values = value if isinstance(value, list) else [str(value)]
    if column == "publications":
        return [_publication(each) for each in values]
    return [{"text": _in_words(column, each), "page": None} for each in values]


def _in_words(column: str, text: str) -> str:
    if column in SOURCE_COLUMNS:
        return source_name(text)
    return text.replace("_", " ") if column in BIOLINK_TERMS else text

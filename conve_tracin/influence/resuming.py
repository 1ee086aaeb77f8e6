"""Traces of a killed run: those of finished groups come from its journal, the others are computed."""

import dataclasses
import logging
import types
import typing
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from conve_tracin.influence import tracing
from conve_tracin.influence.tracing import Trace
from conve_tracin.journal import Journal

logger = logging.getLogger(__name__)


def resume_traces(
    journal: Journal | None, test_triples: np.ndarray, trace_rest: Callable[[np.ndarray], Iterator[Trace]]
) -> Iterator[Trace]:
    """Yield the trace of each test triple (n, 3), as if the run had never stopped.

    Args:
        journal: of this run; without one everything is computed.
        test_triples: all of them, in order.
        trace_rest: traces those that the journal lacks.
    """
    if journal is None:
        yield from trace_rest(test_triples)
        return
    # Whole groups only: a group is computed as one, so that a resumed run rounds as an undisturbed one does.
    journal.keep(len(journal) // tracing.GROUP_SIZE * tracing.GROUP_SIZE)
    num_finished = len(journal)
    if num_finished:
        logger.info(f"{journal.path}: goes on, {num_finished} of {len(test_triples)} test triples are finished")
    yield from StoredTraces(journal)
    traces = trace_rest(test_triples[num_finished:])
    while group := list(islice(traces, tracing.GROUP_SIZE)):
        journal.add([dataclasses.asdict(traced) for traced in group])
        yield from group


class StoredTraces:
    """The traces in a journal, which take no memory: they are read whenever they are gone through."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def __len__(self) -> int:
        return len(self.journal)

    def __iter__(self) -> Iterator[Trace]:
        return (from_plain(Trace, record) for record in self.journal.records)


def from_plain(kind: Any, value: Any) -> Any:
    """Rebuild what `dataclasses.asdict` took apart and JSON kept; `kind` is a dataclass or a type in one."""
    if value is None:
        return None
    if isinstance(kind, types.UnionType):
        (kind,) = (option for option in typing.get_args(kind) if option is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_plain(hints[name], member) for name, member in value.items()})
    container = typing.get_origin(kind)
    if container in (list, tuple):
        element = typing.get_args(kind)[0]
        return container(from_plain(element, member) for member in value)
    return value

"""Many explained predictions in a terminal: a line for each."""

from collections.abc import Iterable, Iterator

from conve_tracin.data.names import Names
from conve_tracin.data.text import visible
from conve_tracin.influence.summary import Prediction
from conve_tracin.influence.trace import Trace


def overview_lines(traces: Iterable[Trace], names: Names, *, number: int, method: str) -> Iterator[str]:
    """Yield a heading, and for each prediction its rank, its names and its strongest proponent."""
    yield f"{number:,} predictions (explained by {method}), each with its rank and its strongest proponent:"
    for trace in traces:
        yield f"  {_rank(trace.prediction):>8}  {visible(names.sentence(*trace.test_triple))}  {_because(trace, names)}"


def _rank(prediction: Prediction | None) -> str:
    return "" if prediction is None else f"{prediction.explained.rank:,.10g}"


def _because(trace: Trace, names: Names) -> str:
    notes = []
    if trace.prediction is not None and trace.prediction.in_training:
        notes.append("it is itself a training triple")
    if trace.prediction is not None and trace.prediction.remark:
        notes.append(visible(trace.prediction.remark))
    if not trace.proponents:
        return "; ".join(["(no proponent)", *notes])
    best = trace.proponents[0]
    sentence = visible(names.sentence(best.head, best.relation, best.tail))
    return "; ".join([f"because of {sentence} ({best.influence:+.3g})", *notes])


def where_the_rest_is(*, has_report: bool) -> str:
    """Say where all that the lines leave out can be read."""
    page = "" if has_report else "; --report FILE.html makes a page of them"
    return f"The influences and paths of each prediction are in what was written{page}"

"""Line charts as SVG: the training curves, and how influence is distributed."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conve_tracin.files import atomic_write
from conve_tracin.report.lettering import text_width
from conve_tracin.report.markup import Markup, element, join

Point = tuple[float, float]

# The standalone picture brings its colours along; figures inside a page take the page's.
CURVES_STYLE = """
text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #5d666d; }
.title { font-weight: 600; font-size: 13px; fill: #1d2327; }
.paper { fill: #fdfcfa; }
.grid { stroke: #e4e1da; } .axis { stroke: #9aa3a8; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.c0 { stroke: #0b6e8a; } .c1 { stroke: #b5522b; } .c2 { stroke: #7a6bb0; }
text.c0, text.c1, text.c2 { stroke: none; font-weight: 600; }
text.c0, circle.c0 { fill: #0b6e8a; } text.c1, circle.c1 { fill: #b5522b; } text.c2, circle.c2 { fill: #7a6bb0; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #14181b; } text { fill: #9aa3a8; } .title { fill: #e6e3dc; }
  .grid { stroke: #2b3236; } .axis { stroke: #6b757b; }
  .c0 { stroke: #5cc2dd; } .c1 { stroke: #f0956b; } .c2 { stroke: #b3a6e0; }
  text.c0, circle.c0 { fill: #5cc2dd; } text.c1, circle.c1 { fill: #f0956b; } text.c2, circle.c2 { fill: #b3a6e0; }
}
"""
VALIDATION_METRICS = {"mean_reciprocal_rank": "MRR", "hits@1": "Hits@1", "hits@10": "Hits@10"}


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis: values from `low` to `high` lie at pixels from `start` to `end`.

    The ticks of a `whole` axis are whole numbers.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        fraction = (value - low) / (high - low) if high > low else 0.0
        return self.start + fraction * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Choose about `count` round values: powers of ten, 1, 2 or 5 times one, or steps of as much."""
        if self.logarithmic and self.high / self.low >= 10:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            if len(powers) < 3:
                between = (factor * 10.0**power for power in (powers[0] - 1, *powers) for factor in (1, 2, 5))
                return [
                    value for value in between if self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)
                ]
            step = max(1, math.ceil(len(powers) / (count + 1)))
            return [10.0**power for power in powers[::step]]
        span = (self.high - self.low) or 1.0
        magnitude = 10 ** math.floor(math.log10(span / count))
        step = min((1, 2, 5, 10), key=lambda factor: abs(factor * magnitude - span / count)) * magnitude
        step = max(step, 1) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def polyline(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Write the path of a curve through points; values that are no number leave a gap."""
    commands, pen = [], "M"
    for value, height in points:
        if math.isfinite(height):
            commands.append(f"{pen}{x.at(value):.1f},{y.at(height):.1f}")
        pen = "L" if math.isfinite(height) else "M"
    return " ".join(commands)


def grid(x: Axis, y: Axis, *, x_text: Callable[[float], str], y_text: Callable[[float], str]) -> Markup:
    """Draw horizontal lines at the ticks of y, the axis of x, and the numbers of both."""
    lines = []
    for tick in y.ticks():
        height = y.at(tick)
        lines.append(element("line", class_="grid", x1=float(x.start), x2=float(x.end), y1=height, y2=height))
        lines.append(element("text", y_text(tick), x=x.start - 8.0, y=height + 4, text_anchor="end"))
    lines.append(
        element("line", class_="axis", x1=float(x.start), x2=float(x.end), y1=float(y.start), y2=float(y.start))
    )
    for tick in x.ticks():
        place = x.at(tick)
        lines.append(element("line", class_="axis", x1=place, x2=place, y1=float(y.start), y2=y.start + 4.0))
        lines.append(element("text", x_text(tick), x=place, y=y.start + 18.0, text_anchor="middle"))
    return join(*lines)


def draw_concentration(counts: Sequence[int], shares: Sequence[float], half: int) -> Markup:
    """Draw which share of all absolute influence the k strongest triples carry, over log k; the page colours it.

    Args:
        counts: the numbers k, ascending from 1.
        shares: of each, 0 to 1.
        half: the k where one half is reached.
    """
    x = Axis(1, max(counts[-1], 2), 52, 404, logarithmic=True)
    y = Axis(0, 1, 214, 14)
    points = list(zip(counts, shares, strict=True))
    line = polyline(points, x, y)
    area = f"{line} L{x.at(counts[-1]):.1f},{y.start} L{x.at(1):.1f},{y.start} Z"
    half_x, half_y = x.at(half), y.at(0.5)
    note = f"half: {half:,}"
    is_left = half_x - text_width(note, 12) > x.start + 12
    return element(
        "svg",
        element("title", "Share of all influence that the strongest training triples carry"),
        grid(x, y, x_text=short_count, y_text="{:.0%}".format),
        element("path", class_="area", d=area),
        element("path", class_="curve", d=line),
        element("path", class_="drop", d=f"M{x.start},{half_y:.1f} L{half_x:.1f},{half_y:.1f} L{half_x:.1f},{y.start}"),
        element("circle", cx=half_x, cy=half_y, r=4.5),
        element(
            "text", note, class_="note", x=half_x + (-9.0 if is_left else 9.0),
            y=half_y + (-9.0 if is_left else 18.0), text_anchor="end" if is_left else "start",
        ),
        element("text", "strongest training triples", x=(x.start + x.end) / 2, y=250, text_anchor="middle"),
        element("text", "share of all influence", x=14, y=-8),
        class_="chart",
        viewBox="0 -22 420 280",
        role="img",
    )  # fmt: skip


def short_count(value: float) -> str:
    """Write a count with few letters: 100, 10k, 1M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            return f"{value / (1e3 if name == 'k' else unit):g}{name}"
    return f"{value:g}"


def write_training_curves(path: str | Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw the content of `training_history.json` into an SVG file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(draw_training_curves(history) + "\n", encoding="utf-8")


def draw_training_curves(history: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw loss (above) and validation metrics (below) by epoch as a standalone SVG.

    `history` holds one record or more, each with `epoch`, `loss` and, where the epoch was evaluated, `valid`.
    """
    first, last = history[0]["epoch"], history[-1]["epoch"]
    x = Axis(first, max(last, first + 1), 62, 632, whole=True)
    losses = [(record["epoch"], float(record["loss"])) for record in history]
    evaluated = [record for record in history if record.get("valid")]
    return element(
        "svg",
        element("title", "Loss and validation metrics by epoch"),
        element("style", Markup(CURVES_STYLE)),
        element("rect", class_="paper", width=720, height=500),
        _draw_losses(losses, x),
        element("text", "Validation, filtered ranking", class_="title", x=62, y=262),
        _draw_metrics(evaluated, x),
        element("text", "epoch", x=347, y=488, text_anchor="middle"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox="0 0 720 500",
        width=720,
        height=500,
    )


def _draw_losses(losses: Sequence[Point], x: Axis) -> Markup:
    finite = [loss for _, loss in losses if math.isfinite(loss)] or [1.0]
    low, high = min(finite), max(finite)
    # A loss that falls by more than a factor of ten is a flat line at the bottom of a linear axis.
    logarithmic = low > 0 and high / low > 10
    y = Axis(low * 0.9 if logarithmic else 0.0, (high * 1.05) or 1.0, 206, 44, logarithmic)
    last_epoch, last_loss = losses[-1]
    title = "Training loss" + (", logarithmic" if logarithmic else "")
    drawn = [
        element("text", title, class_="title", x=62, y=28),
        grid(x, y, x_text="{:g}".format, y_text="{:.3g}".format),
        _draw_curve(losses, x, y, "c0"),
    ]
    if math.isfinite(last_loss):
        drawn.append(element("text", f"{last_loss:.3g}", class_="c0", x=x.at(last_epoch) + 10, y=y.at(last_loss) + 4))
    return join(*drawn)


def _draw_metrics(evaluated: Sequence[Mapping[str, Any]], x: Axis) -> Markup:
    y = Axis(0, 1, 440, 278)
    drawn = [grid(x, y, x_text="{:g}".format, y_text="{:g}".format)]
    if not evaluated:
        return join(*drawn, element("text", "not evaluated yet", x=347, y=364, text_anchor="middle"))
    curves = {
        label: [(record["epoch"], float(record["valid"][name])) for record in evaluated]
        for name, label in VALIDATION_METRICS.items()
        if all(name in record["valid"] for record in evaluated)
    }
    heights = spread([y.at(points[-1][1]) for points in curves.values()], gap=15)
    for number, (label, points) in enumerate(curves.items()):
        drawn.append(_draw_curve(points, x, y, f"c{number}"))
        drawn.append(element("text", label, class_=f"c{number}", x=x.at(points[-1][0]) + 10, y=heights[number] + 4))
    if "MRR" in curves:
        drawn.append(_mark_best(curves["MRR"], x, y))
    return join(*drawn)


def _mark_best(points: Sequence[Point], x: Axis, y: Axis) -> Markup:
    epoch, best = max(points, key=lambda point: point[1])
    note = f"best MRR {best:.3f} in epoch {epoch}"
    # Beside the title, where no curve comes.
    return join(
        element("circle", class_="c0", cx=x.at(epoch), cy=y.at(best), r=4.5),
        element("text", note, class_="c0", x=float(x.end), y=y.end - 16.0, text_anchor="end"),
    )


def _draw_curve(points: Sequence[Point], x: Axis, y: Axis, colour: str) -> Markup:
    line = element("path", class_=f"curve {colour}", d=polyline(points, x, y))
    if len(points) > 1:
        return line
    return join(line, element("circle", class_=colour, cx=x.at(points[0][0]), cy=y.at(points[0][1]), r=3))


def spread(places: Sequence[float], *, gap: float) -> list[float]:
    """Move places apart, in their order, until neighbours have at least `gap` between them."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for _ in range(50):
        for above, below in itertools.pairwise(order):
            lacking = gap - (moved[below] - moved[above])
            if lacking > 1e-6:
                moved[above] -= lacking / 2
                moved[below] += lacking / 2
    return moved

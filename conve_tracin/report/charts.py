"""Line charts as SVG: the training curves, and how influence is distributed."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conve_tracin.files import atomic_write
from conve_tracin.report.lettering import text_width
from conve_tracin.report.template import render

if TYPE_CHECKING:
    from markupsafe import Markup

Point = tuple[float, float]

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
        """Choose about `count` round values: powers of ten, 1, 2 or 5 times one, or multiples of such a step."""
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
    """Write the path of a curve through points; values that are not finite leave a gap."""
    commands, pen = [], "M"
    for value, height in points:
        if math.isfinite(height):
            commands.append(f"{pen}{x.at(value):.1f},{y.at(height):.1f}")
        pen = "L" if math.isfinite(height) else "M"
    return " ".join(commands)


def grid(x: Axis, y: Axis, *, x_text: Callable[[float], str], y_text: Callable[[float], str]) -> dict[str, Any]:
    """Place the axis of x, and the ticks of both axes with their numbers."""
    return {
        "left": x.start,
        "right": x.end,
        "bottom": y.start,
        "x_ticks": [(x.at(tick), x_text(tick)) for tick in x.ticks()],
        "y_ticks": [(y.at(tick), y_text(tick)) for tick in y.ticks()],
    }


def draw_concentration(counts: Sequence[int], shares: Sequence[float], half: int) -> "Markup":
    """Draw which share of all absolute influence the k strongest triples carry, over log k, as an SVG for the page.

    Args:
        counts: the numbers k, ascending from 1.
        shares: of each, 0 to 1.
        half: the smallest k that carries one half.
    """
    x = Axis(1, max(counts[-1], 2), 52, 404, logarithmic=True)
    y = Axis(0, 1, 214, 14)
    note = f"half: {half:,}"
    return render(
        "concentration.svg.j2",
        grid=grid(x, y, x_text=short_count, y_text="{:.0%}".format),
        line=polyline(list(zip(counts, shares, strict=True)), x, y),
        right=f"{x.at(counts[-1]):.1f}",
        half_x=x.at(half),
        half_y=y.at(0.5),
        note=note,
        note_is_left=x.at(half) - text_width(note, 12) > x.start + 12,
    )


def short_count(value: float) -> str:
    """Write a count in few characters: 100, 10k, 1M."""
    for least, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def write_training_curves(path: str | Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw the content of `training_history.json` into an SVG file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(draw_training_curves(history) + "\n", encoding="utf-8")


def draw_training_curves(history: Sequence[Mapping[str, Any]]) -> "Markup":
    """Draw loss (above) and validation metrics (below) by epoch as a standalone SVG.

    `history` holds one record or more, each with `epoch`, `loss` and, if the epoch was evaluated, `valid`.
    """
    first, last = history[0]["epoch"], history[-1]["epoch"]
    x = Axis(first, max(last, first + 1), 62, 632, whole=True)
    losses = [(record["epoch"], float(record["loss"])) for record in history]
    loss_axis, metric_axis = _loss_axis([loss for _, loss in losses]), Axis(0, 1, 440, 278)
    metrics = _metrics(history)
    return render(
        "training_curves.svg.j2",
        is_logarithmic=loss_axis.logarithmic,
        loss_grid=grid(x, loss_axis, x_text="{:g}".format, y_text="{:.3g}".format),
        losses=_curves({f"{losses[-1][1]:.3g}": losses}, x, loss_axis),
        metric_grid=grid(x, metric_axis, x_text="{:g}".format, y_text="{:g}".format),
        is_evaluated=any(record.get("valid") for record in history),
        metrics=_curves(metrics, x, metric_axis),
        best=_best(metrics["MRR"], x, metric_axis) if "MRR" in metrics else None,
    )


def _loss_axis(losses: Sequence[float]) -> Axis:
    finite = [loss for loss in losses if math.isfinite(loss)] or [1.0]
    low, high = min(finite), max(finite)
    # A loss that falls by more than a factor of ten is a flat line at the bottom of a linear axis.
    logarithmic = low > 0 and high / low > 10
    return Axis(low * 0.9 if logarithmic else 0.0, (high * 1.05) or 1.0, 206, 44, logarithmic)


def _metrics(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Collect the metrics that all evaluated epochs have: {label: (epoch, value) of each}."""
    evaluated = [record for record in history if record.get("valid")]
    return {
        label: [(record["epoch"], float(record["valid"][name])) for record in evaluated]
        for name, label in VALIDATION_METRICS.items()
        if evaluated and all(name in record["valid"] for record in evaluated)
    }


def _curves(points_of: Mapping[str, Sequence[Point]], x: Axis, y: Axis) -> list[dict[str, Any]]:
    """Place curves, the last point of each, and its label beside that; a curve that ends in NaN has no label."""
    ends = [points[-1][1] for points in points_of.values()]
    heights = [y.at(value) if math.isfinite(value) else y.start for value in ends]
    return [
        {
            "line": polyline(points, x, y),
            "is_point": len(points) == 1,
            "label": label if math.isfinite(points[-1][1]) else "",
            "x": x.at(points[-1][0]),
            "y": height,
            "label_y": label_y,
        }
        for (label, points), height, label_y in zip(points_of.items(), heights, spread(heights, gap=15), strict=True)
    ]


def _best(points: Sequence[Point], x: Axis, y: Axis) -> dict[str, float]:
    epoch, mrr = max(points, key=lambda point: point[1])
    return {"x": x.at(epoch), "y": y.at(mrr), "mrr": mrr, "epoch": epoch}


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

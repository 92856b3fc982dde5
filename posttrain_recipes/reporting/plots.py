"""Small SVG drawings for a page: curves over steps, and values with their intervals.

Colours are classes that the page's style gives values for light and dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from posttrain_recipes.records import Estimate
from posttrain_recipes.tracking.curves import Series

Scale = Callable[[float], float]

WIDTH, HEIGHT = 460, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 26
POINTS = 300
"""A longer curve is drawn through the means of so many parts of it."""
SMOOTH_FROM = 40
"""A curve of so many points is drawn faintly, with a smoothed one over it."""


def colour(index: int) -> str:
    """The classes of the curve of that number: six colours, then the same ones dashed, dotted."""
    return f"s{index % 6}" + f" d{index // 6 % 3}" * (index >= 6)


def curves(series: Mapping[str, Series], classes: Mapping[str, str] | None = None) -> str:
    """A chart of one or more curves over steps; empty where there is no point.

    Args:
        classes: of curves that are not told apart by their order; see `colour`.
    """
    finite = {
        name: [(step, value) for step, value in points if math.isfinite(value)]
        for name, points in series.items()
    }
    drawn = {name: _thin(points) for name, points in finite.items() if points}
    if not drawn:
        return ""
    steps = [step for points in drawn.values() for step, _ in points]
    values = [value for points in drawn.values() for _, value in points]
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    ticks = nice_ticks(min(values), max(values))
    y_low, y_high = min(ticks[0], *values), max(ticks[-1], *values)

    def x(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (value - y_low) / (y_high - y_low) if y_high > y_low else 0.5
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(t) + 3.5:.1f}" text-anchor="end">'
        f"{number(t)}</text>"
        for t in ticks
    ]
    for tick in _step_ticks(x_low, x_high):
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{tick:,}</text>"
        )
    for index, (name, points) in enumerate(drawn.items()):
        looks = classes[name] if classes else f"s{index % 6}"
        line = f"line {looks}"
        smooth = _smooth(points) if len(points) >= SMOOTH_FROM and _is_noisy(points) else []
        faint = " faint" if smooth else ""
        parts.append(_polyline(points, x, y, line + faint))
        if smooth:
            parts.append(_polyline(smooth, x, y, line))
        if len(points) == 1:
            step, value = points[0]
            parts.append(f'<circle class="dot {looks}" cx="{x(step)}" cy="{y(value)}" r="3"/>')
    label = escape(f"{', '.join(drawn)} over steps {x_low} to {x_high}")
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def intervals(estimates: Sequence[Estimate | None], low: float, high: float) -> str:
    """Values with their intervals, one under another, on the scale from `low` to `high`."""
    width, height = 150, 12 * len(estimates) + 2

    def x(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return 4 + min(1.0, max(0.0, share)) * (width - 8)

    parts = [f'<line class="grid" x1="4" x2="{width - 4}" y1="{height - 1}" y2="{height - 1}"/>']
    for index, estimate in enumerate(estimates):
        if estimate is None or math.isnan(estimate.value):
            continue
        y = 12 * index + 7
        colour = "old" if index < len(estimates) - 1 else "new"
        if not math.isnan(estimate.low):
            parts.append(
                f'<line class="whisker {colour}" x1="{x(estimate.low):.1f}" '
                f'x2="{x(estimate.high):.1f}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle class="dot {colour}" cx="{x(estimate.value):.1f}" cy="{y}" r="4"/>')
    return (
        f'<svg class="spread" viewBox="0 0 {width} {height}" aria-hidden="true">'
        + "".join(parts)
        + "</svg>"
    )


def scale(estimates: Sequence[Estimate | None], *, share: bool) -> tuple[float, float]:
    """Ends of a scale that holds the estimates; 0 to 1 for shares."""
    if share:
        return 0.0, 1.0
    found = [v for e in estimates if e for v in (e.value, e.low, e.high) if math.isfinite(v)]
    if not found:
        return 0.0, 1.0
    low, high = _drawable(min(found)), _drawable(max(found))
    margin = 0.05 * (high - low) or max(1.0, 1e-9 * abs(high))
    return low - margin, high + margin


def _drawable(value: float) -> float:
    """The value, or the nearest whose difference to any other is still a number."""
    return max(-1e300, min(1e300, value))


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `count` of them."""
    low, high = _drawable(low), _drawable(high)
    if not high - low > 1e-300:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's label: `0.05`, `1.5k`, `2e-05`."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}" if f"{value:.0e}" != f"{value:.1e}" else f"{value:.1e}"
    if abs(value) >= 1e4:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _step_ticks(low: int, high: int) -> list[int]:
    ticks = [int(t) for t in nice_ticks(low, high, 5) if low <= t <= high and t == int(t)]
    return ticks or [low, high]


def _thin(points: Series) -> Series:
    if len(points) <= POINTS:
        return list(points)
    size = len(points) / POINTS
    thinned: Series = []
    for index in range(POINTS):
        part = points[int(index * size) : int((index + 1) * size)]
        thinned.append((part[len(part) // 2][0], math.fsum(v for _, v in part) / len(part)))
    return thinned


def _is_noisy(points: Series) -> bool:
    """Whether a curve turns often. A mean of one that does not, as a learning rate, only lags."""
    rises = [b > a for (_, a), (_, b) in itertools.pairwise(points) if b != a]
    turns = sum(a != b for a, b in itertools.pairwise(rises))
    return turns > len(points) / 10


def _smooth(points: Series) -> Series:
    """An exponential mean over a twentieth of the curve, without its bias to the first value."""
    keep = 1 - 1 / max(3.0, len(points) / 20)
    total = weight = 0.0
    smoothed: Series = []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append((step, total / weight))
    return smoothed


def _polyline(points: Series, x: Scale, y: Scale, classes: str) -> str:
    text = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    return f'<polyline class="{classes}" points="{text}"/>'

"""A drawing of what recipes showed: a line for each claim, from before to after each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BEFORE, AFTER, GREY = "#7f7f7f", "#1f77b4", "#d9d9d9"
ROW = 0.32
"""Inches for each line."""


@dataclass(frozen=True)
class Line:
    """One metric of a recipe after a stage."""

    label: str
    share: bool
    """Whether it is a share, drawn in percent."""
    before: Sequence[float]
    after: Sequence[float]
    """One value a seed, both."""


def draw(lines: Sequence[Line], path: Path) -> None:
    """Write an SVG: shares on one axis from 0 to 100%, what is not a share on another below it.

    The same lines make the same bytes with the same matplotlib.
    """
    groups = [g for g in ([x for x in lines if x.share], [x for x in lines if not x.share]) if g]
    settings = {"svg.fonttype": "none", "svg.hashsalt": "effects", "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        heights = [len(group) * ROW + 0.5 for group in groups]
        figure, axes = plt.subplots(
            len(groups),
            figsize=(8, sum(heights) + 0.35),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        for (axis,), group in zip(axes, groups, strict=True):
            _group(axis, group)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _group(axis: Axes, lines: Sequence[Line]) -> None:
    scale = 100 if lines[0].share else 1
    for row, line in enumerate(lines):
        start = scale * sum(line.before) / len(line.before)
        values = [scale * value for value in line.after]
        axis.plot([start, sum(values) / len(values)], [row, row], color=GREY, lw=3, zorder=1)
        axis.scatter([start], [row], 42, "white", edgecolors=BEFORE, lw=1.5, zorder=2)
        axis.scatter(values, [row] * len(values), 36, AFTER, alpha=0.7, lw=0, zorder=3)
    axis.scatter([], [], 42, "white", edgecolors=BEFORE, lw=1.5, label="before")
    axis.scatter([], [], 36, AFTER, alpha=0.7, lw=0, label="after, each seed")
    axis.set_yticks(range(len(lines)), [line.label for line in lines])
    axis.set_ylim(len(lines) - 0.5, -0.5)
    if lines[0].share:
        axis.set_xlim(-2, 102)
        axis.xaxis.set_major_formatter("{x:.0f}%")
    axis.grid(axis="x", color=GREY, lw=0.5)
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)

"""Plots as inline SVG, in one style: units on every axis, a palette that color-blind readers can tell apart.

Invariant: a plot refers to nothing outside itself, and the same data gives the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from janus_dist.config.streams import SPECS

STREAM_COLORS = {**{name: spec.color for name, spec in SPECS.items()}, "all": "#555555"}
OTHER_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colors of curves that belong to no stream, used in turn."""
SMOOTHED_SHARE = 0.05
"""Share of all steps that a point of a smoothed curve is the mean of."""
MAX_BARS = 40
"""Largest number of bars in a histogram."""
BIN_RATIO = 2**0.25
"""Ratio of the upper to the lower edge of a bin on a log scale."""
DEFAULT_COLOR = "#555555"
"""Color of a plot that belongs to no stream."""

Curve = tuple[Sequence[float], Sequence[float]]
"""(steps, values), both of the same length."""


def column(lines: Sequence[Mapping[str, float]], metric: str) -> Curve:
    """Return the curve of a metric over the steps that have it, from the lines of a metrics.jsonl."""
    logged = [line for line in lines if metric in line]
    return [line["step"] for line in logged], [line[metric] for line in logged]


def curves(
    named: Mapping[str, Curve],
    y_label: str,
    smooth: bool = True,
    levels: Mapping[str, float] | None = None,
    percent: bool = False,
    marks: Sequence[float] = (),
) -> str:
    """Return the SVG of curves by the name of their stream or run.

    With `smooth` a smoothed curve is drawn over the raw, thin one. `levels` are dashed horizontal lines by the same
    names, `marks` dotted vertical lines at the steps of events.
    """
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, (steps, values)) in enumerate(named.items()):
        color = STREAM_COLORS.get(name, OTHER_COLORS[index % len(OTHER_COLORS)])
        if smooth:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
        dot = "o" if len(steps) == 1 else None  # a line of one point is invisible
        axes.plot(steps, _smoothed(values) if smooth else values, color=color, linewidth=1.6, label=name, marker=dot)
        if levels and name in levels:
            axes.axhline(levels[name], color=color, linestyle=(0, (4, 3)), linewidth=1)
    for step in marks:
        axes.axvline(step, color="#888888", linestyle=(0, (1, 2)), linewidth=0.8)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylabel(y_label)
    highest = max([*(levels or {}).values(), *(value for _, values in named.values() for value in values)], default=0)
    axes.set_ylim(0, 1.12 * highest or 1)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if len(named) > 1:
        axes.legend(frameon=False, fontsize="small", ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    return _svg(figure)


def histogram(values: NDArray[np.int64] | NDArray[np.float64], x_label: str, stream: str, percent: bool = False) -> str:
    """Return the SVG of a histogram of `values`: [samples] int64 or float64, one value for each sample."""
    is_integer = values.dtype.kind == "i"
    low, high = float(values.min()), float(values.max())
    if is_integer:
        width = np.ceil((high - low + 1) / MAX_BARS)
        edges = np.arange(low - 0.5, high + width, width)
    else:
        edges = np.linspace(low, high if high > low else low + 1, MAX_BARS + 1)
    figure, axes = _small_figure(x_label, "samples")
    counts, _ = np.histogram(values, edges)
    axes.bar(
        edges[:-1], counts, np.diff(edges), align="edge", color=STREAM_COLORS.get(stream, DEFAULT_COLOR), alpha=0.85
    )
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif is_integer:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure)


def binned(counts: Mapping[float, int], x_label: str, stream: str) -> str:
    """Return the SVG of a histogram on a log scale, four bins from one power of two to the next.

    `counts` are numbers of records by the lower edge of their bin.
    """
    figure, axes = _small_figure(x_label, "records")
    edges = np.array(sorted(counts))
    edges, heights = np.maximum(edges, edges[edges > 0].min() / BIN_RATIO), [counts[edge] for edge in edges.tolist()]
    widths = edges * (BIN_RATIO - 1)
    axes.bar(edges, heights, widths, align="edge", color=STREAM_COLORS.get(stream, DEFAULT_COLOR), alpha=0.85)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    return _svg(figure)


def ranked(counts: NDArray[np.int64], x_label: str, y_label: str, stream: str) -> str:
    """Return the SVG of `counts`: [ids] int64 in descending order."""
    figure, axes = _small_figure(x_label, y_label)
    color = STREAM_COLORS.get(stream, DEFAULT_COLOR)
    axes.fill_between(np.arange(1, len(counts) + 1), np.sort(counts)[::-1], step="mid", color=color, alpha=0.85)
    axes.set_xlim(left=1)
    axes.set_ylim(bottom=0)
    return _svg(figure)


def points(named: Mapping[str, Sequence[float]], y_label: str, stream: str) -> str:
    """Return the SVG of values by name: each value is a point, the mean of a name is a line."""
    figure, axes = _small_figure("", y_label)
    color = STREAM_COLORS.get(stream, DEFAULT_COLOR)
    for index, values in enumerate(named.values()):
        axes.hlines(float(np.mean(values)), index - 0.25, index + 0.25, color=color, linewidth=2)
        axes.plot([index] * len(values), values, "o", color=color, alpha=0.6, markersize=4)
    axes.set_xticks(range(len(named)), list(named))
    axes.set_xlim(-0.6, len(named) - 0.4)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return _svg(figure)


def _small_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 2.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.grid(alpha=0.25, linewidth=0.5, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return the centred moving mean of `values`, over fewer values near the ends."""
    half = max(1, round(len(values) * SMOOTHED_SHARE / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return ((sums[high] - sums[low]) / (high - low)).tolist()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "janus-dist", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", svg, count=1, flags=re.S)  # HTML must not contain the XML prologue

"""HTML page that compares two runs: the settings that differ, and the curves of both in the same plots.

Invariant: figures and verdict are those of `janus runs compare`.
"""

import json
from pathlib import Path

from janus_dist.config.streams import STREAMS
from janus_dist.report import plot
from janus_dist.report.comparison import Comparison, labels
from janus_dist.report.page import render
from janus_dist.storage import fs
from janus_dist.storage.json_lines import read_records

CURVES = (
    ("loss", "loss/all", "nats"),
    *((f"loss, {stream}", f"loss/{stream}", "cross-entropy per label, nats") for stream in STREAMS),
    *((f"loss on held-out samples, {stream}", f"validation/{stream}", "nats") for stream in STREAMS),
    ("gradient", "optim/grad_norm", "norm before clipping"),
    ("learning rate", "optim/lr", ""),
    ("speed", "perf/tokens_per_s", "tokens per second"),
    ("most memory of the first rank so far", "mem/peak_gib", "GiB"),
)
"""(title, metric, label of the y axis) of the plots; a plot is drawn when either run has the metric."""
SMOOTHED = ("loss/", "optim/grad_norm", "perf/")
"""Beginnings of the names of metrics whose curves are smoothed."""


def write_comparison(first: Path, second: Path, comparison: Comparison, path: Path) -> None:
    """Write the page of the runs in two folders and their comparison to `path`."""
    names = labels(first, second)
    records = [read_records(run / "metrics.jsonl") for run in (first, second)]
    plots = []
    for title, metric, unit in CURVES:
        curves = {name: plot.column(lines, metric) for name, lines in zip(names, records, strict=True)}
        if any(any(values) for _, values in curves.values()):  # both, so that a run has one color in all plots
            plots.append((title, plot.curves(curves, unit, smooth=metric.startswith(SMOOTHED))))
    page = render(
        "compare.html.j2",
        title=f"{names[0]} compared with {names[1]}",
        names=names,
        verdict=comparison.describe_winner(*names),
        common_steps=comparison.describe_common_steps(),
        comparison=comparison,
        settings={key: [_as_text(value) for value in values] for key, values in comparison.settings.items()},
        plots=plots,
    )
    fs.write_whole(path, page.encode())


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""Two runs beside each other as a page: what differs in their settings, their curves over each other.

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
"""(title, metric, what its axis says) of the plots, where either run has the metric."""


SMOOTHED = ("loss/", "optim/grad_norm", "perf/")


def write_comparison(first: Path, second: Path, compared: Comparison, path: Path) -> None:
    """Write the page of two runs and their comparison."""
    names = labels(first, second)
    lines = [read_records(run / "metrics.jsonl") for run in (first, second)]
    plots = []
    for title, metric, unit in CURVES:
        curves = {name: plot.column(of, metric) for name, of in zip(names, lines, strict=True)}
        if any(any(values) for _, values in curves.values()):  # both, so that a run has one color in all plots
            plots.append((title, plot.curves(curves, unit, smooth=metric.startswith(SMOOTHED))))
    page = render(
        "compare.html.j2",
        title=f"{names[0]} beside {names[1]}",
        names=names,
        verdict=compared.ahead(*names),
        parted=compared.parted(),
        found=compared,
        settings={key: [_said(value) for value in values] for key, values in compared.settings.items()},
        plots=plots,
    )
    fs.write_whole(path, page.encode())


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

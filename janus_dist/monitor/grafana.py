"""Grafana dashboard of all metrics, under the names that Ray's Prometheus exporter gives them.

    python -m janus_dist.monitor.grafana > cluster/grafana/janus-dist.json

Invariant: the file is generated from `METRICS`; a test compares them.
"""

import json
from typing import Any

from janus_dist.monitor.metrics import METRICS, Metric

PREFIX = "ray_janus_dist_"
"""Beginning of the exported names; Ray puts `ray_` before the names of applications."""
UNITS = {"s": "s", "share": "percentunit", "1/s": "ops", "MiB": "mbytes", "GiB": "gbytes"}
"""Grafana's names of our units; mbytes are MiB (decmbytes would be millions of bytes)."""
WIDTH, HEIGHT, COLUMNS = 8, 7, 3
"""Width and height of a panel in cells of Grafana's grid, which is 24 wide, and panels in a line."""
NOT_SHOWN = ("step", "time")
"""Metrics without a panel."""


def gauge_name(metric: str) -> str:
    """Return the name of a metric's gauge in Ray, for `loss/all` janus_dist_loss_all."""
    return "janus_dist_" + metric.replace("/", "_")


def dashboard() -> dict[str, Any]:
    """Return the dashboard as an object for JSON, with one row of panels for each group of metrics (`loss/`, ...)."""
    groups: dict[str, list[Metric]] = {}
    for metric in METRICS:
        if metric.name not in NOT_SHOWN:
            groups.setdefault(metric.name.split("/")[0], []).append(metric)
    panels: list[dict[str, Any]] = []
    y = 0
    for group, metrics in groups.items():
        panels.append({"type": "row", "title": group, "id": len(panels) + 1, "gridPos": _cell(0, y, 24, 1)})
        y += 1
        for index, metric in enumerate(metrics):
            x = index % COLUMNS * WIDTH
            panels.append(_panel(metric, len(panels) + 1, _cell(x, y + index // COLUMNS * HEIGHT, WIDTH, HEIGHT)))
        y += -(-len(metrics) // COLUMNS) * HEIGHT
    return {
        "uid": "janus-dist",
        "title": "janus-dist",
        "tags": ["janus-dist"],
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _variable("project", f"label_values({PREFIX}step, project)"),
                _variable("run", f'label_values({PREFIX}step{{project=~"$project"}}, run)'),
            ]
        },
        "panels": panels,
    }  # fmt: skip


def _variable(name: str, query: str) -> dict[str, Any]:
    """Return a drop-down list above the panels whose choices are the values of a label."""
    return {
        "name": name,
        "type": "query",
        "multi": True,
        "includeAll": True,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": query,
        "refresh": 2,
    }


def _panel(metric: Metric, panel_id: int, position: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "type": "timeseries",
        "id": panel_id,
        "title": metric.name,
        "description": metric.meaning,
        "datasource": source,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": UNITS.get(metric.unit, "short")}, "overrides": []},
        "targets": [
            {
                "datasource": source,
                "expr": f'ray_{gauge_name(metric.name)}{{project=~"$project",run=~"$run"}}',
                "legendFormat": "{{project}} {{run}}",
                "refId": "A",
            }
        ],
    }


def _cell(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))

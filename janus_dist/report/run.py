"""The report of a run, or of the runs in a folder: one HTML file that needs nothing else, not even a network.

Read from what the runs left behind (config.json, metrics.jsonl, evaluation/evaluation.json), so that it can be
written at any time, also of a run that is not over. Invariant: a figure in the report is a figure in one of those
files.
"""

import base64
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_dist.config.streams import IMAGE_STREAMS, STREAMS
from janus_dist.errors import DataError
from janus_dist.monitor import events
from janus_dist.monitor.console import count, duration
from janus_dist.monitor.sinks import sample_folders
from janus_dist.report import plot
from janus_dist.report.page import render
from janus_dist.storage import fs
from janus_dist.storage.json_lines import read_records

LAST_STEPS = 20
MARKED = ("resumed", "went back")
MOST_SAMPLES = 6
"""Checkpoints whose samples are shown."""
OTHERS = (
    ("gradient", "optim/grad_norm", "norm before clipping", False),
    ("speed", "perf/tokens_per_s", "tokens per second", False),
    ("arithmetic", "perf/mfu", "share of the device's peak", True),
    ("waiting for data", "perf/data_wait", "share of a step's time", True),
    ("most memory of the first rank so far", "mem/peak_gib", "GiB", False),
)
"""(title, metric, what its axis says, whether it shows percent) of plots with one curve, where the metric is there."""
STAGE_SECTIONS = ("stage", "mix", "batch", "optim", "train")


@dataclass(frozen=True)
class RunView:
    """What the report shows of one run."""

    name: str
    facts: list[tuple[str, str]]
    losses: str
    loss: plot.Curve
    """Of all streams together."""
    has_marks: bool
    """It was resumed, or went back, at steps that its curves mark."""
    held_out: str | None
    """None where nothing was validated."""
    samples: list["Samples"]
    happened: list[tuple[events.Event, int]]
    """In order, without saves; of warnings that say the same the first, and how many there were."""
    mixture: str
    others: list[tuple[str, str]]
    """(title, plot) of what else was measured."""
    training_s: float
    config: dict[str, Any]

    @property
    def settings(self) -> str:
        """Return the whole recipe as JSON."""
        return json.dumps(self.config, indent=1)


@dataclass(frozen=True)
class Samples:
    """What a checkpoint drew and answered at fixed prompts."""

    step: int
    grid: str | None
    """A data URL."""
    answers: list[dict[str, Any]]
    """Each with its `pictures`, data URLs."""


def write_report(root: Path) -> Path:
    """Write ROOT/report.html of the runs in ROOT, or of ROOT if it is one itself; DataError when there is none."""
    runs = [view(folder) for folder in run_folders(root)]
    if not runs:
        raise DataError(
            f"no run under {root}: no folder with a metrics.jsonl", "give the folder of a run or of several"
        )
    found = _evaluation(root)
    page = render(
        "run.html.j2",
        title=f"{root.name}: run report",
        warnings=events.WARNINGS,
        runs=runs,
        settings=list(settings_table([run.config for run in runs])),
        beside=list(beside(runs)),
        training_time=duration(sum(run.training_s for run in runs)),
        evaluation=found,
        picture=lambda name: _data_url(root / "evaluation" / "images" / name),
        prompts=_by_prompt(found) if found else {},
    )
    path = root / "report.html"
    fs.write_whole(path, page.encode())
    return path


def run_folders(root: Path) -> list[Path]:
    """Return ROOT if it is a run, else the runs directly in it, in the order in which they began."""
    if (root / "metrics.jsonl").exists():
        return [root]
    found = [path.parent for path in root.glob("*/metrics.jsonl") if read_records(path)]
    return sorted(found, key=lambda folder: read_records(folder / "metrics.jsonl")[0]["time"])


def view(folder: Path) -> RunView:
    """Return curves and facts of one run."""
    lines = read_records(folder / "metrics.jsonl")
    config = _read_json(folder / "config.json") or {}
    held_out, happened = _columns(lines, "validation/"), events.read(folder)
    marks = [event.step for event in happened if event.kind in MARKED]
    return RunView(
        name=folder.name,
        facts=list(_facts(lines, config)),
        losses=plot.curves(_columns(lines, "loss/"), "cross-entropy per label, nats", marks=marks),
        loss=plot.column(lines, "loss/all"),
        has_marks=bool(marks),
        held_out=plot.curves(held_out, "cross-entropy per label, nats", smooth=False) if held_out else None,
        samples=list(_samples(folder)),
        happened=list(_once(happened)),
        mixture=plot.curves(
            _columns(lines, "mix/"), "share of all so far", smooth=False, levels=_asked(config), percent=True
        ),
        others=list(_others(lines)),
        training_s=sum(line["perf/step_s"] for line in lines),
        config=config,
    )


def _others(lines: list[dict[str, float]]) -> Iterator[tuple[str, str]]:
    for title, name, unit, is_percent in OTHERS:
        curve = plot.column(lines, name)
        if curve[0]:
            yield title, plot.curves({"all": curve}, unit, percent=is_percent)


def beside(runs: list[RunView]) -> Iterator[tuple[int, str]]:
    """Yield (stage, losses of its runs in one plot) of stages of which there are several runs."""
    stages: dict[int, dict[str, plot.Curve]] = {}
    for run in runs:
        if run.loss[0]:
            stages.setdefault(run.config.get("stage", 0), {})[run.name] = run.loss
    for stage, named in sorted(stages.items()):
        if len(named) > 1:
            yield stage, plot.curves(named, "loss, nats")


def _once(happened: list[events.Event]) -> Iterator[tuple[events.Event, int]]:
    number = Counter(event.group for event in happened)
    for event in happened:
        if event.kind not in events.WARNINGS:
            if event.kind != "saved":
                yield event, 1
        elif number[event.group]:
            yield event, number.pop(event.group)


def _samples(folder: Path) -> Iterator[Samples]:
    """Yield the samples of some checkpoints, spread evenly over those that have any, first and last included."""
    there = sample_folders(folder)
    last = max(1, min(MOST_SAMPLES, len(there)) - 1)
    for number in sorted({round(place * (len(there) - 1) / last) for place in range(last + 1)} if there else ()):
        found = _read_json(there[number] / "samples.json") or {}
        grid = there[number] / "grid.png"
        answers = [
            one | {"pictures": [_data_url(there[number] / name) for name in one.get("pictures", ())]}
            for one in found["answers"]
        ]
        yield Samples(found["step"], _data_url(grid) if grid.exists() else None, answers)


def settings_table(configs: list[dict[str, Any]]) -> Iterator[tuple[str, list[str], bool]]:
    """Yield (setting, its value in each run, whether runs differ in it) of the settings that make a
    stage what it is."""
    flat = [dict(_flat(config)) for config in configs]
    for name in dict.fromkeys(name for config in flat for name in config):
        if name.split(".")[0] in STAGE_SECTIONS:
            values = [config.get(name, "") for config in flat]
            yield name, values, len(set(values)) > 1


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, ", ".join(str(item).replace("_", " ") for item in value)
        else:
            yield prefix + name, "" if value is None else f"{value:,g}" if type(value) is float else str(value)


def _facts(lines: list[dict[str, float]], config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if not lines:
        yield "steps", "none yet"
        return
    asked = config.get("train", {}).get("steps")
    yield "steps", f"{int(lines[-1]['step']):,}" + (f" of {asked:,}" if asked else "")
    yield "tokens", count(sum(line["batch/tokens"] for line in lines))
    yield "training time", duration(sum(line["perf/step_s"] for line in lines))
    tail = lines[-LAST_STEPS:]
    for name in STREAMS:
        values = [line[f"loss/{name}"] for line in tail if f"loss/{name}" in line]
        if values:
            yield f"{name} loss", f"{sum(values) / len(values):.3f}"
    for line in [line for line in lines if any(name.startswith("validation/") for name in line)][-1:]:
        for name in STREAMS:
            if f"validation/{name}" in line:
                yield f"{name}, held out", f"{line[f'validation/{name}']:.3f}"
    yield "tokens a second", count(statistics.median(line["perf/tokens_per_s"] for line in tail))
    if "perf/mfu" in tail[-1]:
        yield "MFU", f"{_mean(tail, 'perf/mfu'):.1%}"
    if "mem/peak_gib" in tail[-1]:
        yield "most memory", f"{tail[-1]['mem/peak_gib']:.1f} GiB"
    yield "fill of rows", f"{_mean(tail, 'batch/fill'):.1%}"
    yield "waiting for data", f"{_mean(tail, 'perf/data_wait'):.1%}"
    yield "skipped steps", f"{int(lines[-1]['optim/skipped_steps'])}"


def _mean(lines: list[dict[str, float]], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


def _columns(lines: list[dict[str, float]], prefix: str) -> dict[str, plot.Curve]:
    """Return curves of the streams that have any value other than 0."""
    found = {name: plot.column(lines, prefix + name) for name in STREAMS}
    return {name: curve for name, curve in found.items() if any(curve[1])}


def _asked(config: dict[str, Any]) -> dict[str, float]:
    weights = {name: config.get("mix", {}).get(name, 0) for name in STREAMS}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total else {}


def _evaluation(root: Path) -> dict[str, Any] | None:
    found = _read_json(root / "evaluation" / "evaluation.json")
    is_whole = found is not None and all(f"{name}_accuracy" in found for name in IMAGE_STREAMS)
    return found if is_whole else None


def _by_prompt(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for drawing in found["drawings"]:
        grouped.setdefault(drawing["prompt"], []).append(drawing)
    return grouped


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _data_url(path: Path) -> str:
    if not path.exists():
        raise DataError(f"evaluation.json names {path}, which is not there", "evaluate the run again")
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

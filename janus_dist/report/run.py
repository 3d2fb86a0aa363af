"""Report of a run, or of all runs in a folder: one self-contained HTML file that needs no network.

Everything is read from the files of the runs (config.json, metrics.jsonl, evaluation/evaluation.json), so the report
can be written at any time, also while a run is still training. Invariant: every figure in the report is derived
from one of those files.
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
"""Number of last steps that figures are means of."""
MARKED = ("resumed", "went back")
"""Kinds of events that curves mark."""
MOST_SAMPLES = 6
"""Largest number of checkpoints whose samples are shown."""
OTHERS = (
    ("gradient", "optim/grad_norm", "norm before clipping", False),
    ("speed", "perf/tokens_per_s", "tokens per second", False),
    ("arithmetic", "perf/mfu", "share of the device's peak", True),
    ("waiting for data", "perf/data_wait", "share of a step's time", True),
    ("most memory of the first rank so far", "mem/peak_gib", "GiB", False),
)
"""(title, metric, label of the y axis, is_percent) of plots with one curve, drawn when the metric exists."""
STAGE_SECTIONS = ("stage", "mix", "batch", "optim", "train")
"""Sections of the recipe that the table of settings shows."""


@dataclass(frozen=True)
class RunView:
    """Content of the report about one run."""

    name: str
    facts: list[tuple[str, str]]
    losses: str
    loss: plot.Curve
    """Loss of all streams together, in nats."""
    has_marks: bool
    """True when the run was resumed or rolled back; its curves mark these steps."""
    held_out: str | None
    """SVG of the held-out losses; None when nothing was validated."""
    samples: list["CheckpointSamples"]
    happened: list[tuple[events.Event, int]]
    """(event, number of such events) in order, without saves; repeated warnings are shown once."""
    mixture: str
    others: list[tuple[str, str]]
    """(title, SVG) of the plots of `OTHERS`."""
    training_s: float
    config: dict[str, Any]

    @property
    def settings(self) -> str:
        """Return the whole recipe as JSON."""
        return json.dumps(self.config, indent=1)


@dataclass(frozen=True)
class CheckpointSamples:
    """Drawings and answers of a checkpoint for fixed prompts."""

    step: int
    grid: str | None
    """Data URL of a picture of all drawings."""
    answers: list[dict[str, Any]]
    """Entries of samples.json, with `pictures` as data URLs."""


def write_report(root: Path) -> Path:
    """Write ROOT/report.html about the runs in ROOT, or about ROOT when it is a run.

    Raises DataError when there is no run.
    """
    runs = [view(folder) for folder in run_folders(root)]
    if not runs:
        raise DataError(
            f"no run under {root}: no folder with a metrics.jsonl", "give the folder of a run or of several"
        )
    evaluation = _evaluation(root)
    page = render(
        "run.html.j2",
        title=f"{root.name}: run report",
        warnings=events.WARNINGS,
        runs=runs,
        settings=list(settings_table([run.config for run in runs])),
        same_stage=list(same_stage_plots(runs)),
        training_time=duration(sum(run.training_s for run in runs)),
        evaluation=evaluation,
        picture=lambda name: _data_url(root / "evaluation" / "images" / name),
        prompts=_by_prompt(evaluation) if evaluation else {},
    )
    path = root / "report.html"
    fs.write_whole(path, page.encode())
    return path


def run_folders(root: Path) -> list[Path]:
    """Return [ROOT] when it is a run, else the runs directly in it in the order of their starts."""
    if (root / "metrics.jsonl").exists():
        return [root]
    folders = [path.parent for path in root.glob("*/metrics.jsonl") if read_records(path)]
    return sorted(folders, key=lambda folder: read_records(folder / "metrics.jsonl")[0]["time"])


def view(folder: Path) -> RunView:
    """Return the content of the report about the run in `folder`."""
    lines = read_records(folder / "metrics.jsonl")
    config = _read_json(folder / "config.json") or {}
    held_out, history = _columns(lines, "validation/"), events.read(folder)
    marks = [event.step for event in history if event.kind in MARKED]
    return RunView(
        name=folder.name,
        facts=list(_facts(lines, config)),
        losses=plot.curves(_columns(lines, "loss/"), "cross-entropy per label, nats", marks=marks),
        loss=plot.column(lines, "loss/all"),
        has_marks=bool(marks),
        held_out=plot.curves(held_out, "cross-entropy per label, nats", smooth=False) if held_out else None,
        samples=list(_samples(folder)),
        happened=list(_grouped(history)),
        mixture=plot.curves(
            _columns(lines, "mix/"), "share of all so far", smooth=False, levels=_target_mixture(config), percent=True
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


def same_stage_plots(runs: list[RunView]) -> Iterator[tuple[int, str]]:
    """Yield (stage, SVG with the losses of all its runs) for each stage with several runs."""
    stages: dict[int, dict[str, plot.Curve]] = {}
    for run in runs:
        if run.loss[0]:
            stages.setdefault(run.config.get("stage", 0), {})[run.name] = run.loss
    for stage, named in sorted(stages.items()):
        if len(named) > 1:
            yield stage, plot.curves(named, "loss, nats")


def _grouped(history: list[events.Event]) -> Iterator[tuple[events.Event, int]]:
    """Yield (event, number of such events) without saves; warnings of one group only once, at the first of them."""
    counts = Counter(event.group for event in history)
    for event in history:
        if event.kind not in events.WARNINGS:
            if event.kind != "saved":
                yield event, 1
        elif counts[event.group]:
            yield event, counts.pop(event.group)


def _samples(folder: Path) -> Iterator[CheckpointSamples]:
    """Yield the samples of up to MOST_SAMPLES checkpoints, evenly spread, with the first and the last of them."""
    folders = sample_folders(folder)
    last = max(1, min(MOST_SAMPLES, len(folders)) - 1)
    for index in sorted({round(i * (len(folders) - 1) / last) for i in range(last + 1)} if folders else ()):
        content = _read_json(folders[index] / "samples.json") or {}
        grid = folders[index] / "grid.png"
        answers = [
            entry | {"pictures": [_data_url(folders[index] / name) for name in entry.get("pictures", ())]}
            for entry in content["answers"]
        ]
        yield CheckpointSamples(content["step"], _data_url(grid) if grid.exists() else None, answers)


def settings_table(configs: list[dict[str, Any]]) -> Iterator[tuple[str, list[str], bool]]:
    """Yield (setting, its value in each run, True when runs differ in it) for the settings in STAGE_SECTIONS."""
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
    """Yield (name, value) of the figures of a run."""
    if not lines:
        yield "steps", "none yet"
        return
    steps = config.get("train", {}).get("steps")
    yield "steps", f"{int(lines[-1]['step']):,}" + (f" of {steps:,}" if steps else "")
    yield "tokens", count(sum(line["batch/tokens"] for line in lines))
    yield "training time", duration(sum(line["perf/step_s"] for line in lines))
    tail = lines[-LAST_STEPS:]
    yield from _loss_facts(tail)
    yield from _held_out_facts(lines)
    yield "tokens a second", count(statistics.median(line["perf/tokens_per_s"] for line in tail))
    if "perf/mfu" in tail[-1]:
        yield "MFU", f"{_mean(tail, 'perf/mfu'):.1%}"
    if "mem/peak_gib" in tail[-1]:
        yield "most memory", f"{tail[-1]['mem/peak_gib']:.1f} GiB"
    yield "fill of rows", f"{_mean(tail, 'batch/fill'):.1%}"
    yield "waiting for data", f"{_mean(tail, 'perf/data_wait'):.1%}"
    yield "skipped steps", f"{int(lines[-1]['optim/skipped_steps'])}"


def _loss_facts(lines: list[dict[str, float]]) -> Iterator[tuple[str, str]]:
    """Yield (name, mean loss in nats) of each stream with a loss in `lines`."""
    for name in STREAMS:
        values = [line[f"loss/{name}"] for line in lines if f"loss/{name}" in line]
        if values:
            yield f"{name} loss", f"{sum(values) / len(values):.3f}"


def _held_out_facts(lines: list[dict[str, float]]) -> Iterator[tuple[str, str]]:
    """Yield (name, held-out loss in nats) of each stream at the last step that was validated."""
    validated = [line for line in lines if any(name.startswith("validation/") for name in line)]
    for name in STREAMS if validated else ():
        if f"validation/{name}" in validated[-1]:
            yield f"{name}, held out", f"{validated[-1][f'validation/{name}']:.3f}"


def _mean(lines: list[dict[str, float]], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


def _columns(lines: list[dict[str, float]], prefix: str) -> dict[str, plot.Curve]:
    """Return the curves of the streams that have a value other than 0, by stream."""
    columns = {name: plot.column(lines, prefix + name) for name in STREAMS}
    return {name: curve for name, curve in columns.items() if any(curve[1])}


def _target_mixture(config: dict[str, Any]) -> dict[str, float]:
    """Return the share of each stream that the recipe sets; empty when it sets none."""
    weights = {name: config.get("mix", {}).get(name, 0) for name in STREAMS}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total else {}


def _evaluation(root: Path) -> dict[str, Any] | None:
    """Return the evaluation of the runs in ROOT; None when it is missing or of one stream only."""
    evaluation = _read_json(root / "evaluation" / "evaluation.json")
    if evaluation is None or not all(f"{name}_accuracy" in evaluation for name in IMAGE_STREAMS):
        return None
    return evaluation


def _by_prompt(evaluation: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for drawing in evaluation["drawings"]:
        grouped.setdefault(drawing["prompt"], []).append(drawing)
    return grouped


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _data_url(path: Path) -> str:
    if not path.exists():
        raise DataError(f"evaluation.json names {path}, which does not exist", "evaluate the run again")
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

"""State and figures of single training runs, for `janus runs list` and `janus runs show`.

Invariant: everything is read from the files in a run's folder (config.json, metrics.jsonl, events.jsonl,
left_out.jsonl) and from its lease; nothing is written. A figure of a run's beginning or end is the mean over `window`
steps.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from janus_dist.checkpoint.find import recipe_of
from janus_dist.config.streams import STREAMS
from janus_dist.monitor import events
from janus_dist.storage import lease_files
from janus_dist.storage.json_lines import read_records

WINDOW = 20
"""Largest number of steps that a figure is the mean of."""
QUIET_S = 600.0
"""Seconds without a step after which a run of an older version, which keeps no lease, counts as silent."""
BEAT_QUIET_S = 50.0
"""Seconds without a renewal of its lease after which the driver of a run counts as silent; it renews it every 5."""
ENDS: tuple[events.Kind, ...] = ("stopped", "failed")
"""Kinds of events that end a run before its last step."""


def window(steps: int) -> int:
    """Return how many steps at the beginning or end of a run of `steps` steps a figure is the mean of."""
    return max(1, min(WINDOW, steps // 2))


@dataclass(frozen=True)
class RunSeries:
    """Metrics of consecutive steps of one run."""

    lines: Sequence[Mapping[str, float]]
    """Metrics by name of each step, in the order of the steps."""

    @classmethod
    def read(cls, run: Path) -> "RunSeries":
        """Return the metrics of all steps of the run in folder `run`."""
        return cls(read_records(run / "metrics.jsonl"))

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def window(self) -> int:
        """Return how many steps its beginning and its end have."""
        return window(len(self.lines))

    @property
    def beginning(self) -> "RunSeries":
        """Return its first `window` steps."""
        return RunSeries(self.lines[: self.window])

    @property
    def end(self) -> "RunSeries":
        """Return its last `window` steps."""
        return RunSeries(self.lines[-self.window :])

    @cached_property
    def by_step(self) -> dict[int, Mapping[str, float]]:
        """Return the metrics of each step by its number."""
        return {int(line["step"]): line for line in self.lines}

    def at(self, steps: Sequence[int]) -> "RunSeries":
        """Return the metrics at `steps`, in their order; each of them must exist."""
        return RunSeries([self.by_step[step] for step in steps])

    def values(self, name: str) -> list[float]:
        """Return the values of a metric at the steps that have it."""
        return [line[name] for line in self.lines if name in line]

    def mean(self, name: str) -> float | None:
        """Return the mean of a metric over the steps that have it, or None when no step has it."""
        values = self.values(name)
        return statistics.fmean(values) if values else None

    def median(self, name: str) -> float:
        """Return the median of a metric over the steps that have it, or 0 when no step has it."""
        return statistics.median(self.values(name) or [0.0])

    def total(self, name: str) -> float:
        """Return the sum of a metric over all steps."""
        return sum(line.get(name, 0.0) for line in self.lines)

    def latest(self, name: str) -> float:
        """Return a metric at the last step, or 0 when that step does not have it."""
        return self.lines[-1].get(name, 0.0) if self.lines else 0.0

    def held_out(self) -> dict[str, float]:
        """Return the newest held-out losses by stream, and their `step`; empty when nothing was validated."""
        for line in reversed(self.lines):
            if losses := held_out_losses(line):
                return {"step": line["step"], **losses}
        return {}


def held_out_losses(line: Mapping[str, float]) -> dict[str, float]:
    """Return the held-out losses of a step by stream; empty for a step without validation."""
    return {stream: line[f"validation/{stream}"] for stream in STREAMS if f"validation/{stream}" in line}


def is_run(folder: Path) -> bool:
    """Return True when `folder` is that of a training stage's run."""
    path = folder / "config.json"
    return path.is_file() and "train" in json.loads(path.read_text())


def summary(run: Path) -> dict[str, Any]:
    """Return the state of the run in folder `run`, its progress, its loss in nats and its speed, as for JSON."""
    recipe, series = recipe_of(run), RunSeries.read(run)
    step = int(series.latest("step"))
    return {
        "name": run.name,
        "stage": recipe.stage,
        "step": step,
        "steps": recipe.train.steps,
        "state": "complete" if step >= recipe.train.steps else state(run, series),
        "loss": series.end.mean("loss/all"),
        "tokens_per_s": series.end.median("perf/tokens_per_s"),
    }


def state(run: Path, series: RunSeries) -> str:
    """Return the state of a run that is not complete.

    `starting` before its first step, `training`, `stopped` after a request to stop, `failed` when an error ended it,
    `dead` when its driver is known to have disappeared without a last event, `silent` when its driver gives no sign.
    """
    history = events.read(run)
    times = [float(line["time"]) for line in series.lines[-1:]] + [event.time for event in history[-1:]]
    last_sign = max(times, default=0.0)
    holder = lease_files.newest(str(run))
    began = 0.0 if holder is None else _modified(f"{lease_files.prefix(str(run), holder.number)}.json")
    if history and history[-1].kind in ENDS and history[-1].time >= began:  # else the run was started again since
        return history[-1].kind
    if holder is not None and (ended := _ended(run, holder)):
        return ended
    if holder is None and time.time() - (last_sign or (run / "config.json").stat().st_mtime) > QUIET_S:
        return "silent"
    return "training" if series.lines else "starting"


def _ended(run: Path, holder: lease_files.LeaseHolder) -> str | None:
    """Return `dead` or `silent` when the driver that held the run's lease last does not train it; None when it does."""
    if holder.process.is_gone:
        return "dead"
    prefix = lease_files.prefix(str(run), holder.number)
    if lease_files.has_ended(lease_files.read(f"{prefix}.beat")):
        return "dead"
    last_beat = _modified(f"{prefix}.beat") or _modified(f"{prefix}.json")  # the first beat comes after some seconds
    return "silent" if last_beat and time.time() - last_beat > BEAT_QUIET_S else None


def _modified(path: str) -> float:
    """Return the Unix time at which a file was written last; 0 when it does not exist."""
    try:
        return Path(path).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def details(run: Path) -> dict[str, Any]:
    """Return the figures of a run that `summary` does not have, as for JSON."""
    series = RunSeries.read(run)
    end = series.end
    return {
        "window": series.window,
        "losses": _losses_by_stream(series),
        "held_out": series.held_out(),
        "mix": {stream: series.latest(f"mix/{stream}") for stream in STREAMS} if series.lines else {},
        "tokens": int(series.total("batch/tokens")),
        "trained_s": series.total("perf/step_s"),
        "data_wait": end.mean("perf/data_wait"),
        "mfu": end.mean("perf/mfu"),
        "skipped_steps": int(series.latest("optim/skipped_steps")),
        "left_out_steps": len(read_records(run / "left_out.jsonl")),
        "bad_samples": int(series.latest("data/bad_samples")),
        "events": [asdict(event) for event in events.read(run) if event.kind != "saved"],
        "slowest_rank": max((line.get("perf/slowest_rank", 1.0) for line in end.lines), default=1.0),
    }


def _losses_by_stream(series: RunSeries) -> dict[str, list[float | None]]:
    """Return [loss at the beginning, loss at the end] in nats of each stream with a loss in either."""
    losses = {stream: [part.mean(f"loss/{stream}") for part in (series.beginning, series.end)] for stream in STREAMS}
    return {stream: pair for stream, pair in losses.items() if any(loss is not None for loss in pair)}

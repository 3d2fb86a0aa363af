"""The state of a run: whether it is trained, how far it is, what its figures say.

Invariant: everything is read from what a run leaves in its folder (config.json, metrics.jsonl, events.jsonl); nothing
is written. A figure of a run's beginning or end is the mean of `window` steps, wherever it is shown.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from janus_dist.checkpoint.find import recipe_of
from janus_dist.config.streams import STREAMS
from janus_dist.monitor import events
from janus_dist.storage import lease_files
from janus_dist.storage.json_lines import read_records

WINDOW = 20
"""Most steps that a figure is a mean of."""
QUIET_S = 600.0
"""Seconds without a step after which a run of an older version, which keeps no lease, counts as silent."""
BEAT_QUIET_S = 50.0
"""Seconds without a renewal of its lease after which the driver of a run counts as silent; it renews it every 5."""
ENDS: tuple[events.Kind, ...] = ("stopped", "failed")


def window(steps: int) -> int:
    """Return steps at the beginning or end of a run of so many steps that a figure is the mean of."""
    return max(1, min(WINDOW, steps // 2))


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a stage's run."""
    path = folder / "config.json"
    return path.is_file() and "train" in json.loads(path.read_text())


def summary(run: Path) -> dict[str, Any]:
    """Return the state of a run, its newest step and its speed."""
    recipe, lines = recipe_of(run), read_records(run / "metrics.jsonl")
    last = lines[-window(len(lines)) :]
    step = int(lines[-1]["step"]) if lines else 0
    return {
        "name": run.name,
        "stage": recipe.stage,
        "step": step,
        "steps": recipe.train.steps,
        "state": "complete" if step >= recipe.train.steps else state(run, lines),
        "loss": mean(last, "loss/all"),
        "tokens_per_s": median(last, "perf/tokens_per_s"),
    }


def state(run: Path, lines: Sequence[dict[str, float]]) -> str:
    """Return the state of a run that is not complete.

    `starting` before its first step, `training`, `stopped` when it was asked to, `failed` when an error ended it,
    `dead` when its driver is known to be gone without having said so, `silent` when nothing is heard of its driver.
    """
    happened = events.read(run)
    told = max([float(line["time"]) for line in lines[-1:]] + [event.time for event in happened[-1:]], default=0.0)
    holder = lease_files.newest(str(run))
    began = 0.0 if holder is None else _modified(f"{lease_files.prefix(str(run), holder.number)}.json")
    if happened and happened[-1].kind in ENDS and happened[-1].time >= began:  # else the run was started again since
        return happened[-1].kind
    if holder is not None and (ended := _ended(run, holder)):
        return ended
    if holder is None and time.time() - (told or (run / "config.json").stat().st_mtime) > QUIET_S:
        return "silent"
    return "training" if lines else "starting"


def _ended(run: Path, holder: lease_files.Holder) -> str | None:
    """Return `dead` or `silent` when the driver that held the run's lease last does not train it; None when it does."""
    if holder.process.is_gone:
        return "dead"
    prefix = lease_files.prefix(str(run), holder.number)
    if lease_files.has_ended(lease_files.read(f"{prefix}.beat")):
        return "dead"
    heard = _modified(f"{prefix}.beat") or _modified(f"{prefix}.json")  # its first beat comes after some seconds
    return "silent" if heard and time.time() - heard > BEAT_QUIET_S else None


def _modified(path: str) -> float:
    """Return the Unix time at which a file was written last; 0 when it does not exist."""
    try:
        return Path(path).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def details(run: Path) -> dict[str, Any]:
    """Return what the metrics of a run say besides `summary`."""
    lines = read_records(run / "metrics.jsonl")
    steps = window(len(lines))
    last = lines[-steps:]
    newest = lines[-1] if lines else {}
    return {
        "window": steps,
        "losses": _losses(lines[:steps], last),
        "held_out": held_out(lines),
        "mix": {stream: newest.get(f"mix/{stream}", 0.0) for stream in STREAMS} if newest else {},
        "tokens": int(sum(line.get("batch/tokens", 0) for line in lines)),
        "trained_s": sum(line.get("perf/step_s", 0.0) for line in lines),
        "data_wait": mean(last, "perf/data_wait"),
        "mfu": mean(last, "perf/mfu"),
        "skipped_steps": int(newest.get("optim/skipped_steps", 0)),
        "left_out_steps": len(read_records(run / "left_out.jsonl")),
        "bad_samples": int(newest.get("data/bad_samples", 0)),
        "events": [asdict(event) for event in events.read(run) if event.kind != "saved"],
        "slowest_rank": max((line.get("perf/slowest_rank", 1.0) for line in last), default=1.0),
    }


def _losses(first: Sequence[dict[str, float]], last: Sequence[dict[str, float]]) -> dict[str, list[float | None]]:
    """Return the mean losses of each trained stream, in nats, over the first steps and the last ones."""
    losses = {stream: [mean(part, f"loss/{stream}") for part in (first, last)] for stream in STREAMS}
    return {stream: values for stream, values in losses.items() if any(value is not None for value in values)}


def held_out(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return held-out losses by stream, of the last step that has some."""
    for line in reversed(lines):
        if found := {name: line[f"validation/{name}"] for name in STREAMS if f"validation/{name}" in line}:
            return {"step": line["step"], **found}
    return {}


def mean(lines: Sequence[dict[str, float]], name: str) -> float | None:
    """Return the mean of a metric over the steps that have it; None when none has."""
    values = [line[name] for line in lines if name in line]
    return statistics.fmean(values) if values else None


def median(lines: Sequence[dict[str, float]], name: str) -> float:
    """Return the median of a metric over the steps that have it; 0 when none has."""
    return statistics.median([line[name] for line in lines if name in line] or [0.0])

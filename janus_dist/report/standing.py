"""How runs stand: where one is, what its figures say, where two differ.

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
from janus_dist.config.load import flatten
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
EQUALLY_FAST = 1.02
"""Ratio of speeds up to which two runs are."""
ENDS: tuple[events.Kind, ...] = ("stopped", "failed")
EMPTY: tuple[Any, ...] = (None, {}, [])
"""Nothing, however it is written."""
PATHS = ("run.root", "run.checkpoints", "data.root", "data.tokenizer", "data.vq_weights")


def window(steps: int) -> int:
    """Steps at the beginning or end of a run of so many steps that a figure is the mean of."""
    return max(1, min(WINDOW, steps // 2))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a stage's run."""
    path = folder / "config.json"
    return path.is_file() and "train" in json.loads(path.read_text())


def summary(run: Path) -> dict[str, Any]:
    """Where a run stands."""
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
    """What the metrics of a run say beside `summary`."""
    lines = read_records(run / "metrics.jsonl")
    steps = window(len(lines))
    first, last = lines[:steps], lines[-steps:]
    losses = {stream: [mean(part, f"loss/{stream}") for part in (first, last)] for stream in STREAMS}
    left_out = read_records(run / "left_out.jsonl")
    return {
        "window": steps,
        "losses": {stream: values for stream, values in losses.items() if any(value is not None for value in values)},
        "held_out": held_out(lines),
        "mix": {stream: last[-1].get(f"mix/{stream}", 0.0) for stream in STREAMS} if last else {},
        "tokens": int(sum(line.get("batch/tokens", 0) for line in lines)),
        "trained_s": sum(line.get("perf/step_s", 0.0) for line in lines),
        "data_wait": mean(last, "perf/data_wait"),
        "mfu": mean(last, "perf/mfu"),
        "skipped_steps": int(lines[-1].get("optim/skipped_steps", 0)) if lines else 0,
        "left_out_steps": len(left_out),
        "bad_samples": int(lines[-1].get("data/bad_samples", 0)) if lines else 0,
        "events": [asdict(event) for event in events.read(run) if event.kind != "saved"],
        "slowest_rank": max((line.get("perf/slowest_rank", 1.0) for line in last), default=1.0),
    }


def held_out(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    """Held-out losses by stream, of the last step that has some."""
    for line in reversed(lines):
        if found := {name: line[f"validation/{name}"] for name in STREAMS if f"validation/{name}" in line}:
            return {"step": line["step"], **found}
    return {}


def comparison(first: Path, second: Path) -> dict[str, Any]:
    """Settings and metrics in which two runs differ; metrics over the last steps that both have."""
    flat = [dict(flatten(recipe_of(run).model_dump(mode="json"))) for run in (first, second)]
    for side in flat:  # the same folder may be written in two ways
        side |= {key: str(Path(side[key]).absolute()) for key in PATHS if side.get(key) and "://" not in side[key]}
    keys = dict.fromkeys([*flat[0], *flat[1]])
    pairs = {key: [side.get(key) for side in flat] for key in keys}
    settings = {
        key: pair for key, pair in pairs.items() if pair[0] != pair[1] and not all(side in EMPTY for side in pair)
    }
    every = [{int(line["step"]): line for line in read_records(run / "metrics.jsonl")} for run in (first, second)]
    common = sorted(every[0].keys() & every[1].keys())
    equal = 0
    for step in common:
        if _losses(every[0][step]) != _losses(every[1][step]):
            break
        equal += 1
    lasts = [[side[step] for step in common[-window(len(common)) :]] for side in every]
    names = ["loss/all", *(f"loss/{stream}" for stream in STREAMS), "optim/grad_norm", "perf/tokens_per_s", "perf/mfu"]
    metrics = {name: [mean(last, name) for last in lasts] for name in names}
    tried = [step for step in common if all(held_out([side[step]]) for side in every)]
    for name in STREAMS if tried else ():
        metrics[f"validation/{name}"] = [side[tried[-1]].get(f"validation/{name}") for side in every]
    return {
        "settings": settings,
        "common_steps": len(common),
        "equal_steps": equal,
        "window": window(len(common)),
        "validated_step": tried[-1] if tried else None,
        "metrics": {name: values for name, values in metrics.items() if any(value is not None for value in values)},
    }


def labels(first: Path, second: Path) -> tuple[str, str]:
    """Names of two runs, with as many folders above as it takes to tell them apart."""
    one, other = first.absolute().parts, second.absolute().parts
    for number in range(1, max(len(one), len(other)) + 1):
        names = "/".join(one[-number:]), "/".join(other[-number:])
        if names[0] != names[1]:
            return names
    return f"{first.name} (A)", f"{second.name} (B)"


def parted(found: dict[str, Any]) -> str:
    """How many steps two runs of a `comparison` have in common, and where their losses part."""
    same, common = found["equal_steps"], found["common_steps"]
    if same == common:
        until = "bit for bit the same losses"
    else:
        until = f"the same losses until step {same:,}" if same else "with other losses from the first"
    return f"{common:,} steps in common, {until}"


def ahead(metrics: dict[str, list[float | None]], first: str, second: str) -> str:
    """Which of two runs is ahead, by what was held out from both where there is something, and which is faster."""
    held_out = [pair for name, pair in metrics.items() if name.startswith("validation/")]
    pairs, what = (held_out, "held-out losses") if held_out else ([metrics.get("loss/all", [])], "loss/all")
    differences = [
        one - other for one, other in (pair for pair in pairs if pair) if one is not None and other is not None
    ]
    said = []
    if differences:
        by = sum(differences) / len(differences)
        said.append(f"{second if by > 0 else first} is ahead by {abs(by):.4f} in {what}" if by else f"equal in {what}")
    speeds = dict(zip((first, second), metrics.get("perf/tokens_per_s", ()), strict=False))
    if all(speeds.values()) and len(speeds) == 2:
        faster, slower = sorted(speeds, key=lambda name: -(speeds[name] or 0))
        ratio = (speeds[faster] or 0) / (speeds[slower] or 1)
        said.append("equally fast" if ratio < EQUALLY_FAST else f"{faster} is {ratio:.2f} times as fast")
    return "; ".join(said) or "nothing to compare"


def mean(lines: Sequence[dict[str, float]], name: str) -> float | None:
    """Of a metric over the steps that have it; None when none has."""
    values = [line[name] for line in lines if name in line]
    return statistics.fmean(values) if values else None


def median(lines: Sequence[dict[str, float]], name: str) -> float:
    """Of a metric over the steps that have it; 0 when none has."""
    return statistics.median([line[name] for line in lines if name in line] or [0.0])


def _losses(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("loss/")}

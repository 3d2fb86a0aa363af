"""Console line of a logged step, and the formats of its numbers and durations."""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from janus_dist.config.streams import SPECS

SHORT_NAMES = {spec.name: spec.short_name for spec in sorted(SPECS.values(), key=lambda spec: spec.has_images)}


def print_json(values: Any, indent: int | None = None, sort_keys: bool = False) -> None:
    """Print a value as JSON for the `--json` option of a command: on one line, or with `indent` one item per line."""
    print(json.dumps(values, indent=indent, sort_keys=sort_keys))


def step_line(lines: Sequence[Mapping[str, float]], steps: int, eta_s: float) -> str:
    """Return one console line for the metrics of the steps since the last line (names as in metrics.py).

    Losses are means over these steps; all other figures are those of the last step.
    """
    values = lines[-1]
    step = int(values["step"])
    parts = [f"step {step:>{len(str(steps))}}/{steps}", f"{step / steps:6.1%}", f"loss {_mean_loss(lines, 'all'):.3f}"]
    for stream, short in SHORT_NAMES.items():
        if any(f"loss/{stream}" in line for line in lines):
            parts.append(f"{short} {_mean_loss(lines, stream):.3f}")
        elif values.get(f"mix/{stream}"):
            parts.append(f"{short} -    ")  # no step has this stream, so `loss` is that of the other streams
    parts += [
        f"|g| {values['optim/grad_norm']:.2f}",
        f"lr {values['optim/lr']:.1e}",
        f"{count(values['perf/tokens_per_s'])} tok/s",
        *([f"{values['perf/mfu']:.0%} mfu"] if "perf/mfu" in values else []),  # where the device's peak is known
        f"wait {values['perf/data_wait']:.0%}",
        f"{values['mem/peak_gib']:.1f}GiB",
        f"eta {duration(eta_s)}",
    ]
    return "  ".join(parts)


def _mean_loss(lines: Sequence[Mapping[str, float]], stream: str) -> float:
    """Return the mean of a loss over the steps that have it; NaN and infinite ones count only when no other exists."""
    values = [line[f"loss/{stream}"] for line in lines if f"loss/{stream}" in line]
    return fmean([value for value in values if math.isfinite(value)] or values)


def count(value: float) -> str:
    """Return a number with three digits and a unit: 1234567 as 1.23M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def figure(value: float | None) -> str:
    """Return a number with four significant digits, so that columns line up; from 1,000 on as an integer."""
    if value is None:
        return "-"
    return f"{value:#.4g}" if abs(value) < 999.95 else f"{value:,.0f}"


def several(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless it is 1: `1 fault`, `1,200 faults`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a duration in seconds as 45s, 3m20s, 4h12m or 1d20h."""
    whole = round(seconds)
    for unit, size, lower, lower_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // lower_size}{lower}"
    return f"{whole}s"

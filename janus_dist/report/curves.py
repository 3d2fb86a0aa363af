"""Reference loss curves of runs in a small file, and the test whether another run follows them.

Invariant: a run follows a curve when each stream's loss, averaged over some steps, stays within a band around it; on
the same kind of machine, with the same packages, the first steps are equal bit for bit as well.
"""

import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from janus_dist.config.streams import STREAMS
from janus_dist.errors import DataError
from janus_dist.storage import json_lines
from janus_dist.storage.json_lines import read_records
from janus_dist.storage.local import write_whole

PACKAGES = ("torch", "transformers", "deepspeed")
EQUAL_STEPS = 20
"""Number of first steps whose losses must be equal bit for bit on the same kind of machine with the same packages."""
SPAN_STEPS = 20
"""Number of steps that a compared loss is averaged over."""
BAND = 0.05
"""Largest relative difference of a loss averaged over `SPAN_STEPS` steps; seeds of the demo differ by 0.02."""


@dataclass(frozen=True)
class Curve:
    """Losses of one run, with the machine, packages and dtype that they were computed with."""

    machine: str
    packages: dict[str, str]
    losses: dict[str, list[float | None]]
    """Losses of each stream in nats, one for each step; None at steps without the stream."""
    dtype: str = "bfloat16"
    """Dtype that the run computed in (`engine.dtype`)."""

    @classmethod
    def of(cls, run_dir: Path) -> "Curve":
        """Return the losses of the run in folder `run_dir`. Raises DataError when it has no steps."""
        lines = read_records(run_dir / "metrics.jsonl")
        if not lines:
            raise DataError(f"{run_dir} has no steps", "give the folder of a run: RUN_ROOT/NAME")
        losses = {name: [line.get(f"loss/{name}") for line in lines] for name in STREAMS}
        packages = {name: version(name) for name in PACKAGES}
        return cls(
            machine(), packages, {name: values for name, values in losses.items() if any(values)}, _dtype(run_dir)
        )

    @classmethod
    def read(cls, path: Path, dtype: str) -> "Curve":
        """Return the curve of runs that compute in `dtype` from a file. Raises DataError when the file has none."""
        curves = _curves(path)
        if dtype not in curves:
            raise DataError(
                f"{path} holds no curve in {dtype}, only in {', '.join(curves)}",
                "write one with `janus runs curve RUN FILE`, which keeps the others, or compare a run in that dtype",
            )
        return curves[dtype]

    def write(self, path: Path) -> None:
        """Write the curve to a file and keep the curves of other dtypes in it."""
        others = _curves(path) if path.exists() else {}
        lines = [json.dumps(asdict(curve)) for _, curve in sorted((others | {self.dtype: self}).items())]
        write_whole(path, "".join(f"{line}\n" for line in lines))

    @property
    def steps(self) -> int:
        """Return the number of steps."""
        return max(len(values) for values in self.losses.values())


@dataclass(frozen=True)
class CurveComparison:
    """Result of the comparison of a run with a reference curve."""

    steps: int
    """Number of steps that both have."""
    is_same_kind: bool
    """True when machine and packages are those of the curve."""
    equal_steps: int
    """Number of first steps whose losses are equal bit for bit."""
    worst: dict[str, float]
    """Largest relative difference of a loss averaged over `SPAN_STEPS` steps, by stream; infinite when only one of the
    two has losses of the stream."""

    @property
    def is_within(self) -> bool:
        """Return True when the run follows the curve."""
        equal = self.equal_steps >= min(EQUAL_STEPS, self.steps) or not self.is_same_kind
        return equal and max(self.worst.values(), default=0.0) <= BAND


def _curves(path: Path) -> dict[str, Curve]:
    """Return the curves of a file, one JSON object per line, by dtype. Raises DataError when it has none."""
    try:
        curves = [Curve(**json_lines.parse(line)) for _, line in json_lines.lines(path.read_bytes())]
        if not curves:
            raise ValueError("it is empty")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} holds no curves: {error}", "write them with `janus runs curve RUN FILE`") from error
    return {curve.dtype: curve for curve in curves}


def _dtype(run_dir: Path) -> str:
    """Return the dtype that a run computed in according to its own recipe."""
    config = run_dir / "config.json"
    return json.loads(config.read_text())["engine"]["dtype"] if config.exists() else "bfloat16"


def machine() -> str:
    """Return the kind of this machine: the processor and its instructions, which decide how sums are rounded."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.findall(r"^model(?: name)?\s*: (.*)$", info, flags=re.MULTILINE)[:2]
    widest = next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in info), "")
    return " ".join([platform.machine(), widest, *model]).strip()


def follow(curve: Curve, reference: Curve) -> CurveComparison:
    """Compare a curve with a reference step by step. Raises DataError when their streams differ."""
    if curve.losses.keys() != reference.losses.keys():
        raise DataError(
            f"the run has losses of {', '.join(curve.losses)}, the curve of {', '.join(reference.losses)}",
            "compare with the curve of the same stage",
        )
    steps = min(curve.steps, reference.steps)
    equal = 0
    while equal < steps and _at(curve.losses, equal) == _at(reference.losses, equal):
        equal += 1
    means, reference_means = (
        {name: _means(values[:steps]) for name, values in side.losses.items()} for side in (curve, reference)
    )
    worst = {
        name: _worst(means[name], expected) for name, expected in reference_means.items() if means[name] or expected
    }
    same = (curve.machine, curve.packages) == (reference.machine, reference.packages)
    return CurveComparison(steps, same, equal, worst)


def _at(losses: Mapping[str, Sequence[float | None]], step: int) -> list[Any]:
    return [values[step] for values in losses.values()]


def _worst(values: Sequence[float], reference: Sequence[float]) -> float:
    """Return the largest relative difference; infinite when the two have different numbers of values."""
    if len(values) != len(reference):
        return math.inf
    return max(abs(value - expected) / expected for value, expected in zip(values, reference, strict=True))


def _means(values: Sequence[float | None]) -> list[float]:
    """Return the mean of each span of steps that has a value; steps left at the end belong to the last span."""
    spans = [values[start : start + SPAN_STEPS] for start in range(0, max(1, len(values) - SPAN_STEPS + 1), SPAN_STEPS)]
    spans[-1] = values[(len(spans) - 1) * SPAN_STEPS :]
    return [fmean(known) for span in spans if (known := [value for value in span if value is not None])]

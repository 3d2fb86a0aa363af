"""The loss curves of a run as a small file, and whether another run follows them.

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
"""Losses of so many first steps are equal where machine and packages are."""
SPAN_STEPS = 20
BAND = 0.05
"""Largest relative difference of a loss averaged over `SPAN_STEPS` steps; seeds of the demo differ by 0.02."""


@dataclass(frozen=True)
class Curve:
    """Losses of each stream, one a step; None in steps without the stream."""

    machine: str
    packages: dict[str, str]
    losses: dict[str, list[float | None]]
    dtype: str = "bfloat16"
    """What the run computed in (`engine.dtype`)."""

    @classmethod
    def of(cls, run_dir: Path) -> "Curve":
        """Return the curves of a run. Raises DataError when it has no steps."""
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
        """Return the curve of runs that compute in `dtype` from a file; DataError when the file has none."""
        curves = _curves(path)
        if dtype not in curves:
            raise DataError(
                f"{path} holds no curve in {dtype}, only in {', '.join(curves)}",
                "write one with `janus runs curve RUN FILE`, which keeps the others, or compare a run in that dtype",
            )
        return curves[dtype]

    def write(self, path: Path) -> None:
        """Write the losses as they are to a file, where curves in other dtypes stay."""
        others = _curves(path) if path.exists() else {}
        lines = [json.dumps(asdict(curve)) for _, curve in sorted((others | {self.dtype: self}).items())]
        write_whole(path, "".join(f"{line}\n" for line in lines))

    @property
    def steps(self) -> int:
        return max(len(values) for values in self.losses.values())


@dataclass(frozen=True)
class Followed:
    """How a run follows a curve."""

    steps: int
    """In common."""
    is_same_kind: bool
    """Machine and packages are those of the curve."""
    equal_steps: int
    """First steps whose losses are equal bit for bit."""
    worst: dict[str, float]
    """Of each stream with a loss in these steps the largest relative difference of one averaged over `SPAN_STEPS`
    steps; infinite where only one of the two has losses."""

    @property
    def is_within(self) -> bool:
        equal = self.equal_steps >= min(EQUAL_STEPS, self.steps) or not self.is_same_kind
        return equal and max(self.worst.values(), default=0.0) <= BAND


def _curves(path: Path) -> dict[str, Curve]:
    """Return the curves of a file, one JSON object a line, by dtype; DataError when it holds none."""
    try:
        curves = [Curve(**json_lines.parse(line)) for _, line in json_lines.lines(path.read_bytes())]
        if not curves:
            raise ValueError("it is empty")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} holds no curves: {error}", "write them with `janus runs curve RUN FILE`") from error
    return {curve.dtype: curve for curve in curves}


def _dtype(run_dir: Path) -> str:
    """Return what a run computed in by its own recipe."""
    config = run_dir / "config.json"
    return json.loads(config.read_text())["engine"]["dtype"] if config.exists() else "bfloat16"


def machine() -> str:
    """Return the kind of this machine: instructions and cache sizes, which decide how floating-point sums come out."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.findall(r"^model(?: name)?\s*: (.*)$", info, flags=re.MULTILINE)[:2]
    widest = next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in info), "")
    return " ".join([platform.machine(), widest, *model]).strip()


def follow(found: Curve, reference: Curve) -> Followed:
    """Compare step by step; DataError when they have not the same streams."""
    if found.losses.keys() != reference.losses.keys():
        raise DataError(
            f"the run has losses of {', '.join(found.losses)}, the curve of {', '.join(reference.losses)}",
            "compare with the curve of the same stage",
        )
    steps = min(found.steps, reference.steps)
    equal = 0
    while equal < steps and _at(found.losses, equal) == _at(reference.losses, equal):
        equal += 1
    mine, theirs = ({name: _means(values[:steps]) for name, values in one.losses.items()} for one in (found, reference))
    worst = {name: _worst(mine[name], theirs[name]) for name in theirs if mine[name] or theirs[name]}
    same = (found.machine, found.packages) == (reference.machine, reference.packages)
    return Followed(steps, same, equal, worst)


def _at(losses: Mapping[str, Sequence[float | None]], step: int) -> list[Any]:
    return [values[step] for values in losses.values()]


def _worst(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest relative difference; infinite when one side has a value where the other has none."""
    if len(mine) != len(theirs):
        return math.inf
    return max(abs(one - other) / other for one, other in zip(mine, theirs, strict=True))


def _means(values: Sequence[float | None]) -> list[float]:
    """Return the means over spans of steps, leaving out those without a value; the rest at the end counts with the last
    span."""
    spans = [values[start : start + SPAN_STEPS] for start in range(0, max(1, len(values) - SPAN_STEPS + 1), SPAN_STEPS)]
    spans[-1] = values[(len(spans) - 1) * SPAN_STEPS :]
    return [fmean(there) for span in spans if (there := [value for value in span if value is not None])]

"""Two runs beside each other: settings that differ, where their losses part, which is ahead and which is faster.

Invariant: metrics are compared over steps that both runs have, so that a longer run is not ahead for being longer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_dist.checkpoint.find import recipe_of
from janus_dist.config.diff import ABSENT, differences
from janus_dist.config.streams import STREAMS
from janus_dist.report.standing import held_out, mean, window
from janus_dist.storage.json_lines import read_records

EQUALLY_FAST = 1.02
"""Ratio of two speeds below which neither run counts as faster."""
METRICS = ("loss/all", *(f"loss/{stream}" for stream in STREAMS), "optim/grad_norm", "perf/tokens_per_s", "perf/mfu")
"""Metrics that are compared by their means over the last common steps."""
EMPTY: tuple[Any, ...] = (None, {}, [])
"""Values that mean that nothing is set."""
PATHS = {"run.root", "run.checkpoints", "data.root", "data.tokenizer", "data.vq_weights"}
"""Settings that are paths, one folder of which can be written in two ways."""
Line = dict[str, float]
"""The metrics of one step."""


@dataclass(frozen=True)
class RunSeries:
    """The recorded steps of one run."""

    by_step: Mapping[int, Line]

    @classmethod
    def of(cls, run: Path) -> "RunSeries":
        """Read a run's metrics.jsonl."""
        return cls({int(line["step"]): line for line in read_records(run / "metrics.jsonl")})

    def at(self, steps: Sequence[int]) -> list[Line]:
        """Return the metrics of some steps."""
        return [self.by_step[step] for step in steps]

    def losses(self, step: int) -> Line:
        """Return the training losses of a step, in nats."""
        return {name: value for name, value in self.by_step[step].items() if name.startswith("loss/")}


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs; a pair holds the first run's value and the second's."""

    settings: dict[str, list[Any]]
    """Settings that differ, by dotted keys."""
    common_steps: int
    """Steps that both runs have."""
    equal_steps: int
    """Of these from the first on, those with bit-equal losses."""
    window: int
    """Last common steps over which metrics are averaged."""
    validated_step: int | None
    """The last common step at which both runs validated."""
    metrics: dict[str, list[float | None]]
    """Means over the window; held-out losses at `validated_step`."""

    @classmethod
    def of(cls, first: Path, second: Path) -> "Comparison":
        """Compare the runs in two folders."""
        pair = RunSeries.of(first), RunSeries.of(second)
        common = sorted(pair[0].by_step.keys() & pair[1].by_step.keys())
        validated = [step for step in common if all(held_out(series.at([step])) for series in pair)]
        steps = window(len(common))
        metrics = {name: [mean(series.at(common[-steps:]), name) for series in pair] for name in METRICS}
        if validated:
            lines = [series.by_step[validated[-1]] for series in pair]
            metrics |= {f"validation/{name}": [line.get(f"validation/{name}") for line in lines] for name in STREAMS}
        return cls(
            settings=_settings(first, second),
            common_steps=len(common),
            equal_steps=_equal_steps(pair, common),
            window=steps,
            validated_step=validated[-1] if validated else None,
            metrics={name: values for name, values in metrics.items() if any(value is not None for value in values)},
        )

    def parted(self) -> str:
        """Say how many steps the runs have in common, and where their losses part."""
        if self.equal_steps == self.common_steps:
            until = "bit for bit the same losses"
        elif self.equal_steps:
            until = f"the same losses until step {self.equal_steps:,}"
        else:
            until = "with other losses from the first"
        return f"{self.common_steps:,} steps in common, {until}"

    def ahead(self, first: str, second: str) -> str:
        """Say which of the runs, called `first` and `second`, is ahead in loss and which is faster."""
        held_out_pairs = [pair for name, pair in self.metrics.items() if name.startswith("validation/")]
        if held_out_pairs:
            loss = _lead(held_out_pairs, "held-out losses", first, second)
        else:
            loss = _lead([self.metrics.get("loss/all", [])], "loss/all", first, second)
        speed = _faster(self.metrics.get("perf/tokens_per_s", []), first, second)
        return "; ".join(filter(None, (loss, speed))) or "nothing to compare"


def labels(first: Path, second: Path) -> tuple[str, str]:
    """Return names of two runs, with as many folders above as it takes to tell them apart."""
    parts = first.absolute().parts, second.absolute().parts
    for length in range(1, max(map(len, parts)) + 1):
        names = "/".join(parts[0][-length:]), "/".join(parts[1][-length:])
        if names[0] != names[1]:
            return names
    return f"{first.name} (A)", f"{second.name} (B)"


def _settings(first: Path, second: Path) -> dict[str, list[Any]]:
    """Return the settings that differ; a path counts as the same however it is written."""
    trees = [recipe_of(run).model_dump(mode="json") for run in (first, second)]
    pairs = {key: [None if value is ABSENT else value for value in pair] for key, *pair in differences(*trees)}
    for key in PATHS & pairs.keys():
        pairs[key] = [str(Path(path).absolute()) if path and "://" not in path else path for path in pairs[key]]
    return {
        key: pair for key, pair in pairs.items() if pair[0] != pair[1] and not all(value in EMPTY for value in pair)
    }


def _equal_steps(pair: tuple[RunSeries, RunSeries], common: Sequence[int]) -> int:
    """Return how many common steps, from the first on, have bit-equal losses."""
    parted = (index for index, step in enumerate(common) if pair[0].losses(step) != pair[1].losses(step))
    return next(parted, len(common))


def _lead(pairs: Sequence[Sequence[float | None]], what: str, first: str, second: str) -> str:
    """Say which run has the lower mean loss; empty when no loss is known of both."""
    leads = [pair[0] - pair[1] for pair in pairs if len(pair) == 2 and pair[0] is not None and pair[1] is not None]
    if not leads:
        return ""
    lead = sum(leads) / len(leads)
    if not lead:
        return f"equal in {what}"
    return f"{second if lead > 0 else first} is ahead by {abs(lead):.4f} in {what}"


def _faster(speeds: Sequence[float | None], first: str, second: str) -> str:
    """Say which run trains more tokens a second; empty when a speed is unknown."""
    if len(speeds) != 2 or not speeds[0] or not speeds[1]:
        return ""
    ratio = speeds[0] / speeds[1]
    if max(ratio, 1 / ratio) < EQUALLY_FAST:
        return "equally fast"
    return f"{first if ratio > 1 else second} is {max(ratio, 1 / ratio):.2f} times as fast"

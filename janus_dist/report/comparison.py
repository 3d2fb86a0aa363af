"""Comparison of two training runs: settings that differ, steps with equal losses, and which run is ahead.

Invariant: everything is read from the files in the folders of the runs; figures are means over the last steps that both
runs have.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from janus_dist.checkpoint.find import recipe_of
from janus_dist.config.diff import changes, flatten
from janus_dist.config.streams import STREAMS
from janus_dist.report.standing import RunSeries, held_out_losses

SPEED_TOLERANCE = 1.02
"""Largest ratio of two speeds that still counts as equally fast."""
EMPTY: tuple[Any, ...] = (None, {}, [])
"""Values of a setting that all mean that it is not set."""
PATHS = ("run.root", "run.checkpoints", "data.root", "data.tokenizer", "data.vq_weights")
"""Settings that are paths: the same folder may be written in two ways."""
TRAINING_METRICS = (
    "loss/all",
    *(f"loss/{stream}" for stream in STREAMS),
    "optim/grad_norm",
    "perf/tokens_per_s",
    "perf/mfu",
)
"""Metrics that are compared by their means."""
HELD_OUT_PREFIX = "validation/"


@dataclass(frozen=True)
class Comparison:
    """Differences of two runs. Pairs are [value of the first run, value of the second]."""

    settings: dict[str, list[Any]]
    """Values of the settings that differ, by the setting's name; None where a run does not have it."""
    common_steps: int
    """Number of steps that both runs have."""
    equal_steps: int
    """Number of first common steps whose losses are equal bit for bit."""
    window: int
    """Number of last common steps that `metrics` are means of."""
    validated_step: int | None
    """Last common step at which both runs were validated; held-out losses in `metrics` are those of this step."""
    metrics: dict[str, list[float | None]]
    """Values of the metrics that at least one of the runs has, by the metric's name."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as an object for JSON."""
        return asdict(self)

    def describe_common_steps(self) -> str:
        """Return a sentence about the number of common steps and the first one whose losses differ."""
        if self.equal_steps == self.common_steps:
            verdict = "bit for bit the same losses"
        elif self.equal_steps:
            verdict = f"the same losses until step {self.equal_steps:,}"
        else:
            verdict = "different losses from the first step"
        return f"{self.common_steps:,} steps in common, {verdict}"

    def describe_winner(self, first: str, second: str) -> str:
        """Return a sentence about which of two runs, named `first` and `second`, is ahead and which is faster."""
        sentences = [_describe_loss(self.metrics, first, second), _describe_speed(self.metrics, first, second)]
        return "; ".join(sentence for sentence in sentences if sentence) or "nothing to compare"


def compare_runs(first: Path, second: Path) -> Comparison:
    """Return the comparison of the runs in two folders. Raises DataError or ConfigError for a recipe that cannot be
    read."""
    everything = [RunSeries.read(run) for run in (first, second)]
    steps = sorted(everything[0].by_step.keys() & everything[1].by_step.keys())
    common = [series.at(steps) for series in everything]
    validated_step = _last_validated_step(common)
    return Comparison(
        settings=_different_settings(_settings(first), _settings(second)),
        common_steps=len(steps),
        equal_steps=_count_equal_steps(*common),
        window=common[0].window,
        validated_step=validated_step,
        metrics=_without_empty(_mean_metrics(common) | _held_out_metrics(common, validated_step)),
    )


def labels(first: Path, second: Path) -> tuple[str, str]:
    """Return names of two runs, with as many parent folders as needed to tell them apart."""
    parts, other_parts = first.absolute().parts, second.absolute().parts
    for length in range(1, max(len(parts), len(other_parts)) + 1):
        names = "/".join(parts[-length:]), "/".join(other_parts[-length:])
        if names[0] != names[1]:
            return names
    return f"{first.name} (A)", f"{second.name} (B)"


def _settings(run: Path) -> dict[str, Any]:
    """Return the settings of a run by name, local paths as absolute ones."""
    settings = dict(flatten(recipe_of(run).model_dump(mode="json")))
    for name in PATHS:
        if settings.get(name) and "://" not in settings[name]:
            settings[name] = str(Path(settings[name]).absolute())
    return settings


def _different_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of the settings that differ, by name."""
    return {name: [old, new] for name, old, new in changes(first, second) if not _are_empty((old, new))}


def _are_empty(values: Iterable[Any]) -> bool:
    return all(value in EMPTY for value in values)


def _count_equal_steps(first: RunSeries, second: RunSeries) -> int:
    """Return at how many first steps two series of the same steps have the same losses."""
    pairs = zip(first.lines, second.lines, strict=True)
    different = (index for index, (one, other) in enumerate(pairs) if _losses(one) != _losses(other))
    return next(different, len(first))


def _losses(line: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("loss/")}


def _last_validated_step(common: Sequence[RunSeries]) -> int | None:
    """Return the last step at which all series have held-out losses, or None."""
    for step in reversed(common[0].by_step):
        if all(held_out_losses(series.by_step[step]) for series in common):
            return step
    return None


def _mean_metrics(common: Sequence[RunSeries]) -> dict[str, list[float | None]]:
    """Return the means of the compared metrics over the last common steps."""
    return {name: [series.end.mean(name) for series in common] for name in TRAINING_METRICS}


def _held_out_metrics(common: Sequence[RunSeries], step: int | None) -> dict[str, list[float | None]]:
    """Return the held-out losses of each stream at `step`; empty without a step."""
    if step is None:
        return {}
    names = [HELD_OUT_PREFIX + stream for stream in STREAMS]
    return {name: [series.by_step[step].get(name) for series in common] for name in names}


def _without_empty(metrics: Mapping[str, list[float | None]]) -> dict[str, list[float | None]]:
    return {name: pair for name, pair in metrics.items() if any(value is not None for value in pair)}


def _describe_loss(metrics: Mapping[str, Sequence[float | None]], first: str, second: str) -> str:
    """Return which run is ahead by the held-out losses, or by loss/all without any; empty when neither has both
    values."""
    held_out = [pair for name, pair in metrics.items() if name.startswith(HELD_OUT_PREFIX)]
    name = "held-out losses" if held_out else "loss/all"
    differences = _differences(held_out or [metrics.get("loss/all", [])])
    if not differences:
        return ""
    difference = sum(differences) / len(differences)
    if difference == 0:
        return f"equal in {name}"
    return f"{second if difference > 0 else first} is ahead by {abs(difference):.4f} in {name}"


def _differences(pairs: Iterable[Sequence[float | None]]) -> list[float]:
    """Return the difference, first minus second, of each pair that has both values."""
    complete = [[value for value in pair if value is not None] for pair in pairs]
    return [values[0] - values[1] for values in complete if len(values) == 2]


def _describe_speed(metrics: Mapping[str, Sequence[float | None]], first: str, second: str) -> str:
    """Return which run is faster and how many times; empty unless both speeds are known."""
    speeds = [speed for speed in metrics.get("perf/tokens_per_s", ()) if speed]
    if len(speeds) != 2:
        return ""
    ratio = max(speeds) / min(speeds)
    if ratio < SPEED_TOLERANCE:
        return "equally fast"
    return f"{first if speeds[0] > speeds[1] else second} is {ratio:.2f} times as fast"

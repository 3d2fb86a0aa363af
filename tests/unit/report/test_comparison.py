"""Verdicts of a comparison of two runs, and the windows that its figures are means of."""

import pytest

from janus_dist.report.comparison import Comparison
from janus_dist.report.standing import RunSeries


def comparison(equal: int = 0, common: int = 4, **metrics: list[float | None]) -> Comparison:
    named = {name.replace("__", "/"): pair for name, pair in metrics.items()}
    return Comparison({}, common, equal, 2, None, named)


@pytest.mark.parametrize(("equal", "expected"), [
    (0, "4 steps in common, different losses from the first step"),
    (3, "4 steps in common, the same losses until step 3"),
    (4, "4 steps in common, bit for bit the same losses"),
])  # fmt: skip
def test_common_steps_in_words(equal: int, expected: str) -> None:
    assert comparison(equal).describe_common_steps() == expected


@pytest.mark.parametrize(("metrics", "expected"), [
    ({}, "nothing to compare"),
    ({"loss__all": [1.0, 2.0]}, "A is ahead by 1.0000 in loss/all"),
    ({"loss__all": [2.0, 2.0]}, "equal in loss/all"),
    ({"loss__all": [None, 2.0]}, "nothing to compare"),
    ({"loss__all": [1.0, 2.0], "validation__text": [3.0, 1.0]}, "B is ahead by 2.0000 in held-out losses"),
    ({"loss__all": [1.0, 2.0], "validation__text": [3.0, None]}, "nothing to compare"),
    ({"perf__tokens_per_s": [100.0, 101.0]}, "equally fast"),
    ({"perf__tokens_per_s": [100.0, 250.0]}, "B is 2.50 times as fast"),
    ({"perf__tokens_per_s": [0.0, 250.0]}, "nothing to compare"),
])  # fmt: skip
def test_winner_in_words(metrics: dict[str, list[float | None]], expected: str) -> None:
    assert comparison(**metrics).describe_winner("A", "B") == expected


def test_keys_of_the_json() -> None:
    keys = ["settings", "common_steps", "equal_steps", "window", "validated_step", "metrics"]
    assert list(comparison().to_json()) == keys


def test_beginning_and_end_of_a_series() -> None:
    series = RunSeries([{"step": step, "loss/all": float(step)} for step in range(1, 6)])
    assert series.beginning.values("loss/all") == [1.0, 2.0]
    assert series.end.mean("loss/all") == 4.5
    assert (RunSeries([]).end.mean("loss/all"), RunSeries([]).median("loss/all")) == (None, 0.0)

"""What a person and a program see of a step."""

import json
from pathlib import Path

import pytest

from janus_dist.monitor.console import count, duration, step_line
from janus_dist.monitor.metrics import METRICS, NAMES, as_markdown
from janus_dist.monitor.sinks import JsonlSink, read_lines
from janus_dist.train.schedule import learning_rate
from tests import prepared

VALUES = {
    "step": 1200, "loss/all": 2.914, "loss/text": 2.71, "loss/understanding": 1.98, "loss/generation": 5.93,
    "optim/grad_norm": 0.84, "optim/lr": 9.7e-5, "perf/tokens_per_s": 322_000.0, "perf/data_wait": 0.012,
}  # fmt: skip


def test_the_step_line():
    assert step_line(VALUES, 100_000, 158_400) == (
        "step   1200/100000    1.2%  loss 2.914  text 2.710  und 1.980  gen 5.930  |g| 0.84  lr 9.7e-05  "
        "322k tok/s  wait 1%  eta 1d20h"
    )
    without = {name: value for name, value in VALUES.items() if name != "loss/text"}
    assert "text" not in step_line(without, 100_000, 0)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (999, "999"), (1234, "1.23k"), (5_600_000, "5.6M"), (2.5e9, "2.5B"), (3e12, "3T")]
)
def test_count(value, shown):
    assert count(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.6, "1m0s"), (61, "1m1s"), (3725, "1h2m"), (90_000, "1d1h")]
)
def test_duration(seconds, shown):
    assert duration(seconds) == shown


def test_metrics_are_declared_once_and_documented():
    assert len(NAMES) == len(METRICS)
    assert as_markdown() in (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def test_the_file_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    sink = JsonlSink(path, steps_done=2)
    sink.record({"step": 3, "loss/all": 1.0})
    sink.close()
    assert [(line["step"], line.get("loss/all")) for line in read_lines(path)] == [(1, None), (2, None), (3, 1.0)]


def test_an_undeclared_metric_is_our_own_mistake(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(AssertionError, match="not declared"):
        sink.record({"step": 1, "los/all": 1.0})
    sink.close()


def test_the_learning_rate(tmp_path):
    optim = prepared.recipe(tmp_path, tmp_path, optim={"lr": 1.0, "warmup_steps": 4, "final_lr": 0.1}).optim
    assert [learning_rate(optim, step, 104) for step in (0, 1, 3, 4, 103)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = optim.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 4, 104) == 1.0
    assert learning_rate(cosine, 54, 104) == pytest.approx(0.55)
    assert learning_rate(cosine, 103, 104) == pytest.approx(0.1, abs=1e-3)
    assert all(learning_rate(cosine, s, 104) >= learning_rate(cosine, s + 1, 104) for s in range(4, 103))

"""What a person and a program see of a step."""

import json
import resource
import shutil
import sys
from pathlib import Path

import pytest

from janus_dist.config.recipe import RunConfig
from janus_dist.launch.services import RayMetrics
from janus_dist.monitor.console import count, duration, figure, step_line
from janus_dist.monitor.grafana import dashboard, gauge_name
from janus_dist.monitor.metrics import GAUGE_LABELS, METRICS, NAMES, as_markdown
from janus_dist.monitor.sinks import LOOK_EVERY_STEPS, JsonlSink, WandbSink, make_sinks
from janus_dist.storage.json_lines import read_records
from janus_dist.train.schedule import learning_rate
from tests import prepared

VALUES = {
    "step": 1200, "loss/all": 2.914, "loss/text": 2.71, "loss/understanding": 1.98, "loss/generation": 5.93,
    "optim/grad_norm": 0.84, "optim/lr": 9.7e-5, "perf/tokens_per_s": 322_000.0, "perf/data_wait": 0.012,
    "perf/mfu": 0.412, "mem/peak_gib": 38.06,
}  # fmt: skip


def test_the_losses_of_a_line_are_means_since_the_one_before():
    before = {name: value + 1 for name, value in VALUES.items() if name != "loss/text"} | {"step": 1}
    line = step_line([before, VALUES], 100_000, 0)
    assert f"loss {VALUES['loss/all'] + 0.5:.3f}" in line and f"text {VALUES['loss/text']:.3f}" in line
    assert f"|g| {VALUES['optim/grad_norm']:.2f}" in line


@pytest.mark.parametrize(
    ("value", "shown"),
    [(4.76, "4.760"), (0.5, "0.5000"), (999.9, "999.9"), (999.96, "1,000"), (8347.2, "8,347"), (None, "-")],
)
def test_figures_below_each_other(value, shown):
    assert figure(value) == shown


def test_the_step_line():
    assert step_line([VALUES], 100_000, 158_400) == (
        "step   1200/100000    1.2%  loss 2.914  text 2.710  und 1.980  gen 5.930  |g| 0.84  lr 9.7e-05  "
        "322k tok/s  41% mfu  wait 1%  38.1GiB  eta 1d20h"
    )
    unknown = {name: value for name, value in VALUES.items() if name != "perf/mfu"}
    assert "322k tok/s  wait 1%  38.1GiB" in step_line([unknown], 100_000, 0), "a device whose peak is not known"
    without = {name: value for name, value in VALUES.items() if name != "loss/text"}
    assert "text" not in step_line([without], 100_000, 0), "a run without text"
    assert "  text -      und 1.980" in step_line([without | {"mix/text": 0.1}], 100_000, 0), "a step without text"


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
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    assert as_markdown() in page and [f"`{label}`" in page for label in GAUGE_LABELS] == [True, True]


def test_the_file_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    sink = JsonlSink(path, 2, print)
    sink.record({"step": 3, "loss/all": 1.0})
    sink.close()
    assert [(line["step"], line.get("loss/all")) for line in read_records(path)] == [(1, None), (2, None), (3, 1.0)]


def test_lines_wait_while_the_disk_refuses(tmp_path):
    """The system takes half a line and then no more; what it took is cut when it takes some again."""
    path, told = tmp_path / "metrics.jsonl", list[str]()
    sink = JsonlSink(path, 0, told.append)
    sink.record({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
    try:
        sink.record({"step": 2})
        sink.record({"step": 3})
        assert path.read_bytes() == b'{"step": 1}\n{"ste'
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sink.record({"step": 4})
    sink.close()
    assert path.read_text() == "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4))
    reason = "cannot be written: [Errno 27] File too large; training continues, the lines are kept in memory"
    assert told == [f"{path} {reason}"]


def test_the_dashboard_shows_every_metric():
    written = json.loads((Path(__file__).parents[3] / "cluster" / "grafana" / "janus-dist.json").read_text())
    assert written == dashboard(), "python -m janus_dist.monitor.grafana > cluster/grafana/janus-dist.json"
    panels = [panel for panel in written["panels"] if panel["type"] != "row"]
    assert {panel["title"] for panel in panels} == NAMES - {"step", "time"}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in written["panels"]]
    assert len(set(places)) == len(places)


def test_grafana_counts_mebibytes_in_1024():
    panels = {panel["title"]: panel for panel in dashboard()["panels"]}
    mebibytes = [metric.name for metric in METRICS if metric.unit == "MiB"]
    assert mebibytes
    assert {panels[name]["fieldConfig"]["defaults"]["unit"] for name in mebibytes} == {"mbytes"}


@pytest.mark.parametrize(("wandb", "project"), [(None, "/data/shapes/runs"), ("shapes", "shapes")])
def test_gauges_of_projects_are_told_apart(monkeypatch, wandb, project):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if wandb is not None:
        monkeypatch.setenv("WANDB_PROJECT", wandb)
    gauges = RayMetrics(RunConfig(root="/data/shapes/runs", name="stage2")).gauges
    labels = [gauge._default_tags for gauge in gauges.values()]
    assert labels == [{"project": project, "run": "stage2"}] * len(NAMES)
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    assert queries and all('{project=~"$project",run=~"$run"}' in query for query in queries)


def test_ray_has_a_gauge_for_every_metric():
    watcher = RayMetrics(RunConfig(root="runs", name="stage2"))
    watcher.record(VALUES | {"time": 1.0})
    assert {gauge.info["name"] for gauge in watcher.gauges.values()} == {gauge_name(name) for name in NAMES}
    watcher.close()


class FakeWandb:
    """What the sink uses of wandb, and what it was given."""

    def __init__(self):
        self.logged, self.Settings = [], dict

    def init(self, **given):
        self.given = given
        return self

    def log(self, values, step=None):
        self.logged.append((step, values))

    def finish(self):
        self.logged.append("finished")

    def Table(self, columns, data):
        return columns, data

    def Image(self, path, caption):
        return Path(path).name, caption


def test_wandb_is_given_metrics_and_the_newest_samples_once(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    sink = WandbSink("offline", "tiny-stage2", tmp_path, {"a": 1})
    assert (fake.given["project"], fake.given["mode"], fake.given["config"]) == ("mine", "offline", {"a": 1})
    for step in (10, 20):
        folder = tmp_path / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        answers = [{"question": "what?", "answer": f"{step}"}]
        (folder / "samples.json").write_text(json.dumps({"step": step, "drawings": [{}], "answers": answers}))
    for step in (49, LOOK_EVERY_STEPS, 2 * LOOK_EVERY_STEPS):
        sink.record({"step": step, "loss/all": 1.0})
    sink.close()
    grid = {
        "samples/answers": (["step", "question", "answer"], [[20, "what?", "20"]]),
        "samples/grid": ("grid.png", "step 20"),
    }
    loss = {"loss/all": 1.0}
    assert fake.logged == [(49, loss), (50, loss | grid), (100, loss), "finished"]


def wandb_id_of(recipe, monkeypatch) -> str:
    """What a start of a run gives wandb as its id."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for sink in make_sinks(recipe, 0, tell=pytest.fail):
        sink.close()
    return fake.given["id"]


def test_a_run_is_the_same_in_wandb_when_it_goes_on_and_no_other_is(tmp_path, monkeypatch):
    recipes = [
        prepared.recipe(tmp_path, tmp_path / person / "runs", monitor={"wandb": "offline"}) for person in ("a", "b")
    ]
    first, again, other = (wandb_id_of(recipes[of], monkeypatch) for of in (0, 0, 1))
    assert first == again != other
    shutil.rmtree(recipes[0].run.dir)
    assert wandb_id_of(recipes[0], monkeypatch) not in (first, other), "a run that begins anew"


class RefusingWandb(FakeWandb):
    """One that raises in one of its calls."""

    def __init__(self, refused):
        super().__init__()
        self.refused = refused
        setattr(self, refused, self.refuse)

    def refuse(self, *_, **__):
        raise RuntimeError("api_key not configured (no-tty).\nCall wandb.login()")


@pytest.mark.parametrize("refused", ["init", "log", "finish"])
def test_a_wandb_that_fails_costs_wandb_and_not_the_run(refused, tmp_path, monkeypatch):
    told = []
    recipe = prepared.recipe(tmp_path, tmp_path, monitor={"wandb": "online"})
    monkeypatch.setitem(sys.modules, "wandb", RefusingWandb(refused))
    sinks = make_sinks(recipe, 0, told.append)
    for step in (1, 2):
        for sink in sinks:
            sink.record({"step": step, "loss/all": 1.0})
    for sink in sinks:
        sink.close()
    error = "RuntimeError: api_key not configured (no-tty). Call wandb.login()"
    assert told == [f"wandb failed and gets no more metrics: {error}"]
    assert len(read_records(recipe.run.dir / "metrics.jsonl")) == 2


def test_an_undeclared_metric_is_our_own_mistake(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0, print)
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

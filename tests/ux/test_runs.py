"""What a user of `janus runs` sees: a list, one run, two compared."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from janus_dist.cli.main import app
from janus_dist.config.load import Loaded, save
from janus_dist.errors import DataError, JanusError
from janus_dist.monitor import events
from janus_dist.report import comparison
from janus_dist.storage import lease, lease_files
from tests import prepared
from tests.pages import Page


@pytest.fixture
def janus(capsys):
    """Run `janus runs ARGUMENTS`: exit code, stdout, and the message of an error."""

    def run(*arguments):
        code, message = 0, ""
        try:
            app(["runs", *map(str, arguments)], standalone_mode=False)
        except JanusError as error:
            code, message = error.exit_code, error.message
        return code, capsys.readouterr().out, message

    return run


@pytest.fixture
def root(tmp_path):
    """Two runs of six steps, one of them two steps short and apart from the other since step 3."""
    for name, steps, bias, lr in (("one", 6, 0.0, 1e-2), ("two", 4, 0.5, 2e-2)):
        recipe = prepared.recipe(tmp_path, tmp_path, run={"name": name}, optim={"lr": lr})
        save(Loaded(recipe, {}, (), ()), tmp_path / name)
        lines = [
            {
                "step": step, "time": 1000.0 if name == "two" else time.time(),
                "loss/all": 4.0 - 0.1 * step + (bias if step > 2 else 0), "loss/text": 3.0 + 0.1 * step,
                "mix/text": 0.3, "mix/understanding": 0.2, "mix/generation": 0.5, "perf/tokens_per_s": 1000.0 * step,
                "batch/tokens": 200, "perf/step_s": 0.5, "perf/data_wait": 0.1, "optim/skipped_steps": step // 4,
            } | ({"validation/text": 2.9 + bias * 0.4} if step == 4 else {})
            for step in range(1, steps + 1)
        ]  # fmt: skip
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "data-report").mkdir()
    return tmp_path


def test_list(root, janus):
    code, out, _ = janus("list", root)
    assert code == 0
    assert out.splitlines() == [
        "run  stage              steps  state     over the last 20 steps",
        "one  stage 2              6/6  complete  loss 3.500  5k tok/s",
        "two  stage 2              4/6  silent    loss 4.150  3.5k tok/s",
    ]
    assert [one["state"] for one in json.loads(janus("list", root, "--json")[1])["runs"]] == ["complete", "silent"]


def test_states(root, janus):
    """By what was heard of a run last."""

    def state():
        return json.loads(janus("show", root / "two", "--json")[1])["state"]

    events.record(root / "two", "resumed", 4, "resuming two at step 4")
    assert state() == "training", "before its next step"
    events.record(root / "two", "stopped", 4, "asked to stop")
    assert state() == "stopped", "at once"
    events.record(root / "two", "failed", 4, "the cluster has no room")
    assert state() == "failed"
    (root / "two" / "metrics.jsonl").unlink()
    (root / "two" / "events.jsonl").unlink()
    assert state() == "starting"
    os.utime(root / "two" / "config.json", (1000, 1000))
    assert state() == "silent"


def test_a_run_whose_driver_is_gone_is_dead_at_once(root, janus, monkeypatch):
    """By the lease that the driver holds in the run's folder, and not by when its last step was."""

    def state():
        return json.loads(janus("show", root / "two", "--json")[1])["state"]

    events.record(root / "two", "failed", 4, "the cluster has no room")
    held = lease.take(str(root / "two"), "run two", "training stage 2", print, "hint")
    holder = next((root / "two" / "lease").glob("*.json"))
    later = time.time() + 5
    os.utime(holder, (later, later))
    assert state() == "training", "it was started again since it failed"
    (root / "two" / "events.jsonl").unlink()
    os.utime(holder, (1000, 1000))
    assert state() == "silent", "its driver did not live to its first beat"
    held.renew()
    assert state() == "training", "its last step was long ago, and its driver lives"
    beat = next((root / "two" / "lease").glob("*.beat"))
    os.utime(beat, (1000, 1000))
    assert state() == "silent"
    monkeypatch.setattr(lease_files.ProcessIdentity, "is_gone", property(lambda process: True))
    assert state() == "dead"
    monkeypatch.undo()
    held.release()
    assert state() == "dead", "it ended without a word"
    assert "two  stage 2              4/6  dead " in janus("list", root)[1]


def test_show(root, janus):
    code, out, _ = janus("show", root / "two")
    assert code == 0
    assert out.splitlines() == [
        f"{root / 'two'}: stage 2, step 4 of 6, silent",
        "  loss text          3.150 -> 3.350  first and last 2 steps",
        "  held out           text 3.100  step 4",
        "  mixture            understanding 20.0%, text 30.0%, generation 50.0%",
        "  trained            800 tokens in 2s",
        "  speed              3.5k tok/s, 10% of it waiting for data",
        "  skipped            1",
        "  in its folder      metrics.jsonl",
    ]


def test_compare(root, janus):
    code, out, _ = janus("compare", root / "one", root / "two")
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == ['run.name: "one" -> "two"', "optim.lr: 0.01 -> 0.02"]
    assert lines[2] == "4 steps in common, the same losses until step 2; means of the last 2 of them:"
    assert "  loss/all                        3.650 ->      4.150" in lines
    assert "  validation/text                 2.900 ->      3.100  of step 4" in lines
    assert lines[-1] == "one is ahead by 0.2000 in held-out losses; equally fast"
    found = json.loads(janus("compare", root / "one", root / "one", "--json")[1])
    assert found["settings"] == {} and found["equal_steps"] == found["common_steps"] == 6


def test_compare_as_a_page(root, janus, tmp_path):
    page = tmp_path / "pages" / "beside.html"
    code, out, _ = janus("compare", root / "one", root / "two", "--html", page)
    assert code == 0 and out.splitlines()[-1] == f"page: {page}"
    html = page.read_text()
    found = Page(html)
    text = " ".join(found.text.split())
    for expected in (
        "one compared with two",
        "one is ahead by 0.2000 in held-out losses; equally fast", "the same losses until step 2",
        "optim.lr0.010.02", "loss/all3.6504.150 +0.5", "held-out losses (validation) of step 4", "loss, text",
    ):  # fmt: skip
        assert expected in text, expected
    assert not found.open and "<script" not in html and all(one.startswith(("data:", "#")) for one in found.addresses)
    janus("compare", root / "one", root / "one", "--html", page)
    assert "bit for bit the same losses" in page.read_text() and "<p>None.</p>" in page.read_text()


def test_runs_of_one_name_are_told_apart(root, janus, tmp_path):
    shutil.copytree(root / "two", tmp_path / "later" / "one")
    _, out, _ = janus("compare", root / "one", tmp_path / "later" / "one")
    assert out.splitlines()[-1].startswith(f"{root.name}/one is ahead by 0.2000")
    assert comparison.labels(Path("a/runs/one"), Path("b/runs/one")) == ("a/runs/one", "b/runs/one")
    assert comparison.labels(Path("runs/one"), Path("runs/one")) == ("one (A)", "one (B)")


def test_what_is_no_run(root, janus):
    assert janus("list", root / "data-report")[::2] == (3, f"no run under {root / 'data-report'}")
    assert (
        janus("show", root / "data-report")[2] == f"{root}/data-report is not a run: it has no config.json of a stage"
    )
    assert janus("list", root / "runz")[2] == f"{root}/runz does not exist"


def test_what_was_meant_is_said(root):
    for name, message, hint in (
        (".", f"{root} is a folder of runs", "name one of them: one, two"),
        ("tvo", f"{root}/tvo does not exist", f"did you mean {root}/two?"),
        ("zzz", f"{root}/zzz does not exist", f"the runs in {root} are one, two"),
        ("no/such", f"{root}/no/such does not exist", "give a run's folder: run.root/run.name"),
    ):
        with pytest.raises(DataError) as caught:
            app(["runs", "show", str(root / name)], standalone_mode=False)
        assert (caught.value.message, caught.value.hint) == (message, hint)

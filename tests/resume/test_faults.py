"""Faults on gloo ranks: notices, skipped steps, going back, worlds that do not fit; none costs more than it must."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from janus_dist.checkpoint import commits, state
from janus_dist.data.reader import PATIENCE_S, TIMEOUT_S
from janus_dist.errors import ClusterError, JanusError
from janus_dist.storage import fs
from janus_dist.storage.json_lines import read_records
from janus_dist.train import spikes, startup, watchdog
from janus_dist.train import trainer as trainer_module
from janus_dist.train.build import build_trainer
from janus_dist.train.trainer import Trainer
from tests import prepared, tiny
from tests.checkpoints import folder_of, saved_in
from tests.limits import HANG_S
from tests.moto_s3 import moto_bucket
from tests.ranks import run_ranks
from tests.resume.test_trainer import losses

STEPS = 8
SECTIONS: dict[str, Any] = {"train": {"steps": STEPS, "save_every_steps": 2}}


def fit(folder: Path, root: Path, workers: int, fault: dict[str, Any], sections: dict[str, Any]) -> list[str]:
    """Train to the end with a fault; the lines said, or the error as its exit code and text."""
    lines: list[str] = []
    try:
        recipe = prepared.recipe(folder, root, workers, **SECTIONS | sections)
        trainer = build_trainer(recipe, lines.append)
        inject(trainer, fault)
        trainer.fit()
    except JanusError as error:
        return [*lines, f"exit {error.exit_code}: {error}"]
    return lines


def signal_within(trainer: Trainer, phase: str | None, rank: int | None) -> None:
    """SIGTERM to this process at the beginning of a phase, if it is the rank for that."""
    owner, name = {
        "start": (trainer_module, "start"),
        "save": (trainer.checkpointing.saver, "start"),
        "save_last": (trainer.checkpointing, "save_last"),
    }.get(phase or "", (trainer, None))
    if name is None or trainer.run.world.rank != rank:
        return
    real = getattr(owner, name)

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    setattr(owner, name, signalled)


def inject(trainer: Trainer, fault: dict[str, Any]) -> None:
    if fault.get("no_watch"):
        trainer.run.watchdog.end()
        trainer.hooks[trainer.hooks.index(trainer.run.watchdog)] = trainer.run.watchdog = Mock()
    spikes.MAX_SKIPPED = fault.get("most_skipped", spikes.MAX_SKIPPED)
    signal_within(trainer, fault.get("signal_in"), fault.get("rank"))
    bad, signalled = fault.get("bad_plan_steps", ()), fault.get("signal_at")
    pause_s = fault.get("slow_save_s", 0) if trainer.run.world.rank == fault.get("rank") else 0
    if pause_s:  # it comes so much later to what the ranks agree on in their first save
        write, pauses = state.write, [pause_s]
        state.write = lambda *given: (time.sleep(pauses.pop() if pauses else 0), write(*given))[1]
    take = trainer.run.judge

    def judge(outcome) -> None:
        if trainer.run.progress.step == signalled and trainer.run.world.rank == fault["rank"]:
            os.kill(os.getpid(), signal.SIGTERM)
        take(outcome)

    trainer.run.judge = judge
    check = spikes.LossSpikeDetector.check
    spikes.LossSpikeDetector.check = lambda self, loss: (
        "bad" if trainer.run.progress.plan_step in bad else check(self, loss)
    )


def train(folder: Path, root: Path, workers: int = 2, fault: dict[str, Any] | None = None, **sections) -> list[str]:
    return run_ranks(fit, workers, root / "meet", folder, root, workers, fault or {}, sections)[0]


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("unbroken")
    train(folder, root)
    return root


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_rank_stops_all_at_one_step_and_the_run_goes_on(folder, unbroken, tmp_path, rank):
    *_, saved, last = train(folder, tmp_path, fault={"signal_at": 3, "rank": rank})
    # the signal comes while step 3 ends; what step 4 agrees on is that all stop behind it
    assert last == (
        f"exit 75: run {tmp_path / 'run'} was asked to stop (SIGTERM on rank {rank}) and saved step 4 "
        f"of {STEPS}\n"
        "  run the same command again to resume from there"
    )
    assert saved.startswith(f"saved {folder_of(tmp_path / 'run', 4)} ")
    again = train(folder, tmp_path)
    assert any("resuming run at step 4 from" in line for line in again)
    assert losses(tmp_path) == losses(unbroken)


def test_a_file_in_the_run_folder_or_a_notice_of_the_node_stops_a_run(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    *_, last = train(folder, tmp_path, 1)
    assert f"was asked to stop ({tmp_path / 'run' / 'STOP'} on rank 0) and saved step 1 of" in last
    assert not (tmp_path / "run" / "STOP").exists(), "it counts once"
    notice = tmp_path / "notice"
    notice.touch()
    *_, last = train(folder, tmp_path, 1, cluster={"workers": 1, "notice_file": str(notice)})
    assert last.startswith("exit 75: ") and f"({notice} on rank 0) and saved step 2 of" in last
    notice.unlink()
    assert "resuming run at step 2 from" in "\n".join(train(folder, tmp_path, 1))


@pytest.mark.parametrize("phase", ["start", "save", "save_last"])
def test_a_signal_in_any_phase_is_heard(folder, unbroken, tmp_path, phase):
    """While a run loads, while a checkpoint is begun, and in the last of all, when there is nothing left to stop."""
    lines = train(folder, tmp_path, fault={"signal_in": phase, "rank": 1})
    if phase == "save_last":
        assert lines[-1].startswith(f"saved {folder_of(tmp_path / 'run', STEPS)}")
    else:
        step = {"start": 1, "save": 3}[phase]
        assert lines[-1].startswith("exit 75: ") and f"(SIGTERM on rank 1) and saved step {step} of" in lines[-1]
        train(folder, tmp_path)
    assert losses(tmp_path) == losses(unbroken)


def test_a_step_whose_loss_is_refused_costs_that_step(folder, unbroken, tmp_path):
    lines = train(folder, tmp_path, fault={"bad_plan_steps": (4,)})
    assert [line for line in lines if "skipped" in line] == ["step 5 was skipped: bad"]
    found, expected = losses(tmp_path), losses(unbroken)
    assert list(found) == list(expected)
    assert all(found[step] == expected[step] for step in (1, 2, 3, 4))
    assert found[5][:-1] != () and found[6] != expected[6]
    assert read_records(tmp_path / "run" / "metrics.jsonl")[-1]["optim/skipped_steps"] == 1


def test_skipped_steps_are_counted_on_after_a_resume(folder, tmp_path):
    *_, last = train(folder, tmp_path, 1, fault={"bad_plan_steps": (1,), "signal_at": 3, "rank": 0})
    assert last.startswith("exit 75: ")
    train(folder, tmp_path, 1, fault={"bad_plan_steps": (4,)})
    counted = [line["optim/skipped_steps"] for line in read_records(tmp_path / "run" / "metrics.jsonl")]
    assert counted == [0, 1, 1, 1, 2, 2, 2, 2]


def test_after_many_the_run_goes_back_and_leaves_them_out(folder, unbroken, tmp_path):
    fault = {"bad_plan_steps": (5, 6), "most_skipped": 2}
    lines = train(folder, tmp_path, fault=fault, train={"steps": STEPS, "save_every_steps": 4})  # none puts that off
    (back,) = [line for line in lines if line.startswith("rolled back")]
    assert back == (
        f"rolled back from step 7 to {folder_of(tmp_path / 'run', 4)}; steps 4 to 6 of the plan are left out"
    )
    newest = commits.latest_committed(saved_in(tmp_path / "run"))
    assert newest is not None
    commit = commits.read(newest)
    assert (commit.step, commit.left_out) == (STEPS, [[4, 7]])
    found, expected = losses(tmp_path), losses(unbroken)
    assert list(found) == list(expected), "every step once"
    assert all(found[step] == expected[step] for step in (1, 2, 3, 4))
    # step 5 is now the plan's step 7, with the weights of step 4: the loss of another batch
    assert found[5] != expected[5]
    told = [json.loads(line) for line in (tmp_path / "run" / "left_out.jsonl").read_text().splitlines()]
    assert [line["plan_step"] for line in told] == [4, 5, 6]
    assert all(one["key"] for line in told for source in line["sources"].values() for one in source)


def test_what_was_left_out_stays_so_after_a_resume(folder, tmp_path):
    fault = {"bad_plan_steps": (5, 6), "most_skipped": 2}
    train(folder, tmp_path / "a", fault=fault)
    shutil.copytree(tmp_path / "a" / "run", tmp_path / "b" / "run")
    (folder_of(tmp_path / "b" / "run", STEPS) / commits.MARKER).unlink()
    newest = commits.latest_committed(saved_in(tmp_path / "b" / "run"))
    assert newest is not None
    lines = train(folder, tmp_path / "b", fault=fault)
    assert any(f"resuming run at step {commits.step_of(newest)} " in line for line in lines), lines
    assert not any("skipped" in line for line in lines)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_save_that_takes_longer_than_a_collective_may_is_not_the_last(folder, tmp_path):
    fault = {"slow_save_s": 25, "rank": 1, "no_watch": True}
    lines = train(folder, tmp_path, fault=fault, engine={"timeout_s": 10})
    assert not [line for line in lines if "could not be written" in line]
    assert lines[-1].startswith(f"saved {folder_of(tmp_path / 'run', STEPS)}")


def differing(folder: Path, root: Path, sections: dict[str, Any]) -> str:
    own = sections if os.environ["RANK"] == "1" else {}
    lines: list[str] = []
    try:
        build_trainer(prepared.recipe(folder, root, 2, **SECTIONS | own), lines.append).fit()
    except JanusError as error:
        return f"exit {error.exit_code}: {error}"
    return "\n".join(lines)


LARGER = tiny.MODEL.model_dump() | {"text": tiny.MODEL.text.model_dump() | {"vocab": prepared.VOCAB, "mlp": 96}}


@pytest.mark.parametrize("own", [{"optim": {"lr": 0.5}}, {"model": LARGER}, {"run": {"resume": "/nowhere"}}])
def test_ranks_that_differ_in_their_settings_are_refused(folder, tmp_path, own):
    """Also in what they do together before the first step: partition a model, look for a checkpoint."""
    for said in run_ranks(differing, 2, tmp_path / "meet", folder, tmp_path, own):
        assert said.startswith("exit 6: ranks differ in settings: most have ")
        assert "rank " in said and "start all ranks from the same image and code" in said
    assert commits.latest_committed(saved_in(tmp_path / "run")) is None


@pytest.mark.parametrize(("name", "value"), [("torch", "2.0.0"), ("ranks a node", 3)])
def test_differences_name_the_ranks_and_their_nodes(name, value):
    facts = {"torch": "2.13.0", "ranks a node": 4}
    every = [("a", facts), ("a", facts), ("b", facts | {name: value})]
    with pytest.raises(ClusterError, match=f"ranks differ in {name}: most have {facts[name]}, rank 2 on b has {value}"):
        startup._refuse_differences(every)


def test_a_network_that_is_too_slow_is_refused(folder, tmp_path):
    *_, last = train(folder, tmp_path, cluster={"workers": 2, "min_bandwidth_gb_s": 1e6})
    assert (
        last.startswith("exit 6: the all-reduce bandwidth is ") and "less than cluster.min_bandwidth_gb_s=1e+06" in last
    )


def small_disk(monkeypatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 9, free))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("steps", "keep", "number"), [(100, 2, 3), (100, 4, 5), (10, 2, 2), (3, 2, 1)])
def test_a_disk_has_room_for_the_checkpoints_kept_and_the_one_being_written(tmp_path, monkeypatch, steps, keep, number):
    train = {"steps": steps, "save_every_steps": 5, "keep_checkpoints": keep}
    recipe = prepared.recipe(tmp_path, tmp_path, train=train)
    small_disk(monkeypatch, number * 2**20 - 1)
    said = rf"GiB free, but {number} checkpoints need .* train\.keep_checkpoints={keep} keeps"
    with pytest.raises(ClusterError, match=said):
        startup.check_room(recipe, 2**20)
    small_disk(monkeypatch, number * 2**20)
    startup.check_room(recipe, 2**20)


def test_checkpoints_that_are_there_have_their_room(tmp_path, monkeypatch):
    """Or a run that fits its disk would be refused when it resumes."""
    recipe = prepared.recipe(tmp_path, tmp_path, train={"steps": 100, "save_every_steps": 5})
    for step in (5, 10):
        folder = folder_of(recipe.run.dir, step)
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").write_bytes(bytes(2**20))
    small_disk(monkeypatch, 2**20)
    startup.check_room(recipe, 2**20)
    small_disk(monkeypatch, 2**20 - 1)
    with pytest.raises(ClusterError, match=r"of which 0\.002 GiB are in use already"):
        startup.check_room(recipe, 2**20)


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match=r"file/run cannot be written: .*Not a directory.*"):
        startup.check_room(prepared.recipe(tmp_path, tmp_path / "file"), 0)


def test_checkpoints_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    with moto_bucket(monkeypatch, "room") as bucket:
        startup.check_room(prepared.recipe(tmp_path, tmp_path, run={"checkpoints": bucket}), 0)
        assert fs.names(f"{bucket}/run") == [], "nothing is left of the trial"
        with pytest.raises(ClusterError, match="s3://absent/run cannot be written: ") as caught:
            startup.check_room(prepared.recipe(tmp_path, tmp_path, run={"checkpoints": "s3://absent"}), 0)
    assert caught.value.hint == "choose another run.checkpoints"


HANGS = """
import sys, time
from pathlib import Path
from janus_dist.train import watchdog
watchdog.MIN_LIMIT_S, watchdog.WARM_STEPS = 0.5, 2
guard = watchdog.Watchdog(Path(sys.argv[1]), timeout_s=60.0)
for step in range(4):
    guard.beat(0.01)
def stands_still():
    time.sleep(60)
stands_still()
"""


def test_a_rank_that_stands_still_says_where_and_ends(tmp_path):
    stacks = tmp_path / "logs" / "stacks.txt"
    done = subprocess.run([sys.executable, "-c", HANGS, str(stacks)], timeout=HANG_S, check=False)
    assert done.returncode == 1
    text = stacks.read_text()
    assert "Timeout (0:00:00.500000)!" in text and "in stands_still" in text
    assert re.match(r"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+ process \d+\n", text)
    watchdog.Watchdog(stacks, timeout_s=60.0).end()
    assert stacks.read_text() == text, "who takes its place leaves it as it is"
    subprocess.run([sys.executable, "-c", HANGS, str(stacks)], timeout=HANG_S, check=False)
    assert stacks.read_text().startswith(text) and stacks.read_text().count("in stands_still") == 2


def test_where_nothing_hangs_there_is_no_file(tmp_path):
    guarded = watchdog.Watchdog(tmp_path / "logs" / "stacks.txt", timeout_s=60.0)
    guarded.beat(0.1)
    guarded.end()
    assert list((tmp_path / "logs").iterdir()) == []


def test_the_limit_is_that_of_the_slowest_rank_and_of_a_store_that_is_away(tmp_path, monkeypatch):
    armed: list[float] = []
    monkeypatch.setattr(watchdog.Watchdog, "_arm", lambda self, limit_s: armed.append(limit_s))
    guarded = watchdog.Watchdog(tmp_path / "stacks.txt", timeout_s=6000.0)
    for _ in range(watchdog.WARM_STEPS + 1):
        guarded.beat(0.1)
    assert armed[:-1] == [6000.0] * (watchdog.WARM_STEPS + 1)
    assert armed[-1] > PATIENCE_S + 2 * TIMEOUT_S > 120
    guarded.agree(100.0)
    guarded.beat(0.1)
    assert armed[-1] == 1000.0
    guarded.pause(longest_s=7000.0)
    assert armed[-1] == 7000.0
    guarded.end()

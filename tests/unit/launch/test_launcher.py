"""A run's driver: one job for each run, ranks that are started again, and what it makes of ranks that fail."""

import pickle
import platform
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from ray.exceptions import ActorAlreadyExistsError, ActorDiedError, RayError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from janus_dist.checkpoint import commits
from janus_dist.config.recipe import RunConfig
from janus_dist.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    JanusError,
    PreemptedError,
    RankError,
)
from janus_dist.launch import launcher
from janus_dist.monitor import events
from janus_dist.storage import lease
from janus_dist.storage.lease import LeaseLostError, LeaseTimes
from janus_dist.train import ownership
from janus_dist.train.failure import told
from janus_dist.train.stop import request_stop
from tests import prepared


def test_never_is_of_the_start_of_a_job(monkeypatch, tmp_path):
    """Ranks that are started again must be able to go on from what the job has saved."""
    recipe = prepared.recipe(tmp_path, tmp_path, run={"resume": "never"})
    assert launcher._if_never(recipe).run.resume == "auto"
    monkeypatch.setattr(commits, "latest_committed", lambda saved_in: f"{saved_in}/step-00000003")
    with pytest.raises(ConfigError, match=r"run\.resume=never, but run .*/run has a checkpoint: .*/step-00000003"):
        launcher._if_never(recipe)
    other = prepared.recipe(tmp_path, tmp_path)
    assert launcher._if_never(other) is other


@pytest.mark.parametrize(("resume", "command"), [
    ("auto", "the same command"), ("never", "the same command with run.resume=auto"),
])  # fmt: skip
def test_the_hint_names_a_command_that_resumes_the_run(started, resume, command):
    """A job that was started by `never` would be refused the second time."""
    stopped = PreemptedError("run was asked to stop", "a hint of the rank, in whatever words")
    with pytest.raises(PreemptedError) as caught:
        started([WorkerGroupError("all", {0: stopped})], resume=resume)
    assert (caught.value.message, caught.value.hint) == (stopped.message, f"{command} resumes from there")
    with pytest.raises(launcher.LostRankError) as caught:
        started([WorkerGroupError("all", {1: DEAD})] * 20, resume=resume)
    assert f"; {command} resumes from the last checkpoint under " in (caught.value.hint or "")
    with pytest.raises(ClusterError) as caught:
        started([RayError("gone")], resume=resume)
    assert (caught.value.hint or "").startswith(f"{command} resumes from the last checkpoint under ")
    with pytest.raises(DataError) as caught:
        started(
            [WorkerGroupError("all", {0: DataError("no shard", "the same command, once it is made")})], resume=resume
        )
    assert caught.value.hint == "the same command, once it is made"


@pytest.mark.parametrize(("newest", "hint"), [
    (None, "the same command resumes it"), ("d/step-00000003", "the same command with run.resume=auto resumes it"),
])  # fmt: skip
def test_a_stop_before_ranks_begin_names_a_command_that_is_not_refused(tmp_path, newest, hint):
    never = prepared.recipe(tmp_path, tmp_path, run={"resume": "never"})
    never.run.dir.mkdir()
    request_stop(never.run.dir, "Ctrl-C")
    with pytest.raises(PreemptedError) as caught:
        launcher._stop_if_asked(never, newest)
    assert caught.value.hint == hint


def test_what_a_killed_job_left_on_the_cluster_is_waited_for(monkeypatch, tmp_path):
    """Its ranks may still write into the folder."""
    taken, names = [3], []

    class Named:
        @staticmethod
        def remote() -> str:
            taken[0] -= 1
            if taken[0] >= 0:
                raise ActorAlreadyExistsError("the name is taken")
            return "lines"

    class Actor:
        @staticmethod
        def options(name: str, **_: Any) -> type[Named]:
            names.append(name)
            return Named

    monkeypatch.setattr(launcher, "RunServices", Actor)
    monkeypatch.setattr(launcher.ray, "get_runtime_context", lambda: Mock(get_node_id=lambda: "0" * 56))
    monkeypatch.setattr(launcher, "POLL_S", 0.01)
    recipe = prepared.recipe(tmp_path, tmp_path)
    killed, said = [], []
    monkeypatch.setattr(launcher.ray, "kill", killed.append)
    with launcher._lines_of(recipe, said.append) as lines:
        assert lines == "lines" and names == [f"lines of {recipe.run.dir}"] and not killed
    assert killed == ["lines"], "the next one need not wait until nothing holds it any more"
    assert said == [
        f"run {recipe.run.dir} belongs to another job of this cluster; "
        "if that was killed, Ray takes up to 45 s to see it"
    ]
    monkeypatch.setattr(launcher, "RAY_CLEANUP_TIMEOUT_S", 0.05)
    taken[0] = 1_000_000
    with pytest.raises(ConfigError, match=r"run .*/run is being trained by another job of this cluster"):
        launcher._lines_of(recipe, said.append).__enter__()


@pytest.mark.parametrize("apart", [False, True])
def test_one_job_has_a_run_and_its_checkpoints_whatever_cluster_it_is_in(tmp_path, monkeypatch, apart):
    """Of two users with run folders of their own, each would delete what the other saved."""
    monkeypatch.setattr(lease, "TIMES", LeaseTimes(renew_s=0.01, poll_s=0.01))
    monkeypatch.setattr(lease.take, "__defaults__", (lease.TIMES, time))
    run = {"checkpoints": str(tmp_path / "saved")} if apart else {}
    mine = prepared.recipe(tmp_path, tmp_path, run=run)
    other = prepared.recipe(tmp_path, tmp_path / "other" if apart else tmp_path, run=run)
    said: list[str] = []
    with ownership.hold_run(mine, said.append) as held:
        assert len(held) == 1 + apart and not said
        with pytest.raises(ConfigError) as refused, ownership.hold_run(other, said.append):
            pass
        what = f"the folder of checkpoints {tmp_path}/saved/run" if apart else f"run {tmp_path}/run"
        assert refused.value.message.startswith(f"{what} is held by another job, which is alive: ")
        assert "(training stage 2, process " in refused.value.message and "run.name" in (refused.value.hint or "")
        assert len(said) == 1 and said[0].startswith(f"{what} is held by ")
    with ownership.hold_run(other, said.append):
        assert len(said) == 1, "it was let go"


def test_a_run_that_is_another_jobs_by_now_is_not_started_again(started):
    lost = LeaseLostError("run was taken over", "wait")
    held = Mock(check=Mock(side_effect=[None, lost]))
    with pytest.raises(LeaseLostError):
        started([WorkerGroupError("all", {1: DEAD})] * 3, leases=[held])
    assert held.check.call_count == 2, "before ranks are started, and when some are lost"


def test_a_run_folder_that_cannot_be_read_for_a_moment_is_still_this_jobs(monkeypatch):
    away = ClusterError("s3://bucket cannot be reached")
    monkeypatch.setattr(ownership, "POLL_S", 0.0)
    ownership.check_held([Mock(check=Mock(side_effect=[away, away, None]))])
    monkeypatch.setattr(ownership, "PATIENCE_S", 0.0)
    with pytest.raises(ClusterError, match="cannot be reached"):
        ownership.check_held([Mock(check=Mock(side_effect=away))])


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Trains a run whose ranks fail so, time after time, and at last are done; what was said."""

    def until_done(failures: list[Exception], leases: Sequence[Any] = (), **run: Any) -> list[str]:
        said: list[str] = []
        monkeypatch.setattr(launcher.ray, "get", lambda found: found)
        monkeypatch.setattr(launcher, "ranks_for", lambda *_: 2)
        monkeypatch.setattr(launcher, "wait_for_others", lambda *_: None)
        monkeypatch.setattr(launcher, "POLL_S", 0.01)
        monkeypatch.setattr(launcher, "_train_once", Mock(side_effect=[*failures, None]))
        recipe = prepared.recipe(tmp_path, tmp_path, run=run)
        recipe.run.dir.mkdir(exist_ok=True)
        launcher._until_done(recipe, recipe, Mock(), said.append, leases)
        return said

    return until_done


def test_ranks_that_ray_could_not_place_are_not_lost(started, tmp_path):
    """Another job has what they need; it may have it for days."""
    assert started([ControllerError(WorkerGroupStartupTimeoutError(2))] * 9) == [
        *["starting 2 ranks", "Ray found no place for all ranks at once: trying again"] * 9, "starting 2 ranks",
    ]  # fmt: skip
    assert not events.read(tmp_path / "run")


def test_a_run_that_waits_hears_that_it_is_to_stop(started, tmp_path):
    (tmp_path / "run").mkdir()
    request_stop(tmp_path / "run", "SIGTERM to its job")
    with pytest.raises(PreemptedError, match=r"asked to stop \(SIGTERM to its job: .*/STOP\) before its ranks began"):
        started([])
    assert [(one.kind, one.step) for one in events.read(tmp_path / "run")] == [("stopped", 0)]


def test_a_store_that_is_away_when_a_rank_is_lost_is_asked_again(started, monkeypatch):
    away = CheckpointError("s3://bucket cannot be reached", "see")
    monkeypatch.setattr(commits, "latest_committed", Mock(side_effect=[None, away, away, "s3://bucket/step-00000004"]))
    said = started([WorkerGroupError("all", {1: DEAD})])
    assert said[1].endswith("starting again (1 of 3 without a new checkpoint)") and said[2] == "starting 2 ranks"
    monkeypatch.setattr(commits, "latest_committed", Mock(side_effect=away))
    monkeypatch.setattr(launcher, "PATIENCE_S", 0.05)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        started([])


def test_ranks_are_told_whole_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for given, expected in (
        ("runs/run/checkpoints/step-00000003/", f"{tmp_path}/runs/run/checkpoints/step-00000003"),
        ("s3://bucket/run/step-00000003", "s3://bucket/run/step-00000003"),
        ("auto", "auto"),
        ("never", "never"),
    ):
        recipe = prepared.recipe(tmp_path, tmp_path, run={"resume": given})
        assert recipe.with_absolute_paths().run.resume == expected


GONE = RuntimeError(
    "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:60060. This is typically ..."
)
NCCL = torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3384, remote process exited")
DEVICE = RuntimeError("CUDA error: uncorrectable ECC error encountered")
RUN = RunConfig(root="RUNS", name="RUN", checkpoints="SAVED")
DEAD = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: many", ActorDiedError())


def left_by(rank: int, error: Exception) -> Exception:
    """What reaches the driver of what a rank raises."""
    with pytest.raises(Exception) as caught, told(rank, RUN.dir):
        raise error
    return pickle.loads(pickle.dumps(caught.value))


def cause(**ranks: Exception) -> JanusError:
    """The error that a run ends with, or is started again for, when ranks r0, r1 ... raise these."""
    failures = {int(name[1:]): one if one is DEAD else left_by(int(name[1:]), one) for name, one in ranks.items()}
    found = launcher._cause(WorkerGroupError("all of it", failures), RUN)
    assert isinstance(found, JanusError)
    return found


def test_a_ranks_own_exception_ends_the_run_and_is_said_with_rank_node_and_file(capfd):
    mistake = TypeError("unsupported operand\n  for +")
    found = cause(r0=GONE, r2=mistake, r3=mistake)
    assert isinstance(found, RankError) and found.exit_code == 1
    assert found.message == f"rank 2 on {platform.node()} failed: TypeError: unsupported operand for +"
    assert found.hint == "its traceback is in RUNS/RUN/logs/rank-0002.log"
    assert "Traceback" in capfd.readouterr().err


def test_too_little_memory_comes_with_what_to_lower():
    found = cause(r0=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert found.exit_code == 1 and "torch.OutOfMemoryError: CUDA out of memory. Tried to" in found.message
    assert found.hint is not None and found.hint.startswith("lower batch.micro_rows, use more ranks, or set engine.")


@pytest.mark.parametrize("error", [GONE, NCCL, DEVICE, ConnectionResetError("reset by peer")])
def test_what_others_or_devices_cause_is_a_lost_rank(error):
    found = cause(r0=error, r1=error)
    assert isinstance(found, launcher.LostRankError) and found.exit_code == 6
    assert found.message.startswith("a rank was lost: rank 0: ") and str(error)[:40] in found.message
    assert found.hint is not None and "RUNS/RUN/logs/rank-0000.log" in found.hint and "under SAVED/RUN" in found.hint


def test_a_death_explains_what_the_others_say():
    for other in (GONE, ValueError("a message cut short")):
        found = cause(r0=other, r1=DEAD)
        assert isinstance(found, launcher.LostRankError)
        assert found.message == "a rank was lost: rank 1: its process died, or its node"
        assert found.subject == "rank 1: died"


def test_what_is_meant_for_the_user_comes_first():
    found = cause(r0=TypeError("x"), r1=DataError("no shard", "make it"), r2=DEAD)
    assert isinstance(found, DataError) and found.hint == "make it"


def test_a_save_that_a_death_broke_is_a_lost_rank():
    """The survivors can but say that their last save failed: the run must be started again, not end with 4."""
    failed = CheckpointError("the last checkpoint, of step 9, could not be written", "mend it")
    assert isinstance(cause(r0=failed, r1=DEAD), launcher.LostRankError)
    assert isinstance(cause(r0=failed, r1=GONE), CheckpointError)


def test_a_group_that_did_not_start_is_lost():
    found = launcher._cause(ControllerError(ActorDiedError()), RUN)
    assert isinstance(found, launcher.LostRankError)
    assert found.message == "a rank was lost: its process died, or its node"

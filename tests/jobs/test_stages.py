"""The jobs as a user starts them: on the embedded default, by Ray, killed and started again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from janus_dist.checkpoint import commits
from janus_dist.monitor import events
from janus_dist.report.curves import Curve, follow
from janus_dist.storage.json_lines import read_records
from tests.checkpoints import saved_in
from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def settings(root: Path) -> list[str]:
    """Overrides that make the embedded default short, with its data beside the runs."""
    return [
        f"run.root={root}", f"data.root={root.parent / 'data'}", "monitor.wandb=disabled", "batch.rows=2",
        "batch.micro_rows=1", "train.steps=12", "train.save_every_steps=4", "optim.warmup_steps=2",
        "train.log_every_steps=1",
    ]  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    """That of a user's shell with the virtual environment on PATH, and a home folder of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != "PYTHONPATH"}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return kept | {"OMP_NUM_THREADS": "1", "HOME": str(home), "PATH": path}


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment(log.parent),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run(arguments: list[str], log: Path) -> int:
    return start(arguments, log).wait(timeout=HANG_S)


def losses(root: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss/all"]) for line in read_records(root / "stage2" / "metrics.jsonl")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """Stage 2 on a machine where nothing was prepared: shards, stage 1, stage 2."""
    root = tmp_path_factory.mktemp("jobs") / "unbroken"
    log = root.parent / "unbroken.log"
    code = run(["jobs/stage2.py", *settings(root)], log)
    assert code == 0, log.read_text()
    said = log.read_text()
    assert "stage2 starts from stage1, which is trained first" in said
    assert "step 12/12  100.0%" in said and "report: " in said
    return root


def test_stage2_prepares_what_is_missing_and_trains(unbroken):
    assert [step for step, _ in losses(unbroken)] == list(range(1, 13))
    assert (unbroken / "stage2" / "report.html").exists()
    resolved = json.loads((unbroken / "stage2" / "config.json").read_text())
    assert resolved["train"]["steps"] == 12 and resolved["run"]["start_from"] == "stage1"
    said = (unbroken.parent / "unbroken.log").read_text()
    assert f"computing in {resolved['engine']['dtype']}: " in said, "decided once, said, and written down"
    newest = commits.latest_committed(saved_in(unbroken / "stage1"))
    assert newest is not None


def test_stage1_follows_its_reference_curve(unbroken):
    """It is that of the demo: an override of a batch is the stage's own, not that of the stage before."""
    curve = Curve.of(unbroken / "stage1")
    reference = Curve.read(ROOT / "jobs" / "recipes" / "tiny" / "curves" / "stage1.json", curve.dtype)
    found = follow(curve, reference)
    assert found.steps == reference.steps == 40 and found.is_within, found
    half = replace(reference, losses={name: [2 * value for value in each] for name, each in reference.losses.items()})
    assert not follow(curve, half).is_within


def test_a_local_ray_leaves_no_token(unbroken):
    """With ~/.ray/auth_token there, `ray start` would want it of `ray job submit`, which does not send it."""
    assert not (unbroken.parent / ".ray" / "auth_token").exists()


@pytest.mark.long
def test_a_ray_that_wants_another_token_is_left_alone(tmp_path):
    """Someone else's Ray on the same machine: it cannot be joined, so a local one is started beside it."""
    mine = environment(tmp_path)
    theirs = mine | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    shell = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": HANG_S}
    started = subprocess.run(
        ["ray", "start", "--head", "--port=6399", "--include-dashboard=false"], env=theirs, **shell
    )
    assert started.returncode == 0, started.stderr
    try:
        code = "import ray; from janus_dist.launch.session import connect; connect(); "
        code += "print(ray.cluster_resources()['CPU'])"
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, env=mine | {"PYTHONPATH": str(ROOT)}, **shell)
    finally:
        subprocess.run(["ray", "stop"], env=theirs, **shell)
    assert done.returncode == 0 and float(done.stdout.split()[-1]) >= 1, done.stdout + done.stderr


def test_as_a_submitted_job(unbroken, tmp_path):
    """`ray start --head`, then `ray job submit -- python jobs/stage2.py`, as README says."""
    shell = {"cwd": ROOT, "env": environment(tmp_path), "capture_output": True, "text": True, "timeout": HANG_S}
    started = subprocess.run(["ray", "start", "--head"], **shell)
    assert started.returncode == 0, started.stderr
    shutil.copytree(unbroken / "stage1", tmp_path / "runs" / "stage1")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red circle"}\n{"question": "what shape is it?"}\n')
    try:
        overrides = [
            *settings(tmp_path / "runs"),
            f"data.root={unbroken.parent / 'data'}",
            f"monitor.prompts={prompts}",
        ]
        done = subprocess.run(["ray", "job", "submit", "--", "python", "jobs/stage2.py", *overrides], **shell)
    finally:
        subprocess.run(["ray", "stop"], **shell)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 12/12  100.0%" in done.stdout and "succeeded" in done.stdout + done.stderr
    assert losses(tmp_path / "runs") == losses(unbroken)
    last = tmp_path / "runs" / "stage2" / "samples" / "step-00000012"
    assert (last / "grid.png").stat().st_size and f"step 12: samples in {last}" in done.stdout
    assert json.loads((last / "samples.json").read_text())["answers"][0]["question"] == "what shape is it?"
    assert "The same prompts and seeds over time" in (tmp_path / "runs" / "stage2" / "report.html").read_text()


def start_and_wait(root: Path, log: Path, steps: int) -> subprocess.Popen:
    """Stage 2 until so many more steps are recorded than there were."""
    metrics = root / "stage2" / "metrics.jsonl"
    before = len(read_records(metrics))
    job = start(["jobs/stage2.py", *settings(root)], log)
    wait_until(lambda: len(read_records(metrics)) >= before + steps, job, log)
    return job


def wait_until(is_so: Callable[[], object], job: subprocess.Popen, log: Path) -> None:
    """While the job runs."""
    deadline = time.monotonic() + HANG_S
    while not is_so():
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def ranks_of(log: Path) -> list[int]:
    """Processes of the ranks of the job that writes this log, by the home folder that it was given."""
    home, found = f"HOME={log.parent}\0".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"RayTrainWorker" in (process / "cmdline").read_bytes() and home in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return sorted(found)


def test_a_lost_rank_is_started_again_by_the_job_itself(unbroken, tmp_path):
    root, log = unbroken.parent / "lost", tmp_path / "log"
    shutil.copytree(unbroken / "stage1", root / "stage1")
    job = start_and_wait(root, log, steps=5)
    # written beside the steps, in its own time
    wait_until(lambda: commits.latest_committed(saved_in(root / "stage2")), job, log)
    first, second = ranks_of(log)
    os.kill(second, signal.SIGKILL)
    assert job.wait(timeout=HANG_S) == 0, log.read_text()
    said = log.read_text()
    assert re.search(r"a rank was lost: rank \d: .*; starting again \(1 of 3 without a new checkpoint\)", said), said
    assert re.search(r"resuming stage2 at step \d+ from ", said)
    assert losses(root) == losses(unbroken)
    assert [event.kind for event in events.read(root / "stage2") if event.kind in ("started", "lost", "resumed")] == [
        "started", "lost", "resumed",
    ]  # fmt: skip
    assert (root / "stage2" / "logs" / "rank-0001.log").read_text().count("--- ") == 2, "two processes were rank 1"
    assert not {first, second} & set(ranks_of(log))


def test_stopped_and_killed_and_started_again_it_ends_with_the_same_losses(unbroken, tmp_path):
    root, log = unbroken.parent / "stopped", tmp_path / "log"
    shutil.copytree(unbroken / "stage1", root / "stage1")
    job = start_and_wait(root, log, steps=1)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=HANG_S) == 75, log.read_text()
    assert re.search(
        r"stage2 was asked to stop \(.*STOP on rank 0\) and saved step \d+ of 12\n  the same command resumes",
        log.read_text(),
    )
    job = start_and_wait(root, log, steps=1)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert len(losses(root)) < 12
    again = tmp_path / "again.log"
    code = run(["jobs/stage2.py", *settings(root)], again)
    # ranks outlive their driver by a moment: they may have reached the next checkpoint, where all is slow the last
    went_on = code == 0 and re.search(r"resuming stage2 at step \d+ from ", again.read_text())
    assert went_on or "is complete: its checkpoint is at step 12" in again.read_text(), (
        log.read_text() + again.read_text()
    )
    assert losses(root) == losses(unbroken)


def test_interrupted_while_its_ranks_start_a_job_saves_and_ends_with_130(unbroken, tmp_path):
    """Ctrl-C of a terminal, which sends it to all processes of the job."""
    root, log = unbroken.parent / "early", tmp_path / "log"
    shutil.copytree(unbroken / "stage1", root / "stage1")
    job = start(["jobs/stage2.py", *settings(root)], log)
    wait_until(lambda: ranks_of(log), job, log)
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(timeout=HANG_S) == 130, log.read_text()
    assert re.search(
        r"asked to stop \(Ctrl-C: .*stage2/STOP on rank 0\) and saved step 1 of 12\n  the same command resumes",
        log.read_text(),
    )
    assert "Traceback" not in log.read_text()


def test_a_complete_run_is_not_trained_again(unbroken, tmp_path):
    log = tmp_path / "log"
    assert run(["jobs/stage2.py", *settings(unbroken)], log) == 2
    assert "is complete: its checkpoint is at step 12, as train.steps asks" in log.read_text()


def test_more_workers_than_the_cluster_has_are_refused(unbroken, tmp_path):
    log = tmp_path / "log"
    shutil.copytree(unbroken / "stage1", tmp_path / "runs" / "stage1")
    overrides = [*settings(unbroken), f"run.root={tmp_path / 'runs'}", "cluster.workers=4000"]
    assert run(["jobs/stage2.py", *overrides], log) == 6
    assert "cluster.workers=4000 need 4000 CPUs, the Ray cluster has" in log.read_text()


@pytest.mark.long
def test_evaluate_a_run(unbroken, tmp_path):
    overrides = [f"run.root={unbroken}", "run.name=stage2", "evaluate.max_questions=40", "evaluate.images_per_prompt=1"]
    log = tmp_path / "log"
    assert run(["jobs/evaluate.py", *overrides], log) == 0, log.read_text()
    found = json.loads((unbroken / "evaluation" / "evaluation.json").read_text())
    assert found["num_questions"] == 40 and found["num_images"] == 24
    assert 0.3 < found["understanding_majority"] < 0.5
    assert "What it draws" in (unbroken / "report.html").read_text()

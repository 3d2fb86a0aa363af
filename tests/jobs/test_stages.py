"""The jobs as a user starts them: on the embedded default, by Ray, killed and started again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from janus_dist.engine import commits
from janus_dist.monitor.sinks import read_lines

ROOT = Path(__file__).parents[2]
LIMIT_S = 420

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
    return start(arguments, log).wait(timeout=LIMIT_S)


def losses(root: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss/all"]) for line in read_lines(root / "stage2" / "metrics.jsonl")]


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
    newest = commits.latest(unbroken / "stage1")
    assert newest is not None


def test_a_local_ray_leaves_no_token(unbroken):
    """With ~/.ray/auth_token there, `ray start` would want it of `ray job submit`, which does not send it."""
    assert not (unbroken.parent / ".ray" / "auth_token").exists()


def test_a_ray_that_wants_another_token_is_left_alone(tmp_path):
    """Someone else's Ray on the same machine: it cannot be joined, so a local one is started beside it."""
    mine = environment(tmp_path)
    theirs = mine | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    shell = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": LIMIT_S}
    started = subprocess.run(
        ["ray", "start", "--head", "--port=6399", "--include-dashboard=false"], env=theirs, **shell
    )
    assert started.returncode == 0, started.stderr
    try:
        code = "from janus_dist.launch import connect; connect(); import ray; print(ray.cluster_resources()['CPU'])"
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, env=mine | {"PYTHONPATH": str(ROOT)}, **shell)
    finally:
        subprocess.run(["ray", "stop"], env=theirs, **shell)
    assert done.returncode == 0 and float(done.stdout.split()[-1]) >= 1, done.stdout + done.stderr


def test_as_a_submitted_job(unbroken, tmp_path):
    """`ray start --head`, then `ray job submit -- python jobs/stage2.py`, as README says."""
    shell = {"cwd": ROOT, "env": environment(tmp_path), "capture_output": True, "text": True, "timeout": LIMIT_S}
    started = subprocess.run(["ray", "start", "--head"], **shell)
    assert started.returncode == 0, started.stderr
    try:
        overrides = [*settings(tmp_path / "runs"), f"data.root={unbroken.parent / 'data'}"]
        done = subprocess.run(["ray", "job", "submit", "--", "python", "jobs/stage2.py", *overrides], **shell)
    finally:
        subprocess.run(["ray", "stop"], **shell)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 12/12  100.0%" in done.stdout and "succeeded" in done.stdout + done.stderr
    assert losses(tmp_path / "runs") == losses(unbroken)


def test_killed_and_started_again_it_ends_with_the_same_losses(unbroken, tmp_path):
    root = unbroken.parent / "killed"
    shutil.copytree(unbroken / "stage1", root / "stage1")
    log = tmp_path / "log"
    job = start(["jobs/stage2.py", *settings(root)], log)
    deadline = time.monotonic() + LIMIT_S
    while len(read_lines(root / "stage2" / "metrics.jsonl")) < 6:
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert len(losses(root)) < 12
    assert run(["jobs/stage2.py", *settings(root)], log) == 0, log.read_text()
    # ranks outlive their driver by a moment, and may have reached the next checkpoint
    assert re.search(r"resuming stage2 at step [48] from ", log.read_text())
    assert losses(root) == losses(unbroken)


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


def test_evaluate_a_run(unbroken, tmp_path):
    overrides = [f"run.root={unbroken}", "run.name=stage2", "evaluate.max_questions=40", "evaluate.images_per_prompt=1"]
    log = tmp_path / "log"
    assert run(["jobs/evaluate.py", *overrides], log) == 0, log.read_text()
    found = json.loads((unbroken / "evaluation" / "evaluation.json").read_text())
    assert found["num_questions"] == 40 and found["num_images"] == 24
    assert 0.3 < found["understanding_majority"] < 0.5
    assert "What it draws" in (unbroken / "report.html").read_text()

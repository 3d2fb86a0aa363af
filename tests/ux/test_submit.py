"""`janus submit`: what is sent, what is refused, and a job that it follows to its exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from janus_dist import submit_cli
from janus_dist.cli import app
from janus_dist.errors import ClusterError, ConfigError
from tests.jobs.test_stages import ROOT, environment


def test_folders_are_made_absolute_and_urls_stay():
    job = ROOT / "jobs" / "stage2.py"
    assert submit_cli.paths(job, []) == [
        f"run.root={Path.cwd() / 'runs/tiny'}",
        f"data.root={Path.cwd() / 'data/tiny'}",
    ]
    given = ["run.root=/shared/runs", "data.root=s3://bucket/data", "run.checkpoints=kept"]
    assert submit_cli.paths(job, given) == [f"run.checkpoints={Path.cwd() / 'kept'}"]


def test_a_wrong_recipe_is_not_submitted():
    with pytest.raises(ConfigError, match="no such key; did you mean 'steps'"):
        submit_cli.paths(ROOT / "jobs" / "stage2.py", ["train.stepz=5"])
    with pytest.raises(ConfigError, match="there is no job nowhere"):
        app(["submit", "nowhere.py"], standalone_mode=False)


def test_only_what_a_job_needs_of_the_environment_is_sent():
    shell = {
        "NCCL_DEBUG": "INFO", "FI_PROVIDER": "efa", "WANDB_MODE": "offline", "WANDB_API_KEY": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret", "HOME": "/root", "JANUS_WAIT_S": "5", "NCCL_TOKEN": "secret",
    }  # fmt: skip
    assert submit_cli.variables(shell, ["A=b=c"]) == {
        "NCCL_DEBUG": "INFO", "FI_PROVIDER": "efa", "WANDB_MODE": "offline", "JANUS_WAIT_S": "5", "A": "b=c",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"), [("HF_TOKEN=x", "everyone who sees its dashboard"), ("A", "takes NAME=VALUE"), ("1=2", "takes")]
)
def test_secrets_and_nonsense_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        submit_cli.variables({}, [given])


def test_where_no_cluster_is(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ClusterError, match=r"the cluster at http://127\.0\.0\.1:9 does not take jobs") as caught:
        app(["submit", "jobs/stage2.py", "--address", "http://127.0.0.1:9"], standalone_mode=False)
    assert caught.value.exit_code == 6


@pytest.mark.slow
def test_a_job_is_followed_to_its_exit_code(tmp_path):
    """The code is the driver's own, where `ray job submit` would end with 1 whatever went wrong."""
    mine = environment(tmp_path)
    shell = {"cwd": ROOT, "env": mine, "capture_output": True, "text": True, "timeout": 240, "check": False}
    janus = [str(Path(sys.executable).with_name("janus")), "submit"]
    started = subprocess.run(["ray", "start", "--head"], **shell)
    assert started.returncode == 0, started.stderr
    try:
        root = tmp_path / "runs"
        wrong = subprocess.run([*janus, "jobs/evaluate.py", f"run.root={root}", "run.name=none"], **shell)
    finally:
        subprocess.run(["ray", "stop"], **shell)
    assert wrong.returncode == 4, wrong.stdout + wrong.stderr
    assert "no committed checkpoint under" in wrong.stdout

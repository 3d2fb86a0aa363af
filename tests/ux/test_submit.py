"""`janus submit`: what is sent, what is refused, and a job that it follows to its exit code."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import job_submission
from ray.job_submission import JobStatus

from janus_dist.checkpoint.find import start_recipe
from janus_dist.cli import submit as submit_cli
from janus_dist.cli.main import app
from janus_dist.config.load import SUBMITTED_FROM, Loaded, load, place_of_a_copy
from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ClusterError, ConfigError
from tests.jobs.test_stages import ROOT, environment
from tests.limits import HANG_S

RECIPES = sorted(path.relative_to(ROOT) for path in (ROOT / "jobs" / "recipes").glob("*/stage?.yaml"))
LEFT_OUT = tuple(f"{name[1:]}/" for name in submit_cli.EXCLUDED if name in ("/data", "/runs", "/weights"))
OLD = "run runs/tiny/stage2 was asked to stop (SIGTERM on rank 0) and saved step 40 of 500\n"
SAVED = "the run has stopped, in other words than those of today\njanus_exit_code=75\n"


def strings(value: Any) -> Iterator[str]:
    """All texts in nested settings."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(inner)
    if isinstance(value, str):
        yield value


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The current folder is a job's copy of a repository that lies elsewhere."""
    shutil.copytree(ROOT / "jobs", tmp_path / "copy" / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv(SUBMITTED_FROM, "/home/me/janus-dist")


def in_copy(path: Path) -> Loaded[StageRecipe]:
    folder = path.parent if (ROOT / path.parent / "base.yaml").is_file() else Path("jobs/recipes/tiny")
    own = [path] if path.parent == folder else [folder / path.name, path]
    return load(StageRecipe, [folder / "base.yaml", *own])


@pytest.mark.usefixtures("copy")
@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_no_path_of_a_submitted_recipe_lies_in_what_is_left_out(path):
    """Of the stage, and of those before it that the same job trains where they are missing."""
    loaded: Loaded[StageRecipe] | None = in_copy(path)
    while loaded is not None:
        settings = list(strings(loaded.recipe.model_dump(mode="json")))
        assert [text for text in settings if text.startswith(LEFT_OUT)] == []
        assert [text for text in settings if text.startswith("/home/me/janus-dist/runs/")]
        loaded = start_recipe(loaded) if loaded.recipe.run.start_recipes else None
    assert len(LEFT_OUT) == 3 and len(RECIPES) >= 12


@pytest.mark.usefixtures("copy")
def test_the_stage_before_has_its_own_sources_and_weights():
    """What the paths of one stage are must not change what the stage before mixes."""
    before = start_recipe(in_copy(Path("jobs/recipes/janus-1.3b/stage2.yaml"))).recipe
    folder = "/home/me/janus-dist"
    assert before.data.sources["generation"] == {"imagenet": f"{folder}/data/janus-1.3b/imagenet"}
    assert before.run.start_weights["language_model"] == f"{folder}/weights/deepseek-llm-1.3b"
    assert before.pipeline.inputs["text"].path == f"{folder}/data/raw/text"


@pytest.mark.usefixtures("copy")
def test_what_is_sent_along_and_urls_stay_as_they_are():
    tiny = Path("jobs/recipes/tiny")
    given = ["run.root=/shared/runs", "data.root=s3://bucket/data", "run.checkpoints=kept"]
    recipe = load(StageRecipe, [tiny / "base.yaml", tiny / "stage1.yaml"], given).recipe
    assert recipe.data.tokenizer == "jobs/recipes/tiny/tokenizer.json"
    assert recipe.run.start_weights == {"vision_tower": "jobs/recipes/tiny/siglip"}
    assert (recipe.run.root, recipe.data.root) == ("/shared/runs", "s3://bucket/data")
    assert recipe.run.checkpoints == "/home/me/janus-dist/kept"


def test_a_wrong_recipe_is_not_submitted():
    with pytest.raises(ConfigError, match="no such key; did you mean 'steps'"):
        submit_cli.check_recipe(ROOT / "jobs" / "stage2.py", ["train.stepz=5"])
    with pytest.raises(ConfigError, match=r"nowhere\.py does not exist"):
        app(["submit", "nowhere.py"], standalone_mode=False)


def test_a_ray_of_the_jobs_own_is_no_cluster_to_submit_to(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="--local starts a Ray for the job alone, but janus submit runs the job on a"):
        app(["submit", "jobs/stage2.py", "--", "--local"], standalone_mode=False)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ConfigError, match="RAY_ADDRESS=local starts a Ray for the job alone, but janus submit"):
        app(["submit", "jobs/stage2.py"], standalone_mode=False)


def test_only_what_a_job_needs_of_the_environment_is_sent():
    shell = {
        "NCCL_DEBUG": "INFO", "FI_PROVIDER": "efa", "WANDB_MODE": "offline", "WANDB_API_KEY": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret", "HOME": "/root", "JANUS_WAIT_S": "5", "NCCL_TOKEN": "secret",
        SUBMITTED_FROM: "/elsewhere",
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
    with pytest.raises(ClusterError, match=r"the cluster at http://127\.0\.0\.1:9 does not accept jobs") as caught:
        app(["submit", "jobs/stage2.py", "--address", "http://127.0.0.1:9"], standalone_mode=False)
    assert caught.value.exit_code == 6


class Cluster:
    """What `janus submit` sees of Ray: connections of which each tells some of the log, then breaks or ends."""

    def __init__(self, log: str = "", cuts: tuple[int, ...] = (), gone: bool = False, **end: Any):
        self.log, self.cuts, self.gone = log, list(cuts), gone
        self.end = SimpleNamespace(**({"status": JobStatus.SUCCEEDED, "driver_exit_code": None} | end))
        self.sent: dict[str, Any] = {}

    def __call__(self, address: str) -> "Cluster":
        found = [os.environ[name] for name in submit_cli.ADDRESSES if name in os.environ]  # as Ray's client does
        self.address = (found or [address])[0]
        return self

    def get_address(self) -> str:
        return self.address

    def submit_job(self, **sent: Any) -> str:
        self.sent = sent
        return "raysubmit_1"

    async def tail_job_logs(self, _job_id: str) -> AsyncIterator[str]:
        self.cut = self.cuts.pop(0) if self.cuts else None
        told = self.log[: self.cut]
        for place in range(0, len(told), 7):
            yield told[place : place + 7]
        if self.cut is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, _job_id: str) -> SimpleNamespace:
        if self.gone:
            raise OSError("connection refused")
        return self.end if self.cut is None else SimpleNamespace(status=JobStatus.RUNNING, driver_exit_code=None)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(submit_cli, "LOST_S", 0.0)
    monkeypatch.setattr(submit_cli, "AGAIN_S", 0.01)


def submit(monkeypatch, cluster: Cluster, *arguments: str) -> int:
    """The exit code of `janus submit` on this cluster."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(job_submission, "JobSubmissionClient", cluster)
    try:
        return app(["submit", *arguments], standalone_mode=False) or 0
    except SystemExit as ended:
        return int(str(ended.code))


def test_the_image_keeps_its_own_paths(monkeypatch):
    """Without an upload the command goes as it is: the recipe's folders are where the image has them."""
    cluster = Cluster()
    assert submit(monkeypatch, cluster, "jobs/stage2.py", "--no-upload") == 0
    assert cluster.sent["entrypoint"] == "python jobs/stage2.py"
    assert set(cluster.sent["runtime_env"]) == {"env_vars"}
    assert SUBMITTED_FROM not in cluster.sent["runtime_env"]["env_vars"]
    with pytest.raises(ConfigError, match="no such key"):
        submit(monkeypatch, cluster, "jobs/stage2.py", "train.stepz=5", "--no-upload")


def test_an_upload_says_where_it_is_from(monkeypatch):
    cluster = Cluster()
    submit(monkeypatch, cluster, "jobs/stage2.py", "--no-wait")
    assert cluster.sent["entrypoint"] == "python jobs/stage2.py"
    assert cluster.sent["runtime_env"]["env_vars"][SUBMITTED_FROM] == str(ROOT)


@pytest.mark.parametrize("option", [["--limit", "200"], ["--limit=200"]])
def test_options_of_the_job_go_through(monkeypatch, option):
    cluster = Cluster()
    submit(monkeypatch, cluster, "jobs/prepare.py", "--no-wait", "data.root=here", "--", *option)
    assert cluster.sent["entrypoint"] == " ".join(["python jobs/prepare.py data.root=here", *option])
    with pytest.raises(ConfigError, match="no such file"):
        submit(monkeypatch, cluster, "jobs/prepare.py", "--", *option, "nowhere.yaml")


def test_what_a_job_writes_is_not_lost_with_its_copy(monkeypatch):
    cluster, command = Cluster(), ["jobs/train_siglip.py", "--no-wait", "--", "--out", "runs/siglip"]
    submit(monkeypatch, cluster, *command)
    assert cluster.sent["entrypoint"] == f"python jobs/train_siglip.py --out {ROOT}/runs/siglip"
    submit(monkeypatch, cluster, "--no-upload", *command)
    assert cluster.sent["entrypoint"] == "python jobs/train_siglip.py --out runs/siglip"


@pytest.mark.parametrize("name", submit_cli.ADDRESSES)
def test_an_address_that_is_given_is_the_one_that_is_used(monkeypatch, capsys, name):
    monkeypatch.setenv(name, "http://elsewhere:1")
    cluster = Cluster()
    submit(monkeypatch, cluster, "jobs/stage2.py", "--no-wait")
    assert cluster.address == "http://elsewhere:1"
    assert "raysubmit_1 on http://elsewhere:1: python jobs/stage2.py" in capsys.readouterr().out
    submit(monkeypatch, cluster, "jobs/stage2.py", "--no-wait", "--address", "http://here:2")
    assert cluster.address == "http://here:2"
    assert "RAY_API_SERVER_ADDRESS=http://here:2 ray job stop raysubmit_1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("end", "log", "code"),
    [
        ({"status": JobStatus.SUCCEEDED, "driver_exit_code": 0}, "", 0),
        ({"status": JobStatus.FAILED, "driver_exit_code": 75}, "", 75),
        ({"status": JobStatus.FAILED, "driver_exit_code": 3}, SAVED, 3),
        ({"status": JobStatus.FAILED}, "", 1),
        ({"status": JobStatus.STOPPED}, f"step 40\n{SAVED}", 75),
        ({"status": JobStatus.STOPPED}, f"step 40\n{OLD}", 75),
        ({"status": JobStatus.STOPPED}, "interrupted\njanus_exit_code=130\n", 130),
        ({"status": JobStatus.STOPPED}, "of a log: janus_exit_code=75\njanus_exit_code=75 or so\n", 143),
        ({"status": JobStatus.STOPPED}, "step 40\nsaved runs/tiny/stage2/checkpoints/step-00000020 (1.0 s)\n", 143),
    ],
)
def test_the_exit_code_says_how_the_job_ended(monkeypatch, capsys, end, log, code):
    """143: Ray killed it after the wait, or it had nothing to save; Ray says `stopped` to both."""
    assert submit(monkeypatch, Cluster(log, **end), "jobs/stage2.py") == code
    assert capsys.readouterr().out.endswith(log)


def test_a_connection_that_breaks_is_made_again():
    log = "".join(f"step {step}\n" for step in range(40)) + SAVED
    said = io.StringIO()
    cluster = Cluster(log, cuts=(0, 40, len(log) - 20), status=JobStatus.STOPPED)
    assert submit_cli.FollowedJob(cluster, "raysubmit_1", said).exit_code() == 75
    assert said.getvalue() == log and cluster.cuts == []


def test_a_head_that_is_gone_is_the_clusters_fault(monkeypatch):
    with pytest.raises(ClusterError, match="has not answered for 0 s: connection refused") as caught:
        submit(monkeypatch, Cluster("step 1\n", cuts=(3,), gone=True), "jobs/stage2.py")
    assert caught.value.exit_code == 6
    assert "ray job logs --follow raysubmit_1" in str(caught.value)


@pytest.mark.long
def test_a_job_is_followed_to_its_exit_code(tmp_path):
    """The code is the driver's own, where `ray job submit` would end with 1 whatever went wrong."""
    mine = environment(tmp_path)
    shell = {"cwd": ROOT, "env": mine, "capture_output": True, "text": True, "timeout": HANG_S, "check": False}
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


@pytest.mark.usefixtures("copy")
def test_a_folder_that_no_recipe_names_does_not_lie_in_the_copy_either():
    assert place_of_a_copy("runs/siglip") == "/home/me/janus-dist/runs/siglip"
    assert place_of_a_copy("jobs/recipes/tiny/siglip") == "jobs/recipes/tiny/siglip"

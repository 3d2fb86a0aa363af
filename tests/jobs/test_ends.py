"""How jobs end before and beside training: asked to stop while they make shards, and by a rank's own exception."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.manifest import is_there
from tests import prepared
from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]
FAILS = """
import sys
from pathlib import Path
from janus_dist.launch import launcher as launch
from janus_dist.cli.job import run_job
from janus_dist.config.recipe import StageRecipe

worker = launch._worker

def broken(settings):
    from ray.train import get_context
    from janus_dist.train import build
    if get_context().get_world_rank() == 1:
        build.open_shards = None
    worker(settings)

launch._worker = broken
recipe = StageRecipe.model_validate_json(Path(sys.argv[1]).read_text())
run_job(lambda: launch.train(recipe, show=print))
"""

pytestmark = pytest.mark.slow


def environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    own = {"OMP_NUM_THREADS": "1", "HOME": str(folder), "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    return kept | own


def test_asked_to_stop_while_shards_are_made_a_job_ends_with_75_and_goes_on(tmp_path):
    prepared.prepare(tmp_path)
    pages = tmp_path / "pages.jsonl"
    pages.write_text("".join(json.dumps({"text": f"a page of words, number {n}. " * 9}) + "\n" for n in range(30_000)))
    pipeline = {"inputs": {"pages": {"stream": "text", "format": "jsonl", "path": str(pages)}}, "shard_samples": 300}
    recipe = prepared.recipe(tmp_path, tmp_path, pipeline=pipeline, data={"root": str(tmp_path / "shards")})
    settings = recipe.model_dump(mode="json", include=set(BaseRecipe.model_fields))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "shards"
    command = [sys.executable, "jobs/prepare.py", str(tmp_path / "recipe.yaml")]
    log = tmp_path / "log"
    with log.open("w") as file:
        job = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=file, stderr=file)
    deadline = time.monotonic() + HANG_S
    while not list((out / "pages").glob("*.tar")):
        assert job.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=HANG_S) == 75, log.read_text()
    assert "the job was stopped by SIGTERM\n  finished work is kept: run the same" in log.read_text()
    assert "Traceback" not in log.read_text() and not is_there(out / "pages")
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* of \d+ jobs were done by an earlier run", done.stdout), done.stdout


def test_a_ranks_own_exception_ends_the_job_at_once(tmp_path):
    prepared.prepare(tmp_path)
    recipe = prepared.recipe(tmp_path, tmp_path, 2)
    recipe.run.dir.mkdir()
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    command = [sys.executable, "-c", FAILS, str(tmp_path / "recipe.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"rank 1 on \S+ failed: TypeError: 'NoneType' object is not callable", done.stderr), done.stderr
    assert "starting again" not in done.stdout and "Traceback" not in done.stderr
    log = recipe.run.dir / "logs" / "rank-0001.log"
    assert f"its traceback is in {log}" in done.stderr and "Traceback" in log.read_text()

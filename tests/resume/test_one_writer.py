"""Two jobs on one run, each with a Ray of its own: one is refused while the other lives, not when it is killed."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from janus_dist.checkpoint import commits
from tests import prepared
from tests.checkpoints import saved_in

LONGEST_S = 900
"""Against hanging: what is awaited takes seconds."""
JOB = """
import sys
from pathlib import Path
from janus_dist.cli.job import run_job
from janus_dist.launch.launcher import train
from tests import prepared

folder, root, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
recipe = prepared.recipe(folder, root, workers=1, train={"steps": steps, "save_every_steps": 3, "log_every_steps": 1})
run_job(lambda: train(recipe, lambda line: print(line, flush=True)))
"""


class Job:
    """A driver on a Ray of its own."""

    def __init__(self, tmp_path: Path, name: str, steps: int):
        ray = tempfile.mkdtemp(prefix="ray-")  # paths of sockets have at most 107 bytes
        self.log = tmp_path / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", JOB, str(tmp_path), str(tmp_path), str(steps)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment | {"RAY_TMPDIR": ray},
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, word: str) -> None:
        end_s = time.monotonic() + LONGEST_S
        while word not in self.said:
            assert time.monotonic() < end_s, self.said
            assert self.process.poll() is None or word in self.said, self.said
            time.sleep(0.2)

    def end(self) -> int:
        return self.process.wait(LONGEST_S)


@pytest.mark.slow
def test_a_run_has_one_writer_and_goes_on_when_that_is_killed(tmp_path):
    prepared.prepare(tmp_path)
    jobs: list[Job] = []
    try:
        jobs.append(first := Job(tmp_path, "a", 100_000))
        first.until("saved ")
        jobs.append(second := Job(tmp_path, "b", 100_000))
        assert second.end() == 2, second.said
        assert f"run {tmp_path}/run is held by another job, which is alive: " in second.said
        step = commits.step_of(commits.latest_committed(saved_in(tmp_path / "run")) or "")
        os.kill(first.process.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        more = 400  # ranks of the job that was killed may train on for a moment
        jobs.append(third := Job(tmp_path, "c", step + more))
        third.until("resuming run at step")
        print(f"resumed {time.monotonic() - killed_s:.0f} s after the kill")
        assert third.end() == 0, third.said
        assert commits.step_of(commits.latest_committed(saved_in(tmp_path / "run")) or "") == step + more
        starts = re.findall(r"^--- .* process (\d+)$", (tmp_path / "run/logs/rank-0000.log").read_text(), re.MULTILINE)
        assert len(starts) == 2 and not Path(f"/proc/{starts[0]}").exists(), "no writer outlives its job"
    finally:
        for job in jobs:
            job.process.kill()
            subprocess.run(
                ["pkill", "-9", "-g", str(job.process.pid)], check=False
            )  # Ray's processes are in its session

"""What is told before a job's work is told at once: nothing that takes seconds is imported before the recipe is read.

Modules are counted, not seconds, so that the test holds on any machine; benchmarks/startup.py has the seconds.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S
from tests.ux.test_readme import JOBS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "deepspeed", "transformers", "pyarrow", "matplotlib", "s3fs", "wandb", "numpy")


def imported(*command: str) -> tuple[int, str, set[str]]:
    """Run a Python command; return its exit code, what it said, and the packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S
    )
    lines = done.stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done.returncode, said, {module.partition(".")[0] for module in modules}


def test_the_jobs_are_found():
    assert {"stage2.py", "prepare.py", "proof.py", "demo.py"} <= set(JOBS)


def test_no_job_has_the_name_of_a_standard_module():
    """Python puts the folder of a script first on its path, where it would be found instead."""
    names = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert names and not names & sys.stdlib_module_names


@pytest.mark.parametrize("job", JOBS)
def test_a_typo_is_told_before_anything_heavy_is_imported(job):
    code, said, packages = imported(f"jobs/{job}", "modle.x=1")
    assert code == 2 and "modle: no such key; did you mean 'model'?" in said, said
    assert not set(HEAVY) & packages


def test_janus_starts_without_torch_and_ray():
    code, _, packages = imported("-c", "from janus_dist.cli.main import janus; janus()", "--help")
    assert code == 0 and not {"torch", "ray", "deepspeed", "transformers"} & packages

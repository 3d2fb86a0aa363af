"""The first import of a job: the standard library wins over files in jobs/, and `jobs` is a package."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
JOB = """\
import _start
import sys, tokenize
import jobs.other
print(tokenize.__name__, hasattr(tokenize, "generate_tokens"), sys.path[0])
"""


def test_files_in_jobs_shadow_nothing(tmp_path: Path):
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    shutil.copy(ROOT / "jobs" / "_start.py", jobs)
    (jobs / "tokenize.py").write_text("raise RuntimeError('jobs/prepare.py was imported')\n")
    (jobs / "other.py").write_text("")
    (jobs / "job.py").write_text(JOB)
    done = subprocess.run([sys.executable, "jobs/job.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == f"tokenize True {tmp_path}\n", done.stderr


def test_every_job_starts_with_it():
    scripts = [path for path in (ROOT / "jobs").glob("*.py") if "if __name__" in path.read_text()]
    assert scripts
    for path in scripts:
        imports = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert imports[0].startswith("import _start"), path

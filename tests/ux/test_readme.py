"""What README promises: its commands exist and say how they are used, its files are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py") if "run_job(main)" in path.read_text())
"""Scripts that a user starts; the other files are what they have in common."""


def test_every_job_is_named_and_every_named_job_exists():
    named = set(re.findall(r"\b(?:jobs/)?(\w+\.py)\b", README)) & set(JOBS)
    assert named == set(JOBS)
    assert all((ROOT / path).exists() for path in re.findall(r"jobs/\w+\.py", README))


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert len(links) >= 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tree_shows_what_is_there():
    tree = README.split("## Tree")[1].split("##")[0]
    folders = {path.name for path in (ROOT / "janus_dist").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {name for name in folders if f"{name}/" not in tree} == set()


@pytest.mark.parametrize("job", JOBS)
def test_every_job_says_how_it_is_used(job):
    shown = subprocess.run(
        [sys.executable, f"jobs/{job}", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=True
    ).stdout
    assert f"usage: python jobs/{job} [RECIPE.yaml ...] [key.path=value ...]" in shown
    assert "janus config show" in shown


def test_make_targets_exist():
    targets = set(re.findall(r"`?make (\w[\w-]*)", README))
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {"demo", "test", "lint"} <= targets <= set(rules)

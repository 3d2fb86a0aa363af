"""What the Makefile runs: benchmarks one by one, whatever becomes of one; the proof with what it is given."""

import json
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
PYTHON = """#!/bin/sh
echo "$@" >> called
echo starting
echo "$2 $1" | grep -q broken && exit 3
echo '{"of": "'"$*"'"}'
echo "a warning at the end" >&2
"""


@pytest.fixture
def made(tmp_path):
    """Makes targets in an empty folder, with a python that writes down what it is called with."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)

    def make(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-f", str(MAKEFILE), "-o", "setup", "-o", "peers", f"BIN={tmp_path}", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return make


def test_benchmarks_leave_a_line_each_and_one_that_fails_stops_none(made, tmp_path):
    done = made("bench", "BENCHMARKS=plan broken checkpoint")
    assert done.returncode != 0 and "broken failed: runs/bench-broken.log" in done.stderr
    lines = (tmp_path / "runs" / "bench.jsonl").read_text().splitlines()
    asked = ["benchmarks/plan.py --json", "benchmarks/checkpoint.py --json --world 2"]
    assert [json.loads(line)["of"] for line in lines] == asked, "what is said on stderr is no figure"
    assert (tmp_path / "runs" / "bench-plan.log").read_text() == "a warning at the end\n"
    assert made("bench", "BENCHMARKS=plan").returncode == 0


def test_the_proof_takes_settings_and_its_page_is_made_of_its_figures(made, tmp_path):
    made("proof", "ARGS=cluster.gpu=true cluster.workers=1")
    made("results")
    proof, results = (tmp_path / "called").read_text().splitlines()
    assert proof == "jobs/proof.py cluster.gpu=true cluster.workers=1"
    module, summary, folder, notes = results.removeprefix("-m ").split()
    assert (module, summary, folder) == ("janus_dist.report.results", "runs/proof/summary.json", "docs")
    assert (MAKEFILE.parent / notes).is_file()

"""The proof as a user runs it, made short: every part of it, and what it leaves alone when it runs again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.test_stages import ROOT, environment
from tests.limits import HANG_S

SCRIPT = """
import os
import data_pipelines.prepare
from jobs import proof
from janus_dist.datasets import easy_vqa, scenes
from janus_dist.proof import arms

def few(recipe):
    if not os.path.exists(recipe.data.root):
        prepare(recipe, 60)
        os.rename(f"{recipe.data.root}-first-60", recipe.data.root)

prepare, load = data_pipelines.prepare.prepare_data, easy_vqa.load
data_pipelines.prepare.prepare_data = few
arms.SEEDS = (0,)
easy_vqa.load = lambda split: load(split)[:60]
scenes.NUMBERS = {"train": 120, "test": 30}
proof.run_job(proof.main)
"""
PARTS = ("easy-vqa", "ablation", "scenes")


def prove(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    settings = [
        f"run.root={root}", "monitor.wandb=disabled", "batch.rows=2", "batch.micro_rows=1", "train.steps=2",
        "train.save_every_steps=2", "optim.warmup_steps=1", "evaluate.max_questions=20", "evaluate.images_per_prompt=1",
    ]  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, *settings, *more]
    there = environment(root.parent) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.long
def test_all_parts_are_found_and_nothing_is_done_twice(tmp_path):
    root = tmp_path / "proof"
    done = prove(root)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (root / "summary.json").read_text()
    found = json.loads(text)
    for part in (found, found["scenes"]):
        assert set(part["final_losses"]) == {"stage1", "stage2", "stage3"} and part["vq_psnr_db"] > 15
        assert part["understanding_intervals"]["all"]["of"] == 20
    assert {row["name"]: row["seeds"] for row in found["ablation"]} == dict.fromkeys("ADEF", 1)
    assert "generation_exact_accuracy" in found["scenes"] and "generation_exact_accuracy" not in found
    assert all(found["parts"][part]["took_s"] > 1 for part in PARTS)
    assert found["seconds"] == found["parts"]["easy-vqa"]["took_s"]
    arm = json.loads((root / "ablation" / "e-0" / "evaluation" / "evaluation.json").read_text())
    assert "understanding_accuracy" in arm and not {"vq_psnr_db", "generation_accuracy"} & set(arm)
    page = (root / "results" / "results.md").read_text()
    assert all(said in page for said in ("## One encoder or two", "## Janus `tiny` on scenes", "not shown: at chance"))

    made = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix in (".png", ".jsonl", ".tar")}
    again = prove(root)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "starting" not in again.stdout and (root / "summary.json").read_text() == text
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.slow
def test_recipe_files_are_refused(tmp_path):
    done = prove(tmp_path / "proof", "jobs/recipes/tiny/base.yaml")
    assert done.returncode == 2 and "the proof has its own recipes" in done.stderr
    assert "name parts of it (easy-vqa, ablation, scenes) or nothing" in done.stderr
    assert not (tmp_path / "proof").exists()

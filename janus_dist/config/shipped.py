"""Paths of the recipes that the repository ships, and the default recipe of each job.

Invariant: only this module knows the layout of `jobs/recipes`. It imports only pathlib, so that a job can read its
recipe before it imports anything slow.
"""

from pathlib import Path
from typing import Literal

JOBS = Path(__file__).parents[2] / "jobs"
RECIPES = JOBS / "recipes"
TINY = RECIPES / "tiny"
PROOF = RECIPES / "proof"
Part = Literal["easy-vqa", "ablation", "scenes"]
"""Parts of the proof, the experiments that show that training works."""


def tiny(stage: str, jobs: Path = JOBS) -> list[Path]:
    """Return the files of a stage of the tiny recipe, the default of jobs; `jobs` is the folder of the job's script."""
    folder = jobs / TINY.relative_to(JOBS)
    return [folder / "base.yaml", folder / f"{stage}.yaml"]


def proof(stage: str) -> list[Path]:
    """Return the recipe files of a stage of the proof."""
    return [*tiny(stage), PROOF / f"{stage}.yaml"]

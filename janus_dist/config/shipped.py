"""Where the recipes are that the repository ships, and which of them a job takes when its command line names none.

Invariant: the layout of `jobs/recipes` is written here alone. Nothing is imported but pathlib, so that a job has its
recipe before it imports what the work takes.
"""

from pathlib import Path
from typing import Literal

JOBS = Path(__file__).parents[2] / "jobs"
RECIPES = JOBS / "recipes"
TINY = RECIPES / "tiny"
PROOF = RECIPES / "proof"
Part = Literal["easy-vqa", "ablation", "scenes"]
"""A part of the proof."""


def tiny(stage: str, jobs: Path = JOBS) -> list[Path]:
    """Return the files of a stage of the embedded default; `jobs` is the folder of the job's script."""
    folder = jobs / TINY.relative_to(JOBS)
    return [folder / "base.yaml", folder / f"{stage}.yaml"]


def proof(stage: str) -> list[Path]:
    """Return the files of a stage of the proof."""
    return [*tiny(stage), PROOF / f"{stage}.yaml"]

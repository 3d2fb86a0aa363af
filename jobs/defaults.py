"""Where the shipped recipes are that jobs take when their command line names none.

Invariant: nothing is imported here, so that a job has its recipe before it imports what the work takes.
"""

from pathlib import Path
from typing import Literal

RECIPES = Path(__file__).parent / "recipes"
TINY = RECIPES / "tiny"
PROOF = RECIPES / "proof"
Part = Literal["easy-vqa", "ablation", "scenes"]
"""A part of the proof."""


def tiny(stage: str) -> list[Path]:
    """Return the files of a stage of the embedded default."""
    return [TINY / "base.yaml", TINY / f"{stage}.yaml"]


def proof(stage: str) -> list[Path]:
    """Return the files of a stage of the proof."""
    return [*tiny(stage), PROOF / f"{stage}.yaml"]

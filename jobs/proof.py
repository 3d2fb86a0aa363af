"""The proof: `tiny` trained for as long as it learns, what its two encoders are worth, and the same on scenes.

    python jobs/proof.py [PART ...] [key.path=value ...]      # three and a half hours on two CPU cores

Parts are easy-vqa, ablation and scenes, all without any; each can be made by itself. Leaves runs/proof/report.html to
look at, runs/proof/summary.json to compare and the tables and plots of docs/results.md beside it. Run again after an
interruption, it goes on; what is done is not done again.
"""

import sys
from pathlib import Path
from typing import get_args

from janus_dist.cli.job import recipe_from_args, run_job, split_arguments
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import PROOF, Part, proof
from janus_dist.errors import ConfigError

ROOT = "runs/proof"
NOTES = PROOF / "notes.yaml"
NAMES = get_args(Part)
"""The parts, in their order."""


def main() -> None:
    files, given = split_arguments([argument for argument in sys.argv[1:] if argument not in ("--help", "-h")])
    wanted = [str(file) for file in files]
    if others := [name for name in wanted if name not in NAMES]:
        raise ConfigError(
            f"the proof has its own recipes, {', '.join(others)} has no place among them",
            f"name parts of it ({', '.join(NAMES)}) or nothing, and give settings as key.path=value",
        )
    asks_for_help = [argument for argument in sys.argv[1:] if argument in ("--help", "-h")]
    asked = recipe_from_args(StageRecipe, proof("stage3"), [f"run.root={ROOT}", *given, *asks_for_help]).recipe
    from data_pipelines.prepare import prepare_data
    from janus_dist.proof.parts import PARTS
    from janus_dist.report.results import (  # here: after the recipe, whose faults are told at once
        read_notes,
        write_results,
    )
    from janus_dist.report.summary import Summary

    summary = Summary(Path(asked.run.root) / "summary.json", given)
    for name, prove in PARTS.items():
        if not wanted or name in wanted:
            prove(asked, given, summary, prepare_data)
            summary.write()
            print(f"results: {write_results(summary.found, summary.path.parent / 'results', read_notes(NOTES))}")


if __name__ == "__main__":
    run_job(main)

"""The proof: `tiny` trained for as long as it learns, what its two encoders are worth, and the same on scenes.

    python jobs/proof.py [key.path=value ...]      # about three hours on two CPU cores, by estimate

Leaves runs/proof/report.html to look at, runs/proof/summary.json to compare and the tables and plots of
docs/results.md beside it. Run again after an interruption, it goes on; what is done is not done again.
"""

import _start  # noqa: F401, I001

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_dist.cli import recipe_from_args, run_job, split_arguments
from janus_dist.config.load import Loaded, load
from janus_dist.config.recipe import StageRecipe
from janus_dist.engine.find import is_complete
from janus_dist.errors import ConfigError
from janus_dist.evaluation.run import evaluate, found_before
from janus_dist.report.results import read_notes, write_results
from janus_dist.report.run import write_report
from janus_dist.report.summary import Summary
from jobs.arms import PROOF, ablation
from jobs.demo import HEADLINES, STAGES, final_losses
from jobs.stage import TINY, run_stage

ROOT = "runs/proof"
NOTES = PROOF / "notes.yaml"
SCENES = [
    f"data.vq_weights={PROOF / 'scenes_vq.safetensors'}",
    "pipeline.inputs.understanding.format=scenes",
    "pipeline.inputs.generation.format=scenes",
]
SCENES_TOWER = [f"run.start_weights.vision_tower={PROOF / 'scenes_siglip'}"]
"""Of stage 1, from which the others start."""
MORE = (
    "generation_exact_accuracy", "understanding_intervals", "generation_intervals", "understanding_blind",
    "detector_accuracy_on_real", "detector_accuracy_on_reconstructions", "vq_psnr_db", "vq_codes_used",
)  # fmt: skip
"""Further figures, of those that an evaluation has."""


def main() -> None:
    files, given = split_arguments([argument for argument in sys.argv[1:] if argument not in ("--help", "-h")])
    if files:
        raise ConfigError(
            f"the proof has its own recipes, {', '.join(map(str, files))} has no place among them",
            "give settings as key.path=value",
        )
    asked = recipe_from_args(StageRecipe, recipes_of("stage3"), [f"run.root={ROOT}", *sys.argv[1:]]).recipe
    root = Path(asked.run.root)
    data = f"data.root={root}/data"
    summary = Summary(root / "summary.json", given)

    summary.found |= learned([data, *given, f"run.root={root}"], summary, "easy-vqa")
    show(summary)
    ablated = [data, *given, *apart(asked, "ablation")]
    summary.found["ablation"] = ablation(ablated, around=summary.working("ablation"))
    show(summary)
    scenes = [*given, *SCENES, *apart(asked, "scenes"), f"data.root={root}/scenes/data"]
    summary.found["scenes"] = learned(scenes, summary, "scenes", SCENES_TOWER)
    show(summary)


def apart(asked: StageRecipe, part: str) -> list[str]:
    """Folders of a part's own for runs that have the names of others."""
    saved = asked.run.checkpoints
    return [f"run.root={asked.run.root}/{part}", *([f"run.checkpoints={saved.rstrip('/')}/{part}"] if saved else [])]


def show(summary: Summary) -> None:
    """What was found so far."""
    summary.write()
    print(f"results: {write_results(summary.found, summary.path.parent / 'results', read_notes(NOTES))}")


def learned(overrides: list[str], summary: Summary, part: str, of_stage1: Sequence[str] = ()) -> dict[str, Any]:
    """Train and evaluate what is missing; what the runs learned."""
    stages = [recipe_of(name, [*overrides, *(of_stage1 if name == "stage1" else ())]) for name in STAGES]
    for loaded in stages:
        if not is_complete(loaded.recipe):
            with summary.working(part):
                run_stage(loaded)
    last = stages[-1].recipe
    root = Path(last.run.root)
    found = found_before(last, root / "evaluation")
    if found is None:
        with summary.working(part):
            found = evaluate(last, last.run.dir, root / "evaluation")
            print(f"report: {write_report(root)}")
    return {
        **{name: found[name] for name in HEADLINES},
        "seconds": summary.took_s(part),
        "final_losses": {stage: final_losses(root / stage / "metrics.jsonl") for stage in STAGES},
        **{name: found[name] for name in MORE if name in found},
    }


def recipe_of(name: str, overrides: list[str]) -> Loaded[StageRecipe]:
    """The recipe of a stage."""
    return load(StageRecipe, recipes_of(name), overrides)


def recipes_of(name: str) -> list[Path]:
    """The files of a stage's recipe."""
    return [TINY / "base.yaml", TINY / f"{name}.yaml", PROOF / f"{name}.yaml"]


if __name__ == "__main__":
    run_job(main)

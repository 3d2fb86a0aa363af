"""The proof: `tiny` trained for as long as it learns, what its two encoders are worth, and the same on scenes.

    python jobs/proof.py [key.path=value ...]      # about four hours on two CPU cores

Leaves runs/proof/report.html to look at, runs/proof/summary.json to compare and the tables and plots of
docs/results.md beside it. Run again after an interruption, it goes on.
"""

import _start  # noqa: F401, I001

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_dist.cli import recipe_from_args, run_job
from janus_dist.config.load import Loaded
from janus_dist.config.recipe import StageRecipe
from janus_dist.evaluation.run import evaluate
from janus_dist.monitor.sinks import read_lines
from janus_dist.report.results import read_notes, write_results
from janus_dist.report.run import write_report
from jobs.arms import PROOF, ablation
from jobs.demo import HEADLINES, STAGES, final_losses
from jobs.stage import TINY, is_complete, run_stage

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
    "understanding_intervals", "generation_intervals", "understanding_blind", "detector_accuracy_on_real",
    "detector_accuracy_on_reconstructions", "vq_psnr_db", "vq_codes_used",
)  # fmt: skip


def main() -> None:
    given = sys.argv[1:]
    root, summary = learned([f"run.root={ROOT}", f"data.root={ROOT}/data", *given])
    write(summary, root)
    summary["ablation"] = ablation([f"data.root={root}/data", *given, f"run.root={root}/ablation"])
    write(summary, root)
    scenes = [*given, *SCENES, f"run.root={root}/scenes", f"data.root={root}/scenes/data"]
    _, summary["scenes"] = learned(scenes, SCENES_TOWER)
    write(summary, root)


def write(summary: dict[str, Any], root: Path) -> None:
    """What was found so far."""
    (root / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"results: {write_results(summary, root / 'results', read_notes(NOTES))}")


def learned(overrides: list[str], of_stage1: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
    """Train and evaluate what is missing; the folder of the runs, and what they learned."""
    first, last = recipe_of("stage1", [*overrides, *of_stage1]), recipe_of("stage3", overrides)
    for loaded in (first, last):  # the last has its start trained, the stage between them
        if not is_complete(loaded.recipe):
            run_stage(loaded)
    root = Path(last.recipe.run.root)
    found = evaluate(last.recipe, last.recipe.run.dir, root / "evaluation")
    print(f"report: {write_report(root)}")
    return root, {
        **{name: found[name] for name in HEADLINES},
        "seconds": round(sum(training_s(root / stage / "metrics.jsonl") for stage in STAGES) + found["seconds"], 1),
        "final_losses": {stage: final_losses(root / stage / "metrics.jsonl") for stage in STAGES},
        **{name: found[name] for name in MORE},
    }


def recipe_of(name: str, overrides: list[str]) -> Loaded[StageRecipe]:
    """The recipe of a stage."""
    return recipe_from_args(StageRecipe, [TINY / "base.yaml", TINY / f"{name}.yaml", PROOF / f"{name}.yaml"], overrides)


def training_s(path: Path) -> float:
    """Seconds that the steps of a run took."""
    return sum(line["perf/step_s"] for line in read_lines(path))


if __name__ == "__main__":
    run_job(main)

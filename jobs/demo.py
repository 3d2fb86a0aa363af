"""The demo: Janus from random weights through its three stages on real images, and what it then answers and draws.

    python jobs/demo.py [key.path=value ...]      # 8 to 30 minutes on two CPU cores

Leaves runs/demo/report.html to look at and runs/demo/summary.json to compare. Run again after an interruption, it
goes on.
"""

import json
import sys
import time
from pathlib import Path

from janus_dist.cli.job import recipe_from_args, run_job
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import tiny
from janus_dist.storage.local import write_whole

ROOT = "runs/demo"


def main() -> None:
    began = time.perf_counter()
    overrides = [f"run.root={ROOT}", f"data.root={ROOT}/data", *sys.argv[1:]]
    loaded = recipe_from_args(StageRecipe, tiny("stage3"), overrides)
    from data_pipelines.prepare import prepare_data
    from janus_dist.checkpoint.find import is_complete  # here: after the recipe, whose faults are told at once
    from janus_dist.evaluation.run import evaluate
    from janus_dist.launch.stage import run_stage
    from janus_dist.proof.headlines import HEADLINES, STAGES, final_losses
    from janus_dist.report.run import write_report

    root = Path(loaded.recipe.run.root)
    if not is_complete(loaded.recipe):
        run_stage(loaded, prepare_data)  # which first prepares the data and the stages before
    found = evaluate(loaded.recipe, loaded.recipe.run.dir, root / "evaluation")
    summary = {
        **{name: found[name] for name in HEADLINES},
        "seconds": round(time.perf_counter() - began, 1),
        "final_losses": {stage: final_losses(root / stage / "metrics.jsonl") for stage in STAGES},
    }
    write_whole(root / "summary.json", json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    print(f"report: {write_report(root)}")


if __name__ == "__main__":
    run_job(main)

"""Ask a trained run the held-out questions and let it draw; writes ROOT/evaluation and the report.

    python jobs/evaluate.py                                        # runs/tiny/stage3, made by jobs/stage3.py
    python jobs/evaluate.py RECIPE.yaml ... [key.path=value ...]   # run.root and run.name say which run

One process, without Ray.
"""

import _start  # noqa: F401, I001

from pathlib import Path

from janus_dist.cli import recipe_from_args, run_job
from janus_dist.config.recipe import StageRecipe
from janus_dist.evaluation.run import evaluate
from janus_dist.report.run import write_report

TINY = Path(__file__).parent / "recipes" / "tiny"


def main() -> None:
    recipe = recipe_from_args(StageRecipe, [TINY / "base.yaml", TINY / "stage3.yaml"]).recipe
    root = Path(recipe.run.root)
    found = evaluate(recipe, recipe.run.dir, root / "evaluation")
    for name, value in found.items():
        if isinstance(value, float | int):
            print(f"{name:28s} {value:.4g}")
    print(f"report: {write_report(root)}")


if __name__ == "__main__":
    run_job(main)

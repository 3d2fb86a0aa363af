"""Ask a trained run held-out questions and let it draw.

    python jobs/evaluate.py                                        # runs/tiny/stage3, made by jobs/stage3.py
    python jobs/evaluate.py RECIPE.yaml ... [key.path=value ...]   # run.root and run.name say which run
    python jobs/evaluate.py RECIPE.yaml ... evaluate.benchmarks='{pope: data/pope, geneval: data/geneval}'
    python jobs/evaluate.py RECIPE.yaml ... --dtype float32        # rather than what fits the run and the machine

Without benchmarks easy-vqa, or scenes when they are among the recipe's inputs, in one process and without Ray; writes
ROOT/evaluation and the report. With benchmarks what their scorers read (docs/evaluation.md), on `cluster.workers`
processes; the same command again goes on.
"""

import sys
from pathlib import Path
from typing import cast, get_args

from janus_dist.cli.job import recipe_from_args, run_job, take_choice
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import tiny
from janus_dist.config.train import Dtype, DtypeChoice


def main() -> None:
    arguments, dtype = take_choice(sys.argv[1:], "--dtype", get_args(Dtype))
    dtype = cast(DtypeChoice, dtype or "auto")
    recipe = recipe_from_args(StageRecipe, tiny("stage3"), arguments).recipe
    from janus_dist.evaluation import run  # here: after the recipe, whose faults are told at once
    from janus_dist.evaluation.benchmarks import run as benchmarks
    from janus_dist.report.run import write_report

    if recipe.evaluate.benchmarks:
        from janus_dist.launch.task_pool import (
            do_jobs,  # here: Ray takes seconds, and an evaluation of one process does without
        )

        do = benchmarks.do_here if recipe.cluster.workers == 1 else do_jobs
        for name, summary in benchmarks.evaluate(recipe, do, dtype).items():
            show(summary["scores"], f"{name}/")
            print(f"{name}: {summary['questions']} questions, {summary['out']}")
        return
    root = Path(recipe.run.root)
    show(run.evaluate(recipe, recipe.run.dir, root / "evaluation", dtype=dtype))
    print(f"report: {write_report(root)}")


def show(found: dict[str, object], prefix: str = "") -> None:
    for name, value in found.items():
        if isinstance(value, float | int):
            print(f"{prefix + name:28s} {value:.4g}")


if __name__ == "__main__":
    run_job(main)

"""Write a run's newest checkpoint as a folder that transformers loads: RUN/export/step-00000100.

    python jobs/export.py                                        # runs/tiny/stage3, made by jobs/stage3.py
    python jobs/export.py RECIPE.yaml ... [key.path=value ...]   # run.root and run.name say which run

One process, without Ray. `janus export` takes any checkpoint and knows DeepSeek's layout too.
"""

from janus_dist.cli.job import recipe_from_args, run_job
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import tiny


def main() -> None:
    recipe = recipe_from_args(StageRecipe, tiny("stage3")).recipe
    from janus_dist.checkpoint import commits  # here: after the recipe, whose faults are told at once
    from janus_dist.checkpoint.find import require_checkpoint
    from janus_dist.weights.export import export

    checkpoint = require_checkpoint(recipe.run.saved_in)
    found = export(checkpoint, recipe.run.dir / "export" / commits.name_of(checkpoint), "transformers")
    print(f"{found.folder}: step {found.step}, {found.bytes / 1e9:.3f} GB")
    for note in found.notes:
        print(f"  {note}")


if __name__ == "__main__":
    run_job(main)

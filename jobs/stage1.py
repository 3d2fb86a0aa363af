"""Stage 1: adaptors and image head learn; the language model stays as it is.

    python jobs/stage1.py                                        # the embedded default, on a local Ray
    python jobs/stage1.py RECIPE.yaml ... [key.path=value ...]   # your own
    ray job submit -- python jobs/stage1.py                      # on a cluster, where `ray start --head` was run

What is missing is prepared first: shards (jobs/prepare.py) and the stage before. The same command again resumes.
"""

from janus_dist.cli.job import recipe_from_args, run_job
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import tiny


def main() -> None:
    loaded = recipe_from_args(StageRecipe, tiny("stage1"))
    from data_pipelines.prepare import prepare_data  # here: after the recipe, whose faults are told at once
    from janus_dist.launch.stage import run_stage

    run_stage(loaded, prepare_data)


if __name__ == "__main__":
    run_job(main)

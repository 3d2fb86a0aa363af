"""What two encoders are worth: a single encoder, Janus, understanding only and generation only, on the same budget.

    python jobs/ablation.py [key.path=value ...]      # about 80 minutes on two CPU cores, by estimate

Twelve runs (Janus, table 5: A, D, E, F; three seeds each) share the Ray cluster, each on one rank. Leaves
runs/ablation/summary.json. Run again after an interruption, it goes on.
"""

import json
import sys

from janus_dist.cli.job import recipe_from_args, run_job, split_arguments
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import tiny


def main() -> None:
    recipe_from_args(StageRecipe, tiny("stage2"))  # faults in what is given end here, before any run starts
    files, overrides = split_arguments(sys.argv[1:])
    from data_pipelines.prepare import prepare_data  # here: after the recipe, whose faults are told at once
    from janus_dist.proof.arms import FILES, ablation

    print(json.dumps(ablation(overrides, prepare_data, files or FILES), indent=1))


if __name__ == "__main__":
    run_job(main)

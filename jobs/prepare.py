"""Make the shards that training reads: conversations, texts and VQ ids, with quarantine tables for what is bad.

    python jobs/prepare.py                                        # the embedded default, on a local Ray
    python jobs/prepare.py RECIPE.yaml ... [key.path=value ...]   # your own
    python jobs/prepare.py RECIPE.yaml ... --limit 200            # of 200 records of each input, into ROOT-first-200
    python jobs/prepare.py RECIPE.yaml ... --replace              # make again what other settings or files had made
    ray job submit -- python jobs/prepare.py RECIPE.yaml ...      # on a cluster

The same command again goes on where it was interrupted; inputs with a manifest are left as they are, and refused when
the recipe has other settings than made them.
"""

import sys

from janus_dist.cli.job import recipe_from_args, run_job, take_number
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.shipped import TINY

REPLACE = "--replace"


def main() -> None:
    arguments, limit = take_number(sys.argv[1:], "--limit")
    anew = REPLACE in arguments
    arguments = [argument for argument in arguments if argument != REPLACE]
    recipe = recipe_from_args(BaseRecipe, [TINY / "base.yaml"], arguments).recipe
    from data_pipelines.prepare import prepare_data  # here: after the recipe, whose faults are told at once

    prepare_data(recipe, limit, anew)


if __name__ == "__main__":
    run_job(main)

"""Train the VQ tokenizer on the images of the source, for images that LlamaGen's published weights do not fit.

    python jobs/train_vq.py                                        # the embedded default; half an hour on two CPU cores
    python jobs/train_vq.py RECIPE.yaml ... [key.path=value ...]   # your own

Writes `data.vq_weights` and, beside it, a record of what made it and how well held-out images come back.
"""

import sys

from janus_dist.cli.job import recipe_from_args, run_job
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.shipped import TINY


def main() -> None:
    command = " ".join(["python", "jobs/train_vq.py", *sys.argv[1:]])
    recipe = recipe_from_args(BaseRecipe, [TINY / "base.yaml"]).recipe
    from data_pipelines.vq_training import train  # here: after the recipe, whose faults are told at once

    train(recipe, command, print)


if __name__ == "__main__":
    run_job(main)

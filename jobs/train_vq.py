"""Train the VQ tokenizer on the images of the source, for images that LlamaGen's published weights do not fit.

    python jobs/train_vq.py                                        # the embedded default; half an hour on two CPU cores
    python jobs/train_vq.py RECIPE.yaml ... [key.path=value ...]   # your own

Writes `data.vq_weights` and, beside it, a record of what made it and how well held-out images come back.
"""

import _start  # noqa: F401, I001

import sys
from pathlib import Path

from janus_dist.cli import recipe_from_args, run_job
from janus_dist.config.recipe import BaseRecipe
from data_pipelines.vq_training import train

DEFAULTS = [Path(__file__).parent / "recipes" / "tiny" / "base.yaml"]


def main() -> None:
    command = " ".join(["python", "jobs/train_vq.py", *sys.argv[1:]])
    train(recipe_from_args(BaseRecipe, DEFAULTS).recipe, command, print)


if __name__ == "__main__":
    run_job(main)

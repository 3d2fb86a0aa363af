"""Train a vision tower on the images and captions of the source, for sizes that no published SigLIP has.

    python jobs/train_siglip.py                                                     # the embedded default: minutes
    python jobs/train_siglip.py RECIPE.yaml ... [key.path=value ...] [--out FOLDER]   # your own

FOLDER (runs/siglip) is for `run.start_weights.vision_tower`; a record of what made it, and how well it tells held-out
images apart, lies beside the weights.
"""

import sys
from pathlib import Path

from janus_dist.cli.job import recipe_from_args, run_job
from janus_dist.config.load import place_of_a_copy
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.shipped import TINY
from janus_dist.errors import ConfigError

OUT = "runs/siglip"


def main() -> None:
    command = " ".join(["python", "jobs/train_siglip.py", *sys.argv[1:]])
    arguments, out = sys.argv[1:], place_of_a_copy(OUT)
    if "--out" in arguments:
        place = arguments.index("--out")
        if place + 1 == len(arguments):
            raise ConfigError("--out takes a folder", f"write --out {OUT}")
        out = arguments[place + 1]
        arguments[place : place + 2] = []
    recipe = recipe_from_args(BaseRecipe, [TINY / "base.yaml"], arguments).recipe
    from data_pipelines.siglip_training import train  # here: after the recipe, whose faults are told at once

    train(recipe, Path(out), command, print)


if __name__ == "__main__":
    run_job(main)

"""Make the shards that training reads: conversations, texts and VQ ids, with quarantine tables for what is bad.

    python jobs/tokenize.py                                        # the embedded default, on a local Ray
    python jobs/tokenize.py RECIPE.yaml ... [key.path=value ...]   # your own
    ray job submit -- python jobs/tokenize.py                      # on a cluster

The same command again goes on where it was interrupted; streams with a manifest are left as they are.
"""

import _start  # noqa: F401, I001

from pathlib import Path

from janus_dist.cli import recipe_from_args, run_job
from janus_dist.config.recipe import BaseRecipe
from data_pipelines.prepare import prepare_data

DEFAULTS = [Path(__file__).parent / "recipes" / "tiny" / "base.yaml"]


def main() -> None:
    prepare_data(recipe_from_args(BaseRecipe, DEFAULTS).recipe)


if __name__ == "__main__":
    run_job(main)

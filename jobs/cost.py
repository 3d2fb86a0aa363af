"""Measure what documents cost a rank on this machine, for `batch.cost`: rows are dealt to ranks by it.

    python jobs/cost.py RECIPE.yaml ... [key.path=value ...]     # on one device of the kind that will train

Prints the coefficients as a piece of a recipe. Nothing is read and nothing is written.
"""

import yaml

from janus_dist.cli.job import recipe_from_args, run_job
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import tiny


def main() -> None:
    recipe = recipe_from_args(StageRecipe, tiny("stage2")).recipe
    from janus_dist.estimate.cost import measure  # here: after the recipe, whose faults are told at once
    from janus_dist.train.precision import resolve_here

    found = measure(resolve_here(recipe))
    print(f"# explains {found.micro_steps} micro-steps to within {found.worst_error:.0%}; 1 is {found.token_us:.2f} us")
    print(yaml.safe_dump({"batch": {"cost": found.cost}}, sort_keys=False), end="")


if __name__ == "__main__":
    run_job(main)

"""What the three stages have in common: prepare what is missing, train, report.

Invariant: a stage never starts without its shards, nor without the weights that it is to start from.
"""

from collections.abc import Callable
from dataclasses import replace

from janus_dist.checkpoint.find import check_starts, is_complete, start_recipe, trains_start
from janus_dist.config.load import Loaded, save
from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ConfigError
from janus_dist.launch.launcher import train
from janus_dist.report.live import ReportWriter

Prepare = Callable[[StageRecipe], object]
"""Makes the shards of a recipe that are missing; data_pipelines/prepare.py has it."""


def run_stage(loaded: Loaded[StageRecipe], prepare: Prepare) -> None:
    """Prepare the data of one stage and train it to its last step; the same call again resumes it.

    Raises ConfigError when the run is complete, and what preparing and training raise.
    """
    recipe = loaded.recipe
    if is_complete(recipe):
        raise ConfigError(
            f"run {recipe.run.dir} is complete: its checkpoint is at step {recipe.train.steps}, as train.steps asks",
            "raise train.steps to train further, or give the run another name (run.name=...)",
        )
    check_starts(loaded)
    prepare(recipe)
    train_with_start(loaded)


def train_with_start(loaded: Loaded[StageRecipe]) -> None:
    """Train a stage whose shards are there, and before it the runs that it starts from."""
    prepare_start(loaded)
    run_dir = loaded.recipe.run.dir
    with ReportWriter(run_dir, print) as reported:

        def begins(recipe: StageRecipe) -> None:
            save(replace(loaded, recipe=recipe), run_dir)
            reported.begins()

        train(loaded.recipe, print, begins)


def prepare_start(loaded: Loaded[StageRecipe]) -> None:
    """Train the run that this one starts from, unless it is complete by its own recipe, if this recipe says how
    (`run.start_recipes`)."""
    run = loaded.recipe.run
    if not trains_start(run):
        return
    print(f"{run.name} starts from {run.start_from}, which is trained first")
    train_with_start(start_recipe(loaded))

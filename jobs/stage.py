"""What the three stages have in common: prepare what is missing, train, report.

Invariant: a stage never starts without its shards, nor without the weights that it is to start from.
"""

from dataclasses import replace
from pathlib import Path

from data_pipelines.prepare import prepare_data
from janus_dist.config.load import Loaded, load, save
from janus_dist.config.recipe import StageRecipe
from janus_dist.engine import commits
from janus_dist.engine.find import is_complete, start_is_complete
from janus_dist.errors import ConfigError
from janus_dist.launch import train
from janus_dist.report.live import Reported

TINY = Path(__file__).parent / "recipes" / "tiny"
SHARED_SECTIONS = ("run.root", "run.seed", "model.", "data.", "pipeline.", "cluster.", "engine.", "monitor.")


def run_stage(loaded: Loaded[StageRecipe]) -> None:
    """Train one stage to its last step; the same call again goes on from the last checkpoint."""
    recipe = loaded.recipe
    if is_complete(recipe):
        raise ConfigError(
            f"run {recipe.run.dir} is complete: its checkpoint is at step {recipe.train.steps}, as train.steps asks",
            "raise train.steps to go on, or give the run another name (run.name=...)",
        )
    prepare_data(recipe)
    train_with_start(loaded)


def train_with_start(loaded: Loaded[StageRecipe]) -> None:
    """Train a stage whose shards are there, and before it the runs that it starts from."""
    prepare_start(loaded)
    run_dir = loaded.recipe.run.dir
    with Reported(run_dir, print) as reported:

        def begins(recipe: StageRecipe) -> None:
            save(replace(loaded, recipe=recipe), run_dir)
            reported.begins()

        train(loaded.recipe, reported.show, begins)


def prepare_start(loaded: Loaded[StageRecipe]) -> None:
    """Train the run that this one starts from, unless it is complete by its own recipe, if this recipe says how
    (`run.start_recipes`)."""
    run = loaded.recipe.run
    if run.start_from is None or not run.start_recipes or commits.latest(run.saved_in) is not None:
        return
    if start_is_complete(run):
        return
    print(f"{run.name} starts from {run.start_from}, which is trained first")
    train_with_start(start_recipe(loaded))


def start_recipe(loaded: Loaded[StageRecipe]) -> Loaded[StageRecipe]:
    """The recipe of the run that this one starts from: the files that it names, and of what was laid over it what all
    stages share."""
    folder, later = loaded.beside("run.start_recipes")
    shared = [override for override in later if override.startswith(SHARED_SECTIONS)]
    return load(StageRecipe, [folder / name for name in loaded.recipe.run.start_recipes], shared)

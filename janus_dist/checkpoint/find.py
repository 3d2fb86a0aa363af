"""From what a user names to checkpoints and recipes: a run's folder, a folder of checkpoints, a checkpoint.

Invariant: a run's folder may have been moved together with its checkpoints; a checkpoint carries its own recipe.
Nothing here needs torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from janus_dist.checkpoint import commits
from janus_dist.config.load import Loaded, flatten, load
from janus_dist.config.paths import path_or_url
from janus_dist.config.recipe import RunConfig, StageRecipe
from janus_dist.errors import CheckpointError, ConfigError

DECISIVE = (
    "stage", "run.seed", "model.", "mix.", "batch.", "optim.", "train.steps", "train.trainable", "train.answers_only",
    "train.loss_mean",
)  # fmt: skip
"""Settings that decide what a run learns, beside its data."""
SHARED = ("run.root", "run.seed", "model", "data", "pipeline", "cluster", "engine", "monitor")
"""Settings laid over a stage's recipe that are those of the stages before it as well."""


def find(source: str, overrides: Sequence[str] = ()) -> tuple[StageRecipe, str]:
    """The recipe, changed by `overrides`, and the checkpoint of a run's folder (its newest), or of a checkpoint.

    Raises ConfigError for a URL that is not supported, CheckpointError when there is no checkpoint.
    """
    source = path_or_url(source)
    if commits.is_marked(source):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(commits.read(source).recipe))
            return load(StageRecipe, [path], overrides).recipe, source
    recipe = recipe_of(Path(source), overrides)
    return recipe, require_checkpoint(saved_in(source, recipe))


def saved_in(run_dir: str | Path, recipe: StageRecipe) -> str:
    """Where the checkpoints of a run's folder are, which may have been moved together with them."""
    return f"{run_dir}/checkpoints" if recipe.run.checkpoints is None else recipe.run.saved_in


def recipe_of(run_dir: Path, overrides: Sequence[str] = ()) -> StageRecipe:
    """The recipe that a run was trained with; CheckpointError when the folder is no run's."""
    path = run_dir / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{run_dir} is no run and no checkpoint: it has neither config.json nor {commits.MARKER}",
            "give the folder of a run (RUN_ROOT/NAME), or of one of its checkpoints",
        )
    return load(StageRecipe, [path], overrides).recipe


def is_complete(recipe: StageRecipe) -> bool:
    """Whether the run's newest checkpoint is of its last step."""
    newest = commits.latest_committed(recipe.run.saved_in)
    return newest is not None and commits.read(newest).step == recipe.train.steps


def trained_otherwise(recipe: StageRecipe) -> list[str]:
    """`key: what the run's newest checkpoint was trained with, what the recipe says` of settings that decide what a run
    learns; none without a checkpoint."""
    path = commits.latest_committed(recipe.run.saved_in)
    if path is None:
        return []
    then, now = (dict(flatten(one)) for one in (commits.read(path).recipe, recipe.model_dump(mode="json")))
    differing = [key for key in now if key.startswith(DECISIVE) and key in then and then[key] != now[key]]
    return [f"{key}: {then[key]} there, {now[key]} now" for key in differing]


def start_is_complete(run: RunConfig) -> bool:
    """Whether the run that `run` starts from has a checkpoint of the last step that its own recipe asks for, which may
    be fewer than a recipe would now."""
    assert run.start_from is not None
    before, newest = Path(run.root) / run.start_from, commits.latest_committed(run.saved_in_of(run.start_from))
    if newest is None:
        return False
    if not (before / "config.json").is_file():  # its checkpoints were brought here alone
        return True
    return commits.step_of(newest) >= recipe_of(before).train.steps


def start_recipe(loaded: Loaded[StageRecipe]) -> Loaded[StageRecipe]:
    """Return the recipe of the run that this one starts from: the files of `run.start_recipes`, and of what was laid
    over this recipe what all stages share. Raises ConfigError when it is wrong."""
    folder, later = loaded.beside("run.start_recipes")
    shared = [override for override in later if _is_shared(override.partition("=")[0])]
    return load(StageRecipe, [folder / name for name in loaded.recipe.run.start_recipes], shared)


def _is_shared(key: str) -> bool:
    return any(key == shared or key.startswith(f"{shared}.") for shared in SHARED)


def trains_start(run: RunConfig) -> bool:
    """Return whether a start of `run` trains the run that it starts from first."""
    if run.start_from is None or not run.start_recipes or commits.latest_committed(run.saved_in) is not None:
        return False
    return not start_is_complete(run)


def check_starts(loaded: Loaded[StageRecipe]) -> None:
    """Read the recipes of all runs that are to be trained before this one.

    Raises ConfigError when one is wrong, makes another run than `run.start_from`, or starts from a run that waits for
    it.
    """
    names = [loaded.recipe.run.name]
    while trains_start(run := loaded.recipe.run):
        before = start_recipe(loaded)
        name = before.recipe.run.name
        if name != run.start_from:
            raise ConfigError(
                f"run.start_from={run.start_from}, but run.start_recipes ({', '.join(run.start_recipes)}) make the run "
                f"{name}",
                f"name the recipes of {run.start_from}, set run.start_from={name}, or set run.start_recipes=[] to "
                "start from the weights that are there",
            )
        names.append(name)
        if name in names[:-1]:
            raise ConfigError(
                f"runs start from each other: {' -> '.join(names)}",
                "set run.start_from=null in the recipe of the run that is to be the first",
            )
        loaded = before


def refuse_if_never(run: RunConfig) -> None:
    """ConfigError with `run.resume=never` where there is a checkpoint."""
    there = commits.latest_committed(run.saved_in) if run.resume == "never" else None
    if there is not None:
        raise ConfigError(
            f"run.resume=never, but run {run.dir} has a checkpoint: {there}",
            "give the run another name (run.name=...), or let it go on (run.resume=auto)",
        )


def goes_on_from(recipe: StageRecipe) -> str | None:
    """The checkpoint that a start goes on from by `run.resume`, None where there is none."""
    run = recipe.run
    refuse_if_never(run)
    newest, path = commits.latest_committed(run.saved_in), recipe.with_absolute_paths().run.resume.rstrip("/")
    was_told = path not in ("auto", "never") and commits.saved_since(run.saved_in, path) is None
    return path if was_told else newest


def require_checkpoint(folder: str) -> str:
    """Return the newest committed checkpoint; raises CheckpointError when there is none."""
    path = commits.latest_committed(folder)
    if path is None:
        raise CheckpointError(
            f"no committed checkpoint under {folder}", "train the run first, or name another with run.name=..."
        )
    return path

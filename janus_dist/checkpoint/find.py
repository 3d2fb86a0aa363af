"""Lookup of checkpoints and recipes from a user's argument: the folder of a run or of a checkpoint.

Invariant: a run's folder may be moved together with its checkpoints; a checkpoint contains its own recipe. This module
does not need torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from janus_dist.checkpoint import commits
from janus_dist.config.diff import ABSENT, differences
from janus_dist.config.load import Loaded, load
from janus_dist.config.paths import path_or_url
from janus_dist.config.recipe import RunConfig, StageRecipe
from janus_dist.errors import CheckpointError, ConfigError

DECISIVE = (
    "stage", "run.seed", "model.", "mix.", "batch.", "optim.", "train.steps", "train.trainable", "train.answers_only",
    "train.loss_mean",
)  # fmt: skip
"""Settings, besides the data, that determine the weights that a run learns; a name ending in a dot is a prefix."""
SHARED = ("run.root", "run.seed", "model", "data", "pipeline", "cluster", "engine", "monitor")
"""Settings whose overrides on a stage's recipe also apply to the recipes of the stages before it."""


def find(source: str, overrides: Sequence[str] = ()) -> tuple[StageRecipe, str]:
    """Return the recipe, changed by `overrides`, and the checkpoint that `source` names.

    `source` is a checkpoint, or the folder of a run, whose newest checkpoint is used. Raises ConfigError when the URL
    is not supported or an override is wrong, CheckpointError when no checkpoint exists.
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
    """Return the folder of the checkpoints of a run, also when `run_dir` was moved together with them."""
    return f"{run_dir}/checkpoints" if recipe.run.checkpoints is None else recipe.run.saved_in


def recipe_of(run_dir: Path, overrides: Sequence[str] = ()) -> StageRecipe:
    """Return the recipe that a run was trained with, changed by `overrides`.

    Raises CheckpointError when the folder is not that of a run, ConfigError when an override is wrong.
    """
    path = run_dir / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{run_dir} is neither a run nor a checkpoint: it has neither config.json nor {commits.MARKER}",
            "give the folder of a run (RUN_ROOT/NAME), or of one of its checkpoints",
        )
    return load(StageRecipe, [path], overrides).recipe


def is_complete(recipe: StageRecipe) -> bool:
    """Return whether the run's newest checkpoint is that of its last step. Raises the errors of latest_committed."""
    newest = commits.latest_committed(recipe.run.saved_in)
    return newest is not None and commits.read(newest).step == recipe.train.steps


def trained_otherwise(recipe: StageRecipe) -> list[str]:
    """Return the DECISIVE settings in which the run's newest checkpoint differs from the recipe.

    Each entry is `key: STORED in the checkpoint, CURRENT now`; the list is empty without a checkpoint. Raises the
    errors of latest_committed.
    """
    path = commits.latest_committed(recipe.run.saved_in)
    if path is None:
        return []
    pairs = differences(commits.read(path).recipe, recipe.model_dump(mode="json"))
    return [
        f"{key}: {stored} in the checkpoint, {current} now"
        for key, stored, current in pairs
        if key.startswith(DECISIVE) and ABSENT not in (stored, current)
    ]


def start_is_complete(run: RunConfig) -> bool:
    """Return whether the run that `run` starts from has a checkpoint of its last step.

    The last step is that of the earlier run's own recipe, which may be smaller than that of a recipe now. Raises the
    errors of latest_committed.
    """
    assert run.start_from is not None
    run_dir, newest = Path(run.root) / run.start_from, commits.latest_committed(run.saved_in_of(run.start_from))
    if newest is None:
        return False
    if not (run_dir / "config.json").is_file():  # only its checkpoints were copied here
        return True
    return commits.step_of(newest) >= recipe_of(run_dir).train.steps


def start_recipe(loaded: Loaded[StageRecipe]) -> Loaded[StageRecipe]:
    """Return the recipe of the run that this one starts from.

    It is made of the files of `run.start_recipes` and of the overrides of this recipe that are SHARED. Raises
    ConfigError when it is wrong.
    """
    folder, overrides = loaded.beside("run.start_recipes")
    shared = [override for override in overrides if _is_shared(override.partition("=")[0])]
    return load(StageRecipe, [folder / name for name in loaded.recipe.run.start_recipes], shared)


def _is_shared(key: str) -> bool:
    """Return whether a setting is in SHARED."""
    return any(key == shared or key.startswith(f"{shared}.") for shared in SHARED)


def trains_start(run: RunConfig) -> bool:
    """Return whether a start of `run` first trains the run that it starts from.

    Raises the errors of latest_committed.
    """
    if run.start_from is None or not run.start_recipes or commits.latest_committed(run.saved_in) is not None:
        return False
    return not start_is_complete(run)


def check_starts(loaded: Loaded[StageRecipe]) -> None:
    """Read the recipes of all runs that will be trained before this one.

    Raises ConfigError when a recipe is wrong, its run is not the one in `run.start_from`, or runs start from each
    other.
    """
    names = [loaded.recipe.run.name]
    while trains_start(run := loaded.recipe.run):
        previous = start_recipe(loaded)
        name = previous.recipe.run.name
        if name != run.start_from:
            raise ConfigError(
                f"run.start_from={run.start_from}, but run.start_recipes ({', '.join(run.start_recipes)}) make the run "
                f"{name}",
                f"name the recipes of {run.start_from}, set run.start_from={name}, or set run.start_recipes=[] to "
                "start from the existing weights",
            )
        names.append(name)
        if name in names[:-1]:
            raise ConfigError(
                f"runs start from each other: {' -> '.join(names)}",
                "set run.start_from=null in the recipe of the first run",
            )
        loaded = previous


def refuse_if_never(run: RunConfig) -> None:
    """Raise ConfigError when `run.resume=never` and the run has a checkpoint."""
    existing = commits.latest_committed(run.saved_in) if run.resume == "never" else None
    if existing is not None:
        raise ConfigError(
            f"run.resume=never, but run {run.dir} has a checkpoint: {existing}",
            "give the run another name (run.name=...), or resume it (run.resume=auto)",
        )


def goes_on_from(recipe: StageRecipe) -> str | None:
    """Return the checkpoint from which a start resumes by `run.resume`, or None without one.

    Raises ConfigError when `run.resume=never` and the run has a checkpoint, and the errors of latest_committed.
    """
    run = recipe.run
    refuse_if_never(run)
    newest, path = commits.latest_committed(run.saved_in), recipe.with_absolute_paths().run.resume.rstrip("/")
    goes_back = path not in ("auto", "never") and commits.saved_since(run.saved_in, path) is None
    return path if goes_back else newest


def require_checkpoint(folder: str) -> str:
    """Return the newest committed checkpoint. Raises CheckpointError when none exists."""
    path = commits.latest_committed(folder)
    if path is None:
        raise CheckpointError(
            f"no committed checkpoint under {folder}", "train the run first, or name another run with run.name=..."
        )
    return path

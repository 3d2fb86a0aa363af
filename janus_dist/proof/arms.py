"""The arms of an ablation: a single encoder, Janus, understanding only and generation only, on the same budget
(Janus, table 5: A, D, E and F).

Invariant: an arm's row is made of evaluations of the last checkpoints of all its runs, by their present recipes; what
is there is not done again.
"""

import json
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from janus_dist.checkpoint.find import is_complete, trained_otherwise
from janus_dist.config.load import Loaded, load, save
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import PROOF, tiny
from janus_dist.config.streams import IMAGE_STREAMS, Stream
from janus_dist.errors import ConfigError
from janus_dist.evaluation.run import evaluate, found_before
from janus_dist.launch.stage import Prepare
from janus_dist.launch.task_pool import train_all
from janus_dist.report.results import CHANCES
from janus_dist.storage.local import write_whole

FILES = tuple(tiny("stage2"))
ROOT = "runs/ablation"
ARMS = {
    "A": "single encoder (VQ) for both",
    "D": "Janus: two encoders",
    "E": "understanding only",
    "F": "generation only",
}
SEEDS = (0, 1, 2)
MEASURES = IMAGE_STREAMS


def ablation(
    overrides: list[str],
    prepare: Prepare,
    files: Sequence[Path] = FILES,
    around: AbstractContextManager[object] | None = None,
) -> list[dict[str, Any]]:
    """Train and evaluate what is missing; a row for each arm, also in ROOT/summary.json. Arms are laid over `files`.

    Work is done within `around`, which is not entered when there is none. ConfigError when a run that is there was
    trained otherwise.
    """
    runs = {arm: [recipe_of(arm, seed, overrides, files) for seed in SEEDS] for arm in ARMS}
    every = [loaded for found in runs.values() for loaded in found]
    _refuse_others([loaded.recipe for loaded in every])
    missing = [loaded for loaded in every if evaluation_of(loaded.recipe) is None]
    if missing:
        with around or nullcontext():
            prepare(every[0].recipe)
            for loaded in missing:
                if not is_complete(loaded.recipe):
                    save(loaded, loaded.recipe.run.dir)
            train_all([loaded.recipe for loaded in missing], show=print, then=evaluate_arm)
    rows = [row(arm, [_done(loaded.recipe) for loaded in of]) for arm, of in runs.items()]
    root = Path(every[0].recipe.run.root)
    write_whole(root / "summary.json", json.dumps({"ablation": rows}, indent=1) + "\n")
    return rows


def _refuse_others(recipes: Sequence[StageRecipe]) -> None:
    """Raise ConfigError when a run was trained with other settings: its budget would differ from that of the others."""
    faults = [f"{one.run.dir}: {said}" for one in recipes for said in trained_otherwise(one)]
    if faults:
        raise ConfigError(
            "runs are there that were trained with other settings:\n  " + "\n  ".join(faults),
            "take another folder (run.root=...), or remove these runs",
        )


def recipe_of(arm: str, seed: int, overrides: list[str], files: Sequence[Path] = FILES) -> Loaded[StageRecipe]:
    """Return the recipe of an arm's run."""
    files = [*files, PROOF / "arm.yaml", PROOF / f"{arm.lower()}.yaml"]
    given = [f"run.root={ROOT}", f"data.root={ROOT}/data", *overrides]
    return load(StageRecipe, files, [*given, f"run.name={arm.lower()}-{seed}", f"run.seed={seed}"])


def evaluate_arm(recipe: StageRecipe) -> None:
    """Evaluate what an arm learned, without reconstructions, which are the same for all."""
    evaluate(recipe, recipe.run.dir, recipe.run.dir / "evaluation", measures_of(recipe), with_images=False)


def evaluation_of(recipe: StageRecipe) -> dict[str, Any] | None:
    """Return what was found of a run, if it is complete and this was found of its last checkpoint with
    these settings."""
    if not is_complete(recipe):
        return None
    return found_before(recipe, recipe.run.dir / "evaluation", measures_of(recipe), with_images=False)


def _done(recipe: StageRecipe) -> dict[str, Any]:
    found = evaluation_of(recipe)
    assert found is not None, f"{recipe.run.dir} was trained and evaluated, but not by its present recipe"
    return found


def measures_of(recipe: StageRecipe) -> list[Stream]:
    """Return what an arm learns, of what is measured."""
    return [name for name in MEASURES if getattr(recipe.mix, name)]


def row(arm: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an arm's figures: mean and standard deviation over seeds and chance, None for what it does not learn."""
    values: dict[str, Any] = {"name": arm, "meaning": ARMS[arm], "seeds": len(found)}
    for name in MEASURES:
        each = [one[f"{name}_accuracy"] for one in found if f"{name}_accuracy" in one]
        values[f"{name}_mean"] = statistics.mean(each) if each else None
        values[f"{name}_spread"] = statistics.stdev(each) if len(each) > 1 else None
        values[f"{name}_each"] = each
        chances = [one[CHANCES[name]] for one in found if CHANCES[name] in one]
        values[CHANCES[name]] = statistics.mean(chances) if chances else None
    return values

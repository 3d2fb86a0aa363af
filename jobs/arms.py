"""The arms of an ablation: a single encoder, Janus, understanding only and generation only, on the same budget
(Janus, table 5: A, D, E and F).

Invariant: an arm's row is made of the evaluations of all its runs; what is there is not done again.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.prepare import prepare_data
from janus_dist.config.load import Loaded, load, save
from janus_dist.config.mix import Stream
from janus_dist.config.recipe import StageRecipe
from janus_dist.evaluation.run import evaluate
from janus_dist.launch import train_all
from janus_dist.report.results import CHANCES
from jobs.stage import TINY, is_complete

PROOF = TINY.parent / "proof"
FILES = (TINY / "base.yaml", TINY / "stage2.yaml")
ROOT = "runs/ablation"
ARMS = {
    "A": "single encoder (VQ) for both",
    "D": "Janus: two encoders",
    "E": "understanding only",
    "F": "generation only",
}
SEEDS = (0, 1, 2)
MEASURES: tuple[Stream, ...] = ("understanding", "generation")


def ablation(overrides: list[str], files: Sequence[Path] = FILES) -> list[dict[str, Any]]:
    """Train and evaluate what is missing; a row for each arm, also in ROOT/summary.json. Arms are laid over `files`."""
    runs = {arm: [recipe_of(arm, seed, overrides, files) for seed in SEEDS] for arm in ARMS}
    every = [loaded for found in runs.values() for loaded in found]
    prepare_data(every[0].recipe)
    for loaded in every:
        save(loaded, loaded.recipe.run.dir)
    missing = [loaded.recipe for loaded in every if not evaluation_of(loaded.recipe).exists()]
    train_all([recipe for recipe in missing if not is_complete(recipe)], show=print)
    for recipe in missing:
        streams: list[Stream] = [name for name in MEASURES if getattr(recipe.mix, name)]
        evaluate(recipe, recipe.run.dir, evaluation_of(recipe).parent, streams)
    rows = [row(arm, [json.loads(evaluation_of(one.recipe).read_text()) for one in runs[arm]]) for arm in ARMS]
    root = Path(every[0].recipe.run.root)
    (root / "summary.json").write_text(json.dumps({"ablation": rows}, indent=1) + "\n")
    return rows


def recipe_of(arm: str, seed: int, overrides: list[str], files: Sequence[Path] = FILES) -> Loaded[StageRecipe]:
    """The recipe of an arm's run."""
    files = [*files, PROOF / "arm.yaml", PROOF / f"{arm.lower()}.yaml"]
    given = [f"run.root={ROOT}", f"data.root={ROOT}/data", *overrides]
    return load(StageRecipe, files, [*given, f"run.name={arm.lower()}-{seed}", f"run.seed={seed}"])


def evaluation_of(recipe: StageRecipe) -> Path:
    """What was found of a run."""
    return recipe.run.dir / "evaluation" / "evaluation.json"


def row(arm: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """An arm's figures: mean and standard deviation over seeds and chance, None for what it does not learn."""
    values: dict[str, Any] = {"name": arm, "meaning": ARMS[arm], "seeds": len(found)}
    for name in MEASURES:
        each = [one[f"{name}_accuracy"] for one in found if f"{name}_accuracy" in one]
        values[f"{name}_mean"] = statistics.mean(each) if each else None
        values[f"{name}_spread"] = statistics.stdev(each) if len(each) > 1 else None
        values[f"{name}_each"] = each
        chances = [one[CHANCES[name]] for one in found if CHANCES[name] in one]
        values[CHANCES[name]] = statistics.mean(chances) if chances else None
    return values

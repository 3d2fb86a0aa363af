"""Checks that data, tokenizer and checkpoints match the recipe, before anything is trained.

Invariant: a run never resumes with other data, another order or another model than its checkpoint, unless the recipe
asks for it (`run.rebase`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.commits import Commit
from janus_dist.checkpoint.find import goes_on_from
from janus_dist.config.diff import changes
from janus_dist.config.mix import Lane
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.streams import SPECS
from janus_dist.data.manifest import ShardSet
from janus_dist.data.plan import Plan
from janus_dist.data.tokenizer import Tokenizer, check_vocabulary
from janus_dist.errors import CheckpointError, DataError
from janus_dist.model.parts import part_of
from janus_dist.model.size import other_size


def check_data(recipe: StageRecipe, tokenizer: Tokenizer, shards: Mapping[Lane, ShardSet]) -> None:
    """Raise DataError unless the shards were made with this tokenizer and the image sizes of the recipe's model.

    Also raises the error of check_vocabulary when the tokenizer does not fit the model.
    """
    check_vocabulary(tokenizer, recipe)
    for (stream, _), shard_set in shards.items():
        manifest, manifest_path = shard_set.manifest, f"{shard_set.folder}/manifest.json"
        if manifest.tokenizer_sha256 != tokenizer.sha256:
            raise DataError(
                f"{manifest_path} was made with a tokenizer whose sha256 is {manifest.tokenizer_sha256[:12]}, "
                f"but data.tokenizer={recipe.data.tokenizer} has {tokenizer.sha256[:12]}",
                "use the tokenizer that the shards were made with, or tokenize again into another data.root",
            )
        spec, model = SPECS[stream], recipe.model
        sizes = {"image_size": model.image_size} if spec.has_images else {}
        sizes |= {"image_tokens": model.image_tokens} if spec.reads_images else {}
        sizes |= {"image_ids": model.image_ids} if spec.draws_images else {}
        for key, expected in sizes.items():
            if getattr(manifest, key) != expected:
                raise DataError(
                    f"{manifest_path} says {key}={getattr(manifest, key)}, the model of this recipe needs {expected}",
                    "tokenize again into another data.root with this recipe, or use the recipe that made the shards",
                )


def check_rebase(plan: Plan, path: str, commit: Commit) -> None:
    """Raise CheckpointError when the sources of `plan` cannot continue at the checkpoint's cursors."""
    for key in ("version", "seed"):
        if commit.plan[key] != plan.identity[key]:
            raise CheckpointError(
                f"{path} cannot be re-based: {_differences({key: commit.plan[key]}, {key: plan.identity[key]})}, "
                "so every source would have another sample order and repeat samples",
                f"keep the {key}, or start a new run (run.name=...) from these weights",
            )


def check_resume(recipe: StageRecipe, plan: Plan | None, trainable: Sequence[str], path: str, commit: Commit) -> None:
    """Raise CheckpointError unless a run of this recipe can resume from the checkpoint at `path`; name the differences.

    `plan` is None when the plan changes on purpose.
    """
    model, stored_model = recipe.model.model_dump(mode="json"), commit.recipe["model"]
    if stored_model != model:
        raise other_size(path, _differences({"model": stored_model}, {"model": model}))
    stored_dtype, dtype = commit.recipe.get("engine", {}).get("dtype", recipe.engine.dtype), recipe.engine.dtype
    if dtype not in ("auto", stored_dtype):
        raise CheckpointError(
            f"{path} was trained in {stored_dtype}, the recipe says engine.dtype={dtype}",
            f"set engine.dtype=auto to resume in {stored_dtype}, or {_new_run(recipe)}",
        )
    if plan is not None and commit.plan_digest != plan.digest:
        raise CheckpointError(
            f"{path} was trained on another plan: {_differences(commit.plan, plan.identity)}",
            f"undo the change; or apply it from this step on with run.rebase=true; or {_new_run(recipe)}",
        )
    if set(commit.trainable) != set(trainable):
        parts = ", ".join(sorted({part_of(name) for name in set(commit.trainable) ^ set(trainable)}))
        raise CheckpointError(
            f"{path} was trained with another train.trainable: {parts} differ",
            f"undo the change, or {_new_run(recipe)}",
        )
    if commit.step > recipe.train.steps:
        raise CheckpointError(
            f"{path} is at step {commit.step}, beyond train.steps={recipe.train.steps}",
            f"set train.steps={commit.step} or more, or another run.name",
        )


def learning(recipe: StageRecipe, commit: Commit) -> list[str]:
    """Return the names of a checkpoint's parameters that belong to the parts in `train.trainable`."""
    trainable = set(recipe.train.trainable)
    return [name for name in commit.shapes if part_of(name) in trainable]


def refuse_other(recipe: StageRecipe) -> None:
    """Raise CheckpointError when a start would resume from a checkpoint that does not match this recipe.

    The plan is not compared here: the ranks compare it, because they read the manifests.
    """
    if (path := goes_on_from(recipe)) is not None:
        commit = commits.read(path)
        check_resume(recipe, None, learning(recipe, commit), path, commit)


def changed_settings(recipe: StageRecipe, commit: Commit) -> str:
    """Return the permitted differences between the recipe and the checkpoint's recipe, as text."""
    now = recipe.model_dump(mode="json")
    sections = ("optim", "engine", "train")
    return _differences(
        {name: commit.recipe.get(name, {}) for name in sections}, {name: now[name] for name in sections}
    )


def _new_run(recipe: StageRecipe) -> str:
    """Return the hint that says how to start a new run from the weights of this one, with the required overrides."""
    own = " run.start_recipes=[]" if recipe.run.start_recipes else ""
    own += " run.start_weights=null" if recipe.run.start_weights else ""
    return f"start a new run (run.name=...) from these weights with run.start_from={recipe.run.name}{own}"


def _differences(old_tree: dict[str, Any], new_tree: dict[str, Any]) -> str:
    """Return `a.b was 1, is 2` for every leaf that differs, joined by semicolons."""
    return "; ".join(f"{key} was {old}, is {new}" for key, old, new in changes(old_tree, new_tree))

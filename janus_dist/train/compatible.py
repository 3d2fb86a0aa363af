"""Checks that data, tokenizer and checkpoints belong to the recipe, before anything is trained.

Invariant: a run never trains on other data, another order or another model than its checkpoint did, without being told.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.commits import Commit
from janus_dist.checkpoint.find import goes_on_from
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
    """Raise DataError unless the shards were made with this tokenizer and these image sizes."""
    check_vocabulary(tokenizer, recipe)
    for (name, _), found in shards.items():
        manifest, where = found.manifest, f"{found.folder}/manifest.json"
        if manifest.tokenizer_sha256 != tokenizer.sha256:
            raise DataError(
                f"{where} was made with a tokenizer whose sha256 is {manifest.tokenizer_sha256[:12]}, "
                f"but data.tokenizer={recipe.data.tokenizer} has {tokenizer.sha256[:12]}",
                "use the tokenizer that the shards were made with, or tokenize again into another data.root",
            )
        spec, model = SPECS[name], recipe.model
        sizes = {"image_size": model.image_size} if spec.has_images else {}
        sizes |= {"image_tokens": model.image_tokens} if spec.reads_images else {}
        sizes |= {"image_ids": model.image_ids} if spec.draws_images else {}
        for key, wanted in sizes.items():
            if getattr(manifest, key) != wanted:
                raise DataError(
                    f"{where} says {key}={getattr(manifest, key)}, the model of this recipe needs {wanted}",
                    "tokenize again into another data.root with this recipe, or use the recipe that made the shards",
                )


def check_rebase(plan: Plan, path: str, commit: Commit) -> None:
    """Raise CheckpointError when sources cannot go on at the checkpoint's cursors."""
    for key in ("version", "seed"):
        if commit.plan[key] != plan.identity[key]:
            raise CheckpointError(
                f"{path} cannot be re-based: {_differences('', {key: commit.plan[key]}, {key: plan.identity[key]})}, "
                "so every source would stand in another order and repeat samples",
                f"keep the {key}, or start a new run (run.name=...) from these weights",
            )


def check_resume(recipe: StageRecipe, plan: Plan | None, trainable: Sequence[str], path: str, commit: Commit) -> None:
    """Raise CheckpointError unless the checkpoint at `path` continues with this recipe, naming what differs.

    `plan` is None when the plan changes on purpose.
    """
    model, before = recipe.model.model_dump(mode="json"), commit.recipe["model"]
    if before != model:
        raise other_size(path, _differences("model", before, model))
    trained_in, dtype = commit.recipe.get("engine", {}).get("dtype", recipe.engine.dtype), recipe.engine.dtype
    if dtype not in ("auto", trained_in):
        raise CheckpointError(
            f"{path} was trained in {trained_in}, the recipe says engine.dtype={dtype}",
            f"take engine.dtype=auto, which goes on in {trained_in}, or {_new_run(recipe)}",
        )
    if plan is not None and commit.plan_digest != plan.digest:
        raise CheckpointError(
            f"{path} was trained on another plan: {_differences('', commit.plan, plan.identity)}",
            f"undo the change; or go on with it from here with run.rebase=true; or {_new_run(recipe)}",
        )
    if set(commit.trainable) != set(trainable):
        parts = ", ".join(sorted({part_of(name) for name in set(commit.trainable) ^ set(trainable)}))
        raise CheckpointError(
            f"{path} was trained with other parts learning than train.trainable says: {parts} differ",
            f"undo the change, or {_new_run(recipe)}",
        )
    if commit.step > recipe.train.steps:
        raise CheckpointError(
            f"{path} is at step {commit.step}, beyond train.steps={recipe.train.steps}",
            f"take train.steps={commit.step} or more, or another run.name",
        )


def learning(recipe: StageRecipe, commit: Commit) -> list[str]:
    """Names of a checkpoint's parameters that learn by `train.trainable`."""
    learns = set(recipe.train.trainable)
    return [name for name in commit.shapes if part_of(name) in learns]


def refuse_other(recipe: StageRecipe) -> None:
    """CheckpointError unless the checkpoint that a start goes on from, if there is one, continues with this recipe. Its
    plan is for the ranks to compare, which read the manifests."""
    if (path := goes_on_from(recipe)) is not None:
        commit = commits.read(path)
        check_resume(recipe, None, learning(recipe, commit), path, commit)


def changed_settings(recipe: StageRecipe, commit: Commit) -> str:
    """What the recipe says otherwise than the one that the checkpoint was made with, where that is no fault."""
    now = recipe.model_dump(mode="json")
    sections = ("optim", "engine", "train")
    return "; ".join(filter(None, (_differences(name, commit.recipe.get(name, {}), now[name]) for name in sections)))


def _new_run(recipe: StageRecipe) -> str:
    """Return in words how a new run starts from the weights of this one, with the overrides that it takes."""
    own = " run.start_recipes=[]" if recipe.run.start_recipes else ""
    own += " run.start_weights=null" if recipe.run.start_weights else ""
    return f"start a new run (run.name=...) from these weights with run.start_from={recipe.run.name}{own}"


def _differences(prefix: str, then: dict[str, Any], now: dict[str, Any]) -> str:
    """`a.b was 1, is 2` for every leaf that differs."""
    found = []
    for key in sorted(then.keys() | now.keys()):
        name = f"{prefix}.{key}" if prefix else key
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = _differences(name, old, new)
            found += [inner] if inner else []
        elif old != new:
            found.append(f"{name} was {old}, is {new}")
    return "; ".join(found)

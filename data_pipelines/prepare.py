"""Preparation of the data that training needs: the shards of all inputs of a recipe, made where they are missing.

Invariant: a folder with a manifest is never changed, except to replace its shards on request.
"""

import logging
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import fsspec

from data_pipelines import stream
from data_pipelines.committed import refuse_other_settings
from data_pipelines.inputs.braces import expand
from data_pipelines.job import InputWork
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.streams import SPECS
from janus_dist.data.manifest import NAME, Manifest, is_there
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import ConfigError, DataError
from janus_dist.launch.session import connect
from janus_dist.storage import fs

log = logging.getLogger("janus_dist")


def prepare_data(recipe: BaseRecipe, limit: int | None = None, anew: bool = False) -> None:
    """Make the shards of the inputs that have no manifest yet; starts or joins Ray only if there are any.

    With a `limit`, make shards of that many records of each input, in a folder of their own next to `data.root`. With
    `anew`, make again what differs from the recipe or from the files as they are now, next to the existing shards,
    which are replaced at the end.

    Raises ConfigError when an input's files and its shards would lie in one folder, when shards were made with other
    settings, or when another job writes into their folder; CheckpointError when the VQ tokenizer's weights are absent
    or do not fit; DataError when shards are of other weights, or for the reasons of `stream.run`.
    """
    if limit is not None:
        recipe = _with_root(recipe, f"{recipe.data.root.rstrip('/')}-first-{limit}")
    folders = {name: f"{recipe.data.root}/{name}" for name in recipe.pipeline.inputs}
    committed = [name for name, folder in folders.items() if is_there(folder)]
    _report_all_committed(recipe, set(folders.values()) if anew else set())
    tokenizer = Tokenizer.load(recipe.data.tokenizer)
    if not anew:
        for name in committed:
            _check_settings(input_work(name, recipe, tokenizer))
    todo = list(folders) if anew else [name for name in folders if name not in committed]
    if todo:
        _make_shards([input_work(name, recipe, tokenizer) for name in todo], recipe, limit, anew)


def _with_root(recipe: BaseRecipe, root: str) -> BaseRecipe:
    """Return a recipe whose shards go below another folder."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})


def _make_shards(works: Sequence[InputWork], recipe: BaseRecipe, limit: int | None, anew: bool) -> None:
    """Make the shards of inputs on the cluster."""
    check_apart(works)
    if any(SPECS[work.stream].draws_images for work in works):
        from janus_dist.weights.vq import load_vq  # here: a job with nothing to tokenize starts 4 s sooner

        load_vq(recipe.model, recipe.data.vq_weights)  # here, so that the user sees the error at once
    connect()
    for work in works:
        log.info("%s: tokenizing %s into %s", work.name, _described(work), work.folder)
        stream.run(work, limit, anew)


def input_work(name: str, recipe: BaseRecipe, tokenizer: Tokenizer) -> InputWork:
    """Return the work on one of the recipe's inputs, with paths that mean the same in any process."""
    recipe = _with_absolute_paths(recipe)
    pipeline = recipe.pipeline
    folder = f"{recipe.data.root}/{name}"
    return InputWork(name, pipeline.streams[name], folder, pipeline.inputs[name], recipe, tokenizer)


def check_apart(works: Sequence[InputWork]) -> None:
    """Raise ConfigError when a path of an input is its output folder, is in it or contains it.

    A run must not read its output, nor remove a source when it removes unused shards.
    """
    faults = [
        f"pipeline.inputs.{work.name}.path={path} and the folder of its shards, {work.folder}, overlap"
        for work in works
        for path in _paths(work)
        for path in expand(path)
        if _overlap(_path_parts(path), _path_parts(work.folder))
    ]
    if faults:
        raise ConfigError(
            "; ".join(faults),
            "an input's path must not be the folder data.root/NAME, nor be in it, nor contain it: "
            "set another data.root, or move the source",
        )


def _overlap(pattern: Sequence[str], folder: Sequence[str]) -> bool:
    """Return whether a file that a path or pattern names may be a folder, be in it or contain it."""
    for pattern_part, name in zip(pattern, folder, strict=False):
        if pattern_part == "**":
            return True
        if pattern_part != name and not fnmatchcase(name, pattern_part):
            return False
    return True


def _path_parts(path: str) -> list[str]:
    """Return the names in a path, links followed; the first one is `disk` or `store`."""
    name = fsspec.core.strip_protocol(path)
    where, name = ("disk", os.path.realpath(name)) if fs.is_local(path) else ("store", name)
    return [where, *filter(None, name.split("/"))]


def _report_all_committed(recipe: BaseRecipe, replaced: set[str]) -> None:
    """Report the existing shard sets that a recipe trains on, except those in the folders that are `replaced`."""
    for folder in recipe.data.lanes.values():
        if folder not in replaced and is_there(folder):
            _report_committed(folder, recipe)


def _report_committed(folder: str, recipe: BaseRecipe) -> None:
    """Log an existing shard set; raises DataError when its VQ ids are of another VQ tokenizer than the recipe's."""
    manifest = Manifest.load(folder)
    weights = recipe.data.vq_weights
    if manifest.vq_sha256 is not None and fs.size(weights) is not None:
        recipe_sha256 = stream.vq_sha256(recipe)
        if recipe_sha256 != manifest.vq_sha256:
            raise DataError(
                f"{folder}/{NAME} was made with VQ weights whose sha256 is {manifest.vq_sha256[:12]}, "
                f"but data.vq_weights={weights} has {recipe_sha256[:12]}",
                "use the weights that the shards were made with, or tokenize again into another data.root",
            )
    log.info("%s: %d samples, %d tokens in %s", manifest.stream, manifest.samples, manifest.tokens, folder)


def _check_settings(work: InputWork) -> None:
    """Raise ConfigError when the shards of an input were made with other settings; weights are checked elsewhere."""
    manifest = Manifest.load(work.folder)
    try:
        new_settings = stream.settings(work, manifest.vq_sha256)
    except OSError:  # the source of committed shards may have been removed
        return
    if accepted := refuse_other_settings(work, manifest, new_settings):
        log.warning("%s: its shards are used as they are, although %s", work.name, ", ".join(accepted))


def _described(work: InputWork) -> str:
    paths = _paths(work)
    return f"{', '.join(paths)} ({work.source.format})" if paths else work.source.format


def _paths(work: InputWork) -> list[str]:
    return [work.source.path] if isinstance(work.source.path, str) else list(work.source.path)


def _with_absolute_paths(recipe: BaseRecipe) -> BaseRecipe:
    """Return a recipe with paths that mean the same in any process of this machine, in any working folder."""
    data, pipeline = recipe.data, recipe.pipeline
    changed = {name: _absolute(getattr(data, name)) for name in ("root", "vq_weights")}
    inputs = {name: _with_absolute_files(source) for name, source in pipeline.inputs.items()}
    return recipe.model_copy(
        update={"data": data.model_copy(update=changed), "pipeline": pipeline.model_copy(update={"inputs": inputs})}
    )


def _with_absolute_files(source: InputConfig) -> InputConfig:
    paths = (source.path,) if isinstance(source.path, str) else source.path
    named = {name: _absolute(path) for name in ("images", "class_names") if (path := getattr(source, name)) is not None}
    return source.model_copy(update={"path": tuple(map(_absolute, paths)), **named})


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())

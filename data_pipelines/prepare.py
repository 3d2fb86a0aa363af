"""Everything that training needs on disk: the shards of all inputs of a recipe, made where they are missing.

Invariant: a folder with a manifest is never touched.
"""

import logging
from pathlib import Path

from data_pipelines import stream
from data_pipelines.job import InputWork
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import storage
from janus_dist.data.manifest import NAME, Manifest, is_there
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError
from janus_dist.launch import connect

log = logging.getLogger("janus_dist")


def prepare_data(recipe: BaseRecipe, limit: int | None = None) -> None:
    """Make the shards of the inputs that have no manifest yet; starts or joins Ray only if there are any.

    With a `limit`, of so many records of each input, in a folder of its own beside `data.root`. CheckpointError when
    the VQ tokenizer's weights are absent or do not fit; DataError when shards are of other weights, or as `stream.run`.
    """
    if limit is not None:
        root = f"{recipe.data.root.rstrip('/')}-first-{limit}"
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})
    missing = [name for name in recipe.pipeline.inputs if not is_there(f"{recipe.data.root}/{name}")]
    for folder in recipe.data.lanes.values():
        if is_there(folder):
            _show(folder, recipe)
    if not missing:
        return
    tokenizer = Tokenizer.load(recipe.data.tokenizer)
    found = [input_work(name, recipe, tokenizer) for name in missing]
    if any(work.stream == "generation" for work in found):
        from janus_dist.model.vq_weights import load_vq  # here: a job with nothing to tokenize starts 4 s sooner

        load_vq(recipe.model, recipe.data.vq_weights)  # here, where the error is the user's to read
    connect()
    for work in found:
        log.info("%s: tokenizing %s into %s", work.name, _shown(work), work.folder)
        stream.run(work, limit)


def input_work(name: str, recipe: BaseRecipe, tokenizer: Tokenizer) -> InputWork:
    """The work on one of the recipe's inputs, with paths that mean the same in any process."""
    recipe = _with_absolute_paths(recipe)
    pipeline = recipe.pipeline
    folder = f"{recipe.data.root}/{name}"
    return InputWork(name, pipeline.streams[name], folder, pipeline.inputs[name], recipe, tokenizer)


def _show(folder: str, recipe: BaseRecipe) -> None:
    """Say what is there; DataError when its VQ ids are of another VQ tokenizer than the recipe's."""
    manifest = Manifest.load(folder)
    weights = recipe.data.vq_weights
    if manifest.vq_sha256 is not None and storage.size(weights) is not None:
        found = stream.vq_sha256(recipe)
        if found != manifest.vq_sha256:
            raise DataError(
                f"{folder}/{NAME} was made with VQ weights whose sha256 is {manifest.vq_sha256[:12]}, "
                f"but data.vq_weights={weights} has {found[:12]}",
                "use the weights that the shards were made with, or tokenize again into another data.root",
            )
    log.info("%s: %d samples, %d tokens in %s", manifest.stream, manifest.samples, manifest.tokens, folder)


def _shown(work: InputWork) -> str:
    paths = [work.source.path] if isinstance(work.source.path, str) else list(work.source.path)
    return f"{', '.join(paths)} ({work.source.format})" if paths else work.source.format


def _with_absolute_paths(recipe: BaseRecipe) -> BaseRecipe:
    """The same recipe with paths that mean the same in any process of this machine, whatever its folder."""
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

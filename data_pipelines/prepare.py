"""Everything that training needs on disk: the three streams' shards, made where they are missing.

Invariant: a stream with a manifest is never touched.
"""

import logging
from pathlib import Path

from data_pipelines import generation, sources, stream, text, understanding
from data_pipelines.stream import StreamJob
from janus_dist.config.mix import STREAMS, Stream
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import storage
from janus_dist.data.manifest import NAME, Manifest
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError
from janus_dist.launch import connect

log = logging.getLogger("janus_dist")

JOBS = {"understanding": understanding.job, "text": text.job, "generation": generation.job}


def prepare_data(recipe: BaseRecipe) -> None:
    """Make the shard sets under `data.root` that have no manifest yet; starts or joins Ray only if there are any.

    Those that `data.sources` names are never made: DataError when one is not there.
    """
    made: list[Stream] = [name for name in STREAMS if name not in recipe.data.sources]
    missing: list[Stream] = [name for name in made if storage.size(f"{recipe.data.root}/{name}/{NAME}") is None]
    for lane, folder in recipe.data.lanes.items():
        if lane.stream not in missing:
            _show(folder, recipe)
    if not missing:
        return
    log.info("tokenizing %s into %s: %s", recipe.pipeline.source, recipe.data.root, ", ".join(missing))
    tokenizer = Tokenizer.load(recipe.data.tokenizer)
    jobs = [stream_job(name, recipe, tokenizer) for name in missing]  # finds what does not fit before anything starts
    connect()
    for job in jobs:
        stream.run(job)


def stream_job(
    name: Stream, recipe: BaseRecipe, tokenizer: Tokenizer, items: list[sources.Item] | None = None
) -> StreamJob:
    """One stream's work; all items of `pipeline.source` unless others are given."""
    found = sources.items(name, recipe.pipeline) if items is None else items
    return JOBS[name](_with_absolute_paths(recipe), tokenizer, found)


def _show(folder: str, recipe: BaseRecipe) -> None:
    """Say what is there; DataError when its VQ ids are of another VQ tokenizer than the recipe's."""
    manifest = Manifest.load(folder)
    weights = recipe.data.vq_weights
    if manifest.vq_sha256 is not None and storage.size(weights) is not None:
        found = stream.sha256_of(weights)
        if found != manifest.vq_sha256:
            raise DataError(
                f"{folder}/{NAME} was made with VQ weights whose sha256 is {manifest.vq_sha256[:12]}, "
                f"but data.vq_weights={weights} has {found[:12]}",
                "use the weights that the shards were made with, or tokenize again into another data.root",
            )
    log.info("%s: %d samples, %d tokens in %s", manifest.stream, manifest.samples, manifest.tokens, folder)


def _with_absolute_paths(recipe: BaseRecipe) -> BaseRecipe:
    """The same recipe with paths that mean the same in any process of this machine, whatever its folder."""
    data = recipe.data
    changed = {name: _absolute(getattr(data, name)) for name in ("root", "vq_weights")}
    return recipe.model_copy(update={"data": data.model_copy(update=changed)})


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())

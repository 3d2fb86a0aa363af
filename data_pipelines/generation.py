"""The generation stream: a caption as the prompt, the image as VQ ids.

    filter -> read -> crop -> encode the caption -> encode the pixels (actors) -> write

The VQ tokenizer lives in a pool of actors of fixed size: a pool that grows by demand stays at one actor on a cluster
that grows by demand too. Invariant: what reaches an actor are 8-bit pixels, whole shards at a time.
"""

import pyarrow as pa
import ray
from ray.data import Dataset

from data_pipelines import sources
from data_pipelines.graph import Graph
from data_pipelines.steps.crop import CropSquare
from data_pipelines.steps.encode import EncodeCaption
from data_pipelines.steps.pixels import EncodePixels
from data_pipelines.steps.read import check_caption, read_image
from data_pipelines.stream import StreamJob, sha256_of
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.model.vq_weights import load_vq

ITEM = pa.schema([("image", pa.string()), ("caption", pa.string())])
IDS = pa.list_(pa.uint32())
VQ_IDS = pa.list_(pa.uint16())


def job(recipe: BaseRecipe, tokenizer: Tokenizer, items: list[sources.Item]) -> StreamJob:
    """The stream's work, for `stream.run`; CheckpointError when the VQ tokenizer's weights are absent or do not fit."""
    model, weights = recipe.model, recipe.data.vq_weights
    load_vq(model, weights)  # here, where the error is the user's to read, before any actor starts

    def graph(source: Dataset) -> Dataset:
        return (
            Graph(source)
            .map(check_caption, image=pa.string(), caption=pa.string())
            .map(read_image, encoded=pa.binary(), caption=pa.string())
            .map(CropSquare(recipe.pipeline, model.image_size), pixels=pa.binary(), caption=pa.string())
            .map(EncodeCaption(tokenizer, recipe.data.chat, model), pixels=pa.binary(), prompt_ids=IDS)
            .map_in_actors(
                EncodePixels,
                (model, weights, recipe.pipeline.encode_batch, "cuda" if recipe.cluster.gpu else "cpu"),
                actors=_actors(recipe),
                gpu=recipe.cluster.gpu,
                prompt_ids=IDS,
                vq_ids=VQ_IDS,
            )
            .dataset
        )

    return StreamJob("generation", recipe, tokenizer, items, ITEM, graph, vq_sha256=sha256_of(weights))


def _actors(recipe: BaseRecipe) -> int:
    """One actor per GPU; on CPUs, half of them, since the other half reads, crops and writes."""
    resources = ray.cluster_resources()
    if recipe.cluster.gpu:
        return max(1, int(resources.get("GPU", 0)))
    return max(1, int(resources.get("CPU", 0)) // 2)

"""The understanding stream: an image and all that is asked about it, as one conversation.

    filter -> read -> crop -> encode -> write

Invariant: every image of the source is one sample or one line of the quarantine table.
"""

import pyarrow as pa
from ray.data import Dataset

from data_pipelines import sources
from data_pipelines.graph import Graph
from data_pipelines.steps.crop import PadSquare
from data_pipelines.steps.encode import EncodeConversation
from data_pipelines.steps.read import check_turns, read_image
from data_pipelines.stream import StreamJob
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.tokenizer import Tokenizer

ITEM = pa.schema([("image", pa.string()), ("turns", pa.list_(pa.list_(pa.string())))])


def job(recipe: BaseRecipe, tokenizer: Tokenizer, items: list[sources.Item]) -> StreamJob:
    """The stream's work, for `stream.run`."""

    def graph(source: Dataset) -> Dataset:
        model = recipe.model
        turns = ITEM.field("turns")
        return (
            Graph(source)
            .map(check_turns, image=pa.string(), turns=turns.type)
            .map(read_image, encoded=pa.binary(), turns=turns.type)
            .map(PadSquare(recipe.pipeline, model.image_size), png=pa.binary(), turns=turns.type)
            .map(
                EncodeConversation(tokenizer, recipe.data.chat, model),
                png=pa.binary(),
                ids=pa.list_(pa.uint32()),
                answers=pa.list_(pa.uint32()),
            )
            .dataset
        )

    return StreamJob("understanding", recipe, tokenizer, items, ITEM, graph)

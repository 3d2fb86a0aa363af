"""The text stream: documents, cut where they are longer than the recipe allows.

    filter -> encode -> write

Invariant: the samples of a document, one after the other, hold all of its text.
"""

import pyarrow as pa
from ray.data import Dataset

from data_pipelines import sources
from data_pipelines.graph import Graph
from data_pipelines.steps.encode import EncodeText
from data_pipelines.steps.read import check_text
from data_pipelines.stream import StreamJob
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.tokenizer import Tokenizer

ITEM = pa.schema([("text", pa.string())])


def job(recipe: BaseRecipe, tokenizer: Tokenizer, items: list[sources.Item]) -> StreamJob:
    """The stream's work, for `stream.run`."""
    max_tokens = min(recipe.pipeline.text_document_tokens, recipe.model.text.max_positions)

    def graph(source: Dataset) -> Dataset:
        return (
            Graph(source)
            .map(check_text, text=pa.string())
            .map(EncodeText(tokenizer, max_tokens), pieces=pa.list_(pa.list_(pa.uint32())))
            .dataset
        )

    return StreamJob("text", recipe, tokenizer, items, ITEM, graph)

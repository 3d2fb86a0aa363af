"""Ray Data graphs over row steps, in the one way that keeps a shard in one block.

Invariant: every operator takes and gives whole blocks (`batch_size=None`). A batch size would let Ray Data join small
blocks and cut large ones, and a shard would be spread over several.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from data_pipelines.steps import rows
from data_pipelines.steps.rows import Blocks, Step

WHOLE: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None, "zero_copy_batch": True}
ACTOR_MEMORY = 512 * 2**20  # bytes that an actor with torch and a VQ tokenizer takes, roughly


class Graph:
    """A data set under construction; each method appends a step and names the columns that leave it."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def map(self, step: Step, **columns: pa.DataType) -> "Graph":
        """Append a step on rows, in tasks."""
        return Graph(self.dataset.map_batches(Blocks(step, rows.schema(**columns)), **WHOLE))

    def map_in_actors(
        self, step: Callable[..., Any], arguments: tuple[Any, ...], actors: int, gpu: bool, **columns: pa.DataType
    ) -> "Graph":
        """Append a class on whole blocks, in a fixed number of actors; it is made of `arguments` and its columns."""
        alone = ray.cluster_resources().get("CPU", 1) <= actors  # an actor holds its CPU, and tasks need one to run
        return Graph(
            self.dataset.map_batches(
                step,
                fn_constructor_args=(*arguments, rows.schema(**columns)),
                compute=ActorPoolStrategy(size=actors),
                num_cpus=0 if alone else 1,
                num_gpus=1 if gpu else 0,
                memory=ACTOR_MEMORY,  # a demand that tasks lack also keeps Ray from running the steps before in here
                **WHOLE,
            )
        )

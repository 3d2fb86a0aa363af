"""The VQ tokenizers of the generation pipeline: one Ray actor per GPU (or core), and the client of the jobs.

Invariant: the ids of a batch do not depend on the actor that encodes it, nor on how often it is sent.
"""

import random
import time
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from data_pipelines.stages import PendingIds
from janus_dist.config.model import ModelConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.errors import ClusterError

ENCODER_TIMEOUT_S = 1_800.0
"""Seconds without an answer of any VQ tokenizer, after which a job fails; lost nodes return sooner than that."""
PAUSE_S = 2.0
"""Longest pause, in seconds, before a batch is sent again."""
START_S = 600.0
"""Seconds in which all VQ tokenizers have to start."""


class VqEncoder:
    """The VQ tokenizer as a Ray actor."""

    def __init__(self, model: ModelConfig, weights: str, device: str):
        # imported here: jobs import this class for their handles, and PyTorch costs a process 5 s and half a gigabyte
        from data_pipelines.vq_ids import VqIds

        self.ids = VqIds(model, weights, device)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Return the VQ ids, [images, ids] uint16, of crops: `pixels`, [images, side, side, 3] uint8."""
        return self.ids(pixels)

    def node(self) -> str:
        """Return the id of the Ray node that this actor runs on."""
        return ray.get_runtime_context().get_node_id()


@dataclass(frozen=True)
class EncoderPool:
    """A fixed number of encoders: a pool that grows on demand would stay at one on a cluster that does so, too."""

    actors: tuple[Any, ...]
    nodes: tuple[str, ...]

    @classmethod
    def start(cls, recipe: BaseRecipe) -> "EncoderPool":
        """Start an encoder for each GPU of the cluster, or for each core when the recipe uses no GPU.

        Raises ClusterError when they do not start within START_S.
        """
        gpu, resources = recipe.cluster.gpu, ray.cluster_resources()
        count = max(1, int(resources.get("GPU" if gpu else "CPU", 0)))
        # no core reserved: jobs hold the cores and mostly wait for the actor, in which torch uses one thread
        actor: Any = ray.remote(VqEncoder)
        actor = actor.options(num_cpus=0, num_gpus=int(gpu), max_restarts=-1, scheduling_strategy="SPREAD")
        actors = tuple(
            actor.remote(recipe.model, recipe.data.vq_weights, "cuda" if gpu else "cpu") for _ in range(count)
        )
        try:
            nodes = tuple(ray.get([actor.node.remote() for actor in actors], timeout=START_S))
        except GetTimeoutError as error:
            raise ClusterError(
                f"{count} VQ tokenizers did not start within {START_S:.0f} s", "see `ray status` and `ray list actors`"
            ) from error
        return cls(actors, nodes)

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


class LocalEncoders:
    """The client of a job: sends batches in turn to the encoders of its node, or to all when its node has none."""

    def __init__(self, pool: EncoderPool):
        this_node = ray.get_runtime_context().get_node_id()
        near = [actor for actor, node in zip(pool.actors, pool.nodes, strict=True) if node == this_node]
        self.all = pool.actors
        self.turn = cycle(random.sample(near or list(pool.actors), len(near or pool.actors)))

    def __call__(self, pixels: NDArray[np.uint8]) -> PendingIds:
        return partial(self._ids, next(self.turn).encode.remote(pixels), pixels)

    def _ids(self, ids_ref: ray.ObjectRef, pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Wait for the ids and return them, [images, ids] uint16; send the batch to another encoder when one dies.

        Raises ClusterError when no encoder has answered for ENCODER_TIMEOUT_S.
        """
        began = time.monotonic()
        while True:
            try:
                return ray.get(ids_ref)
            except (RayActorError, ObjectLostError) as error:
                if time.monotonic() - began > ENCODER_TIMEOUT_S:
                    raise ClusterError(f"no VQ tokenizer answers: {error}", "see `ray list actors`") from error
            ids_ref = random.choice(self.all).encode.remote(pixels)
            time.sleep(PAUSE_S * random.random())

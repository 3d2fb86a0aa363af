"""The VQ tokenizer behind the generation pipeline: one copy per GPU (or core), and how jobs reach them.

Invariant: a batch gives its ids whichever copy encodes it and however often it is sent.
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

from data_pipelines.job import Encoded
from janus_dist.config.model import ModelConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.errors import ClusterError

GIVE_UP_S = 1_800.0
"""No copy of the VQ tokenizer answered for so long: nodes that come back do so in less."""
PAUSE_S = 2.0
START_S = 600.0


class VqEncoder:
    """The VQ tokenizer as a Ray actor."""

    def __init__(self, model: ModelConfig, weights: str, device: str):
        # here: jobs import this class with their handles of it, and PyTorch costs a process 5 s and half a gigabyte
        from data_pipelines.vq_ids import VqIds

        self.ids = VqIds(model, weights, device)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """[image, id] VQ ids of [image, side, side, 3] crops."""
        return self.ids(pixels)

    def node(self) -> str:
        """The Ray node that it runs on."""
        return ray.get_runtime_context().get_node_id()


@dataclass(frozen=True)
class EncoderPool:
    """A fixed number of encoders: a pool that grows by demand stays at one on a cluster that grows by demand too."""

    actors: tuple[Any, ...]
    nodes: tuple[str, ...]

    @classmethod
    def start(cls, recipe: BaseRecipe) -> "EncoderPool":
        """One encoder for each GPU of the cluster, or for each core when the recipe uses none."""
        gpu, resources = recipe.cluster.gpu, ray.cluster_resources()
        count = max(1, int(resources.get("GPU" if gpu else "CPU", 0)))
        # no core of its own: jobs hold the cores, and wait for it most of the time; torch has one thread in it
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


class NearEncoders:
    """How a job sends batches: in turn to the encoders of its node, or to all where its node has none."""

    def __init__(self, pool: EncoderPool):
        this_node = ray.get_runtime_context().get_node_id()
        near = [actor for actor, node in zip(pool.actors, pool.nodes, strict=True) if node == this_node]
        self.all = pool.actors
        self.turn = cycle(random.sample(near or list(pool.actors), len(near or pool.actors)))

    def __call__(self, pixels: NDArray[np.uint8]) -> Encoded:
        return partial(self._ids, next(self.turn).encode.remote(pixels), pixels)

    def _ids(self, ids_ref: ray.ObjectRef, pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Wait for the ids; the batch goes to another encoder when one dies, ClusterError when none lives for long."""
        began = time.monotonic()
        while True:
            try:
                return ray.get(ids_ref)
            except (RayActorError, ObjectLostError) as error:
                if time.monotonic() - began > GIVE_UP_S:
                    raise ClusterError(f"no VQ tokenizer answers: {error}", "see `ray list actors`") from error
            ids_ref = random.choice(self.all).encode.remote(pixels)
            time.sleep(PAUSE_S * random.random())

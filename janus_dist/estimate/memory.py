"""What a rank needs in memory, by kind, from the recipe alone.

States (weights, moments, gradients) follow from ZeRO-3's partitioning and are exact; activations are those that
autograd keeps for one micro-step whose rows are full, counted layer by layer from what transformers' modules save; both
are held against measured runs by tests/numerics/test_memory.py. Not counted: the CUDA context (about 0.5 GiB), NCCL's
buffers, and what an allocator loses between blocks (5 to 10 %). Invariant: no weight is made here.
"""

import math
from dataclasses import dataclass

from janus_dist.config.recipe import StageRecipe
from janus_dist.config.train import Part
from janus_dist.model.janus import parameter_shapes
from janus_dist.model.losses import BLOCK_LOGITS, CHUNK_LOGITS
from janus_dist.model.parts import part_of

FLOAT32 = 4
DTYPE_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by kind."""

    device: dict[str, int]
    """On the GPU; in the process where there is none."""
    host: dict[str, int]
    """In host memory beside that."""

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())


def predict(recipe: StageRecipe, world: int) -> Memory:
    """Return the memory that one of `world` ranks needs for this recipe."""
    shapes = parameter_shapes(recipe.model)
    trainable = set(recipe.train.trainable)
    low, hpz = DTYPE_BYTES[recipe.engine.dtype], recipe.engine.hpz_ranks
    learned = [math.prod(shape) for name, shape in shapes.items() if part_of(name) in trainable]
    frozen = [math.prod(shape) for name, shape in shapes.items() if part_of(name) not in trainable]
    mine, mine_frozen = (sum(-(-one // world) for one in found) for found in (learned, frozen))
    whole = sum(one for one in [*learned, *frozen] if one <= recipe.engine.persist_elements)
    # what is gathered: the largest module at work, and as much again as a bucket says ahead of it
    ahead = min(recipe.engine.bucket_elements, sum(learned) + sum(frozen) - whole)
    tokens = recipe.batch.micro_rows * recipe.batch.row_tokens
    states = {
        "weights": low * (mine + mine_frozen + whole),
        "master weights": FLOAT32 * mine,
        "AdamW moments": 2 * FLOAT32 * mine,
        "weights within a node": 0 if hpz == 1 else low * sum(-(-one // hpz) for one in [*learned, *frozen]),
        "gradients": DTYPE_BYTES[recipe.engine.accumulate_dtype] * mine,
        "gathered weights": low * (max(_module_elements(shapes)) + ahead),
        "gradients on their way": (low + (low if world == 1 else FLOAT32))
        * min(recipe.engine.bucket_elements, sum(learned)),
        "activations": activation_bytes(recipe, tokens),
        "a layer computed again": recomputed_bytes(recipe, tokens),
        "heads": head_bytes(recipe, tokens),
    }
    batches = recipe.data.read.ahead_mib * 2**20
    snapshot = 3 * FLOAT32 * mine + low * mine_frozen
    return Memory(states, {"batches read ahead": batches, "copy for a checkpoint": snapshot})


def activation_bytes(recipe: StageRecipe, tokens: int) -> int:
    """Return the bytes that autograd keeps of a micro-step of `tokens` tokens from forward to backward."""
    model, every = recipe.model, recipe.engine.activation_checkpointing
    low, gpu = DTYPE_BYTES[recipe.engine.dtype], recipe.cluster.gpu
    text, vision = model.text, model.vision
    layer = tokens * _llama_layer(text.hidden, text.mlp, text.heads, low, gpu)
    again = len(range(0, text.layers, every)) if every else 0
    kept = (text.layers - again) * layer + again * tokens * low * text.hidden
    trainable: set[Part] = set(recipe.train.trainable)
    images = most_images(recipe, tokens)
    if "vision_tower" in trainable:
        seen = images * model.image_tokens
        one = low * vision.hidden if every else _siglip_layer(vision.hidden, vision.mlp, vision.heads, low)
        kept += vision.layers * seen * one
    # embeddings of the row with its images and VQ ids put in, the last norm, and the adaptors' hidden layer
    return kept + tokens * text.hidden * (3 * low + FLOAT32) + 2 * tokens * low * text.hidden


def recomputed_bytes(recipe: StageRecipe, tokens: int) -> int:
    """Return the bytes of one recomputed layer in the backward; layers are recomputed one at a time."""
    model, low = recipe.model, DTYPE_BYTES[recipe.engine.dtype]
    text, vision = model.text, model.vision
    if recipe.engine.activation_checkpointing == 0:
        return 0
    found = tokens * _llama_layer(text.hidden, text.mlp, text.heads, low, recipe.cluster.gpu)
    if "vision_tower" not in recipe.train.trainable:
        return found
    seen = most_images(recipe, tokens) * model.image_tokens
    return max(found, seen * _siglip_layer(vision.hidden, vision.mlp, vision.heads, low))


def head_bytes(recipe: StageRecipe, tokens: int) -> int:
    """Return the peak bytes of the two heads: a chunk of logits, and the gradients kept for the backward."""
    model, low = recipe.model, DTYPE_BYTES[recipe.engine.dtype]
    trainable: set[Part] = set(recipe.train.trainable)
    found = 0
    for classes, part in ((model.text.vocab, "text_head"), (model.vq.codes, "image_head")):
        rows = min(tokens, max(1, CHUNK_LOGITS // classes))
        logits = rows * classes
        # a GPU has the chunk in float32 beside it, a CPU a block of it, and the exponentials of that
        wide = logits * (low < FLOAT32) if recipe.cluster.gpu else 2 * min(logits, BLOCK_LOGITS)
        chunk = low * logits + FLOAT32 * wide
        weight = classes * model.text.hidden * (low + FLOAT32 * (tokens > rows)) if part in trainable else 0
        found = max(found, chunk + weight)
    return found + 2 * tokens * low * model.text.hidden


def _llama_layer(hidden: int, mlp: int, heads: int, low: int, gpu: bool) -> int:
    """Return the bytes per token that a layer of transformers' Llama keeps: for each norm its input in float32 and in
    `low`, the inputs of the linear layers, queries, keys, values and result of attention (in float32
    on a CPU, see attention.py)."""
    norms = 2 * hidden * (FLOAT32 + 2 * low)
    attention = 4 * hidden * low if gpu else 4 * hidden * FLOAT32 + hidden * low
    return norms + attention + FLOAT32 * heads + 4 * mlp * low


def _siglip_layer(hidden: int, mlp: int, heads: int, low: int) -> int:
    """Return the bytes per token that a layer of the vision tower keeps."""
    return hidden * (2 * 2 * low + 4 * low) + FLOAT32 * heads + 2 * mlp * low


def most_images(recipe: StageRecipe, tokens: int) -> int:
    """Return the images that the vision tower may see in a micro-step: its rows can all be of understanding, whatever
    the mixture is of a step; without any, the dummy."""
    is_seen = any(state.understanding for _, state in recipe.mix.states())
    return max(1, tokens // (recipe.model.image_tokens + 1)) if is_seen else 1


def _module_elements(shapes: dict[str, tuple[int, ...]]) -> list[int]:
    """Return the elements of each module that ZeRO-3 gathers at once: those with parameters of their own."""
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        module = name.rpartition(".")[0]
        found[module] = found.get(module, 0) + math.prod(shape)
    return list(found.values())

"""Export: a checkpoint of ours becomes a folder that other programs load.

Invariant: the folder is whole or absent. It is written beside its place and renamed at the end; of the checkpoint the
tensors of one file are in memory at a time.
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_dist.checkpoint.find import find
from janus_dist.checkpoint.stored import StoredWeights
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.tokenizer import Tokenizer, load_tokenizer
from janus_dist.errors import ConfigError
from janus_dist.model.janus import parameter_shapes, vq_config
from janus_dist.model.size import check_shapes
from janus_dist.storage.local import whole_folder
from janus_dist.weights import configs
from janus_dist.weights.layouts import VQ, TensorLocation, places
from janus_dist.weights.shards import Planned, write_shards
from janus_dist.weights.tokens import chat_template, write_tokenizer
from janus_dist.weights.vq import read_vq

Layout = Literal["transformers", "deepseek"]
Dtype = Literal["bfloat16", "float16", "float32"]
MAX_SHARD_BYTES = 5_000_000_000
"""Largest size in bytes of a file of weights; the default of transformers."""
CODES_USED = "gen_vision_model.quantize.codebook_used"
CODES_USED_LENGTH = 65_536
"""A buffer of DeepSeek's VQ tokenizer that counts codes in its own training; a new model has zeros."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and what a user should know of it."""

    folder: Path
    checkpoint: str
    step: int
    files: int
    bytes: int
    notes: tuple[str, ...]


def export(
    source: str,
    target: Path,
    layout: Layout,
    overrides: Sequence[str] = (),
    dtype: Dtype = "bfloat16",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Write the checkpoint `source` (a run's folder means its newest), its VQ tokenizer and its tokenizer to `target`.

    Sizes, tokenizer and VQ weights are those of the run's recipe, changed by `overrides`. ConfigError when `target`
    holds anything, CheckpointError or DataError when a part is absent, damaged or does not fit.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} already exists", "give another folder, or delete this one first")
    recipe, checkpoint = find(source, overrides)
    if recipe.model.reads_by != "siglip":
        raise ConfigError(
            f"{source} reads images by model.reads_by={recipe.model.reads_by}; a Janus of either layout does by SigLIP",
            "sample from it with `janus sample`, or export a run that reads by siglip",
        )
    tokenizer = load_tokenizer(recipe)
    weights = StoredWeights(checkpoint)
    check_shapes(parameter_shapes(recipe.model), weights.shapes, weights.path)
    with whole_folder(target) as temporary:
        files = _write_weights(temporary, weights, recipe, layout, getattr(torch, dtype), max_shard_bytes)
        _write_rest(temporary, recipe, tokenizer, layout, dtype)
        written = sum(path.stat().st_size for path in files)
    return Exported(target, checkpoint, weights.commit.step, len(files), written, tuple(_notes(recipe, layout)))


def _write_weights(
    folder: Path, weights: StoredWeights, recipe: StageRecipe, layout: Layout, dtype: torch.dtype, max_bytes: int
) -> list[Path]:
    """Write the checkpoint rounded to `dtype`, and the VQ tokenizer unchanged, so that its ids stay those in the
    shards."""
    with torch.device("meta"):
        vq = JanusVQVAE(vq_config(recipe.model))
    of_vq = {VQ + name: value for name, value in read_vq(vq, recipe.data.vq_weights).items()}
    shapes = parameter_shapes(recipe.model) | {name: tuple(value.shape) for name, value in of_vq.items()}
    at = places(layout, shapes)
    pieces: dict[str, list[str]] = {}
    for name in sorted(at, key=lambda name: at[name].offset):
        pieces.setdefault(at[name].name, []).append(name)
    planned = _plan_tensors(at, of_vq, dtype)
    extra = {CODES_USED: torch.zeros(CODES_USED_LENGTH)} if layout == "deepseek" else {}
    planned += [Planned(name, tuple(value.shape), value.dtype) for name, value in extra.items()]

    def make(names: Sequence[str]) -> Iterator[Tensor]:
        # all at once: one by one, each would be a thousand openings where a thousand ranks wrote
        held = weights.read(own for theirs in names for own in pieces.get(theirs, ()) if own not in of_vq)
        for theirs in names:
            if theirs in extra:
                yield extra[theirs]
                continue
            own = [of_vq[name] if name in of_vq else held.pop(name) for name in pieces[theirs]]
            yield _joined(own, at[pieces[theirs][0]])

    return write_shards(folder, planned, make, max_bytes)


def _plan_tensors(at: Mapping[str, TensorLocation], of_vq: Container[str], dtype: torch.dtype) -> list[Planned]:
    """Return the tensors to write: those named by `of_vq`, of the VQ tokenizer, in float32, others in `dtype`."""
    return [
        Planned(location.name, location.shape, torch.float32 if name in of_vq else dtype)
        for name, location in at.items()
        if location.offset == 0
    ]


def _joined(own: Sequence[Tensor], place: TensorLocation) -> Tensor:
    """Return the tensor of another layout that holds our tensors `own`, in order."""
    if len(own) == 1:
        return own[0].reshape(place.shape)
    assert sum(value.numel() for value in own) == math.prod(place.shape), place.name
    return torch.cat([value.flatten() for value in own]).reshape(place.shape)


def _write_rest(folder: Path, recipe: StageRecipe, tokenizer: Tokenizer, layout: Layout, dtype: Dtype) -> None:
    model, positions = recipe.model, recipe.model.text.max_positions
    if layout == "transformers":
        configs.write_transformers(folder, model, tokenizer, dtype, recipe.evaluate.guidance)
        (folder / "chat_template.jinja").write_text(chat_template(recipe.data.chat), encoding="utf-8")
        write_tokenizer(folder, tokenizer, recipe.data.tokenizer, positions, "JanusProcessor")
    else:
        configs.write_deepseek(folder, model, dtype)
        write_tokenizer(folder, tokenizer, recipe.data.tokenizer, positions, "VLChatProcessor")


def _notes(recipe: StageRecipe, layout: Layout) -> list[str]:
    model = recipe.model
    notes = []
    if layout == "transformers" and model.image_tokens != model.image_ids:
        notes.append(
            f"an image is {model.image_tokens} tokens to read and {model.image_ids} ids to draw; transformers takes "
            "them to be equal, so it answers with this model and cannot draw"
        )
    if layout == "deepseek":
        notes.append("vision_model.vision_tower.attn_pool is left out: nothing uses it, and training has not kept it")
        if not (configs.is_published_tower(model) and configs.is_published_vq(model)):
            notes.append("deepseek-ai/Janus builds SigLIP-Large/16 at 384 pixels and VQ-16 only, not these sizes")
    return notes

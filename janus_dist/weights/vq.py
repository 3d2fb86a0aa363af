"""The VQ tokenizer's weights: our own safetensors file, a folder of a whole Janus, or LlamaGen's `.pt` file.

Invariant: what is loaded has exactly the tensors and sizes that the recipe's `model.vq` asks for; if not,
CheckpointError says which differ.
"""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_dist.config.model import ModelConfig
from janus_dist.errors import CheckpointError
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config
from janus_dist.storage.local import write_whole
from janus_dist.weights.folders import Folder
from janus_dist.weights.layouts import VQ, Layout, closest, places

SHOWN = 3
LAYOUTS: tuple[Layout, ...] = ("vq", "transformers", "deepseek", "llamagen")
SETTING = "data.vq_weights"


def load_vq(model: ModelConfig, path: str | Path) -> JanusVQVAE:
    """Return the VQ tokenizer of `model.vq` with the weights at `path`, float32 on the CPU, ready to encode.

    `path` is a file or a folder; its layout is recognised by its names. Raises CheckpointError when the weights are
    absent or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        vq = vq_model.build(vq_config(model))
    vq.load_state_dict(read_vq(vq, path))
    return vq.eval().requires_grad_(False)


def read_vq(vq: JanusVQVAE, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors at `path` by the names of `vq`, float32, in its shapes. Raises CheckpointError
    when they do not fit."""
    folder = Folder.open(path, SETTING)
    shapes = {VQ + name: tuple(value.shape) for name, value in vq.state_dict().items()}
    layout = closest(LAYOUTS, shapes, folder.entries)
    if layout is None:
        raise CheckpointError(
            f"{SETTING}={path} holds no VQ tokenizer of a known layout ({', '.join(LAYOUTS)}); its first tensor is "
            f"{min(folder.entries, default='absent')}",
            "train one with jobs/train_vq.py, or give the path of one",
        )
    at = places(layout, shapes)
    differing = folder.differences(at.values())
    if differing:
        more = f"; and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise CheckpointError(
            f"{SETTING}={path} is of another VQ tokenizer: {'; '.join(differing[:SHOWN])}{more}",
            "give the model.vq sizes that it was trained with, or train one of these sizes with jobs/train_vq.py",
        )
    return {name.removeprefix(VQ): folder.read(place.name).reshape(shapes[name]).float() for name, place in at.items()}


def save_vq(vq: JanusVQVAE, path: Path) -> None:
    """Write weights as safetensors, whole or not at all."""
    write_whole(path, _serialized(vq))  # not save_file: it makes files that only their owner may read


def digest(vq: JanusVQVAE) -> str:
    """Return the sha256 of the file that `save_vq` writes; it does not depend on the source of the weights."""
    return hashlib.sha256(_serialized(vq)).hexdigest()


def _serialized(vq: JanusVQVAE) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in vq.state_dict().items()})

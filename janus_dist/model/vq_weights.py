"""The VQ tokenizer's weights from a safetensors file.

Invariant: what is loaded has exactly the tensors and sizes that the recipe's `model.vq` asks for; if not,
CheckpointError says which differ.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_dist.config.model import ModelConfig
from janus_dist.errors import CheckpointError
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config

SHOWN = 3


def load_vq(model: ModelConfig, path: str | Path) -> JanusVQVAE:
    """The VQ tokenizer of `model.vq` with the weights at `path`, float32 on the CPU, ready to encode."""
    weights = _read(path)
    with torch.random.fork_rng(devices=[]):
        vq = vq_model.build(vq_config(model))
    wanted = {name: tuple(value.shape) for name, value in vq.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != wanted:
        names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        differ = "; ".join(
            f"{name} is {_show(found.get(name))}, model.vq needs {_show(wanted.get(name))}" for name in names[:SHOWN]
        )
        raise CheckpointError(
            f"data.vq_weights={path} is of another VQ tokenizer: {len(names)} tensors differ ({differ})",
            "give the model.vq sizes that it was trained with, or train one of these sizes with jobs/train_vq.py",
        )
    vq.load_state_dict(weights)
    return vq.eval().requires_grad_(False)


def save_vq(vq: JanusVQVAE, path: Path) -> None:
    """Write weights as safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    # not save_file: it makes files that only their owner may read
    temporary.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in vq.state_dict().items()}))
    temporary.replace(path)


def _read(path: str | Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(
            f"data.vq_weights={path} does not exist", "train one with jobs/train_vq.py, or give the path of one"
        ) from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"data.vq_weights={path} is not a safetensors file: {error}") from error


def _show(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a scalar"

"""Weights as others publish them, seeded, of the sizes of tests/tiny.py.

Names and shapes are written out here from what the publishers' code says (modeling_vlm.py, siglip_vit.py and
vq_model.py of deepseek-ai/Janus, LlamaGen's tokenizer, transformers' Llama and SigLIP), not by our own maps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from janus_dist.config.model import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def conv(name: str, out: int, into: int, side: int) -> Shapes:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def llama(model: ModelConfig, prefix: str) -> Shapes:
    """A LlamaModel's tensors."""
    text = model.text
    found: Shapes = {f"{prefix}embed_tokens.weight": (text.vocab, text.hidden)}
    for number in range(text.layers):
        layer = f"{prefix}layers.{number}"
        found |= {f"{layer}.self_attn.{name}_proj.weight": (text.hidden, text.hidden) for name in "qkvo"}
        found |= {
            f"{layer}.mlp.gate_proj.weight": (text.mlp, text.hidden),
            f"{layer}.mlp.up_proj.weight": (text.mlp, text.hidden),
            f"{layer}.mlp.down_proj.weight": (text.hidden, text.mlp),
            f"{layer}.input_layernorm.weight": (text.hidden,),
            f"{layer}.post_attention_layernorm.weight": (text.hidden,),
        }
    return found | {f"{prefix}norm.weight": (text.hidden,)}


def siglip(model: ModelConfig) -> Shapes:
    """A SiglipVisionModel's tensors, its pooling head among them."""
    vision = model.vision
    size = vision.hidden
    found = conv("vision_model.embeddings.patch_embedding", size, 3, vision.patch)
    found["vision_model.embeddings.position_embedding.weight"] = (model.image_tokens, size)
    for number in range(vision.layers):
        layer = f"vision_model.encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= linear(f"{layer}.self_attn.{name}", size, size)
        found |= norm(f"{layer}.layer_norm1", size) | norm(f"{layer}.layer_norm2", size)
        found |= linear(f"{layer}.mlp.fc1", vision.mlp, size) | linear(f"{layer}.mlp.fc2", size, vision.mlp)
    found |= norm("vision_model.post_layernorm", size) | {"vision_model.head.probe": (1, 1, size)}
    return found | {"vision_model.head.attention.in_proj_weight": (3 * size, size)}


def _res(name: str, into: int, out: int) -> Shapes:
    found = norm(f"{name}.norm1", into) | conv(f"{name}.conv1", out, into, 3)
    found |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out, 3)
    return found | (conv(f"{name}.nin_shortcut", out, into, 1) if into != out else {})


def _attention(name: str, size: int) -> Shapes:
    found = norm(f"{name}.norm", size)
    for part in ("q", "k", "v", "proj_out"):
        found |= conv(f"{name}.{part}", size, size, 1)
    return found


def _middle(name: str, size: int) -> Shapes:
    return _res(f"{name}.0", size, size) | _attention(f"{name}.1", size) | _res(f"{name}.2", size, size)


def _levels(name: str, size: int, levels: list[int], blocks: int, lowest: int, between: str) -> Shapes:
    """The blocks of all resolutions; attention stands at the lowest, a convolution between each two."""
    found: Shapes = {}
    for level, out in enumerate(levels):
        for block in range(blocks):
            found |= _res(f"{name}.{level}.res.{block}", size, out)
            size = out
            if level == lowest:
                found |= _attention(f"{name}.{level}.attn.{block}", size)
        if level != len(levels) - 1:
            found |= conv(f"{name}.{level}.{between}.conv", size, size, 3)
    return found


def official_vq(model: ModelConfig, prefix: str = "") -> Shapes:
    """The tensors of vq_model.py's VQModel."""
    vq = model.vq
    levels = [vq.base_channels * factor for factor in vq.channel_multipliers]
    first, deepest = levels[0], levels[-1]
    found = conv("encoder.conv_in", vq.base_channels, 3, 3)
    found |= _levels("encoder.conv_blocks", vq.base_channels, levels, vq.res_blocks, len(levels) - 1, "downsample")
    found |= _middle("encoder.mid", deepest) | norm("encoder.norm_out", deepest)
    found |= conv("encoder.conv_out", vq.latent_channels, deepest, 3)
    found |= conv("decoder.conv_in", deepest, vq.latent_channels, 3) | _middle("decoder.mid", deepest)
    found |= _levels("decoder.conv_blocks", deepest, levels[::-1], vq.res_blocks + 1, 0, "upsample")
    found |= norm("decoder.norm_out", first) | conv("decoder.conv_out", 3, first, 3)
    found |= {"quantize.embedding.weight": (vq.codes, vq.code_dim), "quantize.codebook_used": (65536,)}
    found |= conv("quant_conv", vq.code_dim, vq.latent_channels, 1)
    found |= conv("post_quant_conv", vq.latent_channels, vq.code_dim, 1)
    return {prefix + name: shape for name, shape in found.items()}


def deepseek(model: ModelConfig) -> Shapes:
    """A MultiModalityCausalLM's tensors."""
    size, hidden, vq = model.vision.hidden, model.text.hidden, model.vq
    tower = "vision_model.vision_tower"
    found = conv(f"{tower}.patch_embed.proj", size, 3, model.vision.patch)
    found[f"{tower}.pos_embed"] = (1, model.image_tokens, size)
    for number in range(model.vision.layers):
        block = f"{tower}.blocks.{number}"
        found |= norm(f"{block}.norm1", size) | norm(f"{block}.norm2", size)
        found |= linear(f"{block}.attn.qkv", 3 * size, size) | linear(f"{block}.attn.proj", size, size)
        found |= linear(f"{block}.mlp.fc1", model.vision.mlp, size) | linear(f"{block}.mlp.fc2", size, model.vision.mlp)
    found |= norm(f"{tower}.norm", size)
    found |= {f"{tower}.attn_pool.latent": (1, 1, size)} | linear(f"{tower}.attn_pool.kv", 2 * size, size)
    found |= linear("aligner.layers.0", hidden, size) | linear("aligner.layers.2", hidden, hidden)
    found |= official_vq(model, "gen_vision_model.")
    found |= linear("gen_aligner.layers.0", hidden, vq.code_dim) | linear("gen_aligner.layers.2", hidden, hidden)
    found |= linear("gen_head.output_mlp_projector", hidden, hidden) | linear("gen_head.vision_head", vq.codes, hidden)
    found["gen_embed.weight"] = (vq.codes, vq.code_dim)
    found |= llama(model, "language_model.model.")
    return found | {"language_model.lm_head.weight": (model.text.vocab, hidden)}


def tensors(shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write(folder: Path, weights: Mapping[str, Tensor], config: Any = None, shards: int = 1) -> Path:
    """A folder as it is published: safetensors, with an index when there are several, and config.json."""
    folder.mkdir(parents=True)
    names = list(weights)
    files = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    for number, file in enumerate(files if shards > 1 else ["model.safetensors"]):
        save_file({name: weights[name] for name in names[number::shards]}, folder / file)
    if shards > 1:
        weight_map = {name: files[place % shards] for place, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder

"""The JSON files beside exported weights, in transformers' and in DeepSeek's form.

Invariant: what stands in them follows from the recipe and the tokenizer alone. Sources of DeepSeek's form: the files
of deepseek-ai/Janus-Pro-1B, and `modeling_vlm.py`, `processing_vlm.py` and `image_processing_vlm.py` that read them.
"""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, LlamaConfig

from janus_dist.config.model import ModelConfig
from janus_dist.data.tokenizer import IMAGE, Tokenizer
from janus_dist.model.janus import transformers_config

MEAN = [0.5, 0.5, 0.5]
"""Mean and deviation of pixels, for both image encoders: [0, 1] becomes [-1, 1]."""
GRAY = [127, 127, 127]
MIN_SIDE = 14
RESCALE = 1 / 255
BICUBIC = 3
SIGLIP = {"patch": 16, "hidden": 1024, "layers": 24, "heads": 16, "mlp": 4096}
"""The one vision tower, and VQ16 the VQ tokenizer, of the published models: DeepSeek's code knows them by name."""
SIGLIP_NAME, VQ16_NAME = "siglip_large_patch16_384", "VQ-16"
VQ16 = {"base_channels": 128, "channel_multipliers": (1, 1, 2, 2, 4), "res_blocks": 2, "latent_channels": 256}


def write_transformers(folder: Path, model: ModelConfig, tokenizer: Tokenizer, dtype: str, guidance: float) -> None:
    """Write the files that JanusForConditionalGeneration and JanusProcessor read."""
    config = transformers_config(model)
    text = config.text_config
    assert isinstance(text, LlamaConfig)
    text.bos_token_id, text.eos_token_id, text.pad_token_id = tokenizer.bos, tokenizer.eos, tokenizer.pad
    config.image_token_id = tokenizer.image
    config.architectures = ["JanusForConditionalGeneration"]
    config.dtype = dtype
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
        guidance_scale=guidance,
        generation_kwargs={"boi_token_id": tokenizer.boi},  # where its image generation looks for it
    ).save_pretrained(folder)
    image_processor = {
        "image_processor_type": "JanusImageProcessor",
        "size": {"height": model.image_size, "width": model.image_size},
        "min_size": MIN_SIDE,
        "resample": BICUBIC,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": RESCALE,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": MEAN,
        "do_pad": True,
        "background_color": GRAY,
    }
    processor = {
        "processor_class": "JanusProcessor",
        "num_image_tokens": model.image_tokens,
        "use_default_system_prompt": False,  # the chat template has the recipe's
    }
    write_json(folder / "processor_config.json", processor | {"image_processor": image_processor})
    write_json(folder / "preprocessor_config.json", image_processor | {"processor_class": "JanusProcessor"})


def write_deepseek(folder: Path, model: ModelConfig, dtype: str) -> None:
    """Write the files that MultiModalityCausalLM and VLChatProcessor read."""
    write_json(folder / "config.json", deepseek_config(model, dtype))
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "VLMImageProcessor",
            "processor_class": "VLChatProcessor",
            "image_size": model.image_size,
            "min_size": MIN_SIDE,
            "rescale_factor": RESCALE,
            "do_normalize": True,
            "image_mean": MEAN,
            "image_std": MEAN,
            "background_color": GRAY,
        },
    )
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "VLChatProcessor",
            "image_tag": IMAGE,
            "num_image_tokens": model.image_tokens,
            "sft_format": "deepseek",
            "add_special_token": False,
            "mask_prompt": True,
            "ignore_id": -100,
        },
    )


def deepseek_config(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """Return the config.json of a MultiModalityCausalLM; sizes that its code does not know by name are written out."""
    text, vision, vq = model.text, model.vision, model.vq
    tower = {"image_size": model.image_size, "select_feature": "same", "select_layer": -1}
    if is_published_tower(model):
        tower |= {"model_name": SIGLIP_NAME}
    else:
        tower |= {"model_name": f"siglip_patch{vision.patch}_{model.image_size}"}
        tower |= {"patch_size": vision.patch, "hidden_size": vision.hidden, "num_hidden_layers": vision.layers}
        tower |= {"num_attention_heads": vision.heads, "intermediate_size": vision.mlp}
    projector = {"projector_type": "mlp_gelu", "depth": 2, "n_embed": text.hidden}
    head = {"image_token_embed": text.hidden, "image_token_size": vq.codes, "n_embed": text.hidden}
    name = VQ16_NAME if is_published_vq(model) else f"VQ-{vq.downsample}"
    codes = {"image_token_size": vq.codes, "n_embed": vq.code_dim}
    llama = {
        "model_type": "llama",
        "vocab_size": text.vocab,
        "hidden_size": text.hidden,
        "intermediate_size": text.mlp,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.heads,
        "max_position_embeddings": text.max_positions,
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "torch_dtype": dtype,
        "language_config": llama,
        "vision_config": {"model_type": "vision", "cls": "CLIPVisionTower", "params": tower},
        "aligner_config": _projector("aligner", projector | {"input_dim": vision.hidden}),
        "gen_vision_config": {"model_type": "gen_vision", "cls": name, "params": codes},
        "gen_aligner_config": _projector("gen_aligner", projector | {"input_dim": vq.code_dim}),
        "gen_head_config": {"model_type": "gen_head", "cls": "vision_head", "params": head},
    }


def is_published_tower(model: ModelConfig) -> bool:
    """Return whether the understanding encoder is SigLIP-Large with patches of 16 at 384 pixels."""
    return model.vision.model_dump() == SIGLIP and model.image_size == 384


def is_published_vq(model: ModelConfig) -> bool:
    """Return whether the VQ tokenizer is built as LlamaGen's VQ-16; the number of codes and their size may differ."""
    return {name: getattr(model.vq, name) for name in VQ16} == VQ16


def write_json(path: Path, values: Any) -> None:
    """Write values as a readable JSON file."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _projector(name: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": name, "cls": "MlpProjector", "params": params}

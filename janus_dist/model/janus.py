"""Janus in training: transformers' layers, our forward over packed rows of all three streams.

transformers' own forward never calls the image head and has no mixed batch. Here every micro-step runs vision tower,
understanding adaptor, generation embedding, generation adaptor, language model, text head and image head exactly once
and in this order, on every rank, because ZeRO-3 gathers parameters by collectives inside the forward. Invariant: a
part without data is fed a finite dummy whose result is multiplied by zero, so that its gradient is zero rather than
absent.
"""

import torch
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from janus_dist.batch import Batch
from janus_dist.config.model import ModelConfig
from janus_dist.model import vq as vq_model
from janus_dist.model.attention import PACKED
from janus_dist.model.losses import by_stream, summed_cross_entropy


class Janus(JanusForConditionalGeneration):
    """Janus without its VQ tokenizer, which never trains and whose ids are made beforehand."""

    def __init__(self, config: JanusConfig):
        super().__init__(config)
        del self.model.vqmodel

    def forward(self, batch: Batch) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Summed losses [3] float32 of one micro-step, in the order of STREAMS."""
        core = self.model
        inputs = core.language_model.embed_tokens(batch.input_ids)
        pixels = vq_model.to_float(batch.pixels).to(inputs.dtype)
        features = core.aligner(core.vision_model(pixel_values=pixels).last_hidden_state).flatten(0, 1)
        inputs = _place(inputs, features, batch.pixel_positions)
        drawn = core.generation_aligner(core.generation_embeddings(batch.vq_ids))
        inputs = _place(inputs, drawn, batch.vq_positions)
        hidden = core.language_model(
            inputs_embeds=inputs[None],
            position_ids=batch.position_ids[None],
            document_lengths=batch.document_lengths,
            use_cache=False,
        ).last_hidden_state[0]
        text = summed_cross_entropy(self.lm_head(hidden[batch.text_rows]), batch.text_labels)
        image = summed_cross_entropy(core.generation_head(hidden[batch.image_rows]), batch.image_labels)
        return by_stream(text, batch.text_is_understanding, image)


def _place(inputs: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Put values [value, hidden] at positions of inputs [token, hidden]; a dummy has no position and adds zero."""
    if len(positions) == 0:
        return inputs + 0.0 * values.sum()
    return inputs.index_copy(0, positions, values.to(inputs.dtype))


def transformers_config(config: ModelConfig) -> JanusConfig:
    """The sizes of a recipe as transformers' configuration."""
    text, vision = config.text, config.vision
    llama = LlamaConfig(
        vocab_size=text.vocab,
        hidden_size=text.hidden,
        intermediate_size=text.mlp,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        num_key_value_heads=text.heads,
        max_position_embeddings=text.max_positions,
        rms_norm_eps=text.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
        tie_word_embeddings=False,
        pad_token_id=None,
        initializer_range=config.init_std,
    )
    siglip = JanusVisionConfig(
        hidden_size=vision.hidden,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        mlp_ratio=vision.mlp / vision.hidden,
        image_size=config.image_size,
        patch_size=vision.patch,
        num_image_tokens=config.image_tokens,
        projection_dim=text.hidden,
        initializer_range=config.init_std,
    )
    # at the top level tying defaults to True, whatever the language model says; the official head is untied
    return JanusConfig(
        text_config=llama.to_dict(),
        vision_config=siglip.to_dict(),
        vq_config=vq_config(config).to_dict(),
        tie_word_embeddings=False,
        initializer_range=config.init_std,  # pyright: ignore[reportCallIssue]  (read when weights are made)
    )


def vq_config(config: ModelConfig) -> JanusVQVAEConfig:
    """The VQ tokenizer's sizes as transformers' configuration."""
    vq = config.vq
    return JanusVQVAEConfig(
        embed_dim=vq.code_dim,
        num_embeddings=vq.codes,
        latent_channels=vq.latent_channels,
        base_channels=vq.base_channels,
        channel_multiplier=list(vq.channel_multipliers),
        num_res_blocks=vq.res_blocks,
        num_patches=config.image_size // vq.downsample,
        projection_dim=config.text.hidden,
        image_token_embed_dim=config.text.hidden,
        initializer_range=config.init_std,
    )


def build(config: ModelConfig, seed: int) -> Janus:
    """Janus with random weights, the same for a seed on every rank; attention over packed documents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Janus(transformers_config(config))
        nn.init.normal_(model.model.generation_embeddings.weight)  # as in the official model; its 8 values a code
    assert model.lm_head.weight is not model.model.language_model.embed_tokens.weight
    model.model.language_model.set_attn_implementation(PACKED)
    return model

"""Janus in training: transformers' layers, our forward over packed rows of all three streams.

transformers' own forward never calls the image head and has no mixed batch. Here every micro-step runs vision tower,
understanding adaptor, generation embedding, generation adaptor, language model, text head and image head exactly once
and in this order, on every rank, because ZeRO-3 gathers parameters by collectives inside the forward. Invariant: a
part without data is fed a finite dummy whose result is multiplied by zero, so that its gradient is zero rather than
absent.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig, PreTrainedModel
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEHead

from janus_dist.batch import Batch
from janus_dist.config.model import ModelConfig
from janus_dist.config.streams import STREAMS
from janus_dist.model import vq as vq_model
from janus_dist.model.attention import PACKED
from janus_dist.model.losses import LossLinear

GENERATION = STREAMS.index("generation")


class ImageHead(JanusVQVAEHead):
    """The image head, whose last layer gives the loss where labels are asked for."""

    def __init__(self, config: JanusVQVAEConfig):
        super().__init__(config)
        self.vision_head = LossLinear(config.projection_dim, config.num_embeddings)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Tensor, labels: Tensor | None = None, factors: Tensor | None = None
    ) -> Any:
        """Return logits, or the loss of `LossLinear` with `labels` [row], of hidden states [..., hidden]."""
        return self.vision_head(self.activation_fn(self.proj_out(hidden_states)), labels, factors)


class Janus(JanusForConditionalGeneration):
    """Janus without its VQ tokenizer, which never trains and whose ids are made beforehand."""

    def __init__(self, config: JanusConfig):
        super().__init__(config)
        del self.model.vqmodel
        text = self.lm_head
        self.lm_head = LossLinear(text.in_features, text.out_features, bias=False)
        self.model.generation_head = ImageHead(config.vq_config)  # pyright: ignore[reportArgumentType]
        self.as_read: Callable[[Batch], Batch] = lambda batch: batch
        """Applied to each batch first; single.py has another."""

    def forward(self, batch: Batch, factors: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return (what is minimised, summed losses [3] without gradient) of one micro-step, both float32.

        What is minimised is the sum over streams, in the order of STREAMS, of `factors` [3] times summed losses.
        """
        batch, core = self.as_read(batch), self.model
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
        text_factors, image_factors = factors[batch.text_streams], factors[GENERATION].expand(len(batch.image_rows))
        text_loss, of_texts = self.lm_head(hidden[batch.text_rows], batch.text_labels, text_factors)
        image_loss, of_images = core.generation_head(hidden[batch.image_rows], batch.image_labels, image_factors)
        sums = torch.zeros_like(factors).index_add_(0, batch.text_streams, of_texts)
        sums[GENERATION] += of_images.sum()
        return text_loss + image_loss, sums


def _place(inputs: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Put values [value, hidden] at positions of inputs [token, hidden]; a dummy has no position and adds zero."""
    if len(positions) == 0:
        return inputs + 0.0 * values.sum()
    return inputs.index_copy(0, positions, values.to(inputs.dtype))


def transformers_config(config: ModelConfig) -> JanusConfig:
    """Return the sizes of a recipe as transformers' configuration."""
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


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by name, in the model's order, without allocating any."""
    with torch.device("meta"):
        model = Janus(transformers_config(config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def vq_config(config: ModelConfig) -> JanusVQVAEConfig:
    """Return the VQ tokenizer's sizes as transformers' configuration."""
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


def on_meta(config: ModelConfig) -> Janus:
    """Return Janus without memory for its weights; attention over packed documents."""
    with torch.device("meta"):
        model = Janus(transformers_config(config))
    model.model.language_model.set_attn_implementation(PACKED)
    return model


def made(model: Janus, seed: int, device: torch.device, drawn: bool = True) -> Iterator[nn.Module]:
    """Give a model on `meta` random weights, module by module, and hand each on as soon as its own are real.

    Children come before their parents, so that whoever takes the weights away (ZeRO-3) never holds more than one
    module's. Weights depend on the seed, the module's name and the kind of device only; not `drawn`, they have no
    values, for who sets them all, and only buffers do.
    """
    owner: dict[nn.Module, PreTrainedModel] = {}
    for parent in model.modules():  # the innermost comes last and stays
        if isinstance(parent, PreTrainedModel):
            owner |= dict.fromkeys(parent.modules(), parent)
    for name, module in reversed(list(model.named_modules())):
        if not [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            continue
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(int.from_bytes(digest[:8], "little"))
            module.to_empty(device=device, recurse=False)
            if drawn or not [*module.parameters(recurse=False)]:
                owner[module]._init_weights(module)
            if drawn and isinstance(module, nn.Embedding) and module is model.model.generation_embeddings:
                nn.init.normal_(module.weight)  # as in the official model; its 8 values a code
        yield module


def build(config: ModelConfig, seed: int) -> Janus:
    """Return Janus with random weights in this process's memory."""
    model = on_meta(config)
    for _ in made(model, seed, torch.device("cpu")):
        pass
    return model


def checkpoint_activations(model: Janus, every: int) -> None:
    """Keep the activations of every `every`-th layer of the language model no longer than its forward: they are
    computed again in the backward. So are those of all layers of a vision tower that learns; 0 keeps all."""
    if every == 0:
        return
    core = model.model
    layers = [*core.language_model.layers[::every]]
    if any(parameter.requires_grad for parameter in core.vision_model.parameters()):
        layers += core.vision_model.encoder.layers
    for layer in layers:
        layer.gradient_checkpointing = True
        # nothing is drawn at random in a layer, so there is no state of a generator to keep
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)

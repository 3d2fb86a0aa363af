"""Where each parameter lies in the files of others: names only, no tensor is touched.

Ours are the names of transformers' `JanusForConditionalGeneration` (`model.vision_model...`, `lm_head.weight`), and
`model.vqmodel...` for the VQ tokenizer. Invariant: in every layout a parameter is a range of consecutive elements of
one flattened tensor: a fused projection holds query, key and value one after the other, and a position embedding only
has one dimension more. So a map is `name -> (tensor, offset)`, and a rank reads what it owns of any of them.

Sources: `modeling_vlm.py`, `siglip_vit.py` and `vq_model.py` of deepseek-ai/Janus, `convert_janus_weights_to_hf.py` of
transformers, `tokenizer_image/vq_model.py` of FoundationVision/LlamaGen.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Layout = Literal["transformers", "deepseek", "llama", "siglip", "vq", "llamagen"]
Shape = tuple[int, ...]
VQ = "model.vqmodel."
"""Prefix of the VQ tokenizer's names."""
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
FUSED = 3
"""Query, key and value in one tensor."""


@dataclass(frozen=True)
class TensorLocation:
    """The elements from `offset` on of the flattened tensor `name`, whose own shape is `shape`."""

    name: str
    offset: int
    shape: Shape


class Rule(NamedTuple):
    """Beginnings of names, `*` for a number; `fused` is the position in a tensor that holds three of ours."""

    ours: str
    theirs: str
    fused: int | None = None


def _fused(theirs: str) -> list[Rule]:
    """Return the rules of query, key and value of a block of DeepSeek's vision tower, weights and biases."""
    ours = "model.vision_model.encoder.layers.*.self_attn."
    return [Rule(f"{ours}{name}_proj.", theirs, position) for position, name in enumerate("qkv")]


def _vq(prefix: str) -> list[Rule]:
    """Return the rules of DeepSeek's and LlamaGen's names of the VQ tokenizer."""
    middle = [
        Rule(f"{VQ}{side}.mid.{ours}.", f"{prefix}{side}.mid.{number}.")
        for side in ("encoder", "decoder")
        for number, ours in enumerate(("block_1", "attn_1", "block_2"))
    ]
    return [
        *middle,
        Rule(f"{VQ}encoder.down.*.block.", f"{prefix}encoder.conv_blocks.*.res."),
        Rule(f"{VQ}encoder.down.", f"{prefix}encoder.conv_blocks."),
        Rule(f"{VQ}decoder.up.*.block.", f"{prefix}decoder.conv_blocks.*.res."),
        Rule(f"{VQ}decoder.up.", f"{prefix}decoder.conv_blocks."),
        Rule(VQ, prefix),
    ]


BLOCK, THEIR_BLOCK = "model.vision_model.encoder.layers.*.", "vision_model.vision_tower.blocks.*."

RULES: dict[Layout, list[Rule]] = {
    "transformers": [Rule("", "")],
    "deepseek": [
        Rule("model.vision_model.embeddings.patch_embedding.", "vision_model.vision_tower.patch_embed.proj."),
        Rule("model.vision_model.embeddings.position_embedding.weight", "vision_model.vision_tower.pos_embed"),
        Rule(f"{BLOCK}layer_norm1.", f"{THEIR_BLOCK}norm1."),
        *_fused(f"{THEIR_BLOCK}attn.qkv."),
        Rule(f"{BLOCK}self_attn.projection_layer.", f"{THEIR_BLOCK}attn.proj."),
        Rule(f"{BLOCK}layer_norm2.", f"{THEIR_BLOCK}norm2."),
        Rule(f"{BLOCK}mlp.", f"{THEIR_BLOCK}mlp."),
        Rule("model.vision_model.post_layernorm.", "vision_model.vision_tower.norm."),
        Rule("model.aligner.fc1.", "aligner.layers.0."),
        Rule("model.aligner.hidden_layers.0.", "aligner.layers.2."),
        Rule("model.generation_embeddings.", "gen_embed."),
        Rule("model.generation_aligner.fc1.", "gen_aligner.layers.0."),
        Rule("model.generation_aligner.hidden_layers.0.", "gen_aligner.layers.2."),
        Rule("model.generation_head.proj_out.", "gen_head.output_mlp_projector."),
        Rule("model.generation_head.vision_head.", "gen_head.vision_head."),
        Rule("model.language_model.", "language_model.model."),
        Rule("lm_head.", "language_model.lm_head."),
        *_vq("gen_vision_model."),
    ],
    "llama": [Rule("model.language_model.", "model."), Rule("lm_head.", "lm_head.")],
    "siglip": [
        Rule(f"{BLOCK}self_attn.projection_layer.", "vision_model.encoder.layers.*.self_attn.out_proj."),
        Rule("model.vision_model.", "vision_model."),
    ],
    "vq": [Rule(VQ, "")],
    "llamagen": _vq(""),
}


def places(layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, TensorLocation]:
    """Return the location of each parameter of `shapes` (our names); those not in the layout are omitted."""
    found: dict[str, TensorLocation] = {}
    for name, shape in shapes.items():
        for rule in RULES[layout]:
            theirs = _renamed(rule, name)
            if theirs is not None:
                found[name] = _place(theirs, shape, rule.fused)
                break
    return found


def closest(layouts: Iterable[Layout], shapes: Mapping[str, Shape], names: Collection[str]) -> Layout | None:
    """Return the layout in which most parameters of `shapes` are among `names`; None when none is in any."""
    counts: dict[Layout, int] = {
        layout: sum(place.name in names for place in places(layout, shapes).values()) for layout in layouts
    }
    best = max(counts, key=counts.__getitem__)
    return best if counts[best] else None


def pattern(name: str) -> str:
    """Return the name with `*` for its numbers, which is the same for all layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _renamed(rule: Rule, name: str) -> str | None:
    beginning = re.escape(rule.ours).replace(r"\*", r"(\d+)")
    match = re.match(beginning, name)
    if match is None:
        return None
    theirs = rule.theirs
    for number in match.groups():
        theirs = theirs.replace("*", number, 1)
    return theirs + name[match.end() :]


def _place(theirs: str, shape: Shape, fused: int | None) -> TensorLocation:
    if theirs.endswith(".pos_embed"):
        return TensorLocation(theirs, 0, (1, *shape))
    if fused is None:
        return TensorLocation(theirs, 0, shape)
    return TensorLocation(theirs, fused * math.prod(shape), (FUSED * shape[0], *shape[1:]))

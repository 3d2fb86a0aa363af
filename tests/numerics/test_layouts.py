"""Names and places of others' weights, against shapes written out from their publishers' code."""

import hashlib
import math
import re

import pytest
import torch
from safetensors.torch import save_file

from data_pipelines import stream
from janus_dist.config.model import ModelConfig, TextConfig, VisionConfig, VqConfig
from janus_dist.errors import CheckpointError, ConfigError
from janus_dist.model import janus, vq
from janus_dist.model.parts import part_of
from janus_dist.weights.layouts import VQ, closest, places
from janus_dist.weights.start import open_weights
from janus_dist.weights.vq import load_vq, save_vq
from tests import prepared, published, tiny

SIZES = {
    "1B": TextConfig(vocab=102_400, hidden=2048, layers=24, heads=16, mlp=5632),
    "7B": TextConfig(vocab=102_400, hidden=4096, layers=30, heads=32, mlp=11_008),
}
TOTALS = {"1B": 2_076_636_811, "7B": 7_407_773_323}
"""Of the published models."""
MILLIONS = {
    "model.vision_model.": (303.69, 303.69),
    "model.aligner.": (6.30, 20.98),
    "model.vqmodel.": (71.88, 71.88),
    "model.vqmodel.encoder.": (29.30, 29.30),
    "model.vqmodel.decoder.": (42.45, 42.45),
    "model.generation_embeddings.": (0.131072, 0.131072),
    "model.generation_aligner.": (4.21, 16.82),
    "model.generation_head.": (37.77, 83.91),
    "model.language_model.": (1442.9, 6490.9),
    "lm_head.": (209.7, 419.4),
}
"""Parameters of the published models' modules, 1B (and 1.3B) and 7B, to the last digit given."""
SHAPES = janus.parameter_shapes(tiny.MODEL)
TEXT, VISION = tiny.MODEL.text, tiny.MODEL.vision


def model_of(size: str) -> ModelConfig:
    vision = VisionConfig(patch=16, hidden=1024, layers=24, heads=16, mlp=4096)
    return ModelConfig(image_size=384, text=SIZES[size], vision=vision, vq=VqConfig())


def vq_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        made = vq.JanusVQVAE(janus.vq_config(model))
    return {VQ + name: tuple(value.shape) for name, value in made.state_dict().items()}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    """Every tensor of the published model but two unused ones is taken, once and whole, at both published sizes."""
    model = model_of(size)
    ours = janus.parameter_shapes(model) | vq_shapes(model)
    assert sum(math.prod(shape) for shape in ours.values()) == TOTALS[size]
    theirs = published.deepseek(model)
    at = places("deepseek", ours)
    assert at.keys() == ours.keys()
    assert {name: theirs[name] for name in {place.name for place in at.values()}} == {
        place.name: place.shape for place in at.values()
    }
    unused = {name for name in theirs if "attn_pool" in name or name.endswith("codebook_used")}
    assert {place.name for place in at.values()} == theirs.keys() - unused
    for name in theirs.keys() - unused:
        taken = sorted((place.offset, math.prod(ours[own])) for own, place in at.items() if place.name == name)
        assert [first for first, _ in taken] == [sum(n for _, n in taken[:i]) for i in range(len(taken))]
        assert sum(number for _, number in taken) == math.prod(theirs[name])


@pytest.mark.parametrize("prefix", MILLIONS)
@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_of_modules(size, prefix):
    model = model_of(size)
    ours = janus.parameter_shapes(model) | vq_shapes(model)
    found = sum(math.prod(shape) for name, shape in ours.items() if name.startswith(prefix)) / 1e6
    published = MILLIONS[prefix][list(SIZES).index(size)]
    last_digit = 10 ** -len(str(published).partition(".")[2])
    assert found == pytest.approx(published, abs=0.51 * last_digit)


def test_deepseek_tensors_arrive_where_the_network_uses_them(tmp_path):
    """Each of ours, whole and in odd ranges, against the tensor of the official module by hand."""
    theirs = published.tensors(published.deepseek(tiny.MODEL))
    stored = open_weights(tiny.MODEL, {"janus": str(published.write(tmp_path / "janus", theirs, shards=3))})
    assert stored.keys() == SHAPES.keys()
    block, width = "vision_model.vision_tower.blocks.0", VISION.hidden
    by_hand = {
        "model.vision_model.encoder.layers.0.self_attn.q_proj.weight": theirs[f"{block}.attn.qkv.weight"][:width],
        "model.vision_model.encoder.layers.0.self_attn.k_proj.bias": theirs[f"{block}.attn.qkv.bias"][
            width : 2 * width
        ],
        "model.vision_model.encoder.layers.0.self_attn.v_proj.weight": theirs[f"{block}.attn.qkv.weight"][2 * width :],
        "model.vision_model.encoder.layers.0.self_attn.projection_layer.weight": theirs[f"{block}.attn.proj.weight"],
        "model.vision_model.encoder.layers.0.layer_norm2.bias": theirs[f"{block}.norm2.bias"],
        "model.vision_model.embeddings.position_embedding.weight": theirs["vision_model.vision_tower.pos_embed"][0],
        "model.vision_model.embeddings.patch_embedding.weight": theirs[
            "vision_model.vision_tower.patch_embed.proj.weight"
        ],
        "model.vision_model.post_layernorm.weight": theirs["vision_model.vision_tower.norm.weight"],
        "model.aligner.hidden_layers.0.weight": theirs["aligner.layers.2.weight"],
        "model.generation_aligner.fc1.weight": theirs["gen_aligner.layers.0.weight"],
        "model.generation_head.proj_out.weight": theirs["gen_head.output_mlp_projector.weight"],
        "model.generation_embeddings.weight": theirs["gen_embed.weight"],
        "model.language_model.layers.1.mlp.down_proj.weight": theirs[
            "language_model.model.layers.1.mlp.down_proj.weight"
        ],
        "model.language_model.norm.weight": theirs["language_model.model.norm.weight"],
        "lm_head.weight": theirs["language_model.lm_head.weight"],
    }
    for name, expected in by_hand.items():
        flat, found = expected.flatten(), stored[name]
        assert tuple(expected.shape) == found.shape and found.dtype == torch.bfloat16
        for first, last in ((0, len(flat)), (1, len(flat) - 1), (len(flat) // 3, len(flat) // 3 + 7), (5, 5)):
            assert torch.equal(found.read(first, last), flat[first:last]), (name, first, last)
        assert torch.equal(found.read(len(flat) - 2, len(flat) + 9), flat[-2:])


def test_every_element_of_a_transformers_folder_arrives(tmp_path):
    model = janus.build(tiny.MODEL, seed=3)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    stored = open_weights(tiny.MODEL, {"janus": str(published.write(tmp_path / "janus", weights))})
    for name, value in weights.items():
        assert torch.equal(stored[name].read(0, value.numel()).reshape(value.shape), value), name


def test_parts_come_from_their_own_folders(tmp_path):
    """A SigLIP with its text tower and pooling head beside it, a language model with fewer rows and a tied head."""
    rows = TEXT.vocab - 10
    tower = published.tensors(published.siglip(tiny.MODEL) | {"text_model.embeddings.token_embedding.weight": (9, 9)})
    llama = published.tensors(published.llama(tiny.MODEL, "model."), dtype=torch.float16)
    llama["model.embed_tokens.weight"] = llama["model.embed_tokens.weight"][:rows].clone()
    start = {
        "vision_tower": str(published.write(tmp_path / "siglip", tower)),
        "language_model": str(published.write(tmp_path / "llama", llama, {"vocab_size": rows})),
    }
    stored = open_weights(tiny.MODEL, start)
    assert {part_of(name) for name in stored} == {"vision_tower", "language_model", "text_head"}
    found = stored["model.vision_model.encoder.layers.0.self_attn.projection_layer.weight"]
    assert torch.equal(
        found.read(3, 90), tower["vision_model.encoder.layers.0.self_attn.out_proj.weight"].flatten()[3:90]
    )
    for name in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        embedding = stored[name]
        assert embedding.shape == (TEXT.vocab, TEXT.hidden) and embedding.elements == rows * TEXT.hidden
        flat = llama["model.embed_tokens.weight"].flatten()
        assert torch.equal(embedding.read(7, TEXT.vocab * TEXT.hidden), flat[7:])
        assert len(embedding.read(rows * TEXT.hidden, rows * TEXT.hidden + 5)) == 0


def test_a_part_of_a_whole_janus(tmp_path):
    theirs = published.tensors(published.deepseek(tiny.MODEL))
    stored = open_weights(tiny.MODEL, {"vision_tower": str(published.write(tmp_path / "janus", theirs))})
    assert {part_of(name) for name in stored} == {"vision_tower"}


def refused(tmp_path, what: str, weights, config=None) -> str:
    folder = published.write(tmp_path / "folder", weights, config)
    with pytest.raises(CheckpointError) as caught:
        open_weights(tiny.MODEL, {what: str(folder)})
    return str(caught.value).replace(str(folder), "DIR")


def test_all_that_differs_is_told_with_what_would_fit(tmp_path):
    weights = published.tensors(published.llama(tiny.MODEL, "model."))
    del weights["model.norm.weight"]
    for number in range(TEXT.layers):
        weights[f"model.layers.{number}.mlp.gate_proj.weight"] = torch.zeros(50, TEXT.hidden)
    weights["model.layers.2.input_layernorm.weight"] = torch.zeros(TEXT.hidden)
    config = {
        "hidden_size": TEXT.hidden, "num_hidden_layers": 3, "intermediate_size": 50, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 10000.0,
    }  # fmt: skip
    assert refused(tmp_path, "language_model", weights, config).splitlines() == [
        "run.start_weights.language_model=DIR is of another model than this recipe:",
        "    config.json says num_hidden_layers=3, model.text.layers=2",
        "    config.json says num_attention_heads=4, model.text.heads=2",
        "    config.json says intermediate_size=50, model.text.mlp=48",
        "    config.json says num_key_value_heads=2 of 4 heads: ours has one for each",
        "    config.json says rope_scaling.rope_type=linear: ours has plain rotary positions",
        "    model.layers.*.mlp.gate_proj.weight (2 of them): 50x32 there, 48x32 by the recipe",
        "    model.norm.weight: absent, 32 by the recipe",
        "    model.layers.*.input_layernorm.weight: 32 there, absent by the recipe",
        "  set model.text.layers=3 model.text.heads=4 model.text.mlp=50, or give other weights",
    ]


def test_deepseeks_nested_config_is_compared(tmp_path):
    config = {
        "model_type": "multi_modality",
        "language_config": {"vocab_size": 102400, "hidden_size": TEXT.hidden},
        "vision_config": {"cls": "CLIPVisionTower", "params": {"image_size": 384}},
        "gen_vision_config": {"params": {"image_token_size": 16384, "n_embed": 8}},
    }
    message = refused(tmp_path, "janus", published.tensors(published.deepseek(tiny.MODEL)), config)
    assert "config.json says language_config.vocab_size=102400, model.text.vocab=64" in message
    assert "set model.text.vocab=102400 model.image_size=384 model.vq.codes=16384, or give" in message


def test_more_rows_than_the_vocabulary_are_refused(tmp_path):
    weights = published.tensors(published.llama(tiny.MODEL, "model."))
    weights["model.embed_tokens.weight"] = torch.zeros(TEXT.vocab + 1, TEXT.hidden)
    assert "model.embed_tokens.weight: 65x32 there, 64x32 by the recipe" in refused(tmp_path, "language_model", weights)


def test_fewer_rows_of_a_whole_janus_are_refused(tmp_path):
    weights = published.tensors(published.deepseek(tiny.MODEL))
    weights["language_model.model.embed_tokens.weight"] = torch.zeros(TEXT.vocab - 1, TEXT.hidden)
    assert "embed_tokens.weight: 63x32 there" in refused(tmp_path, "janus", weights)


def test_an_untied_head_may_not_be_absent(tmp_path):
    weights = published.tensors(published.llama(tiny.MODEL, "model."))
    message = refused(tmp_path, "language_model", weights, {"tie_word_embeddings": False})
    assert "lm_head.weight: absent, 64x32 by the recipe" in message


def test_weights_of_something_else(tmp_path):
    message = refused(tmp_path, "janus", {"transformer.wte.weight": torch.zeros(4, 4)})
    assert "holds no janus of a known layout (transformers, deepseek); its first tensor is transformer.wte" in message


@pytest.mark.parametrize("start", [{"vq": "x"}, {"janus": "x", "vision_tower": "y"}])
def test_what_can_be_started_from(start):
    with pytest.raises(ConfigError, match="it takes janus alone, or any of language_model and vision_tower"):
        open_weights(tiny.MODEL, start)


@pytest.mark.parametrize("kind", ["own", "transformers", "deepseek", "llamagen"])
def test_the_vq_tokenizer_from_each_layout(tmp_path, kind):
    official = published.tensors(published.official_vq(tiny.MODEL), dtype=torch.float32)
    path = tmp_path / "vq.pt"
    torch.save({"model": official, "optimizer": {"step": 1}, "steps": 5}, path)
    reference = load_vq(tiny.MODEL, path)
    # a tensor of each rule, by hand
    own = reference.state_dict()
    for ours, theirs in {
        "encoder.down.1.block.0.conv1.weight": "encoder.conv_blocks.1.res.0.conv1.weight",
        "encoder.down.2.attn.0.q.weight": "encoder.conv_blocks.2.attn.0.q.weight",
        "encoder.down.0.downsample.conv.bias": "encoder.conv_blocks.0.downsample.conv.bias",
        "encoder.mid.block_2.norm1.weight": "encoder.mid.2.norm1.weight",
        "decoder.mid.attn_1.proj_out.weight": "decoder.mid.1.proj_out.weight",
        "decoder.up.1.block.1.conv2.weight": "decoder.conv_blocks.1.res.1.conv2.weight",
        "decoder.up.0.upsample.conv.weight": "decoder.conv_blocks.0.upsample.conv.weight",
        "quantize.embedding.weight": "quantize.embedding.weight",
        "post_quant_conv.bias": "post_quant_conv.bias",
    }.items():
        assert torch.equal(own[ours], official[theirs]), ours
    if kind == "own":
        save_vq(reference, tmp_path / "own.safetensors")
        path = tmp_path / "own.safetensors"
    elif kind == "transformers":
        path = published.write(tmp_path / "t", {VQ + n: v for n, v in own.items()} | {"lm_head.weight": torch.zeros(2)})
    elif kind == "deepseek":
        whole = published.tensors(published.deepseek(tiny.MODEL), dtype=torch.float32)
        whole |= {f"gen_vision_model.{name}": value for name, value in official.items()}
        path = published.write(tmp_path / "d", whole, shards=2)
    found = load_vq(tiny.MODEL, path)
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    assert all(torch.equal(value, own[name]) for name, value in found.state_dict().items())


def test_the_digest_of_a_vq_tokenizer_in_a_folder_is_that_of_its_own_file(tmp_path):
    """So that shards made with the one are known to be of the other."""
    whole = published.tensors(published.deepseek(tiny.MODEL), dtype=torch.float32)
    folder = published.write(tmp_path / "janus", whole)
    save_vq(load_vq(tiny.MODEL, folder), tmp_path / "vq.safetensors")
    found = [
        stream.vq_sha256(prepared.recipe(tmp_path, tmp_path, data={"vq_weights": str(path)}))
        for path in (folder, tmp_path / "vq.safetensors")
    ]
    assert found == [hashlib.sha256((tmp_path / "vq.safetensors").read_bytes()).hexdigest()] * 2


def test_another_vq_tokenizer_is_refused(tmp_path):
    other = tiny.MODEL.model_copy(update={"vq": tiny.MODEL.vq.model_copy(update={"codes": 16})})
    path = tmp_path / "vq.safetensors"
    save_file(published.tensors(published.official_vq(other)), path)
    with pytest.raises(CheckpointError, match=re.escape("quantize.embedding.weight: 16x8 there, 32x8 by the recipe")):
        load_vq(tiny.MODEL, path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="holds no VQ tokenizer of a known layout"):
        load_vq(tiny.MODEL, path)


def test_a_layout_is_known_by_most_of_its_names():
    assert closest(("llama", "transformers"), SHAPES, SHAPES.keys()) == "transformers"
    assert closest(("llama", "siglip"), SHAPES, {"a", "b"}) is None

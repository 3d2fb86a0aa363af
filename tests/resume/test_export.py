"""Weights out: what transformers and a next run read of an export is what the checkpoint holds."""

import json
import math
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from safetensors import safe_open
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import JanusForConditionalGeneration, JanusProcessor
from typer.testing import CliRunner

from janus_dist.checkpoint.stored import StoredWeights
from janus_dist.cli.main import app
from janus_dist.config.data import ChatConfig
from janus_dist.config.load import Loaded, save
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.train import EngineConfig, OptimConfig
from janus_dist.data import chat
from janus_dist.data.tokenizer import SPECIAL, Tokenizer, train_tokenizer
from janus_dist.engine.world import join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import CheckpointError, ConfigError, DataError
from janus_dist.evaluation import sampler
from janus_dist.model import janus, sample, vq
from janus_dist.model.parts import set_trainable
from janus_dist.model.sample import TokenChoice
from janus_dist.weights.export import export
from janus_dist.weights.shards import Planned, write_shards
from janus_dist.weights.start import open_weights
from janus_dist.weights.vq import load_vq, save_vq
from tests import prepared, published, tiny
from tests.checkpoints import folder_of, load_weights, saved_in
from tests.checkpoints import save as write_checkpoint
from tests.ranks import run_ranks

TEXTS = ["What color is the circle? It is red. Draw a blue square, please! a b c d " * 3]
CHAT = {"user": "<|User|>", "assistant": "<|Assistant|>", "system_prompt": "Look well."}


def make_recipe(folder: Path) -> StageRecipe:
    """Return a recipe with as many tokens per image to read as ids to draw, as in the published models."""
    vision = tiny.MODEL.vision.model_dump() | {"patch": 4}
    text = tiny.MODEL.text.model_dump() | {"vocab": prepared.VOCAB}
    return prepared.recipe(folder, folder, model={"vision": vision, "text": text, "init_std": 0.2}, data={"chat": CHAT})


def save_run(recipe: StageRecipe) -> None:
    world, model = join(recipe.cluster, 60), janus.on_meta(recipe.model)
    set_trainable(model, ["understanding_adaptor", "language_model", "image_head"])
    made = janus.made(model, 5, world.device)
    engine = ZeroEngine(model, made, EngineConfig(dtype="float32"), OptimConfig(lr=1e-2), world)
    for step in (1, 2):
        write_checkpoint(engine, recipe.run.dir, step, recipe=recipe.model_dump(mode="json"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> StageRecipe:
    """Return the recipe of a run of two ranks with two checkpoints, its tokenizer and its VQ weights."""
    folder = tmp_path_factory.mktemp("run")
    recipe = make_recipe(folder)
    train_tokenizer(TEXTS, prepared.VOCAB, folder / "tokenizer.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_vq(vq.build(janus.vq_config(recipe.model)), folder / "vq.safetensors")
    save(Loaded(recipe, {}, (), ()), recipe.run.dir)
    run_ranks(save_run, 2, folder / "meet", recipe)
    return recipe


@pytest.fixture(scope="module")
def folders(recipe, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Exports by layout and type."""
    root = tmp_path_factory.mktemp("exports")
    found = {}
    for layout in ("transformers", "deepseek"):
        for dtype in ("float32", "bfloat16"):
            found[layout, dtype] = root / layout / dtype
            done = export(str(recipe.run.dir), found[layout, dtype], layout, dtype=dtype)
            assert done.step == 2 and done.files == 1
    return found


def ours(recipe: StageRecipe, dtype: torch.dtype) -> janus.Janus:
    model = janus.build(recipe.model, seed=0)
    weights = load_weights(saved_in(recipe.run.dir))
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])
    model.model.language_model.set_attn_implementation("sdpa")
    for parameter in model.parameters():  # not model.to(): the rotary frequencies stay as they are, here and there
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def theirs(folder: Path) -> JanusForConditionalGeneration:
    model, info = JanusForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected, of another size
    return model.eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_transformers_answers_and_draws_the_same(recipe, folders, dtype):
    folder = folders["transformers", dtype]
    mine, plain, processor = ours(recipe, getattr(torch, dtype)), theirs(folder), JanusProcessor.from_pretrained(folder)
    assert plain.dtype == mine.dtype
    tokenizer = Tokenizer.load(recipe.data.tokenizer)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    content = [{"type": "image", "image": Image.fromarray(pixels)}, {"type": "text", "text": "What color?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    inputs["pixel_values"] = inputs["pixel_values"].to(plain.dtype)
    prompt = chat.understanding_ids(tokenizer, recipe.data.chat, [("What color?", None)], 1)[0]
    features = sample.image_features(mine, torch.from_numpy(pixels).permute(2, 0, 1)[None], batch=1)
    embedded = sample._embedded(mine, prompt, features, tokenizer.image)
    expected = mine.lm_head(mine.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state)
    assert torch.equal(plain(**inputs).logits, expected)
    assert expected.std() > 0.1  # or equal logits would say little

    answer = sample.answer(mine, [prompt], features, [[0]], tokenizer.image, tokenizer.eos, 8, 1)[0]
    given = plain.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert given[: len(answer)] == answer and given[len(answer) :] in ([], [tokenizer.eos])

    asked = chat.generation_prompt_ids(tokenizer, recipe.data.chat, "a blue square")
    text = processor.apply_chat_template([{"role": "user", "content": "a blue square"}], add_generation_prompt=True)
    inputs = processor(text=text, generation_mode="image", return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == asked
    drawn = plain.generate(**inputs, generation_mode="image", do_sample=False)
    expected = sample.draw(
        mine, [asked], recipe.model.image_ids, tokenizer.pad, recipe.evaluate.guidance, TokenChoice(), [0], 1
    )
    assert torch.equal(drawn, expected) and len(drawn.unique()) > 2


def test_the_vq_tokenizer_decodes_the_same(recipe, folders):
    ids = torch.randint(recipe.model.vq.codes, (2, recipe.model.image_ids), generator=torch.Generator().manual_seed(0))
    own = load_vq(recipe.model, recipe.data.vq_weights)
    decoded = theirs(folders["transformers", "float32"]).decode_image_tokens(ids)  # [image, height, width, channel]
    assert torch.equal(decoded.permute(0, 3, 1, 2).clamp(-1, 1), vq.decode(own, ids))


@pytest.mark.parametrize("layout", ["transformers", "deepseek"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_starts_from_an_export_with_the_weights_of_the_checkpoint(recipe, folders, layout, dtype):
    weights = load_weights(saved_in(recipe.run.dir))
    stored = open_weights(recipe.model, {"janus": str(folders[layout, dtype])})
    assert stored.keys() == weights.keys()
    for name, value in weights.items():
        found = stored[name].read(0, value.numel()).reshape(value.shape)
        assert found.dtype == getattr(torch, dtype) and torch.equal(found, value.to(found.dtype)), name
    own = load_vq(recipe.model, recipe.data.vq_weights).state_dict()
    again = load_vq(recipe.model, folders[layout, dtype]).state_dict()  # bit for bit: shards hold ids that it made
    assert all(torch.equal(own[name], again[name]) for name in own)


def test_deepseeks_layout(recipe, folders):
    """Names, shapes and a fused tensor against what the official code builds; config.json as Janus-Pro-1B's."""
    folder, weights = folders["deepseek", "float32"], load_weights(saved_in(recipe.run.dir))
    expected = published.deepseek(recipe.model)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        fused = file.get_tensor("vision_model.vision_tower.blocks.0.attn.qkv.weight")
    assert shapes == {name: shape for name, shape in expected.items() if "attn_pool" not in name}
    layer = "model.vision_model.encoder.layers.0.self_attn"
    assert torch.equal(fused, torch.cat([weights[f"{layer}.{name}_proj.weight"] for name in "qkv"]))
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "multi_modality" and config["architectures"] == ["MultiModalityCausalLM"]
    assert config["aligner_config"] == {
        "cls": "MlpProjector", "model_type": "aligner",
        "params": {"depth": 2, "input_dim": 16, "n_embed": 32, "projector_type": "mlp_gelu"},
    }  # fmt: skip
    assert config["gen_vision_config"]["params"] == {"image_token_size": 32, "n_embed": 8}
    assert config["language_config"]["hidden_size"] == 32 and config["language_config"]["num_key_value_heads"] == 2
    assert json.loads((folder / "processor_config.json").read_text())["num_image_tokens"] == 16


def test_shards_are_small_and_one_of_them_is_in_memory_at_a_time(recipe, folders, tmp_path, monkeypatch):
    asked: list[int] = []
    """Bytes of each reading."""
    alive: list[weakref.ref[torch.Tensor]] = []
    read = StoredWeights.read

    def counted(self: StoredWeights, names: Iterable[str]) -> dict[str, torch.Tensor]:
        assert not any(tensor() is not None for tensor in alive), "of an earlier file"
        found = read(self, names)
        alive.extend(weakref.ref(tensor) for tensor in found.values())
        asked.append(sum(tensor.nbytes for tensor in found.values()))
        return found

    monkeypatch.setattr(StoredWeights, "read", counted)
    done = export(str(recipe.run.dir), tmp_path / "out", "deepseek", dtype="float32", max_shard_bytes=100_000)
    weights = load_weights(saved_in(recipe.run.dir))
    assert len(asked) - 1 == done.files, "each rank's file is opened so often; the last reading is this test's"
    assert max(asked[:-1]) <= 100_000 and sum(asked[:-1]) == sum(value.nbytes for value in weights.values())
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) == done.files > 3 and files[0].name == f"model-00001-of-{done.files:05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        size = sum(value.nbytes for value in held.values())
        assert size <= 100_000 or len(held) == 1
        assert all(index["weight_map"][name] == path.name for name in held)
        found |= held
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    with safe_open(folders["deepseek", "float32"] / "model.safetensors", framework="pt") as file:
        assert found.keys() == set(file.keys())
        assert all(torch.equal(file.get_tensor(name), value) for name, value in found.items())


def test_a_checkpoint_inside_the_run_can_be_named(recipe, tmp_path):
    path = folder_of(recipe.run.dir, 1)
    assert export(str(path), tmp_path / "out", "transformers").step == 1


def test_nothing_is_left_behind_when_it_fails(recipe, tmp_path):
    out = tmp_path / "deep" / "out"
    with pytest.raises(CheckpointError, match=r"data\.vq_weights=/nowhere does not exist"):
        export(str(recipe.run.dir), out, "transformers", ["data.vq_weights=/nowhere"])
    with pytest.raises(DataError, match=r"data\.tokenizer=/nowhere cannot be read"):
        export(str(recipe.run.dir), out, "transformers", ["data.tokenizer=/nowhere"])
    with pytest.raises(CheckpointError, match=r"2 parameters differ, the first is lm_head.weight: \(288, 32\) in the"):
        export(str(recipe.run.dir), out, "transformers", ["model.text.vocab=300"])
    with pytest.raises(CheckpointError, match="is neither a run nor a checkpoint"):
        export(str(tmp_path), out, "transformers")
    assert [path for path in tmp_path.rglob("*") if path.name != "deep"] == []
    out.mkdir(parents=True)
    (out / "note").touch()
    with pytest.raises(ConfigError, match="already exists"):
        export(str(recipe.run.dir), out, "transformers")


def test_a_model_that_transformers_cannot_draw_with_says_so(recipe, tmp_path, monkeypatch):
    """transformers takes the vision tower's tokens for the number of ids."""
    other = recipe.model.model_copy(update={"vision": recipe.model.vision.model_copy(update={"patch": 8})})
    monkeypatch.setattr("janus_dist.weights.export.check_shapes", lambda *_: None)
    monkeypatch.setattr("janus_dist.weights.export._write_weights", lambda *_: [])
    override = f"model.vision.patch={other.vision.patch}"
    assert "cannot draw" in export(str(recipe.run.dir), tmp_path / "out", "transformers", [override]).notes[0]


def test_the_command(recipe, tmp_path):
    runner = CliRunner()
    arguments = ["export", str(recipe.run.dir), str(tmp_path / "out"), "--layout", "deepseek", "--dtype", "float16"]
    done = runner.invoke(app, [*arguments, "data.chat.user=User"], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"{tmp_path / 'out'}: step 2 of {folder_of(recipe.run.dir, 2)}, 0.00" in done.stdout
    assert "attn_pool is left out" in done.stdout
    assert runner.invoke(app, [*arguments[:-1], "int8"]).exit_code == 2


def other_tokenizer(path: Path) -> Tokenizer:
    """Save and return a tokenizer whose special tokens have other ids."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=280, special_tokens=[*SPECIAL[::-1]], initial_alphabet=alphabet)
    )
    inner.save(str(path))
    return Tokenizer.load(path)


def test_special_tokens_are_found_by_name(recipe, tmp_path):
    tokenizer = other_tokenizer(tmp_path / "other.json")
    assert tokenizer.pad != Tokenizer.load(recipe.data.tokenizer).pad
    out = tmp_path / "out"
    export(str(recipe.run.dir), out, "transformers", [f"data.tokenizer={tmp_path / 'other.json'}"])
    config = json.loads((out / "config.json").read_text())
    assert config["image_token_id"] == tokenizer.image and config["text_config"]["pad_token_id"] == tokenizer.pad
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["generation_kwargs"] == {"boi_token_id": tokenizer.boi}
    assert [generation[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [
        tokenizer.bos, tokenizer.eos, tokenizer.pad,
    ]  # fmt: skip
    processor = JanusProcessor.from_pretrained(out)
    named = processor.tokenizer
    assert [named.bos_token_id, named.eos_token_id, named.pad_token_id] == [
        tokenizer.bos, tokenizer.eos, tokenizer.pad,
    ]  # fmt: skip
    assert named.convert_tokens_to_ids([processor.image_token, processor.image_start_token]) == [
        tokenizer.image, tokenizer.boi,
    ]  # fmt: skip


TURNS = [
    ([("What color?", None)], 1),
    ([("  What color? ", "It is red."), ("A circle?\nPlease ", " Yes. ")], 1),
    ([("a b", "c"), ("d", None)], 0),
    ([("a <image>\n b <image>", "c")], 2),
]


@pytest.mark.parametrize("settings", [CHAT, {}, {"user": "Human", "assistant": "A\"'\n"}])
@pytest.mark.parametrize(("turns", "images"), TURNS)
def test_conversations_have_the_ids_of_training(recipe, tmp_path, settings, turns, images):
    settings = ChatConfig(**settings)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"chat": settings})})
    save(Loaded(recipe, {}, (), ()), tmp_path / "run")
    (tmp_path / "run" / "checkpoints").symlink_to(folder_of(recipe.run.dir, 2).parent)
    export(str(tmp_path / "run"), tmp_path / "out", "transformers")
    processor, tokenizer = JanusProcessor.from_pretrained(tmp_path / "out"), Tokenizer.load(recipe.data.tokenizer)
    image = {"type": "image", "image": Image.new("RGB", (16, 16))}
    messages = []
    for number, (question, answer) in enumerate(turns):
        marked = question if "<image>" in question or number or not images else f"<image>\n{question}"
        pieces = [piece for part in marked.split("<image>") for piece in ("<image>", part.strip())][1:]
        content = [
            image if piece == "<image>" else {"type": "text", "text": piece} for piece in pieces if piece
        ]  # fmt: skip
        messages.append({"role": "user", "content": content})
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    given = processor.apply_chat_template(
        messages, add_generation_prompt=turns[-1][1] is None, tokenize=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    if "<image>" in turns[0][0]:
        turns = [("a\n<image>\nb\n<image>", "c")]  # parts of a message stand on lines of their own
    prompt = settings.system_prompt if images else ""
    ids = chat.understanding_ids(tokenizer, settings, turns, images, prompt)[0]
    expected = [i for i in ids for _ in range(recipe.model.image_tokens if i == tokenizer.image else 1)]
    assert given[0].tolist() == expected


def test_files_written_tensor_by_tensor_are_safetensors(tmp_path):
    """Odd lengths of narrow types before wide ones: each still stands where its type may stand."""
    tensors = {
        "odd": torch.arange(3, dtype=torch.bfloat16),
        "wide": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.arange(5, dtype=torch.float16).reshape(5, 1),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "large": torch.arange(100, dtype=torch.float32),
        "strided": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
    }
    planned = [Planned(name, tuple(value.shape), value.dtype) for name, value in tensors.items()]
    for max_bytes, files in ((10**6, 1), (60, 3)):
        folder = tmp_path / str(max_bytes)
        folder.mkdir()
        paths = write_shards(folder, planned, lambda names: map(tensors.__getitem__, names), max_bytes)
        assert len(paths) == files
        found = {}
        for path in paths:
            with safe_open(path, framework="pt") as file:
                assert file.metadata() == {"format": "pt"}
                found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert found.keys() == tensors.keys()
        for name, value in tensors.items():
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
            assert math.prod(found[name].shape) == value.numel()


@torch.no_grad()
def test_a_sampler_is_the_model_of_the_checkpoint_and_is_never_whole_in_float32(recipe, monkeypatch):
    """Compare logits bit for bit with a model that was loaded in float32 and rounded; count elements of each read."""
    at_once: list[int] = []
    read = StoredWeights.read

    def counted(self: StoredWeights, names: Iterable[str]) -> dict[str, torch.Tensor]:
        found = read(self, names)
        at_once.append(sum(tensor.numel() for tensor in found.values()))
        return found

    monkeypatch.setattr(StoredWeights, "read", counted)
    monkeypatch.setattr(sampler, "READ_ELEMENTS", 10_000)
    found = sampler.Sampler.load(recipe, str(folder_of(recipe.run.dir, 2)), dtype="bfloat16").model
    monkeypatch.undo()
    whole = ours(recipe, torch.bfloat16)
    total = sum(parameter.numel() for parameter in whole.parameters())
    assert sum(at_once) == total and len(at_once) > 3 and max(at_once) < total / 3
    for mine, expected in ((found.named_parameters(), whole.named_parameters()),
                           (found.named_buffers(), whole.named_buffers())):  # fmt: skip
        for (name, value), (other, wanted) in zip(mine, expected, strict=True):
            assert name == other and value.dtype == wanted.dtype and torch.equal(value, wanted), name
    frequencies = found.model.language_model.rotary_emb.inv_freq
    assert isinstance(frequencies, torch.Tensor) and frequencies.dtype == torch.float32
    ids = torch.arange(12)[None]
    logits = [
        model.lm_head(model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state)
        for model in (found, whole)
    ]
    assert torch.equal(*logits) and logits[0].std() > 0.1

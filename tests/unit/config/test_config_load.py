"""The loader: merging, overrides, origins, what is saved. The texts of its messages are in tests/ux/test_errors.py."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import model_validator

from janus_dist.config import reference
from janus_dist.config.base import SettingFault, refuse
from janus_dist.config.fields import keys
from janus_dist.config.load import Loaded, RecipeError, load, save
from janus_dist.config.recipe import BaseRecipe, StageRecipe
from janus_dist.data import order
from janus_dist.errors import ConfigError

RECIPES = Path(__file__).parents[3] / "jobs" / "recipes"
MAX_SETTINGS = 120

BASE = """\
run: {root: runs, name: base}
model:
  image_size: 16
  text: {vocab: 64, hidden: 32, layers: 2, heads: 2, mlp: 48}
  vision: {patch: 8, hidden: 16, layers: 1, heads: 2, mlp: 32}
  vq: {codes: 32, channel_multipliers: [1, 1, 2]}
data: {root: data, tokenizer: t.json, vq_weights: vq.safetensors}
cluster:
  workers: 2
"""
STAGE = """\
stage: 2
run: {name: two}
mix: {understanding: 1, text: 1, generation: 2}
batch: {rows: 4, row_tokens: 128}
optim:
  lr: 1e-4
train:
  steps: 10
  trainable: [language_model, text_head]
"""


def test_files_merge_deeply_and_left_to_right(files: list[Path]):
    recipe = load(StageRecipe, files).recipe
    assert (recipe.run.root, recipe.run.name) == ("runs", "two")
    assert recipe.model.vq.code_dim == 8  # a default inside a section that is given


def test_lists_are_replaced_whole(files: list[Path]):
    Path("more.yaml").write_text("train: {trainable: [image_head]}\n")
    assert load(StageRecipe, [*files, Path("more.yaml")]).recipe.train.trainable == ("image_head",)


def test_exponents_without_a_point_are_numbers(files: list[Path]):
    assert load(StageRecipe, files).recipe.optim.lr == 1e-4
    assert load(StageRecipe, files, ["optim.lr=2e-3"]).recipe.optim.lr == 2e-3


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("cluster.workers=4", "cluster", "workers", 4),
        ("cluster.gpu=true", "cluster", "gpu", True),
        ("run.start_from=one", "run", "start_from", "one"),
        ("run.start_from=null", "run", "start_from", None),
        ("run.start_from=", "run", "start_from", None),
        ("run.name='2026'", "run", "name", "2026"),
        ("data.root=s3://bucket/a=b", "data", "root", "s3://bucket/a=b"),
        ("train.trainable=[image_head, text_head]", "train", "trainable", ("image_head", "text_head")),
        ("optim={betas: [0.8, 0.9]}", "optim", "betas", (0.8, 0.9)),
    ],
)
def test_overrides_are_yaml(files: list[Path], override: str, section: str, key: str, value: object):
    recipe = load(StageRecipe, files, [override]).recipe
    assert getattr(getattr(recipe, section), key) == value


def test_a_section_as_override_keeps_its_other_keys(files: list[Path]):
    assert load(StageRecipe, files, ["optim={warmup_steps: 3}"]).recipe.optim.lr == 1e-4


def test_the_last_override_counts(files: list[Path]):
    assert load(StageRecipe, files, ["stage=1", "stage=3"]).recipe.stage == 3


def test_origin_of_every_value(files: list[Path]):
    loaded = load(StageRecipe, files, ["cluster.workers=4"])
    by_name = {"pipeline.inputs"}  # none is given here
    found = {"batch.cost" if key.startswith("batch.cost.") else key for key in loaded.origin}
    assert found - by_name == {key for key in keys(StageRecipe) if ".NAME." not in key}
    assert {key: loaded.origin[key] for key in ("run.root", "run.name", "optim.lr", "model.vq.codes")} == {
        "run.root": "base.yaml:1",
        "run.name": "stage.yaml:2",
        "optim.lr": "stage.yaml:6",
        "model.vq.codes": "base.yaml:6",
    }
    assert loaded.origin["cluster.workers"] == "override"
    assert loaded.origin["model.vq.code_dim"] == "default"


def test_saved_config_loads_again_as_the_same(files: list[Path], tmp_path: Path):
    loaded = load(StageRecipe, files, ["optim.lr=1e-5"])
    save(loaded, tmp_path / "run" / "two")
    folder = tmp_path / "run" / "two"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "origin.json"]
    assert load(StageRecipe, [folder / "config.json"]).recipe == loaded.recipe
    assert json.loads((folder / "origin.json").read_text()) == loaded.origin


def test_anchors_are_followed_and_loops_are_not(files: list[Path]):
    Path("anchor.yaml").write_text("batch: {rows: &n 8, micro_rows: *n}\n")
    assert load(StageRecipe, [*files, Path("anchor.yaml")]).recipe.batch.micro_rows == 8
    Path("loop.yaml").write_text("mix: &a {text: *a}\n")
    with pytest.raises(ConfigError, match="inside its own anchor"):
        load(StageRecipe, [*files, Path("loop.yaml")])


def test_python_tags_are_refused(files: list[Path]):
    Path("tag.yaml").write_text("run: {name: !!python/object/apply:os.getcwd []}\n")
    with pytest.raises(ConfigError, match=r"run.name: should be a valid string"):
        load(StageRecipe, [*files, Path("tag.yaml")])
    Path("tag.yaml").write_text("run: {name: !!python/name:os.getcwd x}\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(StageRecipe, [*files, Path("tag.yaml")])


def _shipped() -> list[tuple[type[BaseRecipe], list[Path]]]:
    """Each recipe folder's base, and each of its stages on top of it."""
    found: list[tuple[type[BaseRecipe], list[Path]]] = []
    for base in sorted(RECIPES.glob("*/base.yaml")):
        found.append((BaseRecipe, [base]))
        found += [(StageRecipe, [base, stage]) for stage in sorted(base.parent.glob("stage*.yaml"))]
    return found


@pytest.mark.parametrize(("kind", "recipe_files"), _shipped(), ids=lambda value: getattr(value, "__name__", None))
def test_shipped_recipe_loads(kind: type[BaseRecipe], recipe_files: list[Path]):
    loaded: Loaded[BaseRecipe] = load(kind, recipe_files)
    assert loaded.recipe.run.root
    if isinstance(loaded.recipe, StageRecipe):
        assert recipe_files[-1].stem == f"stage{loaded.recipe.stage}"
        folder = recipe_files[-1].parent
        assert all((folder / name).is_file() for name in loaded.recipe.run.start_recipes)


def test_shipped_recipes_are_found():
    assert [recipe_files[-1].name for _, recipe_files in _shipped() if recipe_files[-1].parent.name == "tiny"] == [
        "base.yaml",
        "stage1.yaml",
        "stage2.yaml",
        "stage3.yaml",
    ]


def test_number_of_settings_stays_in_its_budget():
    assert len(keys(StageRecipe)) <= MAX_SETTINGS


@pytest.mark.parametrize("where", ["file", "override"])
def test_a_password_is_refused_and_not_shown(files: list[Path], where: str):
    url = "s3://me:hunter2@bucket/data"
    given = []
    if where == "file":
        Path("more.yaml").write_text(f"data:\n  sources: {{text: {{web: '{url}'}}}}\n")
        files.append(Path("more.yaml"))
    else:
        given = [f"data.sources={{text: {{web: '{url}'}}}}"]
    with pytest.raises(ConfigError) as raised:
        load(StageRecipe, files, given)
    assert "data.sources.text.web: the URL contains a password" in raised.value.message
    assert "hunter2" not in str(raised.value) and ("more.yaml:2" in str(raised.value)) == (where == "file")


def test_the_page_of_settings_is_made_of_them_and_each_has_a_meaning():
    page = reference.as_markdown()
    written = (RECIPES.parents[1] / "docs" / "settings.md").read_text()
    assert written == page, "janus config docs > docs/settings.md"
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) >= len(list(keys(StageRecipe)))
    assert [row[0] for row in rows if len(row) != 4 or len(row[3].strip(" |")) < 6] == []


def test_a_step_of_more_rows_than_can_be_planned_is_refused(files: list[Path]):
    """`janus plan` would not answer for hours."""
    with pytest.raises(ConfigError, match="less than or equal to 1000000; got 100000000"):
        load(StageRecipe, files, ["batch.rows=100000000"])
    assert load(StageRecipe, files, ["batch.rows=1_000_000"]).recipe.batch.rows == 1_000_000


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.betas=[0.9, 1.5]", "optim.betas.1: should be less than 1; got 1.5"),
        ("model.text.heads=5", "text.hidden=32 is not a multiple of text.heads = 5"),
        ("model.vq.base_channels=3", "model.vq.base_channels: should be a multiple of 32; got 3"),
        ("model.vq.channel_multipliers=[]", "model.vq.channel_multipliers: should have at least 1 item"),
        ("run.seed=9223372036854775808", "run.seed: an integer must fit into 64 bits, -9223372036854775808 to"),
        ("train.steps=100000000000000000000000", "train.steps: an integer must fit into 64 bits"),
    ],
)
def test_the_override_that_breaks_a_rule_is_blamed(files: list[Path], override: str, said: str):
    with pytest.raises(ConfigError) as caught:
        load(StageRecipe, files, [override])
    assert f"override {override!r}" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63 - 1])
def test_a_seed_of_64_bits_is_taken_by_every_generator(files: list[Path], seed: int):
    recipe = load(StageRecipe, files, [f"run.seed={seed}"]).recipe
    torch.Generator().manual_seed(recipe.run.seed)
    assert order.key(recipe.run.seed) == order.key(seed % 2**64)


def test_a_rule_blames_a_setting_that_its_message_does_not_name(files: list[Path]):
    with pytest.raises(ConfigError) as caught:
        load(StageRecipe, files, ["model.image_size=160"])
    assert "override 'model.image_size=160'\n    batch.row_tokens=128 cannot hold an image" in str(caught.value)


class _Ruled(BaseRecipe):
    """A recipe with a rule on `run.seed` whose message names other settings and has two lines."""

    @model_validator(mode="after")
    def _rule(self) -> "_Ruled":
        if self.run.seed == 1:
            refuse([SettingFault(("run.seed",), "model.image_size and cluster.workers\nare required")])
        return self


def test_a_setting_that_is_only_named_in_a_message_is_not_blamed(files: list[Path]):
    with pytest.raises(RecipeError) as caught:
        load(_Ruled, files[:1], ["run.seed=1", "model.image_size=32", "cluster.workers=4"])
    faults = [(fault.place.text, fault.message, fault.kind) for fault in caught.value.faults]
    assert faults == [("override 'run.seed=1'", "model.image_size and cluster.workers\nare required", "rule")]


def test_faults_have_kinds(files: list[Path]):
    with pytest.raises(RecipeError) as caught:
        load(StageRecipe, files[1:], ["train=1", "optim.rate=1", "batch.rows=0", "x"])
    assert {fault.kind for fault in caught.value.faults} == {"type", "unknown", "value", "text"}
    with pytest.raises(RecipeError) as caught:
        load(StageRecipe, files[1:])
    assert {fault.kind for fault in caught.value.faults} == {"missing"}

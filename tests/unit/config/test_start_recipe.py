"""The recipe of the stage before: its own files, and what a user laid over all stages."""

from pathlib import Path

import pytest

from janus_dist.checkpoint.find import check_starts, start_recipe
from janus_dist.config.load import Loaded, load
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.shipped import TINY
from janus_dist.errors import ConfigError
from tests.unit.config.test_config_load import BASE

PROOF = TINY.parent / "proof"
MINE = """\
run: {root: mine, name: second}
data: {root: data/mine}
pipeline:
  inputs:
    generation: {format: webdataset, path: ["s3://bucket/*.tar", more.tar], where: {width: {min: 256}}}
engine: {dtype: float32}
train: {steps: 70}
optim: {lr: 3e-4}
"""


def stage2(*more: Path | str) -> Loaded[StageRecipe]:
    overrides = [one for one in more if isinstance(one, str)]
    files = [one for one in more if isinstance(one, Path)]
    return load(StageRecipe, [TINY / "base.yaml", TINY / "stage2.yaml", *files], overrides)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's file, in a folder of its own."""
    path = tmp_path / "my.yaml"
    path.write_text(MINE)
    return path


def test_it_is_found_beside_the_file_that_names_it(mine: Path):
    before = start_recipe(stage2(mine))
    assert before.files == (TINY / "base.yaml", TINY / "stage1.yaml")
    assert (before.recipe.stage, before.recipe.run.name) == (1, "stage1")


def test_what_a_later_file_says_of_all_stages_is_its_as_well(mine: Path):
    after = stage2(mine)
    before = start_recipe(after)
    assert before.recipe.run.root == "mine" and before.recipe.data.root == "data/mine"
    assert before.recipe.pipeline == after.recipe.pipeline and before.recipe.engine.dtype == "float32"


def test_what_a_later_file_says_of_its_own_stage_is_not(mine: Path):
    before, alone = start_recipe(stage2(mine)), load(StageRecipe, [TINY / "base.yaml", TINY / "stage1.yaml"])
    assert before.recipe.train == alone.recipe.train and before.recipe.optim == alone.recipe.optim


def test_overrides_win_over_files(mine: Path):
    before = start_recipe(stage2(mine, "data.root=other", "train.steps=30"))
    assert before.recipe.data.root == "other" and before.recipe.train.steps == 40


def test_an_override_names_it_from_the_current_folder(mine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(TINY)
    before = start_recipe(stage2(mine, "run.start_recipes=[base.yaml, stage1.yaml]", "run.seed=5"))
    assert before.recipe.run.name == "stage1" and before.recipe.run.seed == 5 and before.recipe.run.root == "runs/tiny"


def test_an_overlay_may_name_another():
    loaded = load(StageRecipe, [TINY / "base.yaml", TINY / "stage3.yaml", PROOF / "stage3.yaml"])
    before = start_recipe(loaded)
    assert before.files[-1] == PROOF / "stage2.yaml" and before.recipe.train.steps == 1_000
    assert start_recipe(before).files[-1] == PROOF / "stage1.yaml"


def test_a_section_given_whole_on_the_command_line_is_its_as_well(mine: Path):
    given = ("engine={dtype: float32, hpz_ranks: 2}", "data={root: other}", "cluster.workers=4", "pipeline.inputs=null")
    before = start_recipe(stage2(mine, *given)).recipe
    assert (before.engine.hpz_ranks, before.data.root, before.cluster.workers) == (2, "other", 4)
    assert before.pipeline.inputs == {}


CIRCLE = """\
stage: {stage}
run: {{name: {name}, start_from: {before}, start_recipes: [base.yaml, {before}.yaml]}}
mix: {{understanding: 1, text: 1, generation: 2}}
batch: {{rows: 4, row_tokens: 128}}
optim: {{lr: 1e-4}}
train: {{steps: 10, trainable: [language_model]}}
"""


@pytest.fixture
def circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Recipes of two runs that start from each other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    for stage, (name, before) in enumerate((("one", "two"), ("two", "one")), start=1):
        (tmp_path / f"{name}.yaml").write_text(CIRCLE.format(stage=stage, name=name, before=before))
    return [tmp_path / "base.yaml", tmp_path / "two.yaml"]


def test_runs_that_start_from_each_other_are_named(circle: list[Path]):
    with pytest.raises(ConfigError, match="runs start from each other: two -> one -> two") as caught:
        check_starts(load(StageRecipe, circle))
    assert caught.value.hint is not None and "run.start_from=null" in caught.value.hint
    text = circle[1].with_name("one.yaml").read_text().replace("start_from: two", "start_from: null")
    circle[1].with_name("one.yaml").write_text(text)
    check_starts(load(StageRecipe, circle))  # the hint followed


def test_a_run_that_starts_from_itself_is_refused_as_a_recipe(circle: list[Path]):
    with pytest.raises(ConfigError, match=r"run: start_from=two is the run itself; .*null to start from scratch"):
        load(StageRecipe, circle, ["run.start_from=two"])
    load(StageRecipe, circle, ["run.start_from=null"])


def test_recipes_that_make_another_run_than_the_start_are_refused(circle: list[Path]):
    with pytest.raises(ConfigError, match=r"run.start_from=three, but run.start_recipes .* make the run one") as caught:
        check_starts(load(StageRecipe, circle, ["run.start_from=three"]))
    assert caught.value.hint is not None and "run.start_recipes=[]" in caught.value.hint
    check_starts(load(StageRecipe, circle, ["run.start_from=three", "run.start_recipes=[]"]))

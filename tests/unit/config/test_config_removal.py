"""null and `!replace`: how a recipe takes away what the recipes below it say."""

from pathlib import Path

import pytest

from janus_dist.config.load import Loaded, load
from janus_dist.config.recipe import BaseRecipe, StageRecipe
from janus_dist.errors import ConfigError
from tests.unit.config.test_config_load import BASE, RECIPES, STAGE

INPUTS = """\
pipeline:
  jpeg_quality: 80
  inputs:
    understanding: {format: easy-vqa, where: {width: {min: 8}}}
    text: {format: pydoc}
    generation: {format: easy-vqa}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """base.yaml, with three inputs, and stage.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE + INPUTS)
    Path("stage.yaml").write_text(STAGE)
    return [Path("base.yaml"), Path("stage.yaml")]


def overlaid(files: list[Path], text: str, *overrides: str) -> StageRecipe:
    Path("my.yaml").write_text(text)
    return load(StageRecipe, [*files, Path("my.yaml")], overrides).recipe


def refused(files: list[Path], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(StageRecipe, files, overrides)
    return str(caught.value)


def test_null_removes_an_input_in_a_file_and_on_the_command_line(files: list[Path]):
    recipe = overlaid(files, "pipeline: {inputs: {text: null}}\n", "pipeline.inputs.generation=null")
    assert list(recipe.pipeline.inputs) == ["understanding"] and recipe.pipeline.jpeg_quality == 80


def test_null_removes_a_source_a_weight_and_a_rule(files: list[Path]):
    sources = "data: {sources: {text: {a: x/a, b: x/b}}}\nmix: {sources: {b: 2}}\n"
    nulls = ("data.sources.text.b=null", "mix.sources.b=null", "pipeline.inputs.understanding.where.width=null")
    recipe = overlaid(files, sources, *nulls)
    assert recipe.data.sources == {"text": {"a": "x/a"}} and recipe.mix.sources == {}
    assert recipe.pipeline.inputs["understanding"].where == {}
    assert overlaid(files, sources, "data.sources=null", "mix.sources=null").data.sources == {}


def test_null_gives_a_key_its_default_again_or_is_its_value(files: list[Path]):
    text = "optim: {eps: 1e-3, betas: [0.5, 0.6]}\nengine: {dtype: float32}\ntrain: {spike_sigmas: 4}\n"
    recipe = overlaid(files, text, "optim.eps=null", "optim.betas=null", "engine=null", "train.spike_sigmas=null")
    assert (recipe.optim.eps, recipe.optim.betas, recipe.engine.dtype) == (1e-8, (0.9, 0.95), "auto")
    assert recipe.train.spike_sigmas is None, "null means something of its own here"
    assert recipe.optim.lr == 1e-4


def test_null_of_what_is_required_is_refused(files: list[Path]):
    assert "run.name: should be a valid string; got null" in refused(files, "run.name=null")
    assert "batch: is a section with keys rows," in refused(files, "batch=null")


def test_an_empty_section_is_refused_rather_than_taken_for_null(files: list[Path]):
    Path("my.yaml").write_text("pipeline:\n  inputs:\n#    text: {format: pydoc}\nmonitor:\n")
    text = refused([*files, Path("my.yaml")])
    assert "my.yaml:2\n    pipeline.inputs: " in text and "my.yaml:4\n    monitor: is a section" in text


def test_null_for_an_input_that_is_not_there_is_refused(files: list[Path]):
    text = refused(files, "pipeline.inputs.txt=null")
    assert "override 'pipeline.inputs.txt=null'\n    pipeline.inputs.txt: cannot be removed, it does not exist" in text
    assert "did you mean 'text'?" in text
    load(StageRecipe, files, ["pipeline.inputs.text=null", "pipeline.inputs.text=null"])


def test_null_removes_all_inputs_and_a_later_file_or_override_gives_others(files: list[Path]):
    own = "pipeline: {inputs: {text: {format: jsonl, path: a.jsonl}}}\n"
    assert overlaid(files, "pipeline: {inputs: null}\n").pipeline.inputs == {}
    Path("none.yaml").write_text("pipeline: {inputs: null}\n")
    recipe = overlaid([*files, Path("none.yaml")], own)
    assert list(recipe.pipeline.inputs) == ["text"] and recipe.pipeline.inputs["text"].path == "a.jsonl"
    given = ["pipeline.inputs=null", "pipeline.inputs.generation.format=scenes"]
    assert list(load(StageRecipe, files, given).recipe.pipeline.inputs) == ["generation"]


@pytest.mark.parametrize("where", ["file", "override"])
def test_replace_takes_the_place_of_what_is_below_it(files: list[Path], where: str):
    inputs = "!replace {text: {format: jsonl, path: a.jsonl}}"
    if where == "file":
        recipe = overlaid(files, f"pipeline:\n  inputs: {inputs}\n")
    else:
        recipe = load(StageRecipe, files, [f"pipeline.inputs={inputs}"]).recipe
    assert list(recipe.pipeline.inputs) == ["text"] and recipe.pipeline.jpeg_quality == 80
    own = "pipeline: {inputs: {understanding: !replace {format: jsonl, path: a.jsonl}}}\n"
    assert overlaid(files, own).pipeline.inputs["understanding"].where == {}


def test_the_stage_before_lacks_what_was_removed_too(files: list[Path]):
    """What lies over a stage's own files goes to the stages before it as overrides."""
    Path("stage.yaml").write_text(STAGE.replace("{name: two}", "{name: two, start_from: one, start_recipes: [a.yaml]}"))
    Path("my.yaml").write_text("pipeline:\n  inputs: !replace\n    text: {format: pydoc}\ndata: {sources: null}\n")
    loaded = load(StageRecipe, [*files, Path("my.yaml")], ["pipeline.shard_samples=null"])
    _, overrides = loaded.beside("run.start_recipes")
    assert overrides == [
        "pipeline.inputs=null", "pipeline.inputs.text.format=\"pydoc\"", "pipeline.shard_samples=null",
        "data.sources=null",
    ]  # fmt: skip
    assert load(BaseRecipe, ["base.yaml"], overrides).recipe.pipeline.inputs.keys() == {"text"}


def test_a_removed_key_has_the_origin_of_a_default(files: list[Path]):
    loaded: Loaded[StageRecipe] = load(StageRecipe, files, ["pipeline.inputs.text=null", "pipeline.shard_samples=null"])
    assert loaded.origin["pipeline.shard_samples"] == "default"
    assert not any(key.startswith("pipeline.inputs.text") for key in loaded.origin)


def test_a_recipe_of_ones_own_data_has_none_of_the_defaults_inputs(tmp_path: Path):
    """The recipe of docs/quickstart.md over the embedded default."""
    page = (RECIPES.parents[1] / "docs" / "quickstart.md").read_text()
    lines = page.partition("    run: {root: runs/mine}\n")[2].splitlines()
    text = "run: {root: runs/mine}\n"
    for line in lines:
        if not line.startswith("    "):
            break
        text += line.removeprefix("    ") + "\n"
    (tmp_path / "my.yaml").write_text(text)
    found = load(BaseRecipe, [RECIPES / "tiny" / "base.yaml", tmp_path / "my.yaml"]).recipe
    assert found.pipeline.inputs and not {one.format for one in found.pipeline.inputs.values()} & {"easy-vqa", "pydoc"}

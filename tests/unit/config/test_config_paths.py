"""Settings that are paths: variables and `~` expanded in one place, known URL schemes only, plain names of folders."""

import json
from pathlib import Path

import pytest

from janus_dist.config.load import load, save
from janus_dist.config.paths import PathRule
from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ConfigError
from tests.unit.config.test_config_load import BASE, STAGE


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, two variables, and base.yaml and stage.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("stage.yaml").write_text(STAGE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DISK", "/mnt/disk")
    monkeypatch.setenv("HOMELY", "~/inner")
    monkeypatch.delenv("NOWHERE", raising=False)
    return tmp_path / "home"


def loaded(*overrides: str) -> StageRecipe:
    return load(StageRecipe, ["base.yaml", "stage.yaml"], overrides).recipe


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(*overrides)
    return str(caught.value)


def test_every_kind_of_path_is_expanded(home: Path):
    recipe = loaded(
        "run.root=~/runs", "run.checkpoints=s3://bucket/$DISK", "data.root=${DISK}/data", "data.tokenizer=~/t.json",
        "run.start_weights={janus: $DISK/janus}", "run.resume=$DISK/step-1", "data.sources.text={web: ~/web}",
        "pipeline.inputs={text: {format: jsonl, path: ['~/a/*.jsonl', $DISK/b], images: ~/i, class_names: null}}",
        "data.read.cache_dir=$HOMELY", "monitor.prompts=$DISK$DISK", "cluster.notice_file=/x/$$DISK$",
        "evaluate.benchmarks.pope=~/pope",
    )  # fmt: skip
    assert (recipe.run.root, recipe.data.root) == (f"{home}/runs", "/mnt/disk/data")
    assert recipe.data.tokenizer == f"{home}/t.json"
    assert recipe.run.checkpoints == "s3://bucket//mnt/disk" and recipe.run.resume == "/mnt/disk/step-1"
    assert recipe.run.start_weights == {"janus": "/mnt/disk/janus"}
    assert recipe.data.sources == {"text": {"web": f"{home}/web"}}
    text = recipe.pipeline.inputs["text"]
    assert (text.path, text.images) == ((f"{home}/a/*.jsonl", "/mnt/disk/b"), f"{home}/i")
    assert recipe.data.read.cache_dir == f"{home}/inner" and recipe.monitor.prompts == "/mnt/disk/mnt/disk"
    assert recipe.cluster.notice_file == "/x/$DISK$" and recipe.evaluate.benchmarks == {"pope": f"{home}/pope"}


def test_tilde_of_yaml_is_null_and_said_to_be():
    assert "data.root: should be a valid string; got null" in refused("data.root=~")


def test_a_saved_recipe_is_not_expanded_twice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISK", "/mnt/$NOWHERE")
    recipe = load(StageRecipe, ["base.yaml", "stage.yaml"], ["data.root=$DISK/~", "data.tokenizer=a$$HOME"])
    assert (recipe.recipe.data.root, recipe.recipe.data.tokenizer) == ("/mnt/$NOWHERE/~", "a$HOME")
    save(recipe, Path("run"))
    assert load(StageRecipe, ["run/config.json"]).recipe == recipe.recipe
    assert StageRecipe.model_validate(json.loads(recipe.recipe.model_dump_json())) == recipe.recipe


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("$NOWHERE/data", "the environment variable NOWHERE is not set; set it, or write $$ for a literal $"),
        ("${NOWHERE}", "the environment variable NOWHERE is not set"),
        ("'${DISK:-x}'", "'${DISK:-x}' is not a variable; write $NAME or ${NAME}"),
        ("'${DISK'", "'${DISK' is not a variable"),
        (
            "~nobody-here/x",
            "'~nobody-here/x': ~nobody-here has no home folder; for a folder of that name write ./~nobody-here",
        ),
        ("''", "'' is not a path"),
        ("'$EMPTY'", "'$EMPTY' is not a path after its variables are expanded"),
    ],
)
def test_what_cannot_be_expanded_is_named_with_its_line(value: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EMPTY", "")
    Path("stage.yaml").write_text(f"{STAGE}data:\n  root: {value}\n")
    assert f"stage.yaml:11\n    data.root: {said}" in refused()


KNOWN = "is a URL of a kind that is not supported; use a path, s3:// or file://"


@pytest.mark.parametrize("url", ["gs://b/x", "hf://datasets/x", "https://x/y", "simplecache::s3://b/x", "memory://x"])
def test_unknown_kinds_of_urls_are_refused_with_the_known_ones(url: str):
    for setting in ("data.root", "run.checkpoints", "data.validation_root", "data.sources.text.web"):
        assert f"{setting}: '{url}' {KNOWN}" in refused(f"{setting}={url}")
    assert f"pipeline.inputs.text.path: '{url}' {KNOWN}" in refused(
        f"pipeline.inputs.text={{format: jsonl, path: '{url}'}}"
    )
    assert f"data.tokenizer: '{url}' is a URL of a kind that is not supported; give a path" in refused(
        f"data.tokenizer={url}"
    )


def test_a_password_in_a_url_of_another_kind_is_not_shown():
    text = refused("data.root=https://me:secret@host/x")
    assert "'https://***@host/x' is a URL of a kind" in text and "secret" not in text


@pytest.mark.parametrize("url", ["S3://b/x", "s3:/b/x", "s3a://b/x", "s3:///"])
def test_a_store_that_is_written_wrongly_is_refused_with_the_right_form(url: str):
    assert "write s3://" in refused(f"data.root={url}")


def test_a_colon_in_a_path_is_no_scheme():
    for path in ("a:b", "/x/http://y", "2026-11-30T10:00", "s3:bucket"):
        assert loaded(f"data.root='{path}'").data.root == path


def test_a_file_url_is_a_path():
    assert loaded("data.root=file:///a%20b/c", "run.root=file:/x").data.root == "/a b/c"
    assert loaded("run.root=file://localhost/x").run.root == "/x"
    assert "is not a file of this machine" in refused("data.root=file://host/x")


def test_a_run_is_on_a_disk_and_the_hint_says_what_may_be_in_a_store():
    text = refused("run.root=s3://bucket/runs")
    assert "run.root: must be on a disk, got 's3://bucket/runs'; only run.checkpoints may be in a store" in text
    assert loaded("run.checkpoints=s3://bucket/runs").run.saved_in == "s3://bucket/runs/two"


@pytest.mark.parametrize("name", ["../../x", "a/b", ".", "..", "''", '"a\\nb"', "x" * 201])
def test_a_name_that_is_no_folder_is_refused(name: str):
    assert "run.name: must " in refused(f"run.name={name}")
    Path("my.yaml").write_text(f"pipeline: {{inputs: {{? {name} : {{stream: text, format: pydoc}}}}}}\n")
    with pytest.raises(ConfigError, match=r"pipeline\.inputs\.[^\[]* must "):
        load(StageRecipe, ["base.yaml", "stage.yaml", "my.yaml"])


def test_names_that_were_taken_are_taken():
    for name in ("run 1", "a.b", "lr=1e-4", "a+b", "e-0"):
        assert loaded(f"run.name='{name}'").run.name == name


def test_every_setting_that_is_a_path_is_typed_as_such():
    """What `with_paths` changes is what the schema calls paths; so a new path cannot be left out of either."""
    recipe = loaded(
        "run.checkpoints=a", "run.start_weights={janus: a}", "run.resume=a", "data.validation_root=a",
        "data.sources={text: {web: a}}", "data.read.cache_dir=a", "monitor.prompts=a", "evaluate.benchmarks={pope: a}",
        "pipeline.inputs={text: {format: folders, stream: generation, path: [a], images: a, class_names: a}}",
    )  # fmt: skip
    moved = recipe.with_paths(lambda path: f"/moved/{path}").model_dump(mode="json")
    apart = [name for name, value in _texts(moved) if "/moved/" in value]
    typed = {name for name in _typed(StageRecipe)}
    not_moved = {"run.start_recipes", "cluster.notice_file"}  # beside the file that names them; on the node
    assert {
        name.removesuffix(".janus").removesuffix(".text.web").removesuffix(".pope") for name in apart
    } == typed - not_moved


def _texts(tree: object, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(tree, dict):
        return [found for key, inner in tree.items() for found in _texts(inner, f"{prefix}.{key}" if prefix else key)]
    if isinstance(tree, list):
        return [found for inner in tree for found in _texts(inner, prefix)]
    return [(prefix, tree)] if isinstance(tree, str) else []


def _typed(kind: type, prefix: str = "") -> list[str]:
    found = []
    for name, field in kind.model_fields.items():  # pyright: ignore[reportAttributeAccessIssue]
        text = repr(field.annotation) + repr(field.metadata)
        if "PathRule" in text:
            found.append(prefix + name)
        section = field.annotation
        if name == "inputs":
            found += _typed(section.__args__[1], f"{prefix}inputs.text.")
        elif hasattr(section, "model_fields"):
            found += _typed(section, f"{prefix}{name}.")
    return found


def test_the_words_of_the_reference_name_the_kind():
    assert PathRule(is_store_allowed=True).kind == "path or `s3://` URL"

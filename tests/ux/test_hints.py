"""Hints on recipes, paths and command lines, followed: what each says is read from the error, done, and succeeds."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from janus_dist.cli import submit
from janus_dist.cli.job import recipe_from_args, take_choice, take_number
from janus_dist.config.fields import keys
from janus_dist.config.load import load
from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import ConfigError
from tests.unit.config.test_config_load import BASE, STAGE

FILES = ["base.yaml", "stage.yaml"]
QUOTED = re.compile(r"did you mean '([^']*)'\?")


@pytest.fixture(autouse=True)
def recipe_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """base.yaml and stage.yaml in the current folder; two variables of the environment."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("stage.yaml").write_text(STAGE)
    monkeypatch.setenv("DISK", "/mnt")
    monkeypatch.delenv("NOWHERE", raising=False)


def accepted(*overrides: str, files: Sequence[str] = FILES) -> StageRecipe:
    return load(StageRecipe, list(files), overrides).recipe


def refused(*overrides: str, files: Sequence[str] = FILES) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(StageRecipe, list(files), overrides)
    return caught.value


def overrides_in(text: str) -> list[str]:
    """Return the overrides that a text names, as a shell would read them."""
    return [word for word in shlex.split(text) if re.match(r"[a-z_]+(\.\w+)*=", word)]


def after(error: ConfigError, words: str) -> str:
    """Return what follows some words in a message, up to the end of the line."""
    assert words in str(error)
    return str(error).partition(words)[2].partition("\n")[0]


def misspelt(key: str) -> str:
    section, _, last = key.rpartition(".")
    wrong = f"{last}x" if len(last) < 4 else last[:2] + last[3:]
    return f"{section}.{wrong}" if section else wrong


@pytest.mark.parametrize("key", [key for key in keys(StageRecipe) if "NAME" not in key])
def test_the_key_that_is_suggested_for_a_misspelt_one_exists(key: str):
    wrong = misspelt(key)
    message = after(refused(f"{wrong}=null"), f"    {wrong}: no such key; ")
    names = re.findall(r"'([^']*)'", message) or message.removeprefix("the keys are ").split(", ")
    section = key.rpartition(".")[0]
    assert key in [f"{section}.{name}".lstrip(".") if "." not in name else name for name in names]


@pytest.mark.parametrize("key", [key for key in keys(StageRecipe) if "NAME" not in key])
def test_a_key_in_the_wrong_section_is_found_in_its_own(key: str):
    last = key.rpartition(".")[2]
    if last not in StageRecipe.model_fields:
        assert f"'{key}'" in after(refused(f"{last}=null"), f"    {last}: no such key; did you mean ")


def test_a_misspelt_value_a_file_and_an_input_are_suggested():
    meant = QUOTED.search(str(refused("mix.unit=token")))
    assert meant is not None and accepted(f"mix.unit={meant[1]}").mix.unit == "tokens"
    meant = QUOTED.search(str(refused(files=["base.yaml", "stge.yaml"])))
    assert meant is not None and accepted(files=["base.yaml", meant[1]]).stage == 2
    own = "pipeline.inputs.photos={format: jsonl, path: a, stream: text}"
    meant = QUOTED.search(str(refused(own, "pipeline.inputs.photo=null")))
    assert meant is not None and accepted(own, f"pipeline.inputs.{meant[1]}=null").pipeline.inputs == {}


def test_a_text_in_quotes_is_taken_in_a_file_and_from_a_shell():
    Path("stage.yaml").write_text(STAGE.replace("name: two", "name: 2026"))
    assert "put it in quotes" in str(refused())
    Path("stage.yaml").write_text(STAGE.replace("name: two", "name: '2026'"))
    assert accepted().run.name == "2026"
    for value in ("2026", "true"):
        hint = after(refused(f"run.name={value}"), "put it in quotes ")
        assert accepted(*overrides_in(hint)).run.name == value


def test_the_form_of_a_ratio_is_taken_in_a_file_and_from_a_shell():
    hint = after(refused("mix=2:3:5"), "one number for each stream: ")
    assert accepted(*overrides_in(hint)).mix.generation == 5
    wrong = re.sub("mix: .*", "mix: 2:3:5", STAGE)
    Path("stage.yaml").write_text(wrong)
    hint = after(refused(), "one number for each stream: ")
    Path("stage.yaml").write_text(wrong.replace("mix: 2:3:5", hint))
    assert accepted().mix.generation == 5
    assert "write one number without colons" in str(refused("engine.timeout_s=1:30"))
    accepted("engine.timeout_s=90")


def test_the_files_that_a_base_recipe_is_given_with():
    Path("mine.yaml").write_text("optim: {lr: 0.5}\n")
    hint = refused(files=["stage.yaml", "mine.yaml"]).hint or ""
    assert accepted(files=hint.partition(": give ")[2].split()).optim.lr == 0.5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["batch.row_tokens=10"], "set it to "),
        (["mix.unit=samples", "batch.samples=6", "mix.text=0.01"], "set batch.samples="),
        (["model.reads_by=vq"], "set model.vision.patch="),
    ],
)
def test_the_number_that_a_rule_names_fits(overrides: list[str], words: str):
    error = refused(*overrides)
    number = re.match(r"\d+", after(error, words))
    assert number is not None
    key = words.split()[1].rstrip("=") if "=" in words else "batch.row_tokens"
    accepted(*overrides, f"{key}={number[0]}")


def test_what_is_required_or_has_no_effect_is_named_by_its_setting():
    key = re.search(r"(\S+) is required with mix.unit=samples", str(refused("mix.unit=samples")))
    assert key is not None and accepted("mix.unit=samples", f"{key[1]}=16").batch.samples == 16
    without = re.search(r"(batch.samples)=16 has no effect .*; leave it out", str(refused("batch.samples=16")))
    assert without is not None and accepted("batch.samples=16", f"{without[1]}=null").batch.samples is None
    own = "pipeline.inputs.photos={format: jsonl, path: a}"
    key = re.search(r"(inputs.photos.stream) is required, because 'photos' is not one of (\w+)", str(refused(own)))
    assert key is not None and accepted(own, f"pipeline.{key[1]}={key[2]}").pipeline.inputs
    key = re.search(r"(inputs.text.path) is required", str(refused("pipeline.inputs.text.format=jsonl")))
    assert key is not None and accepted("pipeline.inputs.text.format=jsonl", f"pipeline.{key[1]}=a").pipeline.inputs


def test_shares_and_sources_that_a_mixture_lacks():
    none = "mix={understanding: 0, text: 0, generation: 0}"
    assert "give at least one stream a share" in str(refused(none)) and accepted(none, "mix.text=1").mix.text == 1
    sources = "data.sources.text={web: w}"
    assert "mix.text: all its sources have weight 0 from step 0 on; give one a weight" in str(
        refused(sources, "mix.sources.web=0")
    )
    accepted(sources, "mix.sources.web=1")
    there = after(refused(sources, "mix.sources.wbe=2"), "data.sources, which has ").split(", ")
    assert "web" in there and accepted(sources, f"mix.sources.{there[-1]}=2")
    assert "leave it out" in str(refused("data.sources.text={}"))


def test_changes_of_a_mixture_and_bounds_of_a_rule():
    phases = ["{from_step: 5, text: 2}", "{from_step: 3, text: 3}"]
    assert "put changes in the order of steps" in str(refused(f"mix.then=[{', '.join(phases)}]"))
    accepted(f"mix.then=[{', '.join(reversed(phases))}]")
    rule = "pipeline.inputs.text={{format: jsonl, path: a, where: {{made: {{min: {}, max: 2024-05-31}}}}}}".format
    assert "a number and a date; give two numbers or two dates" in str(refused(rule("3")))
    accepted(rule("2023-05-31"))


@pytest.mark.parametrize(
    "wrong",
    [
        ["run.start_from=two"],
        ["run.start_from=one", "run.start_weights={janus: w}"],
        ["run.start_weights={janus: w, language_model: l, vision_tower: v}"],
    ],
)
def test_one_start_is_left_by_any_override_that_is_named(wrong: list[str]):
    hint = after(refused(*wrong), "set ")
    for alternative in hint.split(" or "):
        accepted(*wrong, *overrides_in(alternative))


def test_texts_that_yaml_reads_as_truth_values():
    rule = "pipeline.inputs.text={format: jsonl, path: a, where: {watermark: {one_of: [true, maybe]}}}"
    written = re.search(r"write (\[.*\]) for texts", str(refused(rule)))
    assert written is not None
    kept = accepted(rule.replace("[true, maybe]", written[1])).pipeline.inputs["text"].where["watermark"]
    assert kept.one_of == ("true", "maybe")


def test_signs_of_a_variable_that_are_meant_as_such():
    for wrong in ("$NOWHERE/x", "a${NOWHERE}"):
        sign = re.search(r"write (\S+) for a literal", str(refused(f"data.root={wrong}")))
        assert sign is not None
        assert accepted(f"data.root={wrong.replace('$', sign[1])}").data.root == wrong
    form = re.search(r"write (\S+) or (\S+), or", str(refused("data.root='${DISK:-x}/a'")))
    assert form is not None
    for written in form.groups():
        assert accepted(f"data.root='{written.replace('NAME', 'DISK')}/a'").data.root == "/mnt/a"


def test_a_variable_that_is_set_is_expanded(monkeypatch: pytest.MonkeyPatch):
    name = re.search(r"variable (\w+) is not set; set it", str(refused("data.root=$NOWHERE/x")))
    assert name is not None
    monkeypatch.setenv(name[1], "/there")
    assert accepted("data.root=$NOWHERE/x").data.root == "/there/x"


def test_a_folder_that_is_called_like_a_home():
    folder = after(refused("data.root=~nobody-here/x"), "for a folder of that name write ")
    assert accepted(f"data.root={folder}/x").data.root == "./~nobody-here/x"


@pytest.mark.parametrize(
    ("setting", "wrong", "pattern", "right"),
    [
        ("data.root", "s3a://b/x", r"write (s3://) in lower case", r"\1b/x"),
        ("data.root", "S3:/b/x", r"write (s3://) in lower case", r"\1b/x"),
        ("data.root", "s3://", r"write (s3://BUCKET/FOLDER)", r"\1"),
        ("data.root", "file://host/x", r"write (file:///FOLDER), or the path alone", r"\1"),
        ("data.root", "gs://b/x", r"use a path, (s3://)", r"\1b/x"),
        ("run.root", "s3://b/x", r"(run.checkpoints) may be in a store", ""),
        ("run.root", "s3a://b/x", r"(run.checkpoints) may be in a store", ""),
    ],
)
def test_the_form_of_a_url_that_a_message_gives(setting: str, wrong: str, pattern: str, right: str):
    found = re.search(pattern, str(refused(f"{setting}={wrong}")))
    assert found is not None
    if right:
        assert accepted(f"{setting}={found.expand(right)}").data.root.startswith(("s3://", "/FOLDER"))
    else:
        assert accepted(f"{found[1]}=s3://b/x").run.checkpoints == "s3://b/x"


@pytest.mark.parametrize("wrong", ["s3://b/t.json", "s3a://b/t.json", "gs://b/t.json", "https://x/t.json"])
def test_what_is_read_from_a_disk_only_asks_for_a_path(wrong: str):
    text = str(refused(f"data.tokenizer={wrong}"))
    assert text.endswith("give a path") and "write s3" not in text
    accepted("data.tokenizer=t.json")


def test_a_password_in_a_url_is_given_by_the_environment():
    text = str(refused("data.root=https://me:secret@host/x"))
    assert "set credentials in the environment (AWS_ACCESS_KEY_ID, ...)" in text
    accepted("data.root=s3://bucket/x")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--lr", "0.5"), ("--optim.lr", "0.5"), ("--dtype", "float32"), ("--row-tokens", "256"), ("--workers", "4")],
)
def test_an_option_that_a_job_lacks_is_given_as_the_setting_that_is_named(option: str, value: str):
    with pytest.raises(ConfigError) as caught:
        recipe_from_args(StageRecipe, [Path(name) for name in FILES], [f"{option}={value}"])
    (setting,) = re.findall(r"(\S+)=VALUE", caught.value.hint or "")
    accepted(f"{setting}={value}")


def test_an_option_that_means_no_setting_points_to_the_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ConfigError) as caught:
        recipe_from_args(StageRecipe, [], ["--verbose-xyz"])
    hint = caught.value.hint or ""
    assert hint.startswith("settings are given as key.path=VALUE")
    with pytest.raises(SystemExit):
        recipe_from_args(StageRecipe, [], [word for word in hint.split() if word.startswith("--")])
    assert "key.path=value" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--limit"], ["--limit", "x"], ["--limit=0"], ["--limit", "-3"]])
def test_a_number_is_written_as_the_hint_does(given: list[str]):
    with pytest.raises(ConfigError) as caught:
        take_number(given, "--limit")
    words = (caught.value.hint or "").removeprefix("write ").split()
    assert take_number(["a.yaml", *words], "--limit") == (["a.yaml"], 200)


@pytest.mark.parametrize("given", [["--dtype"], ["--dtype", "float16"]])
def test_a_choice_is_written_as_the_hint_does(given: list[str]):
    with pytest.raises(ConfigError) as caught:
        take_choice(given, "--dtype", ("bfloat16", "float32"))
    words = (caught.value.hint or "").removeprefix("write ").split()
    assert take_choice(words, "--dtype", ("bfloat16", "float32")) == ([], "bfloat16")


def test_a_variable_for_a_submitted_job_is_written_as_the_hint_does():
    with pytest.raises(ConfigError) as caught:
        submit.variables({}, ["NCCL_DEBUG"])
    given = (caught.value.hint or "").removeprefix("write --env ")
    assert submit.variables({}, [given]) == {"NCCL_DEBUG": "INFO"}

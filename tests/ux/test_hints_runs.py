"""Hints on runs, checkpoints, prompts and exports, followed: each is read from the error and leads to success."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.find import find, recipe_of, refuse_if_never, require_checkpoint
from janus_dist.cli.main import app
from janus_dist.config.load import Loaded, save
from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import CheckpointError, ConfigError, DataError
from janus_dist.evaluation.prompts import read_prompts
from janus_dist.report.curves import Curve, follow
from janus_dist.storage import fs
from janus_dist.train import compatible
from tests import checkpoints, prepared
from tests.ux.following import found, hint_of, refused


def janus(*arguments: str | Path) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def recipe_with(root: Path, **sections: dict[str, Any]) -> StageRecipe:
    return prepared.recipe(root, root, 2, **sections)


def with_overrides(recipe: StageRecipe, *overrides: str) -> StageRecipe:
    """Return the recipe with overrides over it."""
    folder = Path(recipe.run.root) / "written"
    save(Loaded(recipe, {}, (), ()), folder)
    return recipe_of(folder, overrides)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of six steps with whole checkpoints of steps 3 and 4, and its losses."""
    recipe = recipe_with(tmp_path)
    save(Loaded(recipe, {}, (), ()), recipe.run.dir)
    for step in (3, 4):
        path = checkpoints.mark(recipe.run.saved_in, step, recipe=recipe.model_dump(mode="json"))
        content = bytes([step]) * 100
        fs.write_whole(f"{path}/__0_0.distcp", content)
        described = {"__0_0.distcp": commits.describe(f"{path}/__0_0.distcp")}
        fs.remove(f"{path}/{commits.MARKER}")
        said: dict[str, Any] = checkpoints.IDENTITY | {"recipe": recipe.model_dump(mode="json")}
        commits.write_marker(
            path,
            commits.Commit(
                commits.VERSION, step, world=1, optimizer_steps=step, shapes={}, trainable=[], files=described, **said
            ),
        )
    lines = [{"step": step, "time": 1.0, "loss/all": 4.0 - 0.1 * step, "loss/text": 3.0} for step in range(1, 7)]
    (recipe.run.dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return recipe.run.dir


@pytest.fixture
def recipe(run_dir: Path) -> StageRecipe:
    return recipe_with(run_dir.parent)


def test_a_damaged_checkpoint_is_deleted_as_the_hint_says(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    path = commits.folder(f"{run_dir}/checkpoints", 4)
    commit = commits.read(path)
    Path(path, "__0_0.distcp").write_bytes(b"short")
    hint = hint_of(commits.verify, path, commit)
    assert "delete them to free disk space" in hint_of(janus, "ckpt", "verify", run_dir)
    shutil.rmtree(found(r"delete (\S+) to fall back on the previous checkpoint", hint)[1])
    janus("ckpt", "verify", run_dir)
    assert require_checkpoint(f"{run_dir}/checkpoints").endswith("3") and "whole" in capsys.readouterr().out


def test_commands_on_checkpoints_that_hints_name_say_what_is_there(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    for path in commits.folders(f"{run_dir}/checkpoints"):
        fs.remove(f"{path}/{commits.MARKER}")
    command = found(r"with `janus (ckpt list)`", hint_of(janus, "ckpt", "show", run_dir))[1].split()
    janus(*command, run_dir)
    assert capsys.readouterr().out.count("not committed") == 2


def test_a_checkpoint_is_found_in_the_folder_of_a_run(run_dir: Path):
    for command in (["ckpt", "list"], ["ckpt", "verify"]):
        assert "folder" in hint_of(janus, *command, run_dir.parent / "none")
        janus(*command, run_dir)
    assert "give the folder of a run (RUN_ROOT/NAME)" in hint_of(find, str(run_dir.parent / "data"))
    recipe = recipe_of(run_dir)
    form = found(r"folder of a run \((\w+)/(\w+)\)", hint_of(find, str(run_dir.parent)))
    assert find(f"{recipe.run.root}/{recipe.run.name}")[1].endswith("4") and form[1] == "RUN_ROOT"
    _, path = find(str(run_dir))
    assert find(path)[1] == path


@pytest.mark.parametrize(
    "command",
    [
        ["ckpt", "list"],
        ["ckpt", "verify"],
        ["ckpt", "show"],
        ["ckpt", "prune", "--keep", "1"],
        ["export"],
        ["sample"],
        ["sample", "--follow"],
    ],
    ids=" ".join,
)
def test_a_source_with_an_unknown_scheme_is_refused_as_in_a_recipe(run_dir: Path, command: list[str]):
    target = [str(run_dir.parent / "out")] if command == ["export"] else []
    for url in ("gs://bucket/run", "hf://x/y", "memory://x"):
        error = refused(janus, *command, url, *target)
        assert isinstance(error, ConfigError) and "use a path, s3:// or file://" in error.message
    with pytest.raises(ConfigError) as caught:
        with_overrides(recipe_with(run_dir.parent), "run.checkpoints=gs://bucket/run")
    assert refused(janus, *command, "gs://bucket/run", *target).message in str(caught.value)
    with contextlib.suppress(CheckpointError, DataError):  # of weights and a tokenizer that this run lacks
        if command[-1] != "--follow":
            janus(*command, f"file://{run_dir}", *target)


def test_a_run_that_may_not_resume_gets_another_name_or_resumes(recipe: StageRecipe):
    never = with_overrides(recipe, "run.resume=never")
    name, resume = found(
        r"\((run\.name)=\.\.\.\), .*\((run\.resume=auto)\)", hint_of(refuse_if_never, never.run)
    ).groups()
    refuse_if_never(with_overrides(never, f"{name}=other").run)
    refuse_if_never(with_overrides(never, resume).run)


def new_run(hint: str) -> list[str]:
    """Return the overrides by which a hint starts a new run from these weights."""
    text = found(r"start a new run \(run\.name=\.\.\.\) from these weights with (.*)$", hint)[1]
    return ["run.name=other", *text.split()]


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, []),
        ({"run": {"start_from": "one", "start_recipes": ("a.yaml",)}}, ["run.start_recipes=[]"]),
        ({"run": {"start_weights": {"janus": "w"}}}, ["run.start_weights=null"]),
    ],
)
def test_a_new_run_from_the_weights_of_this_one(run_dir: Path, changes: dict[str, Any], own: list[str]):
    recipe = recipe_with(run_dir.parent, engine={"dtype": "bfloat16"}, **changes)
    overrides = new_run(hint_of(compatible.refuse_other, recipe))
    assert overrides[2:] == own
    other = with_overrides(recipe, *overrides)
    compatible.refuse_other(other)
    assert other.run.start_from == "run" and not other.run.start_recipes and not other.run.start_weights
    auto = found(r"set (engine\.dtype=auto)", hint_of(compatible.refuse_other, recipe))[1]
    compatible.refuse_other(with_overrides(recipe, auto))


def test_a_run_is_long_enough_by_the_number_that_is_named(run_dir: Path):
    short = recipe_with(run_dir.parent, train={"steps": 2, "save_every_steps": 1})
    steps = found(r"set (train\.steps=\d+) or more", hint_of(compatible.refuse_other, short))[1]
    compatible.refuse_other(with_overrides(short, steps))


def test_a_vocabulary_holds_the_tokenizer_by_the_number_that_is_named(tmp_path: Path):
    prepared.prepare(tmp_path)
    words = SimpleNamespace(size=prepared.VOCAB + 9, sha256="")
    hint = hint_of(compatible.check_data, recipe_with(tmp_path), words, {})
    override = found(r"(model\.text\.vocab=\d+) or more", hint)[1]
    compatible.check_data(with_overrides(recipe_with(tmp_path), override), words, {})  # pyright: ignore[reportArgumentType]


def test_runs_are_found_under_the_names_that_are_suggested(run_dir: Path, capsys: pytest.CaptureFixture[str]):
    root = run_dir.parent
    name = found(r"name one of them: (\w+)", hint_of(janus, "runs", "show", root))[1]
    janus("runs", "show", root / name)
    janus("runs", "show", found(r"did you mean (\S+)\?", hint_of(janus, "runs", "show", root / "runn"))[1])
    names = found(r"the runs in \S+ are (\w+)", hint_of(janus, "runs", "show", root / "zzz"))[1]
    janus("runs", "show", root / names)
    assert "give the folder of runs" in hint_of(janus, "runs", "list", root / "none")
    janus("runs", "list", root)
    assert "give the folder of a run or of several" in hint_of(janus, "report", root / "none")
    assert "run" in capsys.readouterr().out


def test_curves_are_written_by_the_command_that_is_named(run_dir: Path, tmp_path: Path):
    file = tmp_path / "curve.json"
    command = found(r"`janus (runs curve) RUN FILE`", hint_of(Curve.read, file, "float32"))[1].split()
    janus(*command, run_dir, file)
    assert Curve.read(file, "float32").steps == 6
    command = found(r"`janus (runs curve) RUN FILE`", hint_of(Curve.read, file, "bfloat16"))[1].split()
    values = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(values | {"engine": values["engine"] | {"dtype": "bfloat16"}}))
    janus(*command, run_dir, file)
    assert Curve.read(file, "bfloat16").steps == Curve.read(file, "float32").steps
    assert "give the folder of a run" in hint_of(Curve.of, tmp_path)
    other = Curve.read(file, "float32")
    changed = Curve(other.machine, other.packages, {"generation": other.losses["text"]}, other.dtype)
    assert "the curve of the same stage" in hint_of(follow, other, changed)
    follow(other, other)


@pytest.mark.parametrize(
    "wrong", ["", '{"promt": "a circle"}\n', '{"prompt": " "}\n', '{"question": "what?", "images": 3}\n', "[]\n"]
)
def test_prompts_are_written_as_the_hint_does(tmp_path: Path, wrong: str):
    path = tmp_path / "prompts.jsonl"
    path.write_text(wrong)
    lines = re.findall(r"\{[^}]*\}", hint_of(read_prompts, path))
    right = [line.replace("TEXT", '"a circle"').replace("FILE, ...", '"a.png"') for line in lines]
    path.write_text("".join(f"{line}\n" for line in right))
    assert len(read_prompts(path)) == len(right) > 0


def test_options_of_plan_sample_and_export(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert hint_of(janus, "sample", run_dir, "--image", "a.png") == "ask something about it: --question TEXT"
    asked = refused(janus, "sample", run_dir, "--image", "a.png", "--question", "what?")
    assert "--question" not in asked.message, "the next fault is another one"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("")
    assert "give another folder, or delete this one" in hint_of(janus, "export", run_dir, tmp_path / "out")
    other = refused(janus, "export", run_dir, tmp_path / "other")
    assert "already exists" not in other.message
    gpu = tmp_path / "gpu.json"
    gpu.write_text(
        json.dumps(recipe_with(tmp_path, cluster={"gpu": True}, run={"name": "new"}).model_dump(mode="json"))
    )
    prepared.prepare(tmp_path / "made")
    text = gpu.read_text().replace(f"{tmp_path}/data", f"{tmp_path}/made/data")
    gpu.write_text(text.replace(f"{tmp_path}/tokenizer", f"{tmp_path}/made/tokenizer"))
    hint = hint_of(janus, "plan", gpu, "--device", "Z9")
    for device in re.findall(r"[A-Z]\w*\d\w*", hint):
        janus("plan", gpu, "--device", device)
    assert "H100" in capsys.readouterr().out

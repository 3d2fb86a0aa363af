"""`janus check`: every fault at once and numbered, with the exit code of the first; what is well is said too."""

import json

import fsspec
import pytest
import yaml
from ray._private import services

from data_pipelines.prepare import prepare_data
from janus_dist.checkpoint import commits
from janus_dist.checkpoint.commits import Commit
from janus_dist.cli.main import app
from janus_dist.config.load import Loaded, load, save
from janus_dist.config.recipe import StageRecipe
from janus_dist.errors import DataError
from janus_dist.launch import session
from tests import prepared


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Shards, a tokenizer and a recipe for them in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(session, "resources", lambda: None)  # of whatever else runs on this machine
    prepared.prepare(tmp_path)
    recipe = prepared.recipe(tmp_path, tmp_path / "runs", 2)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return tmp_path


@pytest.fixture
def check(capsys):
    """Run `janus check recipe.yaml ARGUMENTS`: exit code and stdout."""

    def run(*arguments):
        code = 0
        try:
            app(["check", "recipe.yaml", *arguments], standalone_mode=False)
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().out

    return run


def marker(recipe: StageRecipe, step: int) -> Commit:
    """Of a checkpoint without files."""
    values = {
        "version": commits.VERSION, "step": step, "plan_digest": "p", "plan": {"base": None}, "cursors": {},
        "recipe": recipe.model_dump(mode="json"), "world": 2, "optimizer_steps": step, "tokens": 9, "losses": [],
        "left_out": [], "shapes": {}, "trainable": [], "files": {},
    }  # fmt: skip
    return Commit(**values)


def test_nothing_in_the_way(folder, check):
    code, out = check()
    assert code == 0
    lines = out.splitlines()
    assert lines[-2:] == [
        "all checks passed that could be made now; not checked:",
        "  no Ray cluster answers here: a local Ray would be started, whose room for the ranks is not known",
    ]
    assert "  text: 40 samples, " in out and "  starts from random weights" in lines
    assert not list((folder / "runs").rglob("*.writable"))


def test_all_checks_pass_where_all_could_be_made(folder, check, monkeypatch):
    monkeypatch.setattr(session, "resources", lambda: [{"CPU": 2.0}])
    assert check()[1].splitlines()[-1] == "all checks passed"


def test_shards_that_are_still_to_be_made_are_not_checked(folder, check, monkeypatch):
    monkeypatch.setattr(session, "resources", lambda: [{"CPU": 2.0}])
    (folder / "pages.jsonl").write_text('{"text": "a page"}\n')
    given = "pipeline.inputs={pages: {stream: text, format: jsonl, path: pages.jsonl}}"
    said = "shards of pages are made first: whether they fit the model, and the plan, is not known"
    code, out = check(given)
    assert code == 0 and out.splitlines()[-2:] == [
        "all checks passed that could be made now; not checked:", f"  {said}",
    ]  # fmt: skip
    assert json.loads(check("--json", given)[1])["not_checked"] == [said]


def test_shards_that_exist_are_checked_beside_those_still_to_be_made(folder, check, monkeypatch):
    monkeypatch.setattr(session, "resources", lambda: [{"CPU": 2.0}])
    given = "pipeline.inputs={pages: {stream: text, format: jsonl, path: 'pages/*.jsonl'}}"
    code, out = check(given)
    assert code == 0 and "pipeline.inputs.pages.path=pages/*.jsonl: the files that it names are listed when" in out
    code, out = check(given, "data.validation_root=data")
    assert "data.validation_root=data is compared with the shards when those are made" in out
    manifest = folder / "data" / "generation" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"image_ids": 9}))
    code, out = check(given)
    assert code == 3 and "says image_ids=9, the model of this recipe needs" in out


def test_runs_that_start_from_each_other_are_named(folder, check):
    settings = yaml.safe_load((folder / "recipe.yaml").read_text())
    for name, before in (("one", "two"), ("two", "one")):
        run = settings["run"] | {"name": name, "start_from": before, "start_recipes": [f"{before}.yaml"]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings | {"run": run}))
    code, out = check("one.yaml")
    assert code == 2 and "runs start from each other: one -> two -> one" in out


def test_nothing_is_left_behind(folder, check):
    assert check()[0] == 0
    assert not (folder / "runs").exists()


def test_a_start_that_is_trained_on_first_is_said(folder, check):
    """A run is complete by its own recipe, whatever its recipe files ask for by now."""
    before = prepared.recipe(folder, folder / "runs", 2, run={"name": "before"}, train={"steps": 5})
    start = ("run.root=runs", "run.start_from=before", "run.start_recipes=[recipe.yaml]")
    assert "  starts from before, which is trained first" in check(*start)[1].splitlines()
    save(Loaded(before, {}, (), ()), folder / "runs" / "before")
    for step, said in ((3, "before, which is trained first, from {} on"), (5, "{}")):
        path = commits.folder("runs/before/checkpoints", step)
        commits.write_marker(path, marker(before, step))
        assert f"  starts from {said.format(path)}" in check(*start)[1].splitlines()


def test_the_checkpoint_to_go_on_from_is_the_one_that_was_asked_for(folder, check):
    recipe = load(StageRecipe, [folder / "recipe.yaml"], ["run.root=runs"]).recipe
    early, late = (commits.folder("runs/run/checkpoints", step) for step in (1, 2))
    for step, path in enumerate((early, late), 1):
        commits.write_marker(path, marker(recipe, step))
    asked = ("run.root=runs", "run.rebase=true", "train.steps=9")
    assert f"  goes on at step 2 of 9 from {late}" in check(*asked)[1].splitlines()
    assert f"  goes on at step 1 of 9 from {folder}/{early}" in check(*asked, f"run.resume={early}/")[1].splitlines()
    code, out = check(*asked, "run.resume=never")
    assert code == 2 and f"run.resume=never, but run runs/run has a checkpoint: {late}" in out


def test_all_faults_at_once(folder, check):
    code, out = check("data.tokenizer=nowhere.json", "monitor.wandb=online", "run.start_from=before")
    assert code == 3, "that of the first"
    numbered = [line for line in out.splitlines() if line[:1].isdigit()]
    assert [line[:2] for line in numbered] == ["1.", "2.", "3.", "3 "]
    assert "data.tokenizer=nowhere.json cannot be read" in numbered[0]
    assert "run.start_from=before: no committed checkpoint under" in numbered[1]
    assert "there is no key for wandb here" in numbered[2]
    assert numbered[3] == "3 faults"


def test_a_folder_that_cannot_be_written_is_found(folder, check):
    (folder / "file").write_text("")
    code, out = check("run.root=file")
    assert code == 4 and "1. file/run/checkpoints cannot be reached: NotADirectoryError" in out
    assert "2. file/run cannot be written" in out


def test_as_json(folder, check):
    code, out = check("--json", "monitor.wandb=online")
    told = json.loads(out)
    assert code == 2 and [fault["exit_code"] for fault in told["faults"]] == [2]
    assert "starts from random weights" in told["notes"]


def test_a_checkpoint_of_another_model_is_found(folder, check):
    recipe = prepared.recipe(folder, folder / "runs", 2)
    saved = recipe.run.saved_in
    text = recipe.model.text.model_copy(update={"mlp": 96})
    other = recipe.model_copy(update={"model": recipe.model.model_copy(update={"text": text})})
    commits.write_marker(commits.folder(saved, 3), marker(other, 3))
    code, out = check()
    now = recipe.model.text.mlp
    assert code == 4 and f"holds a model of another size: model.text.mlp was 96, is {now}" in out


def test_a_key_for_wandb_is_found_and_not_said(folder, check, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    code, out = check("monitor.wandb=online")
    assert code == 0 and "very-secret" not in out


def test_data_that_is_to_be_made_must_be_there(folder, check):
    given = "pipeline.inputs={pages: {stream: text, format: jsonl, path: /nowhere/pages.jsonl}}"
    code, out = check(given, "data.root=other")
    assert code == 3 and "1. pipeline.inputs.pages.path=/nowhere/pages.jsonl does not exist" in out
    assert "shards of pages are made first" in out


def test_a_store_without_credentials_is_one_fault_among_others(folder, check, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(key, raising=False)
    fsspec.filesystem("s3").clear_instance_cache()
    given = "pipeline.inputs={pages: {stream: text, format: jsonl, path: /nowhere}}"
    code, out = check(given, "data.root=s3://bucket/data", "monitor.wandb=online")
    assert code == 3
    assert "1. s3://bucket/data/pages/manifest.json cannot be reached: NoCredentialsError: " in out
    assert "2. monitor.wandb=online" in out and "2 faults" in out
    loaded = load(StageRecipe, ["recipe.yaml"], [given, "data.root=s3://bucket/data"])
    with pytest.raises(DataError, match="cannot be reached: NoCredentialsError"):
        prepare_data(loaded.recipe)  # as the job itself ends


def test_faults_of_the_settings_are_numbered_and_json_too(folder, check):
    code, out = check("optim.beta=1", "stage=0")
    assert code == 2 and "2 faults" in out
    assert "1. override 'optim.beta=1': optim.beta: no such key; did you mean 'betas'?" in out
    assert "2. override 'stage=0': stage: should be greater than 0; got 0" in out
    code, out = check("--json", "optim.beta=1", "stage=0")
    assert code == 2 and [fault["exit_code"] for fault in json.loads(out)["faults"]] == [2, 2]
    code, out = check("--json", "nowhere.yaml")
    assert code == 2 and "nowhere.yaml: no such file" in json.loads(out)["faults"][0]["message"]


def test_what_is_read_during_a_run_is_looked_at_before(folder, check):
    inputs = "pipeline.inputs={a: {stream: generation, format: jsonl, path: [/no/a, /no/b], images: /}}"
    code, out = check(inputs, "data.root=other", "monitor.prompts=none.jsonl", "data.vq_weights=none.safetensors")
    assert code == 3
    for said in ("pipeline.inputs.a.path=/no/a does", "path=/no/b does", "data.vq_weights=none", "none.jsonl cannot"):
        assert said in out
    assert "4 faults" in out
    code, out = check("data.validation_root=none")
    assert code == 2 and "1. data.validation_root=none has none of understanding/manifest.json" in out


def test_a_cluster_that_is_too_small_is_found(folder, check, monkeypatch):
    monkeypatch.setattr(session, "resources", lambda: [{"CPU": 3.0}, {"CPU": 1.0}])
    assert "  the Ray cluster has 4 CPUs and 0 GPUs on 2 nodes" in check()[1]
    assert check("cluster.workers=4")[0] == 0
    code, out = check("cluster.workers=2", "cluster.cpus_per_worker=2")
    said = "1. cluster.workers=2 need 4 CPUs, the Ray cluster has 4 on 2 nodes, room for 1 ranks"
    assert code == 6 and said in out, "the fourth core is on a node of its own"
    assert check("cluster.workers=2", "cluster.cpus_per_worker=2", "cluster.min_workers=1")[0] == 0


def test_no_cluster_is_started_to_look_at(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)
    monkeypatch.setattr(session.ray, "init", lambda **_: pytest.fail("Ray was started"))
    assert session.resources() is None

"""Hints on jobs and clusters, followed up to where nodes or training would begin; no Ray is started."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from cluster import wait
from janus_dist.cli import check, submit
from janus_dist.config.load import Loaded
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.manifest import Manifest
from janus_dist.data.plan import open_shards
from janus_dist.data.tokenizer import REQUIRED, Tokenizer
from janus_dist.inspection.makers import find_tokenizer
from janus_dist.launch import session, stage
from janus_dist.launch.session import NoAnswerError
from janus_dist.storage.ranges import protocol
from janus_dist.train.validation import held_out
from tests import checkpoints, prepared
from tests.ux.following import found, hint_of

ROOT = Path(__file__).parents[2]


class ReachedError(Exception):
    """The command line was taken; work would begin."""


def reach(*_: Any, **__: Any) -> Any:
    raise ReachedError


def recipe_with(root: Path, **sections: dict[str, Any]) -> StageRecipe:
    return prepared.recipe(root, root, 2, **sections)


def test_an_address_of_ray_is_written_or_unset_as_the_hints_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    name = found(r"or unset (\w+)", hint_of(session.find_address))[1]
    monkeypatch.setenv("RAY_ADDRESS", "head")
    name_, value = found(r"write (\w+)=(\S+),", hint_of(session.find_address)).groups()
    monkeypatch.setenv(name_, value.replace("HEAD", "10.0.0.1"))
    assert session.find_address() == "10.0.0.1:6379"
    monkeypatch.setattr(session.services, "canonicalize_bootstrap_address", lambda _: "10.0.0.2:6379")
    monkeypatch.delenv(name)
    assert session.find_address() == "10.0.0.2:6379"


def test_a_wait_for_nodes_is_of_a_cluster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "_join_named", reach)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.delenv(found(r"unset (\w+)", hint_of(session.join))[1])
    with pytest.raises(ReachedError):
        session.join()


def test_the_command_that_waits_for_nodes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wait, "_connected", reach)
    monkeypatch.setattr(wait.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["cluster/wait.py", "jobs/prepare.py"])
    words = hint_of(wait.main).split()
    monkeypatch.setattr(sys, "argv", [word for word in words[1:] if word[0] != "[" and word[-1] != "]"])
    assert (ROOT / words[1]).is_file() and (ROOT / words[2]).is_file()
    with pytest.raises(ReachedError):
        wait.main()


def test_a_job_is_submitted_as_the_hints_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(submit, "_submit", reach)
    words = found(r"janus submit (\S+)", hint_of(submit.submit_command, Path("nowhere.py")))[1]
    with pytest.raises(ReachedError):
        submit.submit_command(Path(words))
    option = found(r"leave (\S+) out", hint_of(submit.submit_command, Path(words), ["--local"]))[1]
    with pytest.raises(ReachedError):
        submit.submit_command(Path(words), [one for one in ["--local"] if one != option])


def job(name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return the `main` of a script in jobs/."""
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    return runpy.run_path(str(ROOT / "jobs" / name))["main"]


def test_parts_of_the_proof_are_named_as_the_hint_does(monkeypatch: pytest.MonkeyPatch):
    main = job("proof.py", monkeypatch)
    monkeypatch.setitem(main.__globals__, "recipe_from_args", reach)
    monkeypatch.setattr(sys, "argv", ["jobs/proof.py", "mine.yaml"])
    names = found(r"parts of it \(([^)]*)\)", hint_of(main))[1].split(", ")
    monkeypatch.setattr(sys, "argv", ["jobs/proof.py", *names])
    with pytest.raises(ReachedError):
        main()


def test_a_folder_for_a_vision_tower_is_written_as_the_hint_does(monkeypatch: pytest.MonkeyPatch):
    main = job("train_siglip.py", monkeypatch)
    monkeypatch.setitem(main.__globals__, "recipe_from_args", reach)
    monkeypatch.setattr(sys, "argv", ["jobs/train_siglip.py", "--out"])
    words = hint_of(main).removeprefix("write ").split()
    monkeypatch.setattr(sys, "argv", ["jobs/train_siglip.py", *words])
    with pytest.raises(ReachedError):
        main()


def test_a_complete_run_goes_on_with_more_steps_or_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = recipe_with(tmp_path)
    checkpoints.mark(recipe.run.saved_in, recipe.train.steps, recipe=recipe.model_dump(mode="json"))
    monkeypatch.setattr(stage, "check_starts", reach)
    key, name = found(
        r"raise (train\.steps) .*\((run\.name)=", hint_of(stage.run_stage, Loaded(recipe, {}, (), ()), print)
    ).groups()
    assert hint_of(lambda: list(check._start(recipe))) == hint_of(stage.run_stage, Loaded(recipe, {}, (), ()), print)
    changes = [{key.partition(".")[0]: {"steps": 9}}, {name.partition(".")[0]: {"name": "other"}}]
    for change in changes:
        with pytest.raises(ReachedError):
            stage.run_stage(Loaded(recipe_with(tmp_path, **change), {}, (), ()), print)


def test_a_start_that_is_not_there_is_left_out_as_the_hint_says(tmp_path: Path):
    recipe = recipe_with(tmp_path, run={"start_from": "one"})
    key = found(r"set run\.(start_from)=null", hint_of(lambda: list(check._start(recipe))))[1]
    assert list(check._start(recipe_with(tmp_path, run={key: None}))) == ["starts from random weights"]
    checkpoints.mark(recipe.run.saved_in_of("one"), 3)
    assert len(list(check._start(recipe))) == 1


def test_figures_for_wandb_have_a_key_or_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    online = recipe_with(tmp_path, monitor={"wandb": "online"})
    hint = hint_of(lambda: list(check._wandb(online)))
    value = found(r"monitor\.wandb=(\w+)", hint)[1]
    assert not list(check._wandb(recipe_with(tmp_path, monitor={"wandb": value})))
    monkeypatch.setenv(found(r"set (\w+)", hint)[1], "k")
    assert not list(check._wandb(online))


def test_held_out_shards_are_made_or_left_out(tmp_path: Path):
    prepared.prepare(tmp_path)
    prepared.prepare(tmp_path / "held", seed=5)
    recipe = recipe_with(tmp_path, data={"validation_root": str(tmp_path / "none")})
    trained = open_shards(recipe.data, recipe.mix)
    assert "there with jobs/prepare.py (data.root=...)" in hint_of(held_out, recipe, trained)
    same = recipe_with(tmp_path, data={"validation_root": recipe.data.root})
    key = found(r"set data\.(\w+) to a folder with held-out shards", hint_of(held_out, same, trained))[1]
    assert held_out(recipe_with(tmp_path, data={key: str(tmp_path / "held" / "data")}), trained)


def test_special_tokens_are_added_as_the_hint_says(tmp_path: Path):
    prepared.prepare(tmp_path)
    path = tmp_path / "tokenizer.json"
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.save(str(path))
    method = found(r"tokenizers' (\w+) and save", hint_of(Tokenizer.load, path))[1]
    getattr(plain, method)(list(REQUIRED))
    plain.save(str(path))
    assert Tokenizer.load(path).size == len(REQUIRED)


def test_the_tokenizer_of_the_shards_is_taken(tmp_path: Path):
    prepared.prepare(tmp_path)
    manifest = Manifest.load(f"{tmp_path}/data/text")
    other = tmp_path / "other.json"
    other.write_text((tmp_path / "tokenizer.json").read_text() + "\n")
    name = found(r"give the (\S+) that the shards were made with", hint_of(find_tokenizer, manifest, other))[1]
    assert find_tokenizer(manifest, tmp_path / name) is not None


def test_paths_that_are_read_at_random():
    form = found(r"or (s3://BUCKET/KEY)", hint_of(protocol, "gs://bucket/key"))[1]
    assert (protocol(form), protocol("/a/b")) == ("s3", "file")


def test_no_ray_is_no_fault_of_an_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session.services, "canonicalize_bootstrap_address", lambda _: _raise(ConnectionError()))
    with pytest.raises(NoAnswerError):
        session.find_address()


def _raise(error: Exception) -> None:
    raise error

"""Checkpoints where they are kept: in a store as on a disk, and whatever may have happened to their files."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch

from janus_dist.checkpoint import commits, files, state
from janus_dist.checkpoint.commits import DamagedCheckpointError, RetentionPolicy
from janus_dist.checkpoint.saver import Saver
from janus_dist.checkpoint.stored import StoredWeights
from janus_dist.engine.world import World
from janus_dist.errors import CheckpointError
from janus_dist.storage import fs
from tests.checkpoints import IDENTITY, folder_of, load_weights, save, saved_in
from tests.moto_s3 import moto_bucket
from tests.ranks import run_ranks
from tests.resume.test_checkpoint import make_engine, train_steps

ALONE: Any = SimpleNamespace(world=World(0, 1, torch.device("cpu")))
"""Stands for an engine where only its world is asked for."""


def save_two(saved: str) -> list[float]:
    """Checkpoints of steps 1 and 2 by the thread that training has for it; the loss after."""
    engine = make_engine()
    saver = Saver(engine, saved)
    for step in (1, 2):
        train_steps(engine, step - 1, step)
        assert saver.start(step, IDENTITY, RetentionPolicy(last=2))
        done = saver.wait()
        assert done is not None and done.failure is None and done.not_pruned is None, done
    return train_steps(engine, 2, 3)


def go_on(saved: str) -> tuple[str | None, list[float]]:
    engine = make_engine(seed=1)
    path = commits.latest_verified(engine.world, saved, print)
    assert path is not None
    commit = state.restore(engine, path)
    return path, train_steps(engine, commit.step, 3)


def test_a_store_keeps_what_a_disk_does(tmp_path, monkeypatch):
    with moto_bucket(monkeypatch, "runs") as bucket:
        saved = f"{bucket}/a/run"
        wrote = run_ranks(save_two, 2, tmp_path / "w", saved)[0]
        assert [commits.step_of(path) for path in commits.committed(saved)] == [1, 2]
        assert run_ranks(go_on, 2, tmp_path / "r", saved)[0] == (f"{saved}/step-00000002", wrote)
        path, losses = run_ranks(go_on, 1, tmp_path / "r1", saved)[0]
        assert losses == pytest.approx(wrote, rel=2e-5)
        weights = load_weights(saved)
        assert weights.keys() == {name for name, _ in make_names()}
        (store, name) = fsspec.core.url_to_fs(f"{path}/__0_0.distcp")
        content = store.cat_file(name)
        store.pipe_file(name, content[:-1])
        assert [commits.step_of(path) for path in commits.committed(saved)] == [1], "a cut object"
        store.pipe_file(name, content[:-1] + bytes([content[-1] ^ 1]))
        said: list[str] = []
        assert state.latest_to_resume(ALONE, saved, said.append) == f"{saved}/step-00000001"
        assert said[0].startswith(f"passed over {path}: {path}/__0_0.distcp is damaged: ")
        assert said[1:] == [f"set aside {path}: the run resumes from {saved}/step-00000001"]
        assert commits.with_marker(saved) == [f"{saved}/step-00000001"]
        commits.delete(path)
        assert commits.folders(saved) == [f"{saved}/step-00000001"]


def make_names() -> list[tuple[str, Any]]:
    from janus_dist.model import janus
    from tests import tiny

    return list(janus.build(tiny.MODEL, 0).named_parameters())


def refused(saved: str) -> tuple[str | None, list[float]]:
    engine = make_engine()
    saver = Saver(engine, saved)
    saver.start(0, IDENTITY, RetentionPolicy(last=2))
    done = saver.wait()
    assert done is not None
    return done.failure, train_steps(engine, 0, 1)


def test_a_store_that_refuses_costs_that_save(tmp_path, monkeypatch):
    with moto_bucket(monkeypatch, "runs"):
        for failure, losses in run_ranks(refused, 2, tmp_path, "s3://another/run"):
            assert failure is not None and "bucket does not exist" in failure
            assert losses[0] > 0


def test_a_store_that_is_away_is_told(monkeypatch):
    with moto_bucket(monkeypatch, "runs"):
        pass  # its address stays in the environment, and nobody answers there
    with pytest.raises(CheckpointError, match="s3://runs/run cannot be reached: ") as caught:
        commits.latest_committed("s3://runs/run")
    assert caught.value.hint is not None and "run the same command again" in caught.value.hint


def test_a_large_file_goes_up_in_parts(monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 5 << 20)
    content = torch.arange(3 << 20, dtype=torch.int32).numpy().tobytes()
    with moto_bucket(monkeypatch, "runs") as bucket:
        asked = files.Files()
        with asked.create_stream(f"{bucket}/file", "wb") as stream:
            for start in range(0, len(content), 1 << 20):
                stream.write(content[start : start + (1 << 20)])
        assert asked.written == {"file": commits.describe(f"{bucket}/file")}
        assert fs.read(f"{bucket}/file") == content
        store, name = fsspec.core.url_to_fs(f"{bucket}/file")
        assert store.info(name)["ETag"].strip('"').endswith("-3"), "S3 counts the parts in the ETag"


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Return the folder of a run with checkpoints of steps 1 and 2 by two ranks."""
    run = tmp_path_factory.mktemp("two") / "run"
    run_ranks(save_two, 2, run.parent / "meet", saved_in(run))
    return run


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {"flipped": flip, "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]), "gone": Path.unlink}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("file", [commits.MARKER, ".metadata", "__0_0.distcp", "__1_0.distcp"])
def test_damage_of_any_file_is_named_and_the_checkpoint_before_is_taken(two, tmp_path, file, how):
    run = shutil.copytree(two, tmp_path / "run")
    assert {path.name for path in folder_of(run, 2).iterdir()} == {
        commits.MARKER, ".metadata", "__0_0.distcp", "__1_0.distcp",
    }  # fmt: skip
    DAMAGE[how](folder_of(run, 2) / file)
    said: list[str] = []
    assert commits.latest_verified(ALONE.world, saved_in(run), said.append) == str(folder_of(run, 1))
    if (file, how) == (commits.MARKER, "gone"):
        assert said == [], "what has no marker never was a checkpoint"
        return
    assert said[0].startswith(f"passed over {folder_of(run, 2)}: {folder_of(run, 2) / file} is damaged: ")
    assert commits.latest_committed(saved_in(run)) in (str(folder_of(run, 1)), str(folder_of(run, 2)))


def test_when_none_is_whole_nothing_is_trained(two, tmp_path):
    run = shutil.copytree(two, tmp_path / "run")
    for step in (1, 2):
        flip(folder_of(run, step) / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints under .* are damaged") as caught:
        commits.latest_verified(ALONE.world, saved_in(run), print)
    assert caught.value.exit_code == 4


class Runs:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_checkpoint_of_a_stranger_runs_nothing(two, tmp_path):
    """Make a malicious checkpoint with valid sizes and checksums, since its author also writes the marker."""
    run = shutil.copytree(two, tmp_path / "run")
    path, target = folder_of(run, 2), tmp_path / "was here"
    (path / ".metadata").write_bytes(pickle.dumps(Runs(target)))
    commit = commits.read(str(path))
    commit.files[".metadata"].update(commits.describe(str(path / ".metadata")))
    commits.write_marker(str(path), commit)
    commits.verify(str(path), commits.read(str(path)))
    with pytest.raises(
        DamagedCheckpointError, match=r"\.metadata names .*, which is not a type that describes tensors"
    ):
        StoredWeights(str(path)).read(["lm_head.weight"])
    assert not target.exists()


def test_a_marker_is_of_one_piece(two, tmp_path):
    """Change a number in the marker by hand, so that it still is JSON."""
    run = shutil.copytree(two, tmp_path / "run")
    marker = folder_of(run, 2) / commits.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"step": 7}))
    with pytest.raises(DamagedCheckpointError, match="do not match the sha256 that it states"):
        commits.read(str(folder_of(run, 2)))


def test_a_disk_that_denies_to_delete_is_told_and_the_save_counts(two, tmp_path, monkeypatch):
    run = shutil.copytree(two, tmp_path / "run")

    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(fs, "remove_folder", denied)
    with pytest.raises(CheckpointError, match="step-00000001 cannot be reached: PermissionError"):
        commits.prune(saved_in(run), RetentionPolicy(last=1))
    assert commits.latest_committed(saved_in(run)) == str(folder_of(run, 2))


def test_saving_over_what_a_killed_save_left(tmp_path):
    half = folder_of(tmp_path / "run", 1)
    half.mkdir(parents=True)
    (half / "__7_0.distcp").write_bytes(b"half")
    run_ranks(save_once, 1, tmp_path / "meet", tmp_path / "run")
    assert sorted(path.name for path in half.iterdir()) == [".metadata", commits.MARKER, "__0_0.distcp"]


def save_once(run_dir: Path) -> None:
    save(make_engine(), run_dir, 1)

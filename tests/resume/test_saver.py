"""Saving beside the training: one save at a time, and no more memory than one copy of what a rank holds."""

import shutil
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from janus_dist.checkpoint import commits, state
from janus_dist.checkpoint.commits import RetentionPolicy
from janus_dist.checkpoint.saver import Saver
from janus_dist.engine import partitions
from tests.checkpoints import IDENTITY
from tests.ranks import run_ranks
from tests.resume.test_checkpoint import make_engine, train_steps


def overtaken(saved: str) -> list[float]:
    """Start a slow save of step 1, train and save again meanwhile; return the losses."""
    engine = make_engine()
    saver = Saver(engine, saved)
    losses = train_steps(engine, 0, 1)
    go_on, real = threading.Event(), state.write
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(state, "write", lambda *given: (go_on.wait(60), real(*given)))
        assert saver.start(1, IDENTITY, RetentionPolicy(last=2))
        losses += train_steps(engine, 1, 3)  # changes everything that is being written
        assert saver.done() is None
        assert not saver.start(3, IDENTITY, RetentionPolicy(last=2)), "a save is being written"
        go_on.set()
        done = saver.wait()
    assert done is not None and (done.step, done.failure) == (1, None)
    assert saver.wait() is None and saver.done() is None
    assert saver.start(3, IDENTITY, RetentionPolicy(last=2))
    saver.wait()
    return losses


def resumed(saved: str) -> list[float]:
    engine = make_engine(seed=1)
    state.restore(engine, commits.folder(saved, 1))
    return train_steps(engine, 1, 3)


def test_what_is_saved_is_the_state_of_its_step_however_late_it_is_written(tmp_path):
    saved = str(tmp_path / "run")
    losses = run_ranks(overtaken, 2, tmp_path / "w", saved)[0]
    assert [commits.step_of(path) for path in commits.committed(saved)] == [1, 3]
    assert run_ranks(resumed, 2, tmp_path / "r", saved)[0] == losses[1:]


def saves_with_faults(saved: str) -> list[tuple[str | None, str | None]]:
    """Return the failures of a save whose writing fails, of one whose pruning fails, and of the next one."""
    engine = make_engine()
    saver = Saver(engine, saved)
    train_steps(engine, 0, 1)
    told = []
    for step, (owner, name) in enumerate([(state, "write"), (commits, "prune"), (commits, "absent")], start=1):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(owner, name, Mock(side_effect=KeyError("why")), raising=False)
            assert saver.start(step, IDENTITY, RetentionPolicy(last=2))
            done = saver.wait()
        assert done is not None
        told.append((done.failure, done.not_pruned))
    return told


def test_whatever_goes_wrong_in_a_save_costs_that_save(tmp_path):
    first, other = run_ranks(saves_with_faults, 2, tmp_path, str(tmp_path / "run"))
    assert first == [("KeyError: 'why'", None), (None, "KeyError: 'why'"), (None, None)]
    assert other == [("KeyError: 'why'", None), (None, None), (None, None)]


def host_memory(folder: Path) -> tuple[int, int, list[set[int]]]:
    """Bytes of a rank's flat tensors, of the host memory for saves, and where it is at each of three saves."""
    engine = make_engine()
    train_steps(engine, 0, 1)
    flats = {}
    for piece in partitions.pieces(engine):
        found = [piece.flat, *(partitions.moments(engine, piece).values() if piece.trainable else ())]
        flats |= {id(flat): flat for flat in found}
    hosts, places = state.HostBuffers(), []
    for step in (1, 2, 3):
        taken = state.snapshot(engine, str(folder), step, IDENTITY, hosts)
        places.append({share.values.data_ptr() for share in taken.state.values()})
    held = sum(host.nbytes for host in hosts.tensors)
    return sum(flat.nbytes for flat in flats.values()), held, places


def test_all_saves_share_one_copy_of_what_a_rank_holds(tmp_path):
    for holds, held, places in run_ranks(host_memory, 2, tmp_path, tmp_path / "run"):
        assert held == holds
        assert places[0] == places[1] == places[2]


def test_a_rank_whose_folder_is_another_jobs_by_now_deletes_and_commits_nothing(tmp_path, monkeypatch):
    """It would remove what the other one has just saved, and count as the newest."""
    old = tmp_path / "step-00000001"
    old.mkdir()
    (old / "file").write_text("of the other job")
    marked = Mock()
    monkeypatch.setattr(state.dcp, "save", Mock())
    monkeypatch.setattr(commits, "write_marker", marked)
    ranks = Mock(run_on_rank0=lambda do: do(), gather=Mock(return_value=[]))
    taken = Mock(path=str(old))
    with pytest.raises(KeyError, match="lost"):
        state.write(taken, ranks, Mock(side_effect=KeyError("lost")))
    assert (old / "file").exists() and not marked.called
    with pytest.raises(KeyError, match="lost"):
        state.write(taken, ranks, Mock(side_effect=[None, KeyError("lost")]))
    assert not marked.called


def save_to_a_full_disk(run_dir: str) -> str | None:
    """Return the failure of a save on a full disk."""
    engine = make_engine()
    train_steps(engine, 0, 1)

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    state.HashedWriter.write_data = full  # type: ignore[method-assign]
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 5, 5)  # type: ignore[attr-defined]
    saver = Saver(engine, run_dir)
    assert saver.start(1, IDENTITY, RetentionPolicy(last=2))
    done = saver.wait()
    return None if done is None else done.failure


def test_a_full_disk_is_called_one(tmp_path):
    """Rather than by torch's words for it."""
    folder = str(tmp_path / "run")
    (said,) = run_ranks(save_to_a_full_disk, 1, tmp_path, folder)
    assert said is not None and said.startswith(
        f"the disk is full: {folder} has 5 bytes free besides 0 bytes already written"
    )
    assert "free space (janus ckpt prune), or choose another run.checkpoints" in said

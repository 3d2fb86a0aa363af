"""Folders of weights: what is taken, that only what is asked for is read, what is said of damaged ones."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from janus_dist.errors import CheckpointError
from janus_dist.weights.folders import Folder
from tests import published

WEIGHTS = {
    "matrix": torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5),
    "convolution": torch.arange(3 * 2 * 4 * 4, dtype=torch.float16).reshape(3, 2, 4, 4),
    "batched": torch.arange(12, dtype=torch.bfloat16).reshape(1, 4, 3),
    "vector": torch.arange(11, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
    "numbers": torch.arange(3),
}


def safetensors(folder: Path) -> Path:
    return published.write(folder, WEIGHTS)


def sharded(folder: Path) -> Path:
    return published.write(folder, WEIGHTS, shards=3)


def pickled(folder: Path) -> Path:
    folder.mkdir()
    torch.save(WEIGHTS, folder / "pytorch_model.bin")
    return folder


def sharded_pickles(folder: Path) -> Path:
    folder.mkdir()
    names = list(WEIGHTS)
    for number in range(2):
        torch.save({name: WEIGHTS[name] for name in names[number::2]}, folder / f"part-{number}.bin")
    index = {"weight_map": {name: f"part-{place % 2}.bin" for place, name in enumerate(names)}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def single(folder: Path) -> Path:
    folder.mkdir()
    torch.save({"model": WEIGHTS, "optimizer": {"lr": 0.1}, "steps": 3}, folder / "any_name.pt")
    return folder / "any_name.pt"


def of_old_torch(folder: Path) -> Path:
    folder.mkdir()
    torch.save(WEIGHTS, folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder


@pytest.mark.parametrize("make", [safetensors, sharded, pickled, sharded_pickles, single, of_old_torch])
def test_ranges_are_slices_of_the_flat_tensor(tmp_path, make):
    folder = Folder.open(make(tmp_path / "weights"), "x")
    assert folder.entries.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        entry = folder.entries[name]
        assert entry.shape == tuple(value.shape)
        assert entry.dtype == (None if name == "numbers" else value.dtype)
        number = value.numel()
        for first in range(0, number + 1, 3):
            for last in range(first, number + 1, 4):
                found = folder.read(name, first, last)
                assert found.dtype == value.dtype and torch.equal(found, value.flatten()[first:last])
        assert torch.equal(folder.read(name), value.flatten())


def test_safetensors_are_preferred(tmp_path):
    folder = pickled(tmp_path / "weights")
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    assert list(Folder.open(folder, "x").entries) == ["other"]


def test_a_range_of_rows_reads_those_rows_only(tmp_path):
    """Damage elsewhere in the tensor is not met: the file's other bytes are not looked at."""
    folder = published.write(tmp_path / "weights", {"a": torch.arange(64, dtype=torch.float32).reshape(8, 8)})
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-32:] = b"\xff" * 32
    path.write_bytes(content)
    opened = Folder.open(folder, "x")
    assert torch.equal(opened.read("a", 13, 30), torch.arange(13.0, 30.0))
    assert opened.read("a", 60, 64).isnan().all()


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Folder.open(path, "run.start_weights.janus")
    return str(caught.value).replace(str(path), "PATH")


def test_absent(tmp_path):
    assert refused(tmp_path / "none") == (
        "run.start_weights.janus=PATH does not exist; weights are read from a local disk, nothing is downloaded\n"
        "  fetch them first (`hf download ORGANISATION/MODEL --local-dir DIR`) and give the folder"
    )


def test_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "holds no weights and none of model.safetensors, " in refused(tmp_path)


def test_several_files_and_no_index(tmp_path):
    for name in "abcd":
        save_file({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    assert "holds 4 files of weights (a.safetensors, b.safetensors, c.safetensors, ...)" in refused(tmp_path)


def test_missing_shards_are_all_named(tmp_path):
    folder = sharded(tmp_path / "weights")
    for number in (1, 3):
        (folder / f"model-0000{number}-of-00003.safetensors").unlink()
    assert (
        "lacks 2 of the 3 files that model.safetensors.index.json names: "
        "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors\n" in refused(folder)
    )


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json is not an index of weights" in refused(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 100, -1])
@pytest.mark.parametrize("make", [safetensors, pickled])
def test_cut_short(tmp_path, make, left):
    folder = make(tmp_path / "weights")
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes()[:left])
    message = refused(folder)
    assert f"PATH: {path.name} is " in message and "fetch it again" in message


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, old):
    folder, trace = tmp_path / "weights", tmp_path / "ran"
    folder.mkdir()
    if old:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Code(trace)}, protocol=2))
    else:
        torch.save({"a": torch.zeros(1), "b": Code(trace)}, folder / "pytorch_model.bin")
    assert "could be code that runs when it is read: refused" in refused(folder)
    assert not trace.exists()


def test_a_pickle_of_something_else(tmp_path):
    torch.save([1, 2], tmp_path / "weights.pt")
    assert "weights.pt holds a list, not tensors by name" in refused(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_config_that_is_none(tmp_path, content):
    folder = safetensors(tmp_path / "weights")
    (folder / "config.json").write_text(content)
    assert "config.json" in refused(folder)

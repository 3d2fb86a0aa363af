"""Hints for damaged shards: following them gives complete shards again."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines import prepare, stream
from janus_dist.data.loader import read_payloads
from janus_dist.data.manifest import ShardSet
from janus_dist.errors import DataError
from tests.alone import TOKENIZER, without_ray, work_on
from tests.pipelines.conftest import documents


def read_all(folder: str) -> list:
    shards = ShardSet.open(folder)
    records = shards.records(np.arange(len(shards.manifest.shards.block_tokens)))[1]
    return read_payloads(shards, np.arange(shards.manifest.samples), records)


def refusal(folder: str) -> DataError:
    try:
        answers = read_all(folder)
    except DataError as error:
        return error
    return next(answer for answer in answers if isinstance(answer, DataError))


@pytest.mark.parametrize(
    "damage", ["tar is cut", "tar is gone", "tar has other bytes", "index is gone", "table is gone"]
)
def test_the_hint_is_followed(tmp_path, monkeypatch, damage):
    without_ray(monkeypatch)
    monkeypatch.setattr(prepare, "connect", lambda: None)
    of = work_on("text", documents(tmp_path / "in", 40), tmp_path / "data")
    pipeline = of.recipe.pipeline.model_copy(update={"inputs": {"text": of.source}})
    recipe = of.recipe.model_copy(update={"pipeline": pipeline})
    before = stream.run(of)
    good = read_all(of.folder)
    name = f"{of.folder}/{before.shards[1].name}"
    tar, index, table = Path(f"{name}.tar"), Path(f"{name}.index.npy"), next(Path(of.folder).glob("shards-*.parquet"))
    match damage:
        case "tar is cut":
            tar.write_bytes(tar.read_bytes()[:600])
        case "tar is gone":
            tar.unlink()
        case "tar has other bytes":
            tar.write_bytes(bytes(tar.stat().st_size))
        case "index is gone":
            index.unlink()
        case "table is gone":
            table.unlink()
    hint = refusal(of.folder).hint or ""
    assert "manifest.json" in hint and "jobs/prepare.py" in hint
    if damage != "table is gone":
        prepare.prepare_data(recipe)
        assert refusal(of.folder), "with the manifest there, nothing is done"
    if "delete it, its .index.npy" in hint:
        tar.unlink()
        index.unlink()
    Path(of.folder, "manifest.json").unlink()
    prepare.prepare_data(recipe)
    assert ShardSet.open(of.folder).manifest.digest == before.digest and read_all(of.folder) == good
    kept = [entry.name for entry in ShardSet.open(of.folder).manifest.shards]
    assert sum(entry.name in kept for entry in before.shards) >= len(before.shards) - 1, "the others are kept"
    assert TOKENIZER.sha256 == before.tokenizer_sha256

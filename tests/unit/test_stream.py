"""A run from its files to its manifest, in one process: what it does after failures of the source and of itself."""

import json

import pytest

from data_pipelines import stream
from data_pipelines.inputs import pictures as picture_files
from janus_dist.data import storage
from janus_dist.errors import DataError
from tests.alone import without_ray, work_on
from tests.images import noise, png
from tests.inputs import tar
from tests.pipelines.conftest import captions, lines

ENDS = ("png", "txt")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    without_ray(monkeypatch)


@pytest.fixture
def pictures(tmp_path):
    """24 captioned images, three jobs."""
    folder = tmp_path / "in"
    captions(folder, 24)
    for number in range(24):
        (folder / f"photo-{number:03d}.png").write_bytes(png(noise(20, 20, number)))
    return folder


def attempts(folder):
    """The attempt that committed each marker."""
    return {path.name: json.loads(path.read_text())["attempt"] for path in folder.iterdir()}


@pytest.mark.parametrize("lost", [(3, 4), (20,)], ids=["stopped at once", "read to the end"])
def test_a_repaired_source_is_read_anew(pictures, tmp_path, caplog, lost):
    of = work_on("understanding", pictures / "captions.jsonl", tmp_path / "data", "pipeline.max_bad_share=0.01")
    kept = {number: (pictures / f"photo-{number:03d}.png").read_bytes() for number in lost}
    for number in lost:
        (pictures / f"photo-{number:03d}.png").unlink()
    for _ in range(2):
        with pytest.raises(DataError, match=r"records are bad, more than pipeline.max_bad_share=0\.01"):
            stream.run(of)
    for number, content in kept.items():
        (pictures / f"photo-{number:03d}.png").write_bytes(content)
    markers = attempts(tmp_path / "data/understanding/commits")
    with caplog.at_level("INFO", logger="janus_dist"):
        manifest = stream.run(of)
    assert (manifest.samples, manifest.quarantined) == (24, 0)
    assert "records that earlier runs read were bad, too many: their 1 jobs are done again" in caplog.text
    after = attempts(tmp_path / "data/understanding/commits")
    assert sum(after[name] == attempt for name, attempt in markers.items()) == len(markers) - 1, "good jobs stay done"
    assert len(list((tmp_path / "data/understanding").glob("*.tar"))) == len(manifest.shards)


@pytest.mark.parametrize("images", ["s3://bucket/photos", "in"])
def test_a_store_that_refuses_is_no_bad_record_but_a_file_without_permission_is(tmp_path, monkeypatch, images):
    """S3 answers 403 to keys that ran out, and s3fs makes PermissionError of that."""
    source, rule = captions(tmp_path / "in", 8), "pipeline.max_bad_share=1"
    for number in range(8):
        (tmp_path / f"in/photo-{number:03d}.png").write_bytes(png(noise(20, 20)))
    images = images if "://" in images else str(tmp_path / images)
    of = work_on("understanding", source, tmp_path / "data", rule, f"pipeline.inputs.understanding.images={images}")
    read = storage.read

    def refuse(path):
        if str(path).startswith(images):
            raise PermissionError(13, "ExpiredToken")
        return read(path)

    monkeypatch.setattr(picture_files.storage, "read", refuse)
    if "://" not in images:
        with pytest.raises(DataError, match=r"none of 8 records became a sample: refused: does not open \(8\)"):
            stream.run(of)
        return
    with pytest.raises(PermissionError):
        stream.run(of)
    assert storage.names(f"{of.folder}/commits") == []


@pytest.mark.parametrize(("limit", "expected"), [(7, 7), (20, 20), (29, 29), (500, 30)])
@pytest.mark.parametrize("form", ["jsonl", "webdataset"])
def test_a_limit_reads_so_many_records_where_the_input_has_them(tmp_path, form, limit, expected):
    """Of files that hold fewer records than a shard, and lines that grow: nothing says how many a job has."""
    (tmp_path / "in").mkdir()
    for file in range(6):
        numbers = range(5 * file, 5 * file + 5)
        if form == "jsonl":
            lines(tmp_path / f"in/{file}.jsonl", [{"text": "words " * (1 + number)} for number in numbers])
        else:
            members = [
                (f"{one}.{end}", png(noise(20, 20)) if end == "png" else b"c") for one in numbers for end in ENDS
            ]
            (tmp_path / f"in/{file}.tar").write_bytes(tar(members))
    name = "text" if form == "jsonl" else "understanding"
    of = work_on(name, tmp_path / "in", tmp_path / "data", form=form)
    assert stream.run(of, limit).samples == expected

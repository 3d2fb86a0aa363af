"""A run from its files to its manifest, in one process: what it does after failures of the source and of itself."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from data_pipelines import job, stream, work
from data_pipelines.inputs import formats
from data_pipelines.inputs import pictures as picture_files
from janus_dist.errors import ConfigError, DataError
from janus_dist.storage import fs, lease
from janus_dist.storage.lease import LeaseLostError, LeaseTimes
from tests import alone as alone_module
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
    read = fs.read

    def refuse(path, **how):
        if str(path).startswith(images):
            raise PermissionError(13, "ExpiredToken")
        return read(path, **how)

    monkeypatch.setattr(picture_files.fs, "read", refuse)
    if "://" not in images:
        with pytest.raises(DataError, match=r"none of 8 records became a sample: refused: does not open \(8\)"):
            stream.run(of)
        return
    with pytest.raises(PermissionError):
        stream.run(of)
    assert fs.names(f"{of.folder}/commits") == []


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


def test_while_one_run_makes_a_shard_set_another_does_nothing_to_it(tmp_path, monkeypatch, caplog):
    """Another set of settings would take the first one's finished shards for strays."""
    monkeypatch.setattr(lease.take, "__defaults__", (LeaseTimes(poll_s=0.01, renew_s=0.01), time))
    source = lines(tmp_path / "in.jsonl", [{"text": f"text {number}"} for number in range(20)])
    of, other = (work_on("text", source, tmp_path / "data", f"pipeline.shard_samples={each}") for each in (8, 5))
    real, refused = job.run_job, []

    def beside(*arguments, **named):
        marker = real(*arguments, **named)
        with pytest.raises(
            ConfigError, match=r"is held by another job, which is alive: .*tokenizing text, process"
        ) as error:
            stream.run(other)
        refused.append(error.value)
        return marker

    monkeypatch.setattr(alone_module, "run_job", beside)
    manifest = stream.run(of)
    assert manifest.samples == 20 and len(refused) == 3 and "data.root" in refused[0].hint
    assert {path.stem for path in (tmp_path / "data/text").glob("*.tar")} == {one.name for one in manifest.shards}


@pytest.mark.parametrize("how", ["cut short", "longer", "of the same size"])
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_source_that_changes_while_it_is_read_fails_and_is_read_anew(tmp_path, monkeypatch, how, when):
    entries = [{"text": f"text {number:02d}"} for number in range(24)]
    source = lines(tmp_path / "in.jsonl", entries)
    of = work_on("text", source, tmp_path / "data")
    before = source.stat()

    def change():
        content = source.read_bytes()
        if how == "cut short":
            source.write_bytes(content[: len(content) // 2 - 7])
        elif how == "longer":
            source.write_bytes(content + content)
        else:
            source.write_bytes(content.replace(b"text 2", b"TEXT 2"))
            os.utime(source, ns=(1, 1))

    real = job.formats.records if when == "while" else formats.units

    def changes(*arguments):
        result = list(real(*arguments))
        if not changed:
            changed.append(1)
            change()
        return result

    changed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "records" if when == "while" else "units", changes)
        with pytest.raises(DataError) as error:
            stream.run(of)
    size = source.stat().st_size
    assert error.value.message.startswith(
        f"{source} has changed since the work was cut: it had {before.st_size} bytes, "
    )
    assert f"now it has {size} bytes, modified " in error.value.message and error.value.exit_code == 3
    assert not (tmp_path / "data/text/manifest.json").exists()
    records = len(source.read_bytes().splitlines())
    manifest = stream.run(work_on("text", source, tmp_path / "data", "pipeline.max_bad_share=1"))
    assert manifest.samples + manifest.quarantined == records


def test_a_manifest_that_appears_while_shards_are_made_stays_with_its_shards(tmp_path, monkeypatch):
    """An older version of the program knows of no lease."""
    source = lines(tmp_path / "in.jsonl", [{"text": f"text {number}"} for number in range(20)])
    other = work_on("text", source, tmp_path / "other", "pipeline.shard_samples=5")
    expected, real = stream.run(other), stream.gather.gather

    def appears(folder, markers):
        for path in (*Path(other.folder).glob("*.tar"), *Path(other.folder).glob("*.npy")):
            shutil.copy(path, folder)
        expected.save(folder)
        return real(folder, markers)

    of = work_on("text", source, tmp_path / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream.gather, "gather", appears)
        with pytest.raises(DataError, match="got a manifest while its shards were made"):
            stream.run(of)
    left = stream.Manifest.load(of.folder)
    assert left == expected
    assert {f"{entry.name}.tar" for entry in left.shards} <= {path.name for path in Path(of.folder).glob("*.tar")}
    again = stream.run(of, anew=True)
    assert {f"{entry.name}.tar" for entry in again.shards} == {path.name for path in Path(of.folder).glob("*.tar")}
    assert len(list(Path(of.folder).glob("shards-*.parquet"))) == 1


def test_jobs_that_were_done_from_an_earlier_version_of_a_file_are_done_again(tmp_path, monkeypatch, caplog):
    source = lines(tmp_path / "in.jsonl", [{"text": f"text {number:02d}"} for number in range(24)])
    other = lines(tmp_path / "other.jsonl", [{"text": f"text {number:02d}"} for number in range(8)])
    of = work_on("text", source, tmp_path / "data", f"pipeline.inputs.text.path=[{source}, {other}]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream.Manifest, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stream.run(of)
    source.write_bytes(source.read_bytes().replace(b"text 0", b"TEXT 0"))
    os.utime(source, ns=(1, 1))
    caplog.set_level("INFO", logger="janus_dist")
    assert stream.run(of).samples == 32
    assert f"jobs were done by an earlier run from files that have changed since, such as {source}: they" in caplog.text
    assert "(24 records in " in caplog.text, "the other file's job stays done"


def test_a_run_that_lost_its_folder_commits_nothing(tmp_path, monkeypatch):
    source = lines(tmp_path / "in.jsonl", [{"text": f"text {number}"} for number in range(8)])
    of = work_on("text", source, tmp_path / "data")
    real = work.shard_name

    def taken_over(*arguments):
        beat = tmp_path / "data/text/lease/00000001.beat"
        beat.write_text('{"has_ended": true}')
        lease.take(of.folder, "it", "another job", print, "wait")
        return real(*arguments)

    monkeypatch.setattr(work, "shard_name", taken_over)
    with pytest.raises(LeaseLostError, match="was taken over by another job"):
        stream.run(of)
    assert fs.names(f"{of.folder}/commits") == [] and fs.size(f"{of.folder}/manifest.json") is None

"""Shard jobs and their markers: the cut covers everything once, one attempt counts, what is not whole is done again."""

import dataclasses
import json
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from data_pipelines import work
from data_pipelines.inputs import versions
from data_pipelines.limit import SPREAD
from data_pipelines.record import Unit
from data_pipelines.work import JobMarker
from janus_dist.data.shard import write_shard
from janus_dist.inspection.inspect import Example, Reject
from janus_dist.storage import fs
from janus_dist.storage.lease import LeaseLostError
from tests import shard_sets, tiny

SETTINGS = {"a": 1}


def units(*records):
    return [Unit(f"/in/{place}", 10, records=number) for place, number in enumerate(records)]


def cut(*records, samples=10, settings=None, limit=None):
    return work.cut(units(*records), samples, settings or SETTINGS, limit)


def test_the_cut_covers_every_unit_once():
    jobs = cut(10, 3, 3, 3, 3, 25, 4, 7)
    assert [unit for job in jobs for unit in job.units] == units(10, 3, 3, 3, 3, 25, 4, 7)
    assert [[unit.records for unit in job.units] for job in jobs] == [[10], [3, 3, 3], [3], [25], [4], [7]]
    assert [job.number for job in jobs] == list(range(6)) and len({job.digest for job in jobs}) == 6
    assert cut(10, 3) == cut(10, 3)


def test_units_of_unknown_size_are_a_job_each():
    assert [len(job.units) for job in cut(None, None, 5, 5, None)] == [1, 1, 2, 1]


def test_the_digest_tells_settings_and_units_apart_but_not_their_place():
    one, two = cut(10), cut(10, settings={"a": 2})
    assert one[0].digest != two[0].digest
    later = work.cut([Unit("/in/new", 10, records=10), *units(10)], 10, SETTINGS, None)
    assert later[1].digest == one[0].digest, "a file that comes before does not make others again"


def test_versions_of_files_make_no_other_job_and_digests_are_those_of_before():
    """What users have half done is found by the digests of its jobs."""
    versioned = [dataclasses.replace(unit, versions=((unit.path, "10 bytes"),)) for unit in units(10)]
    (job,), (same,) = cut(10), work.cut(versioned, 10, SETTINGS, None)
    assert job.digest == same.digest == "5b43e48e14e5d8431600db75d02b02bc83140fe2a39f26b28a2749928418c509"
    assert versions.digest(job.units) == "" != versions.digest(same.units)


@pytest.mark.parametrize(
    ("records", "limit", "expected"),
    [
        ((4, 3, 10, 3), 1, [1]),
        ((4, 3, 10, 3), 10, [10]),
        ((4, 3, 10, 3), 14, [8, 6]),
        ((10, 7, 10), 20, [13, 7]),
        ((10, 7, 10), 27, [10, 7, 10]),
        ((10, 7, 10), 60, [10, 7, 10]),
    ],
)
def test_a_limit_is_shared_among_jobs_of_the_usual_size_as_far_as_their_units_hold_it(records, limit, expected):
    jobs = cut(*records, limit=limit)
    assert [job.limit for job in jobs] == expected
    paths = [unit.path for job in jobs for unit in job.units]
    assert sorted(paths) == [f"/in/{place}" for place in range(len(records))], "every unit once"


def test_a_job_with_a_limit_holds_no_more_units_than_it_reads_from():
    (job,) = cut(*[5] * 1_000, samples=1_000, limit=20)
    assert len(job.units) == SPREAD and job.limit == 20
    (job,) = cut(*[5] * 1_000, samples=1_000, limit=1_000)
    assert len(job.units) == 200


def test_a_limit_on_units_of_unknown_size_is_left_to_one_job():
    (job,) = cut(10, None, None, 10, limit=12)
    assert ([unit.path for unit in job.units], job.limit) == (["/in/0", "/in/1", "/in/2", "/in/3"], 12)
    assert cut(limit=12) == []


def make_marker(folder, job, words, attempt="a" * 12, samples=3):
    name = work.shard_name(job, 0, attempt)
    special = (words.boi, words.image, words.eoi)
    entry = write_shard(folder, name, shard_sets.several("text", words, samples), tiny.MODEL, special)
    rejects = (Reject("there", "k\u00e9y", "empty", "empty: no words", b"\xff\x00"),)
    examples = (Example("k", "there", "", "", "words", b"\xff\xd8", (1, 2)),)
    return JobMarker(
        job.digest,
        job.number,
        attempt,
        5,
        (entry,),
        rejects,
        {"a >= 1": 2},
        {"w": {"2": 1}},
        examples,
        {"read": 0.5},
        ignored={"url": {"not used": 5}},
    )


def test_a_marker_comes_back_as_it_went(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    (job,) = cut(10)
    marker = make_marker(tmp_path, job, words)
    assert work.load_marker(str(tmp_path), job) is None
    assert work.commit(str(tmp_path), marker)
    assert work.load_marker(str(tmp_path), job) == marker
    assert list(work.done(str(tmp_path), [job])) == [marker]


def test_a_marker_of_an_older_program_says_the_kind_of_a_reject_in_its_reason(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    (job,) = cut(10)
    marker = make_marker(tmp_path, job, words)
    assert work.commit(str(tmp_path), marker)
    (path,) = (tmp_path / "commits").glob("*.json")
    values = json.loads(path.read_text())
    del values["rejects"][0]["kind"]
    path.write_text(json.dumps(values))
    assert work.load_marker(str(tmp_path), job) == marker


def test_of_attempts_at_the_same_time_one_counts_and_the_others_clean_up(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    (job,) = cut(10)
    markers = [make_marker(tmp_path, job, words, attempt=f"{number:012x}") for number in range(8)]
    together, won = threading.Barrier(8), []

    def commit(marker):
        together.wait()
        if work.commit(str(tmp_path), marker):
            won.append(marker.attempt)

    threads = [threading.Thread(target=commit, args=(marker,)) for marker in markers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    counted = work.load_marker(str(tmp_path), job)
    assert counted is not None and counted.attempt == winner
    left = [path.name for path in tmp_path.iterdir() if path.suffix in (".tar", ".npy")]
    assert sorted(left) == [f"000000-00-{winner}.index.npy", f"000000-00-{winner}.tar"]


def test_a_commit_looks_at_the_lease_and_twice_at_a_store_without_conditions(tmp_path, monkeypatch):
    words, ways = shard_sets.tokenizer(tmp_path), []
    (job,) = cut(10)
    marker = make_marker(tmp_path, job, words)
    lost = Mock(conditional=True, check=Mock(side_effect=LeaseLostError("taken over")))
    with pytest.raises(LeaseLostError):
        work.commit(str(tmp_path), marker, lost)
    assert work.load_marker(str(tmp_path), job) is None
    monkeypatch.setattr(fs, "create", lambda path, content, conditional: ways.append(conditional) or True)
    for conditional in (True, False):
        assert work.commit(str(tmp_path), marker, Mock(conditional=conditional))
    assert ways == [True, False]


def test_an_attempt_that_finds_its_own_marker_has_won(tmp_path):
    """What a client does that sends the request again whose answer got lost."""
    words = shard_sets.tokenizer(tmp_path)
    (job,) = cut(10)
    marker = make_marker(tmp_path, job, words)
    assert work.commit(str(tmp_path), marker) and work.commit(str(tmp_path), marker)
    assert list(work.done(str(tmp_path), [job])) == [marker]


@pytest.mark.parametrize("lost", ["tar", "index.npy", "cut tar", "cut index.npy", "marker"])
def test_what_is_not_whole_is_done_again(tmp_path, lost):
    words = shard_sets.tokenizer(tmp_path)
    jobs = cut(10, 10)
    for job in jobs:
        assert work.commit(str(tmp_path), make_marker(tmp_path, job, words))
    (path,) = (
        (tmp_path / "commits").glob(f"{jobs[1].digest[:32]}*")
        if lost == "marker"
        else tmp_path.glob(f"000001-*.{lost.removeprefix('cut ')}")
    )
    if lost.startswith("cut"):
        path.write_bytes(path.read_bytes()[:-1])
    elif lost == "marker":
        path.write_text('{"job": "of another program"}')
    else:
        path.unlink()
    assert [marker.job for marker in work.done(str(tmp_path), jobs)] == [jobs[0].digest]
    assert len(list((tmp_path / "commits").iterdir())) == 1, "a marker of shards that are gone would block the next one"


def test_strays_are_removed_and_nothing_else(tmp_path):
    words = shard_sets.tokenizer(tmp_path)
    (old,), (job,) = cut(10, settings={"a": 0}), cut(10)
    for each in (old, job):
        work.commit(str(tmp_path), make_marker(tmp_path, each, words, attempt=each.digest[:12]))
    make_marker(tmp_path, job, words, attempt="dead" * 3)
    mine = {"notes.txt", "00000.tar", "photos.tar", "00000.index.npy", "000000-00-mine.tar", f"x-{'0' * 12}.tar"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / "commits" / "mine.json").write_text("mine")
    marker = work.load_marker(str(tmp_path), job)
    assert marker is not None
    work.remove_strays(str(tmp_path), [job], marker.shards)
    name = f"000000-00-{job.digest[:12]}"
    kept = {f"{name}.index.npy", f"{name}.tar", "tokenizer.json", "commits"} | mine
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert {path.stem for path in (tmp_path / "commits").iterdir()} == {job.digest[:32], "mine"}


def test_names_of_attempts_are_those_that_are_tidied_up():
    job = dataclasses.replace(cut(10)[0], number=1_234_567)
    for part in (0, 123):
        name = work.shard_name(job, part, work.attempt_name())
        assert all(work.SHARD_FILE.fullmatch(f"{name}{ending}") for ending in (".tar", ".index.npy"))


def test_a_job_that_commits_while_markers_are_looked_for_keeps_its_marker(tmp_path, monkeypatch):
    words = shard_sets.tokenizer(tmp_path)
    first, late = cut(10, 10)
    assert work.commit(str(tmp_path), make_marker(tmp_path, first, words))
    listed = fs.sizes

    def commits_after(folder):
        found = listed(folder)
        work.commit(str(tmp_path), make_marker(tmp_path, late, words))
        return found

    monkeypatch.setattr(fs, "sizes", commits_after)
    assert first.digest in [marker.job for marker in work.done(str(tmp_path), [first, late])]
    assert work.load_marker(str(tmp_path), late) is not None


def test_creating_a_file_that_is_there(tmp_path):
    assert fs.create(tmp_path / "a" / "b", b"1") and not fs.create(tmp_path / "a" / "b", b"2")
    assert (tmp_path / "a" / "b").read_bytes() == b"1" and len(list((tmp_path / "a").iterdir())) == 1
    assert fs.sizes(tmp_path / "a") == {"b": 1} and fs.sizes(Path("/nowhere")) == {}

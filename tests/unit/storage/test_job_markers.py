"""Markers of jobs: one attempt counts, another job's marker does not, and users' files are not removed."""

import hashlib
import json
from pathlib import Path

import pytest

from janus_dist.storage import fs
from janus_dist.storage.job_markers import JobMarkers, digest_of

DIGEST = hashlib.sha256(b"job").hexdigest()


@pytest.fixture
def markers(tmp_path):
    return JobMarkers(str(tmp_path))


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of([{"a": 1}, 3]) == hashlib.sha256(b'[{"a": 1}, 3]').hexdigest()


def test_a_marker_is_found_by_the_digest_of_its_job(markers):
    markers.write({"job": DIGEST, "b": 1, "a": 2})
    path = Path(markers.folder, f"{DIGEST[:32]}.json")
    assert path.read_text() == f'{{"job": "{DIGEST}", "b": 1, "a": 2}}'
    assert markers.load(DIGEST, lambda values: values["b"]) == 1
    assert markers.load(digest_of("another"), dict) is None
    assert markers.load(DIGEST[:32] + "0" * 32, dict) is None, "the same name, but another job"
    markers.remove(DIGEST)
    assert markers.load(DIGEST, dict) is None


@pytest.mark.parametrize("content", ["", "3", "[]", "{}", f'{{"job": "{DIGEST}"}}'])
def test_what_another_program_wrote_is_not_a_marker(markers, content):
    fs.write_whole(markers.path(DIGEST), content.encode())
    assert markers.load(DIGEST, lambda values: values["answers"]) is None


def test_of_several_attempts_the_first_counts_also_when_it_asks_twice(markers):
    assert markers.create({"job": DIGEST, "attempt": "one"})
    assert markers.create({"job": DIGEST, "attempt": "one"})
    assert not markers.create({"job": DIGEST, "attempt": "two"})
    assert json.loads(fs.read(markers.path(DIGEST)))["attempt"] == "one"


def test_markers_of_other_jobs_are_removed_and_nothing_else(markers):
    other = digest_of("other")
    for job in (DIGEST, other):
        markers.write({"job": job})
    fs.write_whole(f"{markers.folder}/mine.json", b"{}")
    assert markers.others([DIGEST]) == [f"{other[:32]}.json"]
    markers.remove_others([DIGEST])
    assert markers.names() == {f"{DIGEST[:32]}.json", "mine.json"}

"""Counts of values that are not used: from a job's marker to the manifest, the page and the lines of the log."""

import dataclasses
import json
from pathlib import Path

from data_pipelines import work
from data_pipelines.gather import LISTED_KEYS, Gathered
from data_pipelines.inputs import formats
from data_pipelines.job import InputWork, run_job
from data_pipelines.record import Record
from data_pipelines.stream import settings
from data_pipelines.tally import IGNORED_KEYS, OTHER_KEYS, JobTally
from data_pipelines.tokenizer import PATH
from janus_dist.config.load import load
from janus_dist.config.pipeline import InputConfig
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.manifest import Manifest, ShardSet
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.report.data import write_data_report
from tests.pages import Page
from tests.unit.data_pipelines.test_work import cut, make_marker, shard_sets

BASE = Path(__file__).parents[3] / "jobs" / "recipes" / "tiny" / "base.yaml"
COUNTS = {"image": {"the text stream reads texts alone": 2}, "n": {"not used": 3}}


def text_input(tmp_path) -> InputWork:
    """Work on three documents of an input whose stream its name alone says."""
    documents = [
        {"text": "a", "n": 1, "image": "a.jpg"},
        {"text": "b", "n": 2, "image": "b.jpg"},
        {"text": "c", "n": 0},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(value) + "\n" for value in [*documents, {"text": 5, "n": 1}]))
    of = InputConfig(format="jsonl", path=str(tmp_path / "d.jsonl"))
    recipe = load(BaseRecipe, [BASE], [f"data.tokenizer={PATH}", f"data.root={tmp_path}"]).recipe
    return InputWork("text", "text", str(tmp_path / "text"), of, recipe, Tokenizer.load(PATH))


def test_from_records_to_the_manifest_and_the_page(tmp_path):
    of = text_input(tmp_path)
    (job,) = work.cut(formats.units(of.source, 100), 100, settings(of), None)
    marker = run_job(job, of, None, False)
    assert marker is not None and marker.ignored == COUNTS and marker.records == 4 and len(marker.rejects) == 1
    gathered = Gathered()
    gathered.add(marker)
    gathered.manifest(of, settings(of)).save(of.folder)
    assert Manifest.load(of.folder).ignored == COUNTS
    page = write_data_report("t", [(ShardSet.open(of.folder), of.tokenizer)], str(tmp_path / "page.html"), 0, 0)
    flat = " ".join(Page(Path(page).read_text()).text.split())
    assert "Values of the source that were not used" in flat and "n3 not used" in flat


def test_lines_of_the_log():
    gathered = Gathered(records=5)
    gathered.add(marker_of({"url": {"not used": 3, "a web address": 1}, "n": {"not used": 5}}))
    assert gathered.ignored_lines() == [
        "ignored n in 5 of 10 records: not used",
        "ignored url in 4 of 10 records: not used (3); a web address (1)",
    ]
    gathered.add(marker_of({f"k{number:03d}": {"not used": 1} for number in range(LISTED_KEYS)}))
    lines = gathered.ignored_lines()
    assert len(lines) == LISTED_KEYS + 1 and lines[-1] == "ignored 2 more keys: see stats.json"


def marker_of(ignored):
    return work.JobMarker("j", 0, "a", 5, (), (), {}, {}, ignored=ignored)


def test_keys_that_are_data_do_not_grow_a_marker():
    tally = JobTally(with_examples=False)
    for number in range(IGNORED_KEYS + 50):
        tally.ignore(Record("k", "a", ignored=((f"id{number}", "not used"), ("n", "not used"))))
    assert len(tally.ignored) == IGNORED_KEYS + 1 and tally.ignored["n"]["not used"] == IGNORED_KEYS + 50
    assert tally.ignored[OTHER_KEYS]["not used"] == 51


def test_manifests_and_markers_of_older_programs_are_read(tmp_path):
    of = text_input(tmp_path)
    (job,) = cut(10)
    marker = make_marker(tmp_path, job, shard_sets.tokenizer(tmp_path))
    assert work.commit(str(tmp_path), marker)
    (path,) = (tmp_path / "commits").iterdir()
    values = json.loads(path.read_text())
    assert values.pop("ignored")
    path.write_text(json.dumps(values))
    assert work.load_marker(str(tmp_path), job) == dataclasses.replace(marker, ignored={})
    gathered = Gathered()
    gathered.add(marker)
    manifest = gathered.manifest(of, {})
    manifest.save(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())
    assert values.pop("ignored") == marker.ignored
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    old = Manifest.load(tmp_path)
    assert old.ignored == {} and old.digest == manifest.digest, "a run goes on with the same samples"

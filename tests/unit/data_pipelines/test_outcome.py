"""The end of a run: what it counts, and what it says when it kept nothing."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import outcome, stream
from data_pipelines.inputs.columns import partition_columns
from janus_dist.errors import DataError
from tests.alone import without_ray, work_on
from tests.pipelines.conftest import lines

CASES = Path(__file__).parents[2] / "cases"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    without_ray(monkeypatch)


def run(tmp_path, path, rule="{}", *more, name="text", form="jsonl"):
    overrides = [f"pipeline.inputs.{name}.where={rule}", "pipeline.max_bad_share=1", *more]
    return stream.run(work_on(name, path, tmp_path / "data", *overrides, form=form))


def refusal(tmp_path, *args, **values):
    with pytest.raises(DataError) as caught:
        run(tmp_path, *args, **values)
    assert not (tmp_path / f"data/{values.get('name', 'text')}/manifest.json").exists(), "nothing may be committed"
    return caught.value.message, caught.value.hint or ""


def test_a_rule_on_a_column_of_decimals_compares_numbers(tmp_path):
    found = run(tmp_path, CASES / "where_decimal", "{similarity: {min: 0.3}}", name="understanding", form="parquet")
    assert found.samples == 1


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_rule_that_no_record_has_a_value_for_names_the_columns_and_the_nearest(tmp_path, form):
    path = CASES / "where_misspelt"
    if form == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": ["a", "b"], "score": [0.1, 0.9]}), path)
    message, hint = refusal(tmp_path, path, "{scores: {min: 0.5}}", form=form)
    assert "no record has a value for 'scores', which `where` asks for" in message
    assert "score" in hint and hint.endswith("did you mean 'score'?")


def test_a_rule_that_some_records_have_a_value_for_drops_the_others(tmp_path, caplog):
    path = lines(tmp_path / "in.jsonl", [{"text": "some words", "score": 1 if number else None} for number in range(3)])
    with caplog.at_level("INFO", logger="janus_dist"):
        assert run(tmp_path, path, "{score: {min: 0.5}}").samples == 2
    assert "text: dropped by rules: score is missing (1)" in caplog.messages


@pytest.mark.parametrize("last", ["scores", "other"])
def test_a_misspelt_rule_ends_a_long_run_unless_files_that_come_later_have_the_column(tmp_path, monkeypatch, last):
    monkeypatch.setattr(outcome, "WATCHED_RECORDS", 20)
    for number in range(20):
        name = last if number > 10 else "score"
        lines(tmp_path / f"in/{number:02d}.jsonl", [{"text": "some words", name: 1.0}] * 9)
    rule, few = "{scores: {min: 0.5}}", "pipeline.shard_samples=9"
    if last == "scores":
        assert run(tmp_path, tmp_path / "in", rule, few).samples == 81
        return
    message, _ = refusal(tmp_path, tmp_path / "in", rule, few)
    assert "no record has a value for 'scores'" in message
    assert len(list((tmp_path / "data/text/commits").iterdir())) < 10, "the rest is not read"


def test_a_rule_on_a_value_that_the_stream_does_not_have_is_told(tmp_path):
    message, _ = refusal(tmp_path, CASES / "where_misspelt", "{text: {one_of: [x]}, nothing: {}}")
    assert "no record has a value for 'nothing'" in message


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_columns_of_partitions_are_used(tmp_path, form):
    for lang in ("en", "no", "pt%20br"):
        folder = tmp_path / f"in/lang={lang}"
        entries = [{"text": f"words in {lang}"}]
        if form == "jsonl":
            lines(folder / "a.jsonl", entries)
        else:
            folder.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(entries), folder / "a.parquet")
    assert run(tmp_path, tmp_path / "in", "{lang: {one_of: [en, pt br]}}", form=form).samples == 2


def test_partitions_of_a_path():
    assert partition_columns("s3://bucket/a=1/lang=__HIVE_DEFAULT_PARTITION__/x=a%2Fb/c=/part=0.parquet") == {
        "a": "1",
        "x": "a/b",
        "c": "",
        "part": "0.parquet",
    }


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_input_without_a_record_is_an_error(tmp_path, content):
    path = CASES / "empty_input"
    if content:
        path = tmp_path / "in.jsonl"
        path.write_text(content)
    message, hint = refusal(tmp_path, path)
    assert message == "text: the input has no records, so nothing can be trained" and str(path) in hint


def test_a_run_that_keeps_nothing_says_why_and_reads_a_repaired_source_again(tmp_path):
    """The source is repaired without a change of its size, which no digest of a job sees."""
    rows = [{"text": " "}, {"text": "one two", "score": 0.1}, {"text": "three", "score": 0.2}]
    message, _ = refusal(tmp_path, lines(tmp_path / "a.jsonl", rows), "{text_chars: {min: 5}, score: {min: 0.5}}")
    assert message == (
        "text: none of 3 records became a sample: dropped by rules: score >= 0.5 (2), text_chars >= 5 (1)"
    )
    message, hint = refusal(tmp_path, lines(tmp_path / "b.jsonl", [{"text": "    "}] * 2))
    assert (
        "none of 2 records became a sample: refused: empty (2); b-0: empty: the text has no words" in message
        and "janus data quarantine" in hint
    )
    (tmp_path / "b.jsonl").write_text((tmp_path / "b.jsonl").read_text().replace("    ", "word"))
    assert run(tmp_path, tmp_path / "b.jsonl").samples == 2


def test_counts_are_on_the_console(tmp_path, caplog):
    rows = [{"text": "some words", "n": number} for number in range(9)] + [{"text": ""}]
    path = lines(tmp_path / "in.jsonl", rows)
    with caplog.at_level("INFO", logger="janus_dist"):
        run(tmp_path, path, "{n: {min: 2, max: 6}}", "pipeline.shard_samples=3")
    assert caplog.messages[-1] == "text: dropped by rules: n >= 2 (2), n <= 6 (2), n is missing (1)"
    stats = json.loads((tmp_path / "data/text/stats.json").read_text())
    assert sum(stats["dropped"].values()) == 5


def test_each_frequent_kind_of_reason_is_shown_once(tmp_path):
    """Of a tar whose members are not sorted the first reasons are all alike, and say nothing of the order."""
    of = work_on("understanding", CASES / "tar_unsorted", tmp_path / "data", form="webdataset")
    with pytest.raises(DataError, match="members of one key must be adjacent, as `tar --sort=name` writes them"):
        stream.run(of)

"""Stages of a shard job: what each does to the outcomes of the one before it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipelines import stages
from data_pipelines.record import DroppedByRule, Picture, Record, StepResult
from data_pipelines.stages import DroppedRecord, Kept, Read, Rejected, StepClock
from data_pipelines.tally import JobTally
from janus_dist.errors import RecordError


def kept(key: str, *pictures: Picture) -> Kept[Record]:
    """Return a kept record."""
    record = Record(key, f"file:{key}", pictures, caption="a circle")
    return Kept(record, record)


def make(record: Record) -> str:
    """Refuse `bad`, drop `small` and make upper case of other keys."""
    if record.key == "bad":
        raise RecordError("empty", "no words")
    if record.key == "small":
        raise DroppedByRule("width >= 2", "1")
    return record.key.upper()


def test_a_step_keeps_drops_or_rejects_each_record_and_passes_other_outcomes_on():
    first, other = Read(1), DroppedRecord(kept("old").record, "n >= 1", "0")
    outcomes = list(stages.make(iter([first, kept("a"), kept("bad"), other, kept("small")]), make, StepClock()))
    assert outcomes[0] is first and outcomes[3] is other
    assert isinstance(outcomes[1], Kept) and outcomes[1].value == "A"
    assert isinstance(outcomes[2], Rejected) and outcomes[2].reject.reason == "empty: no words"
    assert outcomes[2].reject.head == b"a circle" and outcomes[2].reject.kind == "empty"
    assert isinstance(outcomes[4], DroppedRecord) and (outcomes[4].rule, outcomes[4].value) == ("width >= 2", "1")


def test_pictures_are_fetched_in_order_and_other_outcomes_do_not_wait(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"a")
    picture, absent = Picture(str(tmp_path / "a.png")), Picture(str(tmp_path / "b.png"))
    read = Read(1)
    with ThreadPoolExecutor(1) as pool:
        outcomes = list(
            stages.fetch(iter([kept("0", picture), kept("1", absent), read, kept("2", picture)]), pool, StepClock())
        )
    assert outcomes[0] is read, "at once, while pictures are read"
    assert isinstance(outcomes[2], Rejected) and outcomes[2].reject.kind == "missing"
    values = [outcome.value for outcome in outcomes if isinstance(outcome, Kept)]
    assert [(record.key, record.pictures[0].content) for record in values] == [("0", b"a"), ("2", b"a")]


def test_every_outcome_is_counted_once():
    tally = JobTally(with_examples=False)
    reject = Rejected(stages.Reject("file", "k", "damaged", "cut short", b"", 7))
    made = Kept(kept("a").record, StepResult([], (("width", 16.0),)))
    for outcome in (
        Read(7),
        reject,
        Read(1, kept("b").record),
        DroppedRecord(kept("b").record, "n >= 1", "0"),
        Read(1),
        made,
    ):
        tally.count(outcome)
    assert (tally.records, tally.kept, tally.dropped, len(tally.rejects)) == (9, 1, {"n >= 1": 1}, 1)
    assert tally.histograms == {"width": {"16": 1}}

"""Reference curves: what follows one, and what does not."""

import json
from dataclasses import replace

import pytest

from janus_dist.errors import DataError
from janus_dist.report.curves import BAND, EQUAL_STEPS, SPAN_STEPS, Curve, follow

STEPS = 3 * SPAN_STEPS + 7


@pytest.fixture
def curve(tmp_path) -> Curve:
    lines = [
        {"step": step, "loss/text": 5 - step / STEPS} | ({"loss/generation": 6.0} if step % 2 else {})
        for step in range(1, STEPS + 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Curve.of(tmp_path)


def changed(curve: Curve, factor: float, first: int) -> Curve:
    text = [value * (factor if step >= first else 1) for step, value in enumerate(curve.losses["text"]) if value]
    return replace(curve, losses=curve.losses | {"text": text})


def test_a_curve_is_written_and_read_as_it_is(curve, tmp_path):
    curve.write(tmp_path / "curves" / "stage1.json")
    assert Curve.read(tmp_path / "curves" / "stage1.json", "bfloat16") == curve
    assert curve.losses["generation"][:4] == [6.0, None, 6.0, None] and curve.steps == STEPS
    assert set(curve.losses) == {"text", "generation"} and curve.machine and curve.packages["torch"]


def test_a_file_has_one_curve_for_each_dtype(curve, tmp_path):
    file = tmp_path / "stage1.json"
    other = replace(curve, dtype="float32", losses={"text": curve.losses["text"]})
    curve.write(file)
    with pytest.raises(DataError, match=r"holds no curve in float32, only in bfloat16"):
        Curve.read(file, "float32")
    other.write(file)
    curve.write(file)
    assert [Curve.read(file, dtype) for dtype in ("bfloat16", "float32")] == [curve, other]


def test_a_curve_knows_what_its_run_computed_in(curve, tmp_path):
    assert curve.dtype == "bfloat16"
    (tmp_path / "config.json").write_text('{"engine": {"dtype": "float32"}}')
    assert Curve.of(tmp_path).dtype == "float32"


def test_the_same_run_follows_itself(curve):
    found = follow(curve, curve)
    assert found.is_within and found.is_same_kind and found.equal_steps == STEPS
    assert found.worst == {"text": 0.0, "generation": 0.0}


@pytest.mark.parametrize(("factor", "within"), [(1 + 0.9 * BAND, True), (1 + 1.1 * BAND, False), (0.9, False)])
def test_later_steps_stay_within_a_band(curve, factor, within):
    found = follow(changed(curve, factor, first=EQUAL_STEPS), curve)
    assert found.equal_steps == EQUAL_STEPS and found.is_within == within
    assert found.worst["text"] == pytest.approx(abs(factor - 1), rel=1e-6) and found.worst["generation"] == 0


def test_first_steps_are_equal_on_the_same_kind_of_machine_only(curve):
    early = changed(curve, 1.001, first=3)
    assert not follow(early, curve).is_within
    elsewhere = replace(early, machine="riscv64")
    assert follow(elsewhere, curve).is_within and not follow(elsewhere, curve).is_same_kind


def test_a_short_run_is_compared_as_far_as_it_goes(curve):
    short = replace(curve, losses={name: values[:5] for name, values in curve.losses.items()})
    assert follow(short, curve).steps == 5 and follow(short, curve).is_within


def test_a_stream_without_losses_in_common_steps_is_left_out(curve):
    late = replace(curve, losses=curve.losses | {"generation": [None] * 30 + [6.0] * (STEPS - 30)})
    short = replace(late, losses={name: values[:25] for name, values in late.losses.items()})
    found = follow(short, late)
    assert found.worst == {"text": 0.0} and found.is_within
    silent = replace(short, losses={"generation": short.losses["generation"]})
    assert follow(silent, silent).worst == {} and follow(silent, silent).is_within


def test_a_stream_that_only_one_of_the_two_trains_on_is_not_followed(curve):
    without = replace(curve, losses=curve.losses | {"generation": [None] * STEPS})
    for found in (follow(without, curve), follow(curve, without)):
        assert found.worst == {"text": 0.0, "generation": float("inf")} and not found.is_within


def test_what_is_no_curve_is_refused(curve, tmp_path):
    with pytest.raises(DataError, match="has no steps"):
        Curve.of(tmp_path / "none")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="holds no curves"):
        Curve.read(tmp_path / "bad.json", "bfloat16")
    with pytest.raises(DataError, match="the run has losses of text, the curve of text, generation"):
        follow(replace(curve, losses={"text": curve.losses["text"]}), curve)

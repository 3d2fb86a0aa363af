"""Which losses are objected to, and when a run is lost."""

import math

import numpy as np
import pytest

from janus_dist.train.spikes import FORGIVEN_STEPS, MAX_SKIPPED, MIN_WINDOW_STEPS, WINDOW_STEPS, LossSpikeDetector


def calm(number: int = MIN_WINDOW_STEPS) -> list[float]:
    return (2 + 0.1 * np.random.default_rng(0).standard_normal(number)).tolist()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_objected_to_from_the_first_step_on(loss):
    assert LossSpikeDetector(None).check(loss) == f"loss {loss}"


def test_a_spike_is_what_stands_out_of_the_losses_before():
    losses = calm()
    detector = LossSpikeDetector(6.0, losses)
    mean, sigma = np.mean(losses), np.std(losses)
    assert detector.check(float(mean + 5.9 * sigma)) is None
    assert detector.check(0.0) is None, "a loss may fall as it likes"
    said = detector.check(float(mean + 7 * sigma))
    assert said is not None and said.endswith(f", 7.0 sigma above the mean of {mean:.4g}")
    assert LossSpikeDetector(None, losses).check(1e9) is None
    assert LossSpikeDetector(6.0, losses[1:]).check(1e9) is None, "too few to judge by"


def test_only_steps_that_were_taken_are_judged_by():
    detector = LossSpikeDetector(6.0, calm(WINDOW_STEPS))
    before = list(detector.losses)
    detector.record_skip()
    assert list(detector.losses) == before
    detector.record_step(1.5)
    assert list(detector.losses) == [*before[1:], 1.5]


def test_what_is_of_another_mixture_is_not_judged_by():
    detector = LossSpikeDetector(6.0, calm())
    assert detector.check(9.0) is not None
    detector.forget()
    for _ in range(MIN_WINDOW_STEPS):
        assert detector.check(9.0) is None
        detector.record_step(9.0)
    assert detector.check(99.0) is not None


def test_returns_are_forgiven_after_many_good_steps():
    detector = LossSpikeDetector(6.0)
    detector.record_rollback()
    for _ in range(FORGIVEN_STEPS - 1):
        detector.record_step(1.0)
    detector.record_rollback()
    detector.restore([1.0])
    assert detector.rollbacks == 2, "one too early"
    for _ in range(FORGIVEN_STEPS):
        assert detector.rollbacks == 2
        detector.record_step(1.0)
    assert detector.rollbacks == 0


def test_a_run_should_roll_back_after_so_many_skips_in_a_row():
    detector = LossSpikeDetector(6.0)
    for _ in range(MAX_SKIPPED - 1):
        detector.record_skip()
    assert not detector.should_roll_back
    detector.record_step(1.0)
    for _ in range(MAX_SKIPPED):
        assert not detector.should_roll_back
        detector.record_skip()
    assert detector.should_roll_back

"""Which losses are objected to, and when a run is lost."""

import math

import numpy as np
import pytest

from janus_dist.train.guard import FORGIVEN_STEPS, LEAST_STEPS, MAX_SKIPPED, WINDOW_STEPS, Guard


def calm(number: int = LEAST_STEPS) -> list[float]:
    return (2 + 0.1 * np.random.default_rng(0).standard_normal(number)).tolist()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_objected_to_from_the_first_step_on(loss):
    assert Guard(None).objection(loss) == f"loss {loss}"


def test_a_spike_is_what_stands_out_of_the_losses_before():
    losses = calm()
    guard = Guard(6.0, losses)
    mean, sigma = np.mean(losses), np.std(losses)
    assert guard.objection(float(mean + 5.9 * sigma)) is None
    assert guard.objection(0.0) is None, "a loss may fall as it likes"
    said = guard.objection(float(mean + 7 * sigma))
    assert said is not None and said.endswith(f", 7.0 sigma above the mean of {mean:.4g}")
    assert Guard(None, losses).objection(1e9) is None
    assert Guard(6.0, losses[1:]).objection(1e9) is None, "too few to judge by"


def test_only_steps_that_were_taken_are_judged_by():
    guard = Guard(6.0, calm(WINDOW_STEPS))
    before = list(guard.losses)
    guard.skipped()
    assert list(guard.losses) == before
    guard.took(1.5)
    assert list(guard.losses) == [*before[1:], 1.5]


def test_what_is_of_another_mixture_is_not_judged_by():
    guard = Guard(6.0, calm())
    assert guard.objection(9.0) is not None
    guard.forget()
    for _ in range(LEAST_STEPS):
        assert guard.objection(9.0) is None
        guard.took(9.0)
    assert guard.objection(99.0) is not None


def test_returns_are_forgiven_after_many_good_steps():
    guard = Guard(6.0)
    guard.went_back()
    for _ in range(FORGIVEN_STEPS - 1):
        guard.took(1.0)
    guard.went_back()
    guard.go_on([1.0])
    assert guard.returns == 2, "one too early"
    for _ in range(FORGIVEN_STEPS):
        assert guard.returns == 2
        guard.took(1.0)
    assert guard.returns == 0


def test_a_run_is_lost_after_so_many_skips_in_a_row():
    guard = Guard(6.0)
    for _ in range(MAX_SKIPPED - 1):
        guard.skipped()
    assert not guard.is_lost
    guard.took(1.0)
    for _ in range(MAX_SKIPPED):
        assert not guard.is_lost
        guard.skipped()
    assert guard.is_lost

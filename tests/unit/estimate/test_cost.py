"""Coefficients of cost: recovered from times that follow them, and measured on a real model."""

import numpy as np
import pytest

from janus_dist.config.data import COSTLY
from janus_dist.estimate.cost import counts, fit, makes, measure
from tests import prepared


def recipe(tmp_path):
    return prepared.recipe(tmp_path, tmp_path, batch={"rows": 2, "row_tokens": 128, "micro_rows": 2})


def test_micro_steps_tell_things_apart(tmp_path):
    """No thing's count is a mixture of the others', or its cost could not be told from theirs."""
    held = np.array([counts(batch) for batch in makes(recipe(tmp_path))])
    assert np.linalg.matrix_rank(held / held.max(axis=0)) == held.shape[1] == len(COSTLY) + 1


def test_known_costs_are_recovered(tmp_path):
    held = np.array([counts(batch) for batch in makes(recipe(tmp_path))])
    told = np.array([2e-6, 6e-9, 1e-3, 4e-7, 8e-7, 5e-3])
    found = fit(held, held @ told)
    assert list(found.cost.values()) == pytest.approx((told[:5] / told[0]).tolist(), rel=1e-2)
    assert found.worst_error < 1e-6 and found.token_us == pytest.approx(2.0)


def test_no_cost_is_below_zero(tmp_path):
    held = np.array([counts(batch) for batch in makes(recipe(tmp_path))])
    noise = np.random.default_rng(0).normal(1, 0.05, len(held))
    found = fit(held, (held @ np.array([2e-6, 0.0, 1e-3, 0.0, 0.0, 5e-3])) * noise)
    assert min(found.cost.values()) >= 0
    assert found.worst_error < 0.2


def test_a_real_model_is_measured(tmp_path):
    found = measure(recipe(tmp_path), rounds=1)
    assert found.micro_steps == 15 and found.token_us >= 0

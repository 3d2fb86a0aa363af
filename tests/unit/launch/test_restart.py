"""The decision to start lost ranks again or to give up."""

import pytest

from janus_dist.launch.restart import RestartPolicy

LOST, ERROR = True, False


@pytest.mark.parametrize(("max_losses", "first", "failures", "decisions", "losses"), [
    (3, None, [(LOST, None)], [True], 1),
    (3, None, [(LOST, None)] * 4, [True, True, True, False], 4),
    (0, None, [(LOST, None)], [False], 1),
    (0, "a", [(LOST, "b")], [False], 1),
    (1, "a", [(LOST, "a"), (LOST, "a")], [True, False], 2),
    (1, "a", [(LOST, "b"), (LOST, "c"), (LOST, "d")], [True, True, True], 1),
    (2, None, [(LOST, None), (LOST, "a"), (LOST, "a"), (LOST, "a")], [True, True, True, False], 3),
    (1, "b", [(LOST, "a"), (LOST, "a")], [True, False], 2),
    (3, None, [(ERROR, None)], [False], 1),
    (3, "a", [(LOST, "a"), (ERROR, "b")], [True, False], 1),
])  # fmt: skip
def test_ranks_are_started_again_until_too_many_losses_leave_no_new_checkpoint(
    max_losses, first, failures, decisions, losses
):
    policy = RestartPolicy(max_losses, first)
    assert not policy.has_failed
    assert [policy.should_restart(is_lost, newest) for is_lost, newest in failures] == decisions
    assert (policy.losses, policy.checkpoint, policy.has_failed) == (losses, failures[-1][1], True)

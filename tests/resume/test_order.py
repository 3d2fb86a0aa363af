"""That ZeRO-3 has to record the order of modules anew is no matter of its log alone."""

from pathlib import Path

import pytest

from janus_dist.monitor import events
from janus_dist.train.build import build_trainer
from tests import prepared
from tests.ranks import run_ranks


def fit(folder: Path, root: Path, at_step: int | None) -> None:
    """Train; before a step DeepSpeed finds that the order is another, as it would in the middle of one."""
    trainer = build_trainer(prepared.recipe(folder, root, 1, train={"log_every_steps": 3}), lambda line: None)
    judge = trainer.run.judge

    def judged(outcome):
        if trainer.run.progress.step == at_step:
            trainer.run.engine.optimizer.parameter_offload.get_param_coordinator()._invalidate_trace()
        judge(outcome)

    trainer.run.judge = judged
    trainer.fit()


@pytest.mark.parametrize(("at_step", "said"), [(None, []), (4, [6])])
def test_it_is_an_event_of_the_run(tmp_path, at_step, said):
    prepared.prepare(tmp_path)
    run_ranks(fit, 1, tmp_path / "meet", tmp_path, tmp_path, at_step)
    found = [event for event in events.read(tmp_path / "run") if "in another order 1 times" in event.text]
    assert [(event.step, event.kind) for event in found] == [(step, "slow") for step in said]

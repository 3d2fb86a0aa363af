"""The loss spike detector in the trainer: its window has only losses of the current mixture."""

from pathlib import Path
from typing import Any

from janus_dist.train.build import build_trainer
from tests import prepared
from tests.ranks import run_ranks


def windows(folder: Path, root: Path, sections: dict[str, Any]) -> list[int]:
    """Return the number of losses in the window at each step."""
    found: list[int] = []
    trainer = build_trainer(prepared.recipe(folder, root, 1, **sections), lambda line: None)
    check = trainer.run.spikes.check
    trainer.run.spikes.check = lambda loss: (found.append(len(trainer.run.spikes.losses)), check(loss))[1]
    trainer.fit()
    return found


def test_a_change_of_mixture_empties_the_window(folder, tmp_path):
    """Check at the step of the change, after a resume at this step, and after re-basing."""

    def judged(steps: int, mix: dict[str, Any], **run: Any) -> list[int]:
        sections = {"mix": mix, "train": {"steps": steps, "save_every_steps": 100}, "run": run}
        return run_ranks(windows, 1, tmp_path / "meet", folder, tmp_path, sections)[0]

    phased = {"then": [{"from_step": 3, "text": 9}, {"from_step": 5, "text": 1}]}
    assert judged(4, phased) == [0, 1, 2, 0]
    assert judged(5, phased) == [1], "a resume keeps what is of this mixture"
    assert judged(7, phased) == [0, 1]
    assert judged(9, {"text": 20}, rebase=True) == [0, 1]
    assert judged(10, {"text": 20}) == [2]

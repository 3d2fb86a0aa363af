"""An undisturbed run and a disturbed one of the same recipe, compared step by step and row by row.

Invariant: nothing is taken from what the runs say of themselves but losses; rows are digests of what models were given.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from janus_dist.checkpoint import commits
from tests import handed, prepared
from tests.chaos.arena import KILLS, Arena, Fault, ray_nodes
from tests.moto_s3 import Server, moto_bucket
from tests.resume.test_trainer import losses

KINDS = (
    "rank", "rank_while_writing", "driver_killed", "s3_away", "stopped",
    "node", "rank", "node_back", "damaged", "drained",
)  # fmt: skip
"""Each kind of fault; a rank is also killed while the world is smaller."""
STEPS_A_FAULT = 20
"""The run is so long that faults end before it does."""
SAVE_EVERY = 5
LR = 3e-4
"""So low that rounding stays rounding: at 1e-2, 1e-7 grows to 4e-2 within 80 steps."""
TOLERANCE = 2e-3
"""Of losses where another number of ranks added them up, as in tests/resume."""


@dataclass(frozen=True)
class Result:
    """What became of the two runs."""

    faults: list[Fault]
    steps: int
    first_difference: int | None
    """The first step whose losses are not equal bit for bit; from there on another world added them up."""
    worst_difference: float
    """Largest relative difference of a loss."""
    is_every_row_equal: bool
    shrunk_at: int | None
    """The step at which the world first had another size."""

    @property
    def is_equal(self) -> bool:
        """Bit for bit until the world changes, but for rounding after, and the same rows throughout."""
        same_world = self.first_difference is None or (
            self.shrunk_at is not None and self.first_difference > self.shrunk_at
        )
        return self.is_every_row_equal and same_world and self.worst_difference < TOLERANCE

    @property
    def verdict(self) -> list[str]:
        """The proof, or what is wrong."""
        rows = "the same rows" if self.is_every_row_equal else "OTHER ROWS"
        until = "to the last" if self.first_difference is None else f"up to step {self.first_difference - 1}"
        lost = sum(fault.steps_lost for fault in self.faults)
        kills = sum(fault.kind in KILLS for fault in self.faults)
        shrunk = "" if self.shrunk_at is None else f" (the world changed behind step {self.shrunk_at})"
        return [
            f"{len(self.faults)} faults, {kills} of them kills, in {self.steps} steps; {lost} steps were trained again",
            f"every step was given {rows} as in the undisturbed run",
            f"losses are equal bit for bit {until}{shrunk}",
            f"the largest relative difference of a loss is {self.worst_difference:.1e}",
            "EQUAL" if self.is_equal else "DIFFERENT",
        ]

    @property
    def summary(self) -> dict[str, Any]:
        """For a file."""
        faults = [asdict(fault) | {"steps_lost": fault.steps_lost} for fault in self.faults]
        rest = {name: value for name, value in asdict(self).items() if name != "faults"}
        return {"faults": faults, **rest, "equal": self.is_equal}


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kinds: Sequence[str], seed: int, say: Callable[[str], object]
) -> Result:
    """Both runs, in `folder`, with faults of `kinds` in order."""
    prepared.prepare(folder)
    server, steps = Server(), STEPS_A_FAULT * (len(kinds) + 1)
    with moto_bucket(monkeypatch, "chaos", server) as bucket, ray_nodes(2) as cluster:

        def arena(name: str) -> Arena:
            recipe = prepared.recipe(
                folder, folder / name, 2,
                run={"checkpoints": f"{bucket}/{name}"},
                optim={"lr": LR},
                train={"steps": steps, "save_every_steps": SAVE_EVERY, "log_every_steps": 1},
                cluster={"workers": 2, "min_workers": 1, "restarts": 5},
            )  # fmt: skip
            (folder / name).mkdir()
            return Arena(recipe, cluster, server, seed)

        whole, broken = arena("whole"), arena("broken")
        whole.start()
        whole.ends(0)
        say(f"undisturbed: {steps} steps on 2 ranks")
        broken.start()
        broken.wait(lambda: commits.latest_committed(broken.saved_in), "the first checkpoint")
        for kind in kinds:
            fault = broken.do(kind)
            say(f"{kind} at step {fault.at_step}: went on from {fault.from_step} after {fault.recovered_s:.1f} s")
            assert broken.step < steps, "the run ended before its faults did"
        broken.ends(0)
    return compare(whole, broken)


def compare(whole: Arena, broken: Arena) -> Result:
    """What differs between the runs; AssertionError when a step is missing or recorded twice."""
    expected, found = losses(whole.root), losses(broken.root)
    assert list(found) == list(expected) == list(range(1, len(expected) + 1)), "every step is recorded once"
    different = [step for step in expected if found[step] != expected[step]]
    worst = max(
        abs(mine - theirs) / abs(theirs)
        for step in expected
        for mine, theirs in zip(found[step], expected[step], strict=True)
    )
    shrunk = next((fault.from_step for fault in broken.faults if fault.ranks != 2), None)
    return Result(
        broken.faults,
        len(expected),
        different[0] if different else None,
        worst,
        handed.read(broken.root) == handed.read(whole.root),
        shrunk,
    )

"""What one rank does for all, and what all do at once: every rank gets the result, or the same error."""

from pathlib import Path

import torch

from janus_dist.engine.world import World
from janus_dist.errors import ConfigError, DataError
from tests.ranks import run_ranks


def calls(folder: Path) -> list[object]:
    """Return what a rank gets of each call, an error as its text."""
    group = torch.distributed
    world = World(group.get_rank(), group.get_world_size(), torch.device("cpu"))

    def on_rank(failing: int | None) -> int:
        (folder / f"called-{world.rank}").touch()
        if world.rank == failing:
            raise DataError(f"rank {world.rank}")
        return world.rank

    def fail() -> None:
        raise ConfigError("refused")

    found: list[object] = [world.run_on_rank0(lambda: on_rank(None))]
    found.append(sorted(path.name for path in folder.iterdir() if path.name.startswith("called")))
    world.barrier()
    found.append(world.run_on_all_ranks(lambda: on_rank(None)))
    for call in (lambda: world.run_on_rank0(fail), lambda: world.run_on_all_ranks(lambda: on_rank(1))):
        try:
            call()
        except (ConfigError, DataError) as error:
            found.append(f"{type(error).__name__}: {error.message}")
    return found


def test_results_and_errors_reach_every_rank(tmp_path):
    errors = ["ConfigError: refused", "DataError: rank 1"]
    for rank, found in enumerate(run_ranks(calls, 2, tmp_path, tmp_path)):
        assert found == [0, ["called-0"], rank, *errors]

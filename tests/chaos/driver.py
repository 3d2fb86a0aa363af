"""The driver of a run under faults: what a job does, with ranks that record what they are handed and take their time.

python -c "from tests.chaos.driver import main; main()" RECIPE.json
"""

import sys
import time
from pathlib import Path
from typing import Any

from janus_dist.checkpoint import commits
from janus_dist.cli.job import run_job
from janus_dist.config.recipe import StageRecipe
from janus_dist.launch import capacity, launcher, services
from janus_dist.train import build
from janus_dist.train.trainer import Trainer
from tests import handed

STEP_S = 0.1
"""A step is at least so long, so that faults come in the middle of a run rather than behind it."""
COMMIT_S = 0.5
"""And so is the time between a checkpoint's last file and its marker."""
NODES_BACK_S = 2.0
DRAIN_POLL_S = 0.5
"""Or steps this short would be over before a notice is read."""
DRIVER_NODE = "driver_node"

real_worker = launcher._worker


def worker(settings: dict[str, Any]) -> None:
    """What each rank does: `launch`'s own, recorded and slowed down."""
    real_build, mark = build.build_trainer, commits.write_marker

    def recorded(recipe: StageRecipe, say: Any) -> Trainer:
        trainer = real_build(recipe, say)
        handed.record(trainer, Path(recipe.run.root))
        update = trainer.run.engine.step

        def slow(lr: float, skip: bool = False) -> float:
            time.sleep(STEP_S)
            return update(lr, skip)

        trainer.run.engine.step = slow
        return trainer

    def late(path: str, commit: commits.Commit) -> None:
        time.sleep(COMMIT_S)
        mark(path, commit)

    build.build_trainer, commits.write_marker = recorded, late
    real_worker(settings)


def main() -> None:
    """Train the recipe of a file, with the exit codes of a job."""
    recipe = StageRecipe.model_validate_json(Path(sys.argv[1]).read_text())
    launcher._worker, capacity.NODES_BACK_S, services.DRAIN_POLL_S = worker, NODES_BACK_S, DRAIN_POLL_S
    launcher.connect()
    # of several nodes on one machine a driver takes any for its own, which must outlive it
    (Path(recipe.run.root) / DRIVER_NODE).write_text(launcher.ray.get_runtime_context().get_node_id())
    run_job(lambda: launcher.train(recipe, show=lambda line: print(line, flush=True)))

"""Which job may write a run's folders: its driver holds their leases, and its first rank ends when they are lost.

Invariant: a job that has lost a run starts no ranks, and commits and deletes no checkpoint; without its first rank no
other rank gets to the next step or to the end of a save.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from janus_dist.config.recipe import StageRecipe
from janus_dist.data.reader import PATIENCE_S
from janus_dist.errors import ClusterError, ConfigError
from janus_dist.storage import fs
from janus_dist.storage.lease import Claim, Lease, LeaseLostError, Watch, hold

POLL_S = 1.0
HINT = "follow or stop that job, or give this run another name (run.name=...)"


@contextmanager
def hold_run(recipe: StageRecipe, show: Callable[[str], None]) -> Iterator[list[Lease]]:
    """Hold the run's folder during a `with` block, and that of its checkpoints where they are kept apart from it.

    ConfigError where another job has one of them, in whatever cluster, or where it cannot be written.
    """
    run = recipe.run
    folders = {str(run.dir.absolute()): f"run {run.dir}"}
    if run.checkpoints is not None:
        saved_in = str(Path(run.saved_in).absolute()) if fs.is_local(run.saved_in) else run.saved_in
        folders[saved_in] = f"the folder of checkpoints {run.saved_in}"
    purpose = f"training stage {recipe.stage}"
    with ExitStack() as stack:
        yield [
            stack.enter_context(hold(folder, what, purpose, show, HINT, ConfigError))
            for folder, what in folders.items()
        ]


def check_held(leases: Sequence[Lease]) -> None:
    """Raise LeaseLostError when another job has taken the run; a store that is away is asked as long as readers do."""
    deadline_s = time.monotonic() + PATIENCE_S
    for lease in leases:
        while True:
            try:
                lease.check()
                break
            except ClusterError as error:
                if isinstance(error, LeaseLostError) or time.monotonic() > deadline_s:
                    raise
            time.sleep(POLL_S)


def follow(claims: Sequence[Claim]) -> Watch:
    """End this process, the first rank, when its job has lost the run or its driver is gone.

    Raises LeaseLostError when that is so by now, ClusterError when it cannot be seen.
    """
    watch = Watch(claims)
    watch.join()
    watch.start(_end)
    return watch


def _end(reason: str) -> None:
    """End this process at once: its main thread may wait for other ranks."""
    sys.stderr.write(f"this rank ends: {reason}\n")
    sys.stderr.flush()
    os._exit(1)

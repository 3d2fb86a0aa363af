"""The job that owns a run's folders: its driver holds their leases, and its rank 0 exits when they are lost.

Invariant: a job that has lost a run starts no ranks, and commits and deletes no checkpoint; without rank 0 no other
rank can finish the next step or a save.
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
from janus_dist.storage.lease import Lease, LeaseClaim, LeaseLostError, LeaseWatch, hold

POLL_S = 1.0
"""Seconds between two attempts to check a lease when the store does not answer."""
HINT = "follow or stop that job, or give this run another name (run.name=...)"


@contextmanager
def hold_run(recipe: StageRecipe, show: Callable[[str], None]) -> Iterator[list[Lease]]:
    """Hold the leases of the run's folder, and of `run.checkpoints` if set, during a `with` block; yield them.

    Raises ConfigError when another job, also one of another cluster, holds a folder, or a folder cannot be written.
    """
    run = recipe.run
    labels = {str(run.dir.absolute()): f"run {run.dir}"}
    if run.checkpoints is not None:
        saved_in = str(Path(run.saved_in).absolute()) if fs.is_local(run.saved_in) else run.saved_in
        labels[saved_in] = f"the folder of checkpoints {run.saved_in}"
    purpose = f"training stage {recipe.stage}"
    with ExitStack() as stack:
        yield [
            stack.enter_context(hold(folder, label, purpose, show, HINT, ConfigError))
            for folder, label in labels.items()
        ]


def check_held(leases: Sequence[Lease]) -> None:
    """Raise LeaseLostError when another job has taken the run.

    When the store does not answer, try for PATIENCE_S, as readers do, then raise ClusterError.
    """
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


def follow(claims: Sequence[LeaseClaim]) -> LeaseWatch:
    """Watch the leases from rank 0 and end this process when its job loses the run or its driver is gone.

    Raises LeaseLostError when the run is lost already, ClusterError when the leases cannot be read.
    """
    watch = LeaseWatch(claims)
    watch.join()
    watch.start(_exit)
    return watch


def _exit(reason: str) -> None:
    """Exit this process at once, because its main thread may wait for other ranks."""
    sys.stderr.write(f"this rank ends: {reason}\n")
    sys.stderr.flush()
    os._exit(1)

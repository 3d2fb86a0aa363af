"""What goes on beside a run: in its driver lines for the console, the wish to stop and samples of its checkpoints, each
a `with` block around the run; in its ranks files of their own and gauges.

Invariant: what fails in one of these costs the run nothing.
"""

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.exceptions import GetTimeoutError, RayError
from ray.util.metrics import Gauge

from janus_dist.config.recipe import RunConfig, StageRecipe
from janus_dist.errors import InterruptError, PreemptedError
from janus_dist.evaluation.prompts import read_prompts
from janus_dist.failures import one_line
from janus_dist.monitor.grafana import gauge_name
from janus_dist.monitor.metrics import GAUGE_LABELS, METRICS
from janus_dist.train.stop import request_stop

log = logging.getLogger("janus_dist")

POLL_S = 0.5
DRAIN_POLL_S = 5.0
GRACE_S = 600.0
"""Seconds that a run has to save after Ctrl-C, as many as `janus submit` gives a job that is stopped."""
SAMPLES_S = 600.0
"""Longest wait for the samples of the last checkpoint when training is over."""
SAMPLES_EACH = 2
"""Drawings of a prompt."""


class StopOnSignal:
    """While a `with` block runs, SIGTERM to the driver (`ray job stop`) and Ctrl-C ask the runs to save and stop.

    After Ctrl-C the block ends with InterruptError where it would have ended with PreemptedError or well. A second
    Ctrl-C raises KeyboardInterrupt at once, and so does the end of GRACE_S.
    """

    def __init__(self, runs: Callable[[], Iterable[StageRecipe]]):
        self.runs = runs
        self.by: str | None = None
        """Who asked the runs to stop; None when no one did."""
        self.grace: threading.Timer | None = None

    def __enter__(self) -> None:
        self.before = {sent: signal.signal(sent, self._stop) for sent in (signal.SIGTERM, signal.SIGINT)}

    def _stop(self, sent: int, _: object) -> None:
        self.by = "SIGTERM to its job"
        if sent == signal.SIGINT:
            if self.grace is not None:
                raise KeyboardInterrupt
            self.by = "Ctrl-C"
            self.grace = threading.Timer(GRACE_S, os.kill, (os.getpid(), signal.SIGINT))
            self.grace.daemon = True
            self.grace.start()
            os.write(2, b"\ninterrupted: the run is asked to save and stop; Ctrl-C again ends it at once\n")
        for recipe in self.runs():
            try:
                request_stop(recipe.run.dir, self.by)
            except OSError as error:
                log.error("%s could not be asked to stop (%s): send SIGTERM again", recipe.run.dir, error)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for sent, handler in self.before.items():
            signal.signal(sent, handler)
        if self.grace is None:
            return
        self.grace.cancel()
        if isinstance(error, PreemptedError):
            raise InterruptError(error.message, error.hint) from error
        if error is None:
            raise InterruptError("interrupted, as the last step was done and saved", "the same command goes on")


class StopOnDrain:
    """While a `with` block runs, the notice that a node of a rank is about to go asks the run to save and stop.

    Ray is told by `ray drain-node`, by KubeRay, or by a cloud's notice; it drains idle nodes too, which say nothing.
    """

    def __init__(self, lines: Any, run_dir: Path):
        self.lines, self.run_dir = lines, run_dir
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, name="drain", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.ended.wait(DRAIN_POLL_S):
            with suppress(Exception):  # Ray's head may not answer for a moment: errors of several kinds; asked again
                # the same call by which Ray Train learns of it; its public way wants all ranks to ask together
                going = ray_state.get_draining_nodes()
                if set(going) & set(ray.get(self.lines.nodes_of_ranks.remote())):
                    request_stop(self.run_dir, "a node of it is about to go")
                    return


def log_to_own_file(path: Path) -> None:
    """Send what this process and its libraries print to a file; the console has what the first rank
    says."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            print(
                f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {platform.node()} process {os.getpid()}",
                file=file,
                flush=True,
            )
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    except OSError:  # Ray has its own files then
        return


class RayMetrics:
    """The newest metrics as Ray's gauges, which its agents offer to Prometheus; the first rank has one.

    Labels: `run`, and `project`, which is WANDB_PROJECT or, where that is not set, the folder of the runs.
    """

    def __init__(self, run: RunConfig):
        self.gauges = {one.name: Gauge(gauge_name(one.name), one.meaning, tag_keys=GAUGE_LABELS) for one in METRICS}
        project = os.environ.get("WANDB_PROJECT") or str(Path(run.root).absolute())
        for gauge in self.gauges.values():
            gauge.set_default_tags({"project": project, "run": run.name})

    def record(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.gauges[name].set(value)

    def close(self) -> None:
        pass


class Samples:
    """While a `with` block runs, a process beside the ranks gives `monitor.prompts` to each checkpoint.

    It is started when the ranks have their places, and ended before ranks are placed anew, so that it takes a GPU that
    no rank needs, as soon as there is one; where there are none it shares the ranks' cores. Whatever becomes of it,
    the run goes on.
    """

    def __init__(self, recipe: StageRecipe, lines: Any, show: Callable[[str], None]):
        self.recipe, self.lines, self.show = recipe, lines, show

    def __enter__(self) -> None:
        if self.recipe.monitor.prompts is not None:
            self.lines.sample.remote(self.recipe.with_absolute_paths().model_dump(mode="json"))

    def __exit__(self, kind: object, *exception: object) -> None:
        if self.recipe.monitor.prompts is None or kind is not None:
            return  # the process ends with the lines
        try:
            ray.get(ray.get(self.lines.sampled.remote()), timeout=SAMPLES_S)
        except GetTimeoutError:
            self.show(
                f"samples of the last checkpoint were not made within {SAMPLES_S:.0f} s: `janus sample` makes them"
            )
        except RayError as error:
            self.show(f"samples could not be made: {one_line(getattr(error, 'cause', error))}")


@ray.remote(num_cpus=0, max_restarts=3, max_task_retries=3)
class _Sampler:
    """The process for samples; an actor, since `ray.cancel` of a task that comes to its end aborts the driver."""

    def follow(self, settings: dict[str, Any], lines: Any) -> None:
        from janus_dist.evaluation import samples  # here, so that the driver needs no model
        from janus_dist.model.sample import Choice

        recipe = StageRecipe.model_validate(settings)
        given = recipe.evaluate
        device = "cuda" if recipe.cluster.gpu else "cpu"
        choice = Choice(given.temperature, given.top_k)
        how = samples.How(images_per_prompt=SAMPLES_EACH, guidance=given.guidance, choice=choice, device=device)
        asked = read_prompts(Path(recipe.monitor.prompts or ""))
        samples.follow(recipe.run.dir, asked, how, recipe.run.dir / "samples", lambda line: lines.put.remote(line))


@ray.remote(num_cpus=0)
class Lines:
    """Lines on their way from the first rank to the driver's console, the nodes that ranks are on, and the process that
    makes samples while they are there."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.nodes: set[str] = set()
        self.recipe: dict[str, Any] | None = None
        self.sampler: Any = None
        self.running: list[ray.ObjectRef] = []

    def begin(self) -> None:
        """Forget the nodes of earlier ranks: new ones are about to be started."""
        self.nodes.clear()
        if self.sampler is not None:
            ray.kill(self.sampler)
            self.sampler = None

    def sample(self, recipe: dict[str, Any]) -> None:
        """Sample a run's checkpoints from now on."""
        self.recipe = recipe

    def join(self, node: str) -> None:
        """Record the node of a rank that has started; Ray places all ranks together, so all have their places."""
        self.nodes.add(node)
        if self.recipe is not None and self.sampler is None:
            gpus = int(self.recipe["cluster"]["gpu"])
            self.sampler = _Sampler.options(num_gpus=gpus).remote()
            self.running = [self.sampler.follow.remote(self.recipe, ray.get_runtime_context().current_actor)]

    def sampled(self) -> list[ray.ObjectRef]:
        """Return when the samples of the last checkpoint are made."""
        return self.running

    def nodes_of_ranks(self) -> set[str]:
        return self.nodes

    def put(self, line: str) -> None:
        self.waiting.append(line)

    def take(self) -> list[str]:
        taken, self.waiting = self.waiting, []
        return taken


class Follower:
    """Shows the lines of an actor while a `with` block runs, to the last one."""

    def __init__(self, lines: Any, show: Callable[[str], None]):
        self.lines, self.show = lines, show
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, name="console", daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.thread.join()
        self._take()

    def _follow(self) -> None:
        while not self.ended.wait(POLL_S):
            self._take()

    def _take(self) -> None:
        with suppress(RayError):  # the driver's own node is lost, which the driver says itself
            for line in ray.get(self.lines.take.remote()):
                self.show(line)

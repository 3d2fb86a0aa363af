"""Services of a run. In the driver, each is a `with` block around the run: console lines, requests to stop and samples
of checkpoints. In the ranks: log files and gauges.

Invariant: a failure of one of these services never ends the run.
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
"""Seconds that a run has to save after Ctrl-C; `janus submit` gives a stopped job as many."""
SAMPLES_S = 600.0
"""Longest wait in seconds for the samples of the last checkpoint when training has ended."""
IMAGES_PER_PROMPT = 2
"""Images drawn for each prompt."""


class StopOnSignal:
    """A `with` block in which SIGTERM to the driver (`ray job stop`) and Ctrl-C ask the runs to save and stop.

    After Ctrl-C the block raises InterruptError instead of PreemptedError, or instead of ending normally. A second
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
            raise InterruptError("interrupted, as the last step was done and saved", "the same command resumes it")


class StopOnDrain:
    """A `with` block in which the notice that a node with a rank will be removed asks the run to save and stop.

    Ray gets the notice from `ray drain-node`, KubeRay or a cloud. It also drains idle nodes; those are ignored.
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
            with suppress(Exception):  # Ray's head may not answer for a moment, with errors of several kinds; retried
                # Ray Train uses the same call; the public API needs all ranks to call it together
                draining = ray_state.get_draining_nodes()
                if set(draining) & set(ray.get(self.lines.nodes_of_ranks.remote())):
                    request_stop(self.run_dir, "a node of it is about to go")
                    return


def log_to_own_file(path: Path) -> None:
    """Redirect all output of this process and its libraries to a file; the console shows only the lines of rank 0."""
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
    """A sink on rank 0 that shows the newest metrics as Ray gauges, which Ray's agents export to Prometheus.

    Labels: `run`, and `project`, which is WANDB_PROJECT or, where that is not set, the folder of the runs.
    """

    def __init__(self, run: RunConfig):
        self.gauges = {
            metric.name: Gauge(gauge_name(metric.name), metric.meaning, tag_keys=GAUGE_LABELS) for metric in METRICS
        }
        project = os.environ.get("WANDB_PROJECT") or str(Path(run.root).absolute())
        for gauge in self.gauges.values():
            gauge.set_default_tags({"project": project, "run": run.name})

    def record(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.gauges[name].set(value)

    def close(self) -> None:
        pass


class SampleProcess:
    """A `with` block in which a separate process samples `monitor.prompts` from each checkpoint.

    The process starts after the ranks have their resources and is killed before ranks are placed again, so that it
    only takes a GPU that no rank needs. Without GPUs it shares the ranks' cores. The run continues if it fails.
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
    """The process that draws samples; an actor, since `ray.cancel` of a task that is ending aborts the driver."""

    def follow(self, settings: dict[str, Any], lines: Any) -> None:
        from janus_dist.evaluation import samples  # here, so that the driver needs no model
        from janus_dist.model.sample import TokenChoice

        recipe = StageRecipe.model_validate(settings)
        given = recipe.evaluate
        device = "cuda" if recipe.cluster.gpu else "cpu"
        choice = TokenChoice(given.temperature, given.top_k)
        how = samples.SamplingSettings(
            images_per_prompt=IMAGES_PER_PROMPT, guidance=given.guidance, choice=choice, device=device
        )
        asked = read_prompts(Path(recipe.monitor.prompts or ""))
        samples.follow(recipe.run.dir, asked, how, recipe.run.dir / "samples", lambda line: lines.put.remote(line))


class ConsoleQueue:
    """Lines on their way from the ranks to the driver's console, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def put(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)

    def take(self) -> list[str]:
        """Remove and return all lines."""
        lines, self.lines = self.lines, []
        return lines


class SamplerSupervisor:
    """Owner of the process that draws samples of a run's checkpoints; it lives no longer than the ranks."""

    def __init__(self) -> None:
        self.recipe: dict[str, Any] | None = None
        """Recipe of the run as JSON values, or None while samples are not requested."""
        self.sampler: Any = None
        self.tasks: list[ray.ObjectRef] = []

    def request(self, recipe: dict[str, Any]) -> None:
        """Draw samples from the next start of the process on."""
        self.recipe = recipe

    def start(self) -> None:
        """Start the process unless it runs or samples are not requested; its lines go to the current actor."""
        if self.recipe is not None and self.sampler is None:
            gpus = int(self.recipe["cluster"]["gpu"])
            self.sampler = _Sampler.options(num_gpus=gpus).remote()
            self.tasks = [self.sampler.follow.remote(self.recipe, ray.get_runtime_context().current_actor)]

    def stop(self) -> None:
        """Kill the process, if it runs, so that its GPU is free."""
        if self.sampler is not None:
            ray.kill(self.sampler)
            self.sampler = None


@ray.remote(num_cpus=0)
class RunServices:
    """The actor of a run: its console queue, the nodes of its ranks and the process that draws samples.

    Its name also is a lock: Ray refuses a second actor of the same name, so that one job of a cluster holds a run.
    """

    def __init__(self) -> None:
        self.console = ConsoleQueue()
        self.nodes: set[str] = set()
        self.samples = SamplerSupervisor()

    def begin(self) -> None:
        """Forget the previous ranks, which may have been on other nodes, before ranks are started."""
        self.nodes.clear()
        self.samples.stop()

    def sample(self, recipe: dict[str, Any]) -> None:
        """Draw samples of the run's checkpoints from now on."""
        self.samples.request(recipe)

    def join(self, node: str) -> None:
        """Register the node of a rank that has started. All ranks have their resources then: Ray places all at once."""
        self.nodes.add(node)
        self.samples.start()

    def sampled(self) -> list[ray.ObjectRef]:
        """Return the task that ends when the samples of the last checkpoint are drawn; empty without samples."""
        return self.samples.tasks

    def nodes_of_ranks(self) -> set[str]:
        """Return the ids of the nodes that ranks run on."""
        return self.nodes

    def put(self, line: str) -> None:
        """Add a line for the console."""
        self.console.put(line)

    def take(self) -> list[str]:
        """Remove and return the lines for the console."""
        return self.console.take()


class Follower:
    """A `with` block that shows the console lines of a RunServices actor, including the last ones at its end."""

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

"""Hooks that run after each step, besides checkpointing: stragglers, metrics, validation, records.

Invariant: hooks change neither weights nor progress, and all ranks run the same ones in the same order.
"""

import time
from collections.abc import Mapping
from functools import partial

from janus_dist.engine.partitions import ModuleOrderMonitor
from janus_dist.monitor.console import step_line
from janus_dist.monitor.sinks import Sink, last_line, make_sinks
from janus_dist.train.context import TrainingRun
from janus_dist.train.speed import peak_gib, speed
from janus_dist.train.step import TrainedStep
from janus_dist.train.straggler import StragglerDetector
from janus_dist.train.validation import Validation

ORDER_CHANGED = "the model's modules ran in another order {changes} times, and ZeRO-3 prefetched nothing for them"


class StragglerMonitor:
    """Compares the pace of all ranks every `train.log_every_steps` steps and reports slow ranks."""

    def __init__(self, run: TrainingRun):
        self.run = run
        self.slowest_rank = 1.0
        """Time that the slowest rank takes for the same small piece of work, divided by the median over all ranks."""
        self._stragglers = StragglerDetector(run.world)
        self._order = ModuleOrderMonitor(run.engine)

    def after_step(self, trained: TrainedStep) -> None:
        """Compare the ranks at steps that are logged; all ranks call it."""
        self._stragglers.waited(trained.waited_s)
        if self.run.progress.step % self.run.recipe.train.log_every_steps:
            return
        look = self._stragglers.look(self.run.watchdog.slowest_s)
        self.slowest_rank = look.slowest
        self.run.watchdog.agree(look.slowest_step_s)
        changes = self._order.changes()
        for slow in look.slow:
            self.run.note("slow", slow.line, subject=slow.subject)
        if changes:
            self.run.note("slow", ORDER_CHANGED.format(changes=changes), subject="order of modules")


class Metrics:
    """Computes the metrics of each step."""

    def __init__(self, run: TrainingRun, stragglers: StragglerMonitor):
        self.run, self.stragglers = run, stragglers

    def after_step(self, trained: TrainedStep) -> None:
        """Stop the step's clock and fill in its metrics under the names of monitor/metrics.py."""
        trained.step_s = time.perf_counter() - trained.began_s
        run, plan, outcome = self.run, trained.rank_step.plan, trained.outcome
        reads = run.plan.shards[0].reader.counters()  # all shard sets share one reader
        trained.values |= {"step": run.progress.step, "time": time.time(), "loss/all": outcome.loss}
        trained.values |= {f"loss/{stream}": loss for stream, loss in outcome.losses.items()}
        shares = run.plan.shares_before(run.progress.plan_step)
        trained.values |= {f"mix/{stream}": share for stream, share in shares.items()}
        trained.values |= speed(run.recipe, run.world, plan, trained.step_s)
        trained.values |= {
            "optim/grad_norm": outcome.grad_norm,
            "optim/lr": outcome.lr,
            "optim/skipped_steps": run.progress.skipped_steps,
            "perf/tokens_per_s": plan.num_tokens / trained.step_s,
            "perf/step_s": trained.step_s,
            "perf/data_wait": trained.waited_s / trained.step_s,
            "perf/slowest_rank": self.stragglers.slowest_rank,
            "mem/peak_gib": peak_gib(run.world.device),
            "batch/tokens": plan.num_tokens,
            "batch/rows": plan.rows.num_rows,
            "batch/fill": plan.num_tokens / (plan.rows.num_rows * run.recipe.batch.row_tokens),
            "batch/cuts": plan.num_cuts,
            "batch/straggler_ratio": trained.rank_step.straggler_ratio,
            "data/read_mib": reads.bytes_asked / 2**20,
            "data/retries": reads.retries,
            "data/bad_samples": trained.rank_step.bad_samples,
        }


class Validator:
    """Adds the losses of held-out samples every `train.validate_every_steps` steps and at the last step."""

    def __init__(self, run: TrainingRun, validation: Validation):
        self.run, self.validation = run, validation

    def after_step(self, trained: TrainedStep) -> None:
        """Compute and print the validation losses at the recipe's steps; all ranks call it."""
        train, step = self.run.recipe.train, self.run.progress.step
        if step % train.validate_every_steps and step != train.steps:
            return
        self.run.watchdog.pause()
        losses = self.validation.losses(self.run.engine)
        text = ", ".join(f"{stream} {loss:.4f}" for stream, loss in losses.items())
        self.run.say(f"step {step}, held out: {text}")
        trained.values |= {f"validation/{stream}": loss for stream, loss in losses.items()}


class Recorder:
    """Passes the metrics of each step to the sinks of rank 0, and prints a line every `train.log_every_steps` steps."""

    def __init__(self, run: TrainingRun):
        self.run = run
        self.sinks: list[Sink] = []
        """Sinks of the run's own record, which holds every step once."""
        self.watchers: list[Sink] = []
        """Sinks that get every step when it is trained, including steps that are trained again after a rollback."""
        self._unprinted: list[Mapping[str, float]] = []
        """Metrics of the steps since the console's last line."""

    def open(self) -> None:
        """Open the sinks of rank 0 after the newest step; their records of later steps are dropped."""
        self.close()
        self._unprinted.clear()
        if not self.run.world.is_first:
            return
        run_dir = self.run.recipe.run.dir
        self.sinks = make_sinks(self.run.recipe, self.run.progress.step, partial(self.run.note, "note"))
        if self.run.progress.skipped_steps == 0:
            skipped = last_line(run_dir / "metrics.jsonl").get("optim/skipped_steps", 0)
            self.run.progress.skipped_steps = int(skipped)

    def close(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            sink.close()
        self.sinks = []

    def after_step(self, trained: TrainedStep) -> None:
        """Record the step's metrics."""
        train, step = self.run.recipe.train, self.run.progress.step
        for sink in (*self.sinks, *self.watchers):
            sink.record(trained.values)
        self._unprinted.append(trained.values)
        if step % train.log_every_steps == 0 or step == train.steps:
            self.run.say(step_line(self._unprinted, train.steps, trained.eta_s))
            self._unprinted.clear()

"""The trainer: from a recipe to a run that ends with a committed checkpoint of its last step.

Everything that a step needs is a function of the recipe and the step number, so resuming is loading a checkpoint and
starting the loop at its step. Invariant: what is in the newest checkpoint and what metrics.jsonl says agree.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from janus_dist.config.recipe import StageRecipe
from janus_dist.data.collate import DocumentFormat
from janus_dist.data.loader import Loader, RankStep
from janus_dist.data.plan import Plan, open_shards
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.engine import checkpoint, commits
from janus_dist.engine.partitions import Order
from janus_dist.engine.saver import Saved, Saver
from janus_dist.engine.world import join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import CheckpointError, DivergedError, PreemptedError
from janus_dist.model import janus, single
from janus_dist.model.parts import set_trainable
from janus_dist.model.start import open_weights
from janus_dist.model.vq_weights import load_vq
from janus_dist.monitor import events
from janus_dist.monitor.console import step_line
from janus_dist.monitor.sinks import Sink, last_line, make_sinks
from janus_dist.train import resume
from janus_dist.train.budget import checkpoint_bytes
from janus_dist.train.compatible import changed_settings, check_data
from janus_dist.train.guard import MAX_RETURNS, Guard
from janus_dist.train.left_out import plan_step, write_left_out
from janus_dist.train.precision import resolve_on_ranks, slow_lines
from janus_dist.train.schedule import learning_rate
from janus_dist.train.speed import peak_gib, speed
from janus_dist.train.startup import check_same, check_world
from janus_dist.train.step import StepOutcome, train_step
from janus_dist.train.stop import StopRequest, forget_request
from janus_dist.train.straggler import Stragglers
from janus_dist.train.validation import Validation
from janus_dist.train.watch import LONGEST_SAVE_S, Watch

ORDER_CHANGED = "the model's modules ran in another order {changes} times, for which ZeRO-3 fetched nothing ahead"


class Trainer:
    """One run on one rank."""

    def __init__(self, recipe: StageRecipe, plan: Plan, loader: Loader, engine: ZeroEngine, say: Callable[[str], None]):
        self.recipe, self.plan, self.loader, self.engine = recipe, plan, loader, engine
        self.world = engine.world
        self.say = say if self.world.is_first else lambda line: None
        self.step = 0
        self.tokens = 0
        self.skipped = 0  # of the whole run; the first rank counts on from what it recorded
        self.left_out: list[tuple[int, int]] = []
        self.guard = Guard(recipe.train.spike_sigmas)
        run = recipe.run
        self.stop = StopRequest(run.dir, recipe.cluster.notice_file, self.world.is_first)
        self.watch = Watch(run.dir / "logs" / f"stacks-{self.world.rank:04d}.txt", recipe.engine.timeout_s)
        self.waited_since = time.perf_counter()
        self.stragglers = Stragglers(self.world)
        self.slowest_rank = 1.0
        self.order = Order(engine)
        self.sinks: list[Sink] = []
        self.unsaid: list[dict[str, float]] = []
        """Metrics of the steps since the console's last line."""
        self.watchers: list[Sink] = []
        """Sinks that take every step as it comes, also one that is trained again."""
        self.validation: Validation | None = None
        self.saver = Saver(engine, recipe.run.saved_in)
        self.is_save_late = False
        self.newest: str | None = None
        """The newest checkpoint of this run that this process wrote or went on from."""

    @classmethod
    def build(cls, recipe: StageRecipe, say: Callable[[str], None]) -> "Trainer":
        """Open the data, build the model and put it under ZeRO-3. `say` takes the first rank's console lines."""
        world = join(recipe.cluster, recipe.engine.timeout_s)
        check_same(recipe, world)  # what comes next would wait for ever for a rank that does otherwise
        recipe = resolve_on_ranks(recipe, world)
        tokenizer = Tokenizer.load(recipe.data.tokenizer)
        shards = open_shards(recipe.data, recipe.mix, world.local_rank)
        check_data(recipe, tokenizer, shards)
        plan = Plan(shards, recipe.mix, recipe.batch, recipe.run.seed, recipe.train.answers_only)
        loader = Loader(
            plan,
            DocumentFormat.of(recipe, tokenizer),
            world.rank,
            world.size,
            ahead_bytes=recipe.data.read.ahead_mib * 2**20,
            max_bad_share=recipe.data.max_bad_share,
            node=range(world.rank - world.local_rank, world.rank - world.local_rank + world.local_size),
        )
        model = janus.on_meta(recipe.model)
        set_trainable(model, recipe.train.trainable)
        if recipe.model.reads_by == "vq":
            vq = load_vq(recipe.model, recipe.data.vq_weights).to(world.device)  # pyright: ignore[reportArgumentType]
            model.as_read = partial(single.read_by_vq, vq=vq)
        janus.checkpoint_activations(model, recipe.engine.activation_checkpointing)
        made = janus.made(model, recipe.run.seed, world.device)
        trainer = cls(recipe, plan, loader, ZeroEngine(model, made, recipe.engine, recipe.optim, world), say)
        if recipe.data.validation_root is not None:
            trainer.validation = Validation(recipe, tokenizer, shards, world)
        return trainer

    def fit(self) -> None:
        """Train to the last step; leaves a committed checkpoint of it.

        PreemptedError when the run was asked to stop, with a checkpoint of the step it was at; DivergedError when going
        back did not help.
        """
        try:
            self.start()
            self.engine.train()
            while self.step < self.recipe.train.steps:
                self.train_on()
            self.save_last()
            self.world.barrier()
        finally:
            self.watch.end()
            for sink in self.sinks:
                sink.close()

    def train_on(self) -> None:
        """Train to the last step, or until the run has gone back to a checkpoint."""
        total, first = self.recipe.train.steps, self.step
        began = self.waited_since = time.perf_counter()
        for rank_step in self.loader.steps(self.plan_step, self.plan_step + total - self.step):
            step_began = self.waited_since
            waited = time.perf_counter() - step_began
            self.stragglers.waited(waited)
            lr = learning_rate(self.recipe.optim, self.step, total)
            if self.plan.changes(plan_step(self.step - 1, self.left_out), rank_step.plan.step):
                self.guard.forget()
            asked = self.stop.reason
            outcome = train_step(self.engine, rank_step, self.recipe.train, lr, self.guard.objection, asked is not None)
            self.step += 1
            self.tokens += rank_step.plan.num_tokens
            self.judge(outcome)
            if self.step % self.recipe.train.log_every_steps == 0:
                look = self.stragglers.look(self.watch.slowest_s)
                self.slowest_rank = look.slowest
                self.watch.agree(look.slowest_step_s)
                changes = self.order.changes()
                for slow in look.slow:
                    self.note("slow", slow.line, subject=slow.subject)
                if changes:
                    self.note("slow", ORDER_CHANGED.format(changes=changes), subject="order of modules")
            step_s = time.perf_counter() - step_began
            values = self.measure(rank_step, outcome, step_s, waited) | self.validate_if_due()
            self.record(values, eta_s=(time.perf_counter() - began) / (self.step - first) * (total - self.step))
            self.watch.beat(step_s)
            if self.guard.is_lost:
                self.go_back(outcome)
                return
            if outcome.is_asked_to_stop and self.step < total:
                self.save_last()
                raise self.stopped()
            self.save_if_due()
            self.waited_since = time.perf_counter()

    def note(self, kind: events.Kind, line: str, step: int | None = None, subject: str | None = None) -> None:
        """Say something of a step, the newest one if none is named, that the run's own record keeps too."""
        self.say(line)
        if self.world.is_first:
            events.record(self.recipe.run.dir, kind, self.step if step is None else step, line, subject)

    def stopped(self) -> PreemptedError:
        """Who asked the run to stop, and where it stands."""
        reasons = enumerate(self.world.gather(self.stop.reason))
        asked = ", ".join(f"{why} on rank {rank}" for rank, why in reasons if why is not None)
        if self.world.is_first:
            forget_request(self.recipe.run.dir)
            events.record(self.recipe.run.dir, "stopped", self.step, f"asked to stop: {asked}")
        return PreemptedError(
            f"run {self.recipe.run.dir} was asked to stop ({asked}) and saved step {self.step} of "
            f"{self.recipe.train.steps}",
            "the same command goes on from there",
        )

    def start(self) -> None:
        """Resume from this run's newest checkpoint, else start from the weights of another run, of others, or random
        ones."""
        run = self.recipe.run
        self.watch.pause()
        mine = resume.chosen(self.engine, run, self.say)
        self.watch.pause()
        lines = check_world(self.recipe, self.world, self.plan.digest, checkpoint_bytes(self.recipe))
        for line in [*lines, *self.world.on_first(partial(slow_lines, self.recipe))]:
            self.say(line)
        if mine is not None:
            before = self.world.on_first(lambda: commits.read(mine))
            plan, said = resume.plan_from(self.plan, self.recipe, self.engine.trainable, mine, before)
            self.use(plan)
            if said:
                self.note("note", said)
            commit = checkpoint.restore(self.engine, mine)
            self.take(commit)
            self.newest = mine if mine == commits.folder(run.saved_in, commit.step) else None
            self.note("resumed", f"resuming {run.name} at step {self.step} from {mine}")
            if changed := changed_settings(self.recipe, commit):
                self.note("note", f"settings that are not the checkpoint's: {changed}")
        elif run.start_from is not None:
            start = run.saved_in_of(run.start_from)
            before = checkpoint.newest(self.engine, start, self.say)
            if before is None:
                raise CheckpointError(
                    f"run.start_from={run.start_from}: no committed checkpoint under {start}",
                    "train that run first, or set run.start_from=null to start from random weights",
                )
            self.watch.pause()
            checkpoint.restore_weights(self.engine, before)
            self.note("started", f"starting {run.name} from the weights of {before}")
        elif run.start_weights:
            opened = self.world.together(partial(open_weights, self.recipe.model, run.start_weights))
            checkpoint.fill(self.engine, opened)
            given = ", ".join(f"{what} of {_in_short(path)}" for what, path in run.start_weights.items())
            self.note("started", f"starting {run.name} from {given}")
        else:
            self.note("started", f"starting {run.name} from random weights")
        self.watch.pause()
        if self.world.is_first:
            self.sinks = make_sinks(self.recipe, self.step, partial(self.note, "note"))
            self.skipped = int(last_line(run.dir / "metrics.jsonl").get("optim/skipped_steps", 0))

    def use(self, plan: Plan) -> None:
        """Train on this plan."""
        self.plan = plan
        self.loader.use(plan)

    def take(self, commit: commits.Commit) -> None:
        """Stand where a checkpoint does."""
        self.step, self.tokens = commit.step, commit.tokens
        self.left_out = [(first, stop) for first, stop in commit.left_out]
        self.guard.go_on(commit.losses)

    @property
    def plan_step(self) -> int:
        """The step of the plan that is trained next."""
        return plan_step(self.step, self.left_out)

    def judge(self, outcome: StepOutcome) -> None:
        """Note whether the step was taken, or skipped by its loss or because a gradient was not finite."""
        if outcome.grad_norm < float("inf"):
            self.guard.took(outcome.loss)
            return
        self.skipped += 1
        self.guard.skipped()
        why = outcome.objection or "a gradient that is not finite"
        self.note("skipped", f"step {self.step} was skipped: {why}", subject=outcome.fault)

    def go_back(self, outcome: StepOutcome) -> None:
        """Restore the newest checkpoint and leave out the plan's steps since; DivergedError when that is in vain."""
        self.tell(self.wait_for_save())
        path = checkpoint.newest_to_go_on(self.engine, self.recipe.run.saved_in, self.say)
        self.watch.pause()
        lost_at, stop = self.step, self.plan_step
        self.guard.went_back()
        if path is None or self.guard.returns > MAX_RETURNS:
            tried = "before the first checkpoint" if path is None else f"and {MAX_RETURNS} returns did not help"
            raise DivergedError(
                f"{self.guard.skipped_in_a_row} steps in a row were skipped, up to step {lost_at} "
                f"(loss {outcome.loss:.4g}), {tried}",
                f"lower optim.lr (now {self.recipe.optim.lr:g}) or raise optim.warmup_steps, then run again: "
                "it goes on from the last checkpoint",
            )
        self.take(checkpoint.restore(self.engine, path))
        self.watch.pause()
        first = self.plan_step
        self.left_out.append((first, stop))
        self.newest = None  # the next save has other steps left out, so it must be written
        if self.world.is_first:
            for sink in self.sinks:
                sink.close()
            self.sinks = make_sinks(self.recipe, self.step, partial(self.note, "note"))
            self.unsaid.clear()
            write_left_out(self.recipe.run.dir / "left_out.jsonl", self.plan, first, stop)
        self.note(
            "went back",
            f"went back from step {lost_at} to {path}; steps {first} to {stop - 1} of the plan are left out",
            subject="",
        )

    def measure(self, rank_step: RankStep, outcome: StepOutcome, step_s: float, waited_s: float) -> dict[str, float]:
        """The metrics of the step just done."""
        plan, read = rank_step.plan, self.plan.shards[0].reader.counters()  # all shard sets share one reader
        values: dict[str, float] = {"step": self.step, "time": time.time(), "loss/all": outcome.loss}
        values |= {f"loss/{stream}": loss for stream, loss in outcome.losses.items()}
        values |= {f"mix/{stream}": share for stream, share in self.plan.shares_before(self.plan_step).items()}
        values |= speed(self.recipe, self.world, plan, step_s)
        values |= {
            "optim/grad_norm": outcome.grad_norm,
            "optim/lr": outcome.lr,
            "optim/skipped_steps": self.skipped,
            "perf/tokens_per_s": plan.num_tokens / step_s,
            "perf/step_s": step_s,
            "perf/data_wait": waited_s / step_s,
            "perf/slowest_rank": self.slowest_rank,
            "mem/peak_gib": peak_gib(self.world.device),
            "batch/tokens": plan.num_tokens,
            "batch/rows": plan.rows.num_rows,
            "batch/fill": plan.num_tokens / (plan.rows.num_rows * self.recipe.batch.row_tokens),
            "batch/cuts": plan.num_cuts,
            "batch/straggler_ratio": rank_step.straggler_ratio,
            "data/read_mib": read.bytes_asked / 2**20,
            "data/retries": read.retries,
            "data/bad_samples": rank_step.bad_samples,
        }
        return values

    def validate_if_due(self) -> dict[str, float]:
        """The losses of held-out samples after the step just done, where the recipe asks for them."""
        train = self.recipe.train
        if self.validation is None or (self.step % train.validate_every_steps and self.step != train.steps):
            return {}
        self.watch.pause()
        losses = self.validation.losses(self.engine)
        self.say(f"step {self.step}, held out: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        return {f"validation/{name}": loss for name, loss in losses.items()}

    def record(self, values: dict[str, float], eta_s: float) -> None:
        for sink in (*self.sinks, *self.watchers):
            sink.record(values)
        self.unsaid.append(values)
        if self.step % self.recipe.train.log_every_steps == 0 or self.step == self.recipe.train.steps:
            self.say(step_line(self.unsaid, self.recipe.train.steps, eta_s))
            self.unsaid.clear()

    def save_if_due(self) -> None:
        """Begin to save the step just done where the recipe says so; one that is still being written goes first."""
        self.tell(self.saver.done())
        every = self.recipe.train.save_every_steps
        if (self.step % every and not self.is_save_late) or self.step == self.recipe.train.steps:
            return
        if self.guard.skipped_in_a_row:  # who knows what the weights are worth
            self.is_save_late = True
            return
        was_late, self.is_save_late = self.is_save_late, not self.saver.start(self.step, self.identity(), self.keep())
        if self.is_save_late and not was_late:
            self.say(f"the checkpoint of step {self.step} waits: an earlier one is still being written")

    def save_last(self) -> None:
        """Save the step just done and wait for it; CheckpointError when that fails."""
        self.tell(self.wait_for_save())
        if self.newest is not None and commits.step_of(self.newest) == self.step:
            return
        self.world.barrier()
        self.saver.start(self.step, self.identity(), self.keep())
        saved = self.wait_for_save()
        self.tell(saved)
        if saved is not None and saved.failure is not None:
            raise CheckpointError(
                f"the last checkpoint, of step {self.step}, could not be written to {saved.path}: {saved.failure}",
                "mend that and run the same command again: it goes on from the checkpoint before",
            )

    def wait_for_save(self) -> Saved | None:
        """What became of the save that is being written, which may take long."""
        self.watch.pause(LONGEST_SAVE_S)
        saved = self.saver.wait()
        self.watch.pause()
        return saved

    def tell(self, saved: Saved | None) -> None:
        """Say what became of a save."""
        if saved is None:
            return
        if saved.failure is not None:
            why = f"could not be written: {saved.failure}; training goes on"
            self.note("not saved", f"the checkpoint of step {saved.step} {why}", saved.step, saved.subject)
        else:
            self.newest = saved.path
            self.note("saved", f"saved {saved.path} ({saved.seconds:.1f} s)", saved.step)
            if saved.not_pruned is not None:
                line = f"older checkpoints could not be deleted: {saved.not_pruned}"
                self.note("not saved", line, subject=saved.subject)

    def keep(self) -> commits.Keep:
        return commits.Keep(self.recipe.train.keep_checkpoints, self.recipe.train.keep_every_steps)

    def identity(self) -> dict[str, Any]:
        """What the marker says of the step just done, beside the engine's own."""
        return {
            "plan_digest": self.plan.digest,
            "plan": self.plan.identity,
            "cursors": self.plan.cursors(self.plan_step),
            "recipe": self.recipe.model_dump(mode="json"),
            "tokens": self.tokens,
            "losses": list(self.guard.losses),
            "left_out": [list(one) for one in self.left_out],
        }


def _in_short(path: str) -> str:
    """A path below the repository without the folder above it, which of a submitted job is a copy that Ray deletes."""
    return path.removeprefix(f"{Path(__file__).parents[2]}/")

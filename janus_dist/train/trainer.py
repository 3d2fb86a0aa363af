"""The trainer: from a recipe to a run that ends with a committed checkpoint of its last step.

Everything that a step needs is a function of the recipe and the step number, so resuming is loading a checkpoint and
starting the loop at its step. Invariant: what is in the newest checkpoint and what metrics.jsonl says agree.
"""

import time
from collections.abc import Callable
from pathlib import Path

from janus_dist.config.mix import STREAMS, Stream
from janus_dist.config.recipe import StageRecipe
from janus_dist.data.collate import DocumentFormat
from janus_dist.data.loader import Loader, RankStep
from janus_dist.data.plan import Base, Plan, open_shards
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.engine import checkpoint, commits
from janus_dist.engine.world import join
from janus_dist.engine.zero import ZeroEngine
from janus_dist.errors import CheckpointError, DivergedError
from janus_dist.model import janus
from janus_dist.model.parts import set_trainable
from janus_dist.monitor.console import count, step_line
from janus_dist.monitor.sinks import JsonlSink, Sink, WandbSink
from janus_dist.train.compatible import check_data, check_rebase, check_resume
from janus_dist.train.schedule import learning_rate
from janus_dist.train.step import StepOutcome, train_step

MAX_SKIPPED_IN_A_ROW = 10


class Trainer:
    """One run on one rank."""

    def __init__(self, recipe: StageRecipe, plan: Plan, loader: Loader, engine: ZeroEngine, say: Callable[[str], None]):
        self.recipe, self.plan, self.loader, self.engine = recipe, plan, loader, engine
        self.world = engine.world
        self.say = say if self.world.is_first else lambda line: None
        self.step = 0
        self.tokens = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.sinks: list[Sink] = []

    @classmethod
    def build(cls, recipe: StageRecipe, say: Callable[[str], None]) -> "Trainer":
        """Open the data, build the model and put it under ZeRO-3. `say` takes the first rank's console lines."""
        world = join(recipe.cluster, recipe.engine.timeout_s)
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
        model = janus.build(recipe.model, recipe.run.seed)
        set_trainable(model, recipe.train.trainable)
        if recipe.engine.activation_checkpointing:
            model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        return cls(recipe, plan, loader, ZeroEngine(model, recipe.engine, recipe.optim, world), say)

    def fit(self) -> None:
        """Train to the last step; leaves a committed checkpoint of it."""
        self.start()
        self.engine.module.train()
        total = self.recipe.train.steps
        steps = self.loader.steps(self.step, total)
        began, first = time.perf_counter(), self.step
        while self.step < total:
            step_began = time.perf_counter()
            rank_step = next(steps)
            waited = time.perf_counter() - step_began
            outcome = train_step(
                self.engine, rank_step, self.recipe.train, learning_rate(self.recipe.optim, self.step, total)
            )
            self.step += 1
            self.tokens += rank_step.plan.num_tokens
            self.guard(outcome)
            values = self.measure(rank_step, outcome, time.perf_counter() - step_began, waited)
            self.record(values, eta_s=(time.perf_counter() - began) / (self.step - first) * (total - self.step))
            if self.step % self.recipe.train.save_every_steps == 0 or self.step == total:
                self.save()
        for sink in self.sinks:
            sink.close()
        self.world.barrier()

    def start(self) -> None:
        """Resume from this run's newest checkpoint, else start from the weights of another run, or random ones."""
        run, root = self.recipe.run, Path(self.recipe.run.root)
        mine = self.world.from_first(commits.latest(run.dir))
        if mine is not None:
            self.go_on(mine)
            commit = checkpoint.restore(self.engine, mine)
            self.step, self.tokens = commit.step, commit.tokens
            self.say(f"resuming {run.name} at step {self.step} from {mine}")
        elif run.start_from is not None:
            before = self.world.from_first(commits.latest(root / run.start_from))
            if before is None:
                raise CheckpointError(
                    f"run.start_from={run.start_from}: no committed checkpoint under "
                    f"{root / run.start_from / 'checkpoints'}",
                    "train that run first, or set run.start_from=null to start from random weights",
                )
            checkpoint.restore_weights(self.engine, before)
            self.say(f"starting {run.name} from the weights of {before}")
        else:
            self.say(f"starting {run.name} from random weights")
        if self.world.is_first:
            self.sinks = make_sinks(self.recipe, self.step)

    def go_on(self, path: Path) -> None:
        """Take the plan of a checkpoint; CheckpointError when it is another than the recipe's and no one asked."""
        commit = commits.read(path)
        before = commit.plan["base"]
        self.use(self.plan.rebased(Base(**before) if before else None))
        if self.recipe.run.rebase and self.plan.digest != commit.plan_digest:
            check_rebase(self.plan, path, commit)
            self.use(self.plan.rebased(Base(commit.step, commit.cursors)))
            kept = [
                lane.source
                for lane, shards in zip(self.plan.lanes, self.plan.shards, strict=True)
                if commit.cursors.get(lane.source, {}).get("manifest") == shards.manifest.digest
            ]
            self.say(f"re-based at step {commit.step}: {', '.join(kept) or 'no source'} went on where it was")
            check_resume(self.recipe, None, self.engine.trainable, path, commit)
        else:
            check_resume(self.recipe, self.plan, self.engine.trainable, path, commit)

    def use(self, plan: Plan) -> None:
        """Train on this plan."""
        self.plan = plan
        self.loader.use(plan)

    def guard(self, outcome: StepOutcome) -> None:
        """Count steps that ZeRO skipped because a gradient was not finite; too many in a row end the run."""
        finite = outcome.grad_norm < float("inf")
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DivergedError(
                f"the gradient was not finite in {self.skipped_in_a_row} steps in a row, up to step {self.step} "
                f"(loss {outcome.loss:.4g}); nothing was changed by them",
                f"lower optim.lr (now {self.recipe.optim.lr:g}) or raise optim.warmup_steps, then run again: "
                "it goes on from the last checkpoint",
            )

    def measure(self, rank_step: RankStep, outcome: StepOutcome, step_s: float, waited_s: float) -> dict[str, float]:
        """The metrics of the step just done."""
        plan, read = rank_step.plan, self.plan.shards[0].reader.counters()  # all shard sets share one reader
        values: dict[str, float] = {"step": self.step, "time": time.time(), "loss/all": outcome.loss}
        values |= {f"loss/{stream}": loss for stream, loss in outcome.losses.items()}
        values |= {f"mix/{stream}": share for stream, share in self.realised_shares().items()}
        values |= {
            "optim/grad_norm": outcome.grad_norm,
            "optim/lr": outcome.lr,
            "optim/skipped_steps": self.skipped,
            "perf/tokens_per_s": plan.num_tokens / step_s,
            "perf/step_s": step_s,
            "perf/data_wait": waited_s / step_s,
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

    def realised_shares(self) -> dict[Stream, float]:
        """Share of each stream in what was taken from step 0 to the step just done."""
        taken: dict[Stream, int] = dict.fromkeys(STREAMS, 0)
        for lane, units in zip(self.plan.lanes, self.plan.positions(self.step), strict=True):
            taken[lane.stream] += units
        return {name: units / max(1, sum(taken.values())) for name, units in taken.items()}

    def record(self, values: dict[str, float], eta_s: float) -> None:
        for sink in self.sinks:
            sink.record(values)
        if self.step % self.recipe.train.log_every_steps == 0 or self.step == self.recipe.train.steps:
            self.say(step_line(values, self.recipe.train.steps, eta_s))

    def save(self) -> None:
        """Commit a checkpoint of the step just done and delete what is too old."""
        identity = {
            "plan_digest": self.plan.digest,
            "plan": self.plan.identity,
            "cursors": self.plan.cursors(self.step),
            "model": self.recipe.model.model_dump(mode="json"),
            "tokens": self.tokens,
        }
        path = checkpoint.save(self.engine, self.recipe.run.dir, self.step, identity)
        if self.world.is_first:
            commits.prune(self.recipe.run.dir, self.recipe.train.keep_checkpoints)
        self.say(f"saved {path} ({count(self.tokens)} tokens so far)")


def make_sinks(recipe: StageRecipe, steps_done: int) -> list[Sink]:
    """The sinks of the first rank."""
    run, monitor = recipe.run, recipe.monitor
    sinks: list[Sink] = [JsonlSink(run.dir / "metrics.jsonl", steps_done)]
    if monitor.wandb != "disabled":
        settings = recipe.model_dump(mode="json")
        sinks.append(WandbSink(monitor.wandb, monitor.project, f"{Path(run.root).name}-{run.name}", run.dir, settings))
    return sinks

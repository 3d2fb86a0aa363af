"""Resuming: the checkpoint that `run.resume` selects, and the plan from its step on.

Invariants: all ranks call these functions in the same order and get the same result; a run goes back to the checkpoint
named by `run.resume` once, however often the same command is run and ranks are restarted.
"""

from collections.abc import Callable, Sequence

from janus_dist.checkpoint import commits, state
from janus_dist.checkpoint.commits import Commit
from janus_dist.checkpoint.find import refuse_if_never
from janus_dist.config.recipe import RunConfig, StageRecipe
from janus_dist.data.plan import Plan, PlanBase
from janus_dist.engine.zero import ZeroEngine
from janus_dist.train.compatible import check_rebase, check_resume
from janus_dist.train.left_out import plan_step


def chosen(engine: ZeroEngine, run: RunConfig, say: Callable[[str], None]) -> str | None:
    """Return the intact checkpoint to resume from by `run.resume`, or None to start anew; all ranks call it.

    Raises ConfigError when `run.resume=never` and the run has a checkpoint, CheckpointError when the named checkpoint
    is damaged or absent, or all checkpoints of the run are damaged.
    """
    world = engine.world
    if run.resume == "never":
        world.run_on_rank0(lambda: refuse_if_never(run))
        return None
    if run.resume == "auto":
        return state.latest_to_resume(engine, run.saved_in, say)
    path = run.resume.rstrip("/")
    if since := world.run_on_rank0(lambda: commits.saved_since(run.saved_in, path)):
        say(
            f"the run has already gone back to run.resume={path} and now resumes from {since}; "
            f"to go back again, delete the newer checkpoints under {run.saved_in}"
        )
        return state.latest_to_resume(engine, run.saved_in, say)
    commits.verify_on_ranks(world, path)
    step = world.run_on_rank0(lambda: commits.read(path)).step
    for newer in world.run_on_rank0(lambda: commits.set_aside_from(run.saved_in, path, step)):
        say(f"set aside {newer}: the run resumes from run.resume={path}")
    return path


def plan_from(plan: Plan, recipe: StageRecipe, trainable: Sequence[str], path: str, commit: Commit) -> tuple[Plan, str]:
    """Return the plan from a checkpoint's step on, and a line for the console, empty when the plan did not change.

    Raises CheckpointError when the checkpoint does not match the recipe; its plan may differ with `run.rebase`.
    """
    base = commit.plan["base"]
    plan = plan.rebased(PlanBase(**base) if base else None)
    if not recipe.run.rebase or plan.digest == commit.plan_digest:
        check_resume(recipe, plan, trainable, path, commit)
        return plan, ""
    check_rebase(plan, path, commit)
    plan = plan.rebased(PlanBase(plan_step(commit.step, commit.left_out), commit.cursors))
    continued = [
        lane.source
        for lane, shards in zip(plan.lanes, plan.shards, strict=True)
        if commit.cursors.get(lane.source, {}).get("manifest") == shards.manifest.digest
    ]
    check_resume(recipe, None, trainable, path, commit)
    line = f"re-based at step {commit.step}; sources that continue at their position: {', '.join(continued) or 'none'}"
    return plan, line

"""Where a run goes on: the checkpoint that `run.resume` asks for, and the plan from there.

Invariants: all ranks call these in step and come to the same answer; a checkpoint that was named is gone back to once,
however often the same command is given and ranks are started again.
"""

from collections.abc import Callable, Sequence

from janus_dist.checkpoint import commits, state
from janus_dist.checkpoint.commits import Commit
from janus_dist.checkpoint.find import refuse_if_never
from janus_dist.config.recipe import RunConfig, StageRecipe
from janus_dist.data.plan import Base, Plan
from janus_dist.engine.zero import ZeroEngine
from janus_dist.train.compatible import check_rebase, check_resume
from janus_dist.train.left_out import plan_step


def chosen(engine: ZeroEngine, run: RunConfig, say: Callable[[str], None]) -> str | None:
    """The checkpoint to go on from by `run.resume`, read and found whole; None to start."""
    world = engine.world
    if run.resume == "never":
        world.run_on_rank0(lambda: refuse_if_never(run))
        return None
    if run.resume == "auto":
        return state.latest_to_resume(engine, run.saved_in, say)
    path = run.resume.rstrip("/")
    if since := world.run_on_rank0(lambda: commits.saved_since(run.saved_in, path)):
        say(
            f"run.resume={path} was gone back to before, the run goes on from {since}; "
            f"to go back once more, delete the checkpoints under {run.saved_in} that are newer"
        )
        return state.latest_to_resume(engine, run.saved_in, say)
    commits.verify_on_ranks(world, path)
    step = world.run_on_rank0(lambda: commits.read(path)).step
    for newer in world.run_on_rank0(lambda: commits.set_aside_from(run.saved_in, path, step)):
        say(f"set aside {newer}: the run goes on from run.resume={path}")
    return path


def plan_from(plan: Plan, recipe: StageRecipe, trainable: Sequence[str], path: str, commit: Commit) -> tuple[Plan, str]:
    """The plan to go on with from a checkpoint, and what there is to say of it.

    CheckpointError when the checkpoint's is another than the recipe's and no one asked for that.
    """
    before = commit.plan["base"]
    plan = plan.rebased(Base(**before) if before else None)
    if not recipe.run.rebase or plan.digest == commit.plan_digest:
        check_resume(recipe, plan, trainable, path, commit)
        return plan, ""
    check_rebase(plan, path, commit)
    plan = plan.rebased(Base(plan_step(commit.step, commit.left_out), commit.cursors))
    kept = [
        lane.source
        for lane, shards in zip(plan.lanes, plan.shards, strict=True)
        if commit.cursors.get(lane.source, {}).get("manifest") == shards.manifest.digest
    ]
    check_resume(recipe, None, trainable, path, commit)
    return plan, f"re-based at step {commit.step}: {', '.join(kept) or 'no source'} went on where it was"

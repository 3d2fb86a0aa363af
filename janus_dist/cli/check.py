"""`janus check`: report everything that would stop a stage, before it takes a GPU.

Invariant: nothing is trained and no file remains; every fault is an error with which the stage itself would end, with
the same message, and no fault hides another.
"""

import netrc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.find import check_starts, goes_on_from, start_is_complete
from janus_dist.config.load import Loaded, RecipeError
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.streams import SPECS
from janus_dist.data.manifest import ShardSet, is_there
from janus_dist.data.plan import Plan, PlanBase, open_shards
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import CheckpointError, ClusterError, ConfigError, DataError, JanusError
from janus_dist.estimate.budget import checkpoint_bytes
from janus_dist.estimate.memory import predict
from janus_dist.evaluation.prompts import read_prompts
from janus_dist.monitor.console import print_json, several
from janus_dist.train import precision
from janus_dist.train.compatible import check_data, check_resume, learning
from janus_dist.train.startup import check_room
from janus_dist.weights.start import open_weights
from janus_dist.weights.vq import load_vq

GIB = 2**30
WANDB_HOST = "api.wandb.ai"
"""Host whose entry in ~/.netrc holds the key for wandb."""


class NotChecked(str):
    """Note about something that could not be checked, because it does not exist yet or does not answer."""


Check = Callable[[StageRecipe], Iterable[str | JanusError]]
"""Check of a recipe: yields notes and faults, and may raise its last fault."""


def run_checks(load: Callable[[], Loaded[StageRecipe]], as_json: bool) -> None:
    """Print notes and numbered faults; exit with the exit code of the first fault, if there is one."""
    results = list(_results(load))
    notes = [result for result in results if isinstance(result, str)]
    faults = list({str(result): result for result in results if isinstance(result, JanusError)}.values())
    if as_json:
        _print_json(notes, faults)
    else:
        _print(notes, faults)
    if faults:
        sys.exit(faults[0].exit_code)


def _print_json(notes: Sequence[str], faults: Sequence[JanusError]) -> None:
    print_json(
        {
            "faults": [
                {"message": fault.message, "hint": fault.hint, "exit_code": fault.exit_code} for fault in faults
            ],
            "notes": notes,
            "not_checked": [note for note in notes if isinstance(note, NotChecked)],
        }
    )


def _print(notes: Sequence[str], faults: Sequence[JanusError]) -> None:
    for note in notes:
        if faults or not isinstance(note, NotChecked):  # without faults these are listed at the end
            print(f"  {note}")
    for index, fault in enumerate(faults, start=1):
        print(f"{index}. {str(fault).replace(chr(10), chr(10) + '   ')}")
    print(several(len(faults), "fault") if faults else _passed(notes))


def _passed(notes: Sequence[str]) -> str:
    """Return the last line of a check without faults: what passed, and what could not be checked."""
    open_points = [note for note in notes if isinstance(note, NotChecked)]
    if not open_points:
        return "all checks passed"
    return "\n  ".join(["all checks passed that could be made now; not checked:", *open_points])


def _results(load: Callable[[], Loaded[StageRecipe]]) -> Iterator[str | JanusError]:
    """Yield the notes and faults of all checks; an error in one check does not stop the others."""
    try:
        loaded = load()
    except RecipeError as error:
        yield from (ConfigError(f"{fault.place.text}: {fault.message}") for fault in error.faults)
        yield "only the settings were checked, because the other checks depend on them"
        return
    except ConfigError as error:
        yield error
        return
    recipe = loaded.recipe
    try:
        check_starts(loaded)
    except JanusError as error:
        yield error
    for check in CHECKS:
        try:
            yield from check(recipe)
        except JanusError as error:
            yield error


def _versions(_: StageRecipe) -> Iterator[str]:
    """Check that the installed packages have the versions that the project requires."""
    wrong = []
    for text in requires("janus-dist") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                wrong.append(f"{requirement.name} {version(requirement.name)} (needs {requirement.specifier})")
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
    if wrong:
        raise ConfigError(f"packages with other versions than required: {', '.join(wrong)}", "run make setup")
    yield f"torch {version('torch')}, deepspeed {version('deepspeed')}, ray {version('ray')}"


def _data(recipe: StageRecipe) -> Iterator[str]:
    """Check that tokenizer and shards exist and belong together; shards that the recipe makes itself may be absent."""
    tokenizer = Tokenizer.load(recipe.data.tokenizer)
    if _made_first(recipe):
        present = {lane: ShardSet.open(folder) for lane, folder in recipe.data.lanes.items() if is_there(folder)}
        check_data(recipe, tokenizer, present)
        if (root := recipe.data.validation_root) is not None:
            yield NotChecked(f"data.validation_root={root} is compared with the shards when they have been made")
        return
    shards = open_shards(recipe.data, recipe.mix)
    check_data(recipe, tokenizer, shards)
    for lane, shard_set in shards.items():
        yield f"{lane.source}: {shard_set.manifest.samples:,} samples, {shard_set.manifest.tokens:,} tokens"
    if recipe.data.validation_root is not None:
        from janus_dist.train.validation import held_out  # here: DeepSpeed takes seconds, and few runs validate

        validating = held_out(recipe, shards)
        check_data(recipe, tokenizer, validating)
        yield f"{recipe.data.validation_root}: {', '.join(lane.stream for lane in validating)}, held out"


def _inputs(recipe: StageRecipe) -> Iterator[str | JanusError]:
    """Check that the inputs exist from which absent shards are made."""
    absent = _made_first(recipe)
    if absent:
        yield NotChecked(
            f"shards of {', '.join(absent)} are made first; only then can the plan and whether they fit the model be "
            "checked"
        )
    for name in absent:
        value = recipe.pipeline.inputs[name].path
        for path in (value,) if isinstance(value, str) else value:
            if "://" in path or any(sign in path for sign in "*?[{"):
                yield NotChecked(f"pipeline.inputs.{name}.path={path}: its files are listed when it is read")
            elif not Path(path).exists():
                yield DataError(f"pipeline.inputs.{name}.path={path} does not exist", "give the path of the data")


def _made_first(recipe: StageRecipe) -> list[str]:
    """Return the inputs whose shards are absent; the stage makes them itself."""
    return [name for name in recipe.pipeline.inputs if not is_there(f"{recipe.data.root}/{name}")]


def _vq(recipe: StageRecipe) -> Iterator[str]:
    """Check the VQ tokenizer's weights if they are needed, to make shards or to encode images to understand."""
    is_encoding = any(SPECS[recipe.pipeline.streams[name]].draws_images for name in _made_first(recipe))
    if is_encoding or recipe.model.reads_by == "vq":
        load_vq(recipe.model, recipe.data.vq_weights)
        yield f"VQ tokenizer: {recipe.data.vq_weights}"


def _prompts(recipe: StageRecipe) -> Iterator[str]:
    """Check that the prompts for checkpoints can be read."""
    if recipe.monitor.prompts is not None:
        yield f"{len(read_prompts(Path(recipe.monitor.prompts)))} prompts for each checkpoint"


def _start(recipe: StageRecipe) -> Iterator[str]:
    """Check the checkpoint from which the run resumes, or the weights from which it starts."""
    run, checkpoint = recipe.run, goes_on_from(recipe)
    if checkpoint is not None:
        yield from _resume(recipe, checkpoint)
    elif run.start_from is not None:
        start = commits.latest_committed(run.saved_in_of(run.start_from))
        if start is None and not run.start_recipes:
            raise CheckpointError(
                f"run.start_from={run.start_from}: no committed checkpoint under {run.saved_in_of(run.start_from)}",
                "train that run first, or set run.start_from=null to start from random weights",
            )
        if run.start_recipes and not start_is_complete(run):
            resumed = f", resuming from {start}" if start else ""
            yield NotChecked(f"starts from {run.start_from}, which is trained first{resumed}")
        else:
            yield f"starts from {start}"
    elif run.start_weights:
        weights = open_weights(recipe.model, run.start_weights)
        yield f"starts from {len(weights)} tensors of {', '.join(run.start_weights.values())}"
    else:
        yield "starts from random weights"


def _resume(recipe: StageRecipe, checkpoint: str) -> Iterator[str]:
    commit = commits.read(checkpoint)
    if commit.step == recipe.train.steps:
        raise ConfigError(
            f"run {recipe.run.dir} is complete: its checkpoint is at step {commit.step}, as train.steps asks",
            "raise train.steps to train further, or give the run another name (run.name=...)",
        )
    plan = None
    if not recipe.run.rebase:
        plan = Plan.of(recipe, open_shards(recipe.data, recipe.mix))
        base = commit.plan["base"]
        plan = plan.rebased(PlanBase(**base) if base else None)
    check_resume(recipe, plan, learning(recipe, commit), checkpoint, commit)
    yield f"resumes at step {commit.step:,} of {recipe.train.steps:,} from {checkpoint}"


def _dtype(recipe: StageRecipe) -> Iterator[str]:
    """Report the data type in which the run computes, and how slow it is if it is emulated."""
    resolved, line = precision.resolve(recipe, lambda: precision.is_native_here(recipe))
    yield f"{line}, judging by this machine" if line else f"computing in {resolved.engine.dtype}"
    yield from precision.slow_lines(resolved)


def _room(recipe: StageRecipe) -> Iterator[str]:
    """Check that the run's folder and its checkpoints can be written and that the disk has room for them.

    Removes the folders that the check creates.
    """
    size = checkpoint_bytes(precision.resolve_here(recipe))
    created = missing_folders(recipe.run.dir, *([] if "://" in recipe.run.saved_in else [Path(recipe.run.saved_in)]))
    try:
        check_room(recipe, size)
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()
    yield f"a checkpoint takes {size / GIB:,.3f} GiB under {recipe.run.saved_in}"


def missing_folders(*folders: Path) -> list[Path]:
    """Return those of the folders and their parents that do not exist, the deepest first."""
    missing = {path for folder in folders for path in (folder, *folder.parents) if not path.exists()}
    return sorted(missing, key=lambda path: len(path.parts), reverse=True)


def _cluster(recipe: StageRecipe) -> Iterator[str]:
    """Check that the Ray cluster, if one is running, has enough resources for the ranks."""
    from janus_dist.launch import capacity, session  # here: Ray takes seconds, and settings are checked first

    nodes = session.resources()
    if nodes is None:
        yield NotChecked("no Ray cluster answers: whether the ranks fit on the local Ray that is started is not known")
        return
    cores, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    yield f"the Ray cluster has {cores:g} CPUs and {gpus:g} GPUs on {len(nodes)} nodes"
    capacity.check_room_in(nodes, recipe)


def _memory(recipe: StageRecipe) -> Iterator[str]:
    """Check that the memory that a rank needs fits a GPU, if this machine has one."""
    needed = predict(precision.resolve_here(recipe), recipe.cluster.workers).device_bytes / GIB
    yield f"each of {recipe.cluster.workers} ranks needs at least {needed:.2f} GiB"
    if not recipe.cluster.gpu:
        return
    if not torch.cuda.is_available():
        yield NotChecked("this machine has no GPU to compare with: the nodes must have one for each rank")
        return
    available = torch.cuda.get_device_properties(0).total_memory / GIB
    if needed > available:
        raise ClusterError(
            f"a rank needs at least {needed:.1f} GiB, but {torch.cuda.get_device_name(0)} has {available:.1f}",
            "use more ranks, a smaller batch.micro_rows, or engine.activation_checkpointing=1 (`janus plan` lists the "
            "memory by kind)",
        )


def _wandb(recipe: StageRecipe) -> Iterator[str]:
    """Check that a key for wandb exists if metrics are uploaded during the run; the key is not shown."""
    if recipe.monitor.wandb != "online" or os.environ.get("WANDB_API_KEY"):
        return
    with suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc().authenticators(WANDB_HOST):
            return
    raise ConfigError(
        "monitor.wandb=online, but this machine has no key for wandb",
        "set WANDB_API_KEY on the nodes or run `wandb login`; monitor.wandb=offline stores the metrics for later",
    )
    yield ""


CHECKS: tuple[Check, ...] = (
    _versions, _data, _inputs, _vq, _prompts, _start, _dtype, _room, _cluster, _memory, _wandb,
)  # fmt: skip

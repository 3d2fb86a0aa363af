"""`janus check`: what would stop a stage, all of it at once, before a GPU is taken.

Invariant: nothing is trained and nothing stays written; every fault is an error that the stage itself would end with,
with the same message, and none hides another.
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
from janus_dist.data.plan import Base, Plan, open_shards
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


class NotChecked(str):
    """A note on what a check could not look at, because it does not exist yet or does not answer."""


Check = Callable[[StageRecipe], Iterable[str | JanusError]]


def run_checks(load: Callable[[], Loaded[StageRecipe]], as_json: bool) -> None:
    """Print what was found, numbered; ends with the exit code of the first fault, if there is one."""
    found = list(_looked(load))
    notes = [one for one in found if isinstance(one, str)]
    faults = list({str(one): one for one in found if isinstance(one, JanusError)}.values())
    if as_json:
        told = [{"message": one.message, "hint": one.hint, "exit_code": one.exit_code} for one in faults]
        not_checked = [note for note in notes if isinstance(note, NotChecked)]
        print_json({"faults": told, "notes": notes, "not_checked": not_checked})
    else:
        for note in notes:
            if faults or not isinstance(note, NotChecked):  # else named at the end
                print(f"  {note}")
        for number, fault in enumerate(faults, start=1):
            print(f"{number}. {str(fault).replace(chr(10), chr(10) + '   ')}")
        print(several(len(faults), "fault") if faults else _passed(notes))
    if faults:
        sys.exit(faults[0].exit_code)


def _passed(notes: Sequence[str]) -> str:
    """Return the last line where nothing is wrong: what has passed, and what could not be checked."""
    open_points = [note for note in notes if isinstance(note, NotChecked)]
    if not open_points:
        return "all checks passed"
    return "\n  ".join(["all checks passed that could be made now; not checked:", *open_points])


def _looked(load: Callable[[], Loaded[StageRecipe]]) -> Iterator[str | JanusError]:
    """Notes and faults of all checks, whatever ends one of them."""
    try:
        loaded = load()
    except RecipeError as error:
        yield from (ConfigError(f"{fault.place.text}: {fault.message}") for fault in error.faults)
        yield "only the settings were looked at: the rest depends on them"
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
    """What is installed is what the project was made for."""
    wrong = []
    for text in requires("janus-dist") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            if not wanted.specifier.contains(version(wanted.name), prereleases=True):
                wrong.append(f"{wanted.name} {version(wanted.name)} (needs {wanted.specifier})")
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is absent")
    if wrong:
        raise ConfigError(f"other packages than this version was made for: {', '.join(wrong)}", "run make setup")
    yield f"torch {version('torch')}, deepspeed {version('deepspeed')}, ray {version('ray')}"


def _data(recipe: StageRecipe) -> Iterator[str]:
    """Tokenizer and shards are there and of one making; what the recipe makes itself may be absent."""
    tokenizer = Tokenizer.load(recipe.data.tokenizer)
    if _made_first(recipe):
        present = {lane: ShardSet.open(folder) for lane, folder in recipe.data.lanes.items() if is_there(folder)}
        check_data(recipe, tokenizer, present)
        if (root := recipe.data.validation_root) is not None:
            yield NotChecked(f"data.validation_root={root} is compared with the shards when those are made")
        return
    shards = open_shards(recipe.data, recipe.mix)
    check_data(recipe, tokenizer, shards)
    for lane, found in shards.items():
        yield f"{lane.source}: {found.manifest.samples:,} samples, {found.manifest.tokens:,} tokens"
    if recipe.data.validation_root is not None:
        from janus_dist.train.validation import held_out  # here: DeepSpeed takes seconds, and few runs validate

        validating = held_out(recipe, shards)
        check_data(recipe, tokenizer, validating)
        yield f"{recipe.data.validation_root}: {', '.join(lane.stream for lane in validating)}, held out"


def _inputs(recipe: StageRecipe) -> Iterator[str | JanusError]:
    """What shards are to be made of is there."""
    absent = _made_first(recipe)
    if absent:
        yield NotChecked(
            f"shards of {', '.join(absent)} are made first: whether they fit the model, and the plan, is not known"
        )
    for name in absent:
        given = recipe.pipeline.inputs[name].path
        for path in (given,) if isinstance(given, str) else given:
            if "://" in path or any(sign in path for sign in "*?[{"):
                yield NotChecked(
                    f"pipeline.inputs.{name}.path={path}: the files that it names are listed when it is read"
                )
            elif not Path(path).exists():
                yield DataError(f"pipeline.inputs.{name}.path={path} does not exist", "give where the data is")


def _made_first(recipe: StageRecipe) -> list[str]:
    """Inputs whose shards are absent, which the stage makes itself."""
    return [name for name in recipe.pipeline.inputs if not is_there(f"{recipe.data.root}/{name}")]


def _vq(recipe: StageRecipe) -> Iterator[str]:
    """The VQ tokenizer's weights are there where it is used: to make shards, or to read by."""
    makes = any(SPECS[recipe.pipeline.streams[name]].draws_images for name in _made_first(recipe))
    if makes or recipe.model.reads_by == "vq":
        load_vq(recipe.model, recipe.data.vq_weights)
        yield f"VQ tokenizer: {recipe.data.vq_weights}"


def _prompts(recipe: StageRecipe) -> Iterator[str]:
    """The prompts for checkpoints can be read."""
    if recipe.monitor.prompts is not None:
        yield f"{len(read_prompts(Path(recipe.monitor.prompts)))} prompts for each checkpoint"


def _start(recipe: StageRecipe) -> Iterator[str]:
    """Where the run goes on or starts from."""
    run, there = recipe.run, goes_on_from(recipe)
    if there is not None:
        yield from _resume(recipe, there)
    elif run.start_from is not None:
        before = commits.latest_committed(run.saved_in_of(run.start_from))
        if before is None and not run.start_recipes:
            raise CheckpointError(
                f"run.start_from={run.start_from}: no committed checkpoint under {run.saved_in_of(run.start_from)}",
                "train that run first, or set run.start_from=null to start from random weights",
            )
        if run.start_recipes and not start_is_complete(run):
            behind = f", from {before} on" if before else ""
            yield NotChecked(f"starts from {run.start_from}, which is trained first{behind}")
        else:
            yield f"starts from {before}"
    elif run.start_weights:
        found = open_weights(recipe.model, run.start_weights)
        yield f"starts from {len(found)} tensors of {', '.join(run.start_weights.values())}"
    else:
        yield "starts from random weights"


def _resume(recipe: StageRecipe, there: str) -> Iterator[str]:
    commit = commits.read(there)
    if commit.step == recipe.train.steps:
        raise ConfigError(
            f"run {recipe.run.dir} is complete: its checkpoint is at step {commit.step}, as train.steps asks",
            "raise train.steps to go on, or give the run another name (run.name=...)",
        )
    plan = None
    if not recipe.run.rebase:
        plan = Plan.of(recipe, open_shards(recipe.data, recipe.mix))
        base = commit.plan["base"]
        plan = plan.rebased(Base(**base) if base else None)
    check_resume(recipe, plan, learning(recipe, commit), there, commit)
    yield f"goes on at step {commit.step:,} of {recipe.train.steps:,} from {there}"


def _dtype(recipe: StageRecipe) -> Iterator[str]:
    """Say what the run computes in, and how slow that is where it is emulated."""
    resolved, line = precision.resolve(recipe, lambda: precision.is_native_here(recipe))
    yield f"{line}, as far as this machine tells" if line else f"computing in {resolved.engine.dtype}"
    yield from precision.slow_lines(resolved)


def _room(recipe: StageRecipe) -> Iterator[str]:
    """The run's folder and its checkpoints can be written, with room for those kept; nothing is left behind."""
    size = checkpoint_bytes(precision.resolve_here(recipe))
    made = missing_folders(recipe.run.dir, *([] if "://" in recipe.run.saved_in else [Path(recipe.run.saved_in)]))
    try:
        check_room(recipe, size)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
    yield f"a checkpoint takes {size / GIB:,.3f} GiB under {recipe.run.saved_in}"


def missing_folders(*folders: Path) -> list[Path]:
    """Of folders and those above them the ones that do not exist, the deepest first."""
    every = {one for folder in folders for one in (folder, *folder.parents) if not one.exists()}
    return sorted(every, key=lambda one: len(one.parts), reverse=True)


def _cluster(recipe: StageRecipe) -> Iterator[str]:
    """The Ray cluster has room for the ranks, where one is running."""
    from janus_dist.launch import capacity, session  # here: Ray takes seconds, and settings are looked at before

    there = session.resources()
    if there is None:
        yield NotChecked(
            "no Ray cluster answers here: a local Ray would be started, whose room for the ranks is not known"
        )
        return
    cores, gpus = (sum(node.get(kind, 0) for node in there) for kind in ("CPU", "GPU"))
    yield f"the Ray cluster has {cores:g} CPUs and {gpus:g} GPUs on {len(there)} nodes"
    capacity.check_room_in(there, recipe)


def _memory(recipe: StageRecipe) -> Iterator[str]:
    """A rank's share fits the GPUs, as far as this machine has one to ask."""
    wanted = predict(precision.resolve_here(recipe), recipe.cluster.workers).device_bytes / GIB
    yield f"a rank needs {wanted:.2f} GiB at least, of {recipe.cluster.workers} ranks"
    if not recipe.cluster.gpu:
        return
    if not torch.cuda.is_available():
        yield NotChecked("no GPU here to compare with: the nodes must have one for each rank")
        return
    there = torch.cuda.get_device_properties(0).total_memory / GIB
    if wanted > there:
        raise ClusterError(
            f"a rank needs {wanted:.1f} GiB at least, {torch.cuda.get_device_name(0)} has {there:.1f}",
            "take more ranks, a smaller batch.micro_rows, or engine.activation_checkpointing=1 (`janus plan` says what "
            "takes how much)",
        )


def _wandb(recipe: StageRecipe) -> Iterator[str]:
    """There is a key for wandb where figures go there at once; which one is not said."""
    if recipe.monitor.wandb != "online" or os.environ.get("WANDB_API_KEY"):
        return
    with suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc().authenticators(WANDB_HOST):
            return
    raise ConfigError(
        "monitor.wandb=online, and there is no key for wandb here",
        "set WANDB_API_KEY on the nodes or run `wandb login`; monitor.wandb=offline keeps figures for later",
    )
    yield ""


CHECKS: tuple[Check, ...] = (
    _versions, _data, _inputs, _vq, _prompts, _start, _dtype, _room, _cluster, _memory, _wandb,
)  # fmt: skip

"""`janus ckpt`: what checkpoints there are, whether they are whole, what is in them, and deleting what need not stay.

Invariant: nothing is written, and nothing deleted but by `prune`; none of it needs torch.
"""

from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.commits import Commit, DamagedError, Keep
from janus_dist.checkpoint.find import recipe_of, saved_in
from janus_dist.config.paths import path_or_url
from janus_dist.errors import CheckpointError
from janus_dist.monitor.console import count, print_json, several
from janus_dist.storage import fs

ckpt_app = typer.Typer(no_args_is_help=True, help="Look at the checkpoints of a run, check them, delete some.")

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or a folder or s3:// URL of checkpoints.")]
RunOrCheckpoint = Annotated[str, typer.Argument(metavar="RUN|CKPT", help="The same, or one checkpoint.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

WHOLE = "whole"


@ckpt_app.command("list")
def list_command(run: Run, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, oldest first; sizes are compared, checksums are not."""
    folder = _folder(run)
    found = [_line(path) for path in commits.folders(folder)]
    if as_json:
        print_json({"folder": folder, "checkpoints": found})
        return
    if not found:
        raise CheckpointError(f"no checkpoint under {folder}", "train the run first, or name another folder")
    print(folder)
    for one in found:
        made = f"{count(one['bytes'])}B  {one['ranks']} ranks  {count(one['tokens'])} tokens" if one["ranks"] else ""
        print(f"  step {one['step']:>9,}  {one['state']:<18}  {made}".rstrip())


@ckpt_app.command("verify")
def verify_command(source: RunOrCheckpoint) -> None:
    """Read every byte of one checkpoint, or of all of a run, and compare checksums; ends with 4 at damage."""
    source = path_or_url(source)
    paths = [source.rstrip("/")] if commits.is_marked(source) else commits.with_marker(_folder(source))
    if not paths:
        raise CheckpointError(f"no checkpoint under {source}", "name a run's folder or a checkpoint")
    damaged = 0
    for path in paths:
        try:
            commit = commits.read(path)
            commits.verify(path, commit)
            print(f"{path}: whole, {count(_bytes(commit))}B in {several(len(commit.files), 'file')}")
        except DamagedError as error:
            damaged += 1
            print(f"{path}: {error.message}")
    if damaged:
        raise CheckpointError(
            f"{damaged} of {len(paths)} checkpoints are damaged", "a run passes over them; delete them to make room"
        )


@ckpt_app.command("show")
def show_command(source: RunOrCheckpoint, as_json: AsJson = False) -> None:
    """Say what the marker of a checkpoint, or of a run's newest, says: step, model, data, what it was made with."""
    source = path_or_url(source)
    path = source.rstrip("/") if commits.is_marked(source) else commits.latest_committed(_folder(source))
    if path is None:
        raise CheckpointError(f"no whole checkpoint under {source}", "`janus ckpt list` says what there is")
    commit = commits.read(path)
    if as_json:
        print_json({"path": path, **asdict(commit)})
        return
    print(path)
    for name, value in _facts(commit):
        print(f"  {name:<11} {value}")


@ckpt_app.command("prune")
def prune_command(
    run: Run,
    keep: Annotated[int, typer.Option("--keep", min=1, help="The newest so many whole ones stay.")],
    every: Annotated[int | None, typer.Option("--every", min=1, help="So do those of every N-th step.")] = None,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete checkpoints that need not stay, and what killed saves left before the newest whole one."""
    folder = _folder(run)
    for path in commits.prunable(folder, Keep(keep, every)):
        if not is_dry:
            commits.delete(path)
        print(f"{'would delete' if is_dry else 'deleted'} {path}")
    print(f"{len(commits.committed(folder))} whole checkpoints {'are there' if is_dry else 'stay'}")


def _folder(run: str) -> str:
    """Return the folder of checkpoints that a user means; ConfigError for a URL that is not supported."""
    run = path_or_url(run)
    is_run = fs.is_local(run) and Path(run, "config.json").is_file()
    return saved_in(run.rstrip("/"), recipe_of(Path(run))) if is_run else run.rstrip("/")


def _line(path: str) -> dict[str, Any]:
    there = set(fs.names(path))
    found: dict[str, Any] = {"path": path, "step": commits.step_of(path), "ranks": 0, "tokens": 0, "bytes": 0}
    if commits.MARKER not in there:
        return found | {"state": "set aside" if commits.ASIDE in there else "not committed"}
    try:
        commit = commits.read(path)
    except CheckpointError as error:
        return found | {"state": "damaged" if isinstance(error, DamagedError) else "of another version"}
    state = WHOLE if commits.is_committed(path) else "damaged"
    return found | {"state": state, "ranks": commit.world, "tokens": commit.tokens, "bytes": _bytes(commit)}


def _facts(commit: Commit) -> list[tuple[str, str]]:
    learned = sum(prod(commit.shapes[name]) for name in commit.trainable)
    every = sum(prod(shape) for shape in commit.shapes.values())
    run, sources = commit.recipe["run"], commit.cursors
    left_out = ", ".join(f"{first} to {stop - 1}" for first, stop in commit.left_out)
    return [
        ("step", f"{commit.step:,} of {commit.recipe['train']['steps']:,}"),
        ("tokens", f"{commit.tokens:,}"),
        ("run", f"{run['name']}, stage {commit.recipe['stage']}, in {run['root']}"),
        ("parameters", f"{every:,}, {learned:,} of them learn"),
        ("parts", ", ".join(commit.recipe["train"]["trainable"])),
        ("sources", ", ".join(sources) or "none"),
        ("plan", commit.plan_digest[:12]),
        ("left out", f"steps {left_out} of the plan" if left_out else "nothing"),
        ("written by", f"{commit.world} ranks"),
        ("files", f"{len(commit.files)}, {_bytes(commit):,} bytes"),
    ]


def _bytes(commit: Commit) -> int:
    return sum(said["bytes"] for said in commit.files.values())

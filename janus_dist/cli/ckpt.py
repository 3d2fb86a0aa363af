"""`janus ckpt`: list, verify, show and prune checkpoints.

Invariant: nothing is written, only `prune` deletes, and no command needs torch.
"""

from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.commits import Commit, DamagedCheckpointError, RetentionPolicy
from janus_dist.checkpoint.find import recipe_of, saved_in
from janus_dist.config.paths import path_or_url
from janus_dist.errors import CheckpointError
from janus_dist.monitor.console import count, print_json, several
from janus_dist.storage import fs

ckpt_app = typer.Typer(no_args_is_help=True, help="List, verify, show and prune the checkpoints of a run.")

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or a folder or s3:// URL of checkpoints.")]
RunOrCheckpoint = Annotated[str, typer.Argument(metavar="RUN|CKPT", help="RUN as for `list`, or one checkpoint.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

WHOLE = "whole"


@ckpt_app.command("list")
def list_command(run: Run, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, oldest first; compares file sizes, but not checksums."""
    folder = _folder(run)
    checkpoints = [_summary(path) for path in commits.folders(folder)]
    if as_json:
        print_json({"folder": folder, "checkpoints": checkpoints})
        return
    if not checkpoints:
        raise CheckpointError(f"no checkpoint under {folder}", "train the run first, or name another folder")
    print(folder)
    for checkpoint in checkpoints:
        details = ""
        if checkpoint["ranks"]:
            size, tokens = count(checkpoint["bytes"]), count(checkpoint["tokens"])
            details = f"{size}B  {checkpoint['ranks']} ranks  {tokens} tokens"
        print(f"  step {checkpoint['step']:>9,}  {checkpoint['state']:<18}  {details}".rstrip())


@ckpt_app.command("verify")
def verify_command(source: RunOrCheckpoint) -> None:
    """Read every byte of one or all checkpoints and compare checksums; exits with 4 if one is damaged."""
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
        except DamagedCheckpointError as error:
            damaged += 1
            print(f"{path}: {error.message}")
    if damaged:
        raise CheckpointError(
            f"{damaged} of {len(paths)} checkpoints are damaged", "runs ignore them; delete them to free disk space"
        )


@ckpt_app.command("show")
def show_command(source: RunOrCheckpoint, as_json: AsJson = False) -> None:
    """Show the marker of a checkpoint, or of a run's newest: step, model, data, and how it was made."""
    source = path_or_url(source)
    path = source.rstrip("/") if commits.is_marked(source) else commits.latest_committed(_folder(source))
    if path is None:
        raise CheckpointError(f"no whole checkpoint under {source}", "list all checkpoints with `janus ckpt list`")
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
    keep: Annotated[int, typer.Option("--keep", min=1, help="Number of newest whole checkpoints to keep.")],
    every: Annotated[
        int | None, typer.Option("--every", min=1, help="Also keep the checkpoints of every N-th step.")
    ] = None,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
) -> None:
    """Delete all checkpoints but those to keep, and incomplete saves before the newest whole one."""
    folder = _folder(run)
    for path in commits.prunable(folder, RetentionPolicy(keep, every)):
        if not is_dry:
            commits.delete(path)
        print(f"{'would delete' if is_dry else 'deleted'} {path}")
    print(f"{len(commits.committed(folder))} whole checkpoints {'exist' if is_dry else 'remain'}")


def _folder(run: str) -> str:
    """Return the folder of checkpoints of a run, or the folder itself if it is not a run's.

    Raises ConfigError for a URL that is not supported.
    """
    run = path_or_url(run)
    is_run = fs.is_local(run) and Path(run, "config.json").is_file()
    return saved_in(run.rstrip("/"), recipe_of(Path(run))) if is_run else run.rstrip("/")


def _summary(path: str) -> dict[str, Any]:
    names = set(fs.names(path))
    summary: dict[str, Any] = {"path": path, "step": commits.step_of(path), "ranks": 0, "tokens": 0, "bytes": 0}
    if commits.MARKER not in names:
        return summary | {"state": "set aside" if commits.ASIDE_MARKER in names else "not committed"}
    try:
        commit = commits.read(path)
    except CheckpointError as error:
        return summary | {"state": "damaged" if isinstance(error, DamagedCheckpointError) else "of another version"}
    state = WHOLE if commits.is_committed(path) else "damaged"
    return summary | {"state": state, "ranks": commit.world, "tokens": commit.tokens, "bytes": _bytes(commit)}


def _facts(commit: Commit) -> list[tuple[str, str]]:
    trained = sum(prod(commit.shapes[name]) for name in commit.trainable)
    total = sum(prod(shape) for shape in commit.shapes.values())
    run, sources = commit.recipe["run"], commit.cursors
    left_out = ", ".join(f"{first} to {stop - 1}" for first, stop in commit.left_out)
    return [
        ("step", f"{commit.step:,} of {commit.recipe['train']['steps']:,}"),
        ("tokens", f"{commit.tokens:,}"),
        ("run", f"{run['name']}, stage {commit.recipe['stage']}, in {run['root']}"),
        ("parameters", f"{total:,}, of which {trained:,} are trained"),
        ("parts", ", ".join(commit.recipe["train"]["trainable"])),
        ("sources", ", ".join(sources) or "none"),
        ("plan", commit.plan_digest[:12]),
        ("left out", f"steps {left_out} of the plan" if left_out else "nothing"),
        ("written by", f"{commit.world} ranks"),
        ("files", f"{len(commit.files)}, {_bytes(commit):,} bytes"),
    ]


def _bytes(commit: Commit) -> int:
    return sum(file["bytes"] for file in commit.files.values())

"""The `janus` command.

Invariant: every verb starts within a second; what takes PyTorch or Ray is imported when its verb runs.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from janus_dist.cli.ckpt import ckpt_app
from janus_dist.cli.data import data_app
from janus_dist.cli.export import export_command
from janus_dist.cli.job import LOCAL_OPTION, interrupted, run, split_arguments
from janus_dist.cli.plan import show_plan
from janus_dist.cli.runs import report_command, runs_app
from janus_dist.cli.sample import sample_command
from janus_dist.cli.submit import submit_command
from janus_dist.config import reference
from janus_dist.config.load import flatten, load, load_any
from janus_dist.config.recipe import StageRecipe
from janus_dist.monitor.console import print_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Check, submit, watch and use runs of janus-dist, and look at its recipes and data.",
)
config_app = typer.Typer(no_args_is_help=True, help="Show, compare and describe recipes.")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(ckpt_app, name="ckpt")
app.add_typer(runs_app, name="runs")
app.command("export")(export_command)
app.command("sample")(sample_command)
app.command("submit")(submit_command)
app.command("report")(report_command)  # also `janus runs report`


def janus() -> NoReturn:
    """The `janus` command."""
    try:
        code = run(app)
    except KeyboardInterrupt:
        code = interrupted(by_request=False)
    sys.exit(code)


@config_app.command("show")
def show_config(
    arguments: Annotated[list[str], typer.Argument(metavar="RECIPE.yaml ... [key.path=value ...]")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without origins.")] = False,
) -> None:
    """Print every setting of the merged recipe and where its value came from."""
    loaded = load_any(*split_arguments(arguments))
    values = loaded.recipe.model_dump(mode="json")
    if as_json:
        print_json(values, indent=1)
        return
    lines = [(f"{key}={json.dumps(value)}", loaded.origin[key]) for key, value in flatten(values)]
    width = min(56, max(len(setting) for setting, _ in lines))  # long lists stick out rather than push all others
    for setting, origin in lines:
        print(f"{setting:<{width}}  # {origin}")


@config_app.command("docs")
def show_reference() -> None:
    """Print every setting with its type, default and meaning, as docs/settings.md has it."""
    print(reference.as_markdown(), end="")


@config_app.command("schema")
def show_schema() -> None:
    """Print the JSON Schema of a stage's recipe, for completion in editors."""
    print_json(StageRecipe.model_json_schema(), indent=1)


@config_app.command("diff")
def diff_config(
    first: Annotated[str, typer.Argument(metavar="A", help="A run folder, or recipe files joined by `+`.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.")],
) -> None:
    """Print the settings in which two recipes or runs differ."""
    for line in _differences(*(_flat(side) for side in (first, second))):
        print(line)


@app.command("plan")
def plan(
    arguments: Annotated[list[str], typer.Argument(metavar="RECIPE.yaml ... [key.path=value ...]")],
    world: Annotated[int | None, typer.Option("--world", min=1, help="Ranks; those of the recipe when absent.")] = None,
    every_step: Annotated[bool, typer.Option("--all", help="Plan every step of a long run too.")] = False,
    mfu: Annotated[
        float | None, typer.Option(min=0.01, max=1.0, help="Assume this share of the device's peak.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Assume this one: H100 (when absent), H200, A100, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a stage will train on and take: tokens and epochs of each source, rows, balance, time, bytes, memory."""
    show_plan(load(StageRecipe, *split_arguments(arguments)).recipe, world, as_json, every_step, mfu, device)


@app.command("check")
def check(
    arguments: Annotated[list[str], typer.Argument(metavar="RECIPE.yaml ... [key.path=value ...]")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    local: Annotated[bool, typer.Option(LOCAL_OPTION, help="For a job that is started with --local.")] = False,
) -> None:
    """Say all that would stop a stage here: settings, versions, data, checkpoints, disk, cluster, memory, keys."""
    from janus_dist.cli.check import run_checks  # here: it takes PyTorch, and other commands start in a second

    if local:
        os.environ["RAY_ADDRESS"] = "local"
    run_checks(lambda: load(StageRecipe, *split_arguments(arguments)), as_json)


def _differences(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*first, *second]):
        old, new = (json.dumps(side[key]) if key in side else "(absent)" for side in (first, second))
        if old != new:
            yield f"{key}: {old} -> {new}"


def _flat(side: str) -> dict[str, Any]:
    files = [str(Path(side) / "config.json")] if Path(side).is_dir() else side.split("+")
    return dict(flatten(load_any(files, ()).recipe.model_dump(mode="json")))

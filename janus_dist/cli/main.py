"""Command line interface `janus`.

Invariant: every command starts within a second; modules that need PyTorch or Ray are imported when a command runs.
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
from janus_dist.config.diff import ABSENT, differences, flatten
from janus_dist.config.load import load, load_any
from janus_dist.config.recipe import StageRecipe
from janus_dist.monitor.console import print_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Check, submit, follow and use runs of janus-dist, and inspect its recipes and data.",
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
    """Run the `janus` command and exit with its code."""
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
    """Print every setting of the merged recipe and the origin of its value."""
    loaded = load_any(*split_arguments(arguments))
    values = loaded.recipe.model_dump(mode="json")
    if as_json:
        print_json(values, indent=1)
        return
    lines = [(f"{key}={json.dumps(value)}", loaded.origin[key]) for key, value in flatten(values)]
    width = min(56, max(len(setting) for setting, _ in lines))  # a long list must not widen all other lines
    for setting, origin in lines:
        print(f"{setting:<{width}}  # {origin}")


@config_app.command("docs")
def show_reference() -> None:
    """Print every setting with its type, default and meaning, the page docs/settings.md."""
    print(reference.as_markdown(), end="")


@config_app.command("schema")
def show_schema() -> None:
    """Print the JSON Schema of a stage's recipe, for completion in editors."""
    print_json(StageRecipe.model_json_schema(), indent=1)


@config_app.command("diff")
def diff_config(
    first: Annotated[str, typer.Argument(metavar="A", help="A run folder, or recipe files joined by `+`.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another run folder, or recipe files.")],
) -> None:
    """Print the settings that differ between two recipes or runs."""
    for line in _differences(*(_settings(source) for source in (first, second))):
        print(line)


@app.command("plan")
def plan(
    arguments: Annotated[list[str], typer.Argument(metavar="RECIPE.yaml ... [key.path=value ...]")],
    world: Annotated[
        int | None, typer.Option("--world", min=1, help="Number of ranks; cluster.workers when absent.")
    ] = None,
    every_step: Annotated[bool, typer.Option("--all", help="Plan every step, also of a long run.")] = False,
    mfu: Annotated[
        float | None, typer.Option(min=0.01, max=1.0, help="Assumed MFU, the share of the device's peak FLOPS.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Assumed device: H100 (when absent), H200, A100, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Forecast a stage: tokens and epochs of each source, rows, balance, time, bytes and memory."""
    show_plan(load(StageRecipe, *split_arguments(arguments)).recipe, world, as_json, every_step, mfu, device)


@app.command("check")
def check(
    arguments: Annotated[list[str], typer.Argument(metavar="RECIPE.yaml ... [key.path=value ...]")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    local: Annotated[bool, typer.Option(LOCAL_OPTION, help="Check for a job that is started with --local.")] = False,
) -> None:
    """Report everything that would stop a stage: settings, versions, data, checkpoints, disk, cluster, memory, keys."""
    from janus_dist.cli.check import run_checks  # here: it imports PyTorch, and other commands start in a second

    if local:
        os.environ["RAY_ADDRESS"] = "local"
    run_checks(lambda: load(StageRecipe, *split_arguments(arguments)), as_json)


def _differences(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    for key, *values in differences(first, second):
        old, new = (str(value) if value is ABSENT else json.dumps(value) for value in values)
        yield f"{key}: {old} -> {new}"


def _settings(source: str) -> dict[str, Any]:
    """Return the settings of a run folder or of recipe files joined by `+`, by dotted name."""
    files = [str(Path(source) / "config.json")] if Path(source).is_dir() else source.split("+")
    return dict(flatten(load_any(files, ()).recipe.model_dump(mode="json")))

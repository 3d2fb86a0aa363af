"""What every job does around its work, and the `janus` command.

Invariant: whatever a user can cause ends with a message on stderr and the exit code of its kind (docs/errors.md), never
with a traceback; whatever else goes wrong keeps its traceback and ends with 1.
"""

import io
import json
import logging
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from janus_dist.ckpt_cli import ckpt_app
from janus_dist.config import reference
from janus_dist.config.load import Loaded, flatten, load, load_any
from janus_dist.config.recipe import BaseRecipe, StageRecipe
from janus_dist.config.settings import OVERRIDE
from janus_dist.data_cli import data_app
from janus_dist.errors import ConfigError, JanusError, PreemptedError
from janus_dist.export_cli import export_command
from janus_dist.plan_cli import show_plan
from janus_dist.runs_cli import report_command, runs_app
from janus_dist.sample_cli import sample_command
from janus_dist.submit_cli import submit_command

R = TypeVar("R", bound=BaseRecipe)

INTERRUPTED = 130
USAGE = "usage: python {job} [RECIPE.yaml ...] [key.path=value ...]"

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


def recipe_from_args(kind: type[R], defaults: Sequence[Path], argv: Sequence[str] | None = None) -> Loaded[R]:
    """The recipe that a job's command line asks for; `defaults` are its files when the command line names none.

    Raises ConfigError with every fault at once. `--help` prints the job's docstring and ends the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(arguments):
        print(_job_help(kind, defaults))
        raise SystemExit(0)
    files, overrides = split_arguments(arguments)
    return load(kind, files or defaults, overrides)


def take_number(arguments: Sequence[str], option: str) -> tuple[list[str], int | None]:
    """(other arguments, N) of a command line with `OPTION N` or `OPTION=N`, None without; ConfigError at no number."""
    rest, text = take_value(arguments, option)
    if text is not None and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"{option} takes a whole number above 0, got {text!r}", f"write {option} 200")
    return rest, None if text is None else int(text)


def take_choice(arguments: Sequence[str], option: str, choices: Sequence[str]) -> tuple[list[str], str | None]:
    """Split a command line into (other arguments, the value of an option); None without the option.

    Raises ConfigError when the value is none of the choices.
    """
    rest, text = take_value(arguments, option)
    if text is not None and text not in choices:
        raise ConfigError(f"{option} takes {' or '.join(choices)}, got {text!r}", f"write {option} {choices[0]}")
    return rest, text


def take_value(arguments: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """Split a command line with `OPTION VALUE` or `OPTION=VALUE` into (other arguments, value); the value is empty
    where nothing follows the option, and None without the option."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            length = 1 if equals else 2
            text = value if equals else "".join(arguments[index + 1 : index + 2])
            return [*arguments[:index], *arguments[index + length :]], text
    return list(arguments), None


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Recipe files and overrides of a command line. Raises ConfigError at options: there are none."""
    options = [argument for argument in arguments if argument.startswith("-")]
    if options:
        meant = re.sub(r"^-+", "", options[0])
        raise ConfigError(f"no such option: {', '.join(options)}", f"settings are given as {meant.split('=')[0]}=VALUE")
    overrides = [argument for argument in arguments if OVERRIDE.match(argument)]
    return [Path(argument) for argument in arguments if not OVERRIDE.match(argument)], overrides


class Asked:
    """SIGTERM while nothing is trained (launch.train takes it over): ends a job as Ctrl-C does, which Ray understands,
    and is remembered."""

    def __init__(self) -> None:
        self.to_stop = False
        signal.signal(signal.SIGTERM, self)

    def __call__(self, *_: Any) -> None:
        self.to_stop = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is under way is ended in peace
        raise KeyboardInterrupt


def run_job(main: Callable[[], int | None]) -> NoReturn:
    """Run a job and end the process with its exit code: what `main` returns, or that of the error it raised; that of
    PreemptedError when SIGTERM ended it."""
    asked = Asked()
    try:
        code = _run(main)
    except KeyboardInterrupt:
        code = _interrupted(asked.to_stop)
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        code = _interrupted(True)  # SIGTERM while Ray was joined: Ray's own way
    sys.exit(code)


def _interrupted(by_request: bool) -> int:
    """Say what ended a job; its exit code."""
    if not by_request:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    error = PreemptedError("the job was asked to stop by SIGTERM", "what was done stays: the same command goes on")
    _show(error)
    return error.exit_code


def _run(main: Callable[[], int | None]) -> int:
    """The exit code of what `main` returns or of the error it raised, which is shown."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file or `ray job logs` shows each line when it is said
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("janus_dist").setLevel(logging.INFO)
    try:
        return main() or 0
    except JanusError as error:
        _show(error)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1


def janus() -> NoReturn:
    """The `janus` command."""
    try:
        code = _run(app)
    except KeyboardInterrupt:
        code = _interrupted(False)
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
        print(json.dumps(values, indent=1))
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
    print(json.dumps(StageRecipe.model_json_schema(), indent=1))


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
) -> None:
    """Say all that would stop a stage here: settings, versions, data, checkpoints, disk, cluster, memory, keys."""
    from janus_dist.check_cli import run_checks  # here: it takes PyTorch, and other commands start in a second

    run_checks(lambda: load(StageRecipe, *split_arguments(arguments)).recipe, as_json)


def _differences(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*first, *second]):
        old, new = (json.dumps(side[key]) if key in side else "(absent)" for side in (first, second))
        if old != new:
            yield f"{key}: {old} -> {new}"


def _flat(side: str) -> dict[str, Any]:
    files = [str(Path(side) / "config.json")] if Path(side).is_dir() else side.split("+")
    return dict(flatten(load_any(files, ()).recipe.model_dump(mode="json")))


def _show(error: JanusError) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text(error.message, style="red"))
    if error.hint:
        console.print(Text(f"  {error.hint}"))


def _job_help(kind: type[BaseRecipe], defaults: Sequence[Path]) -> str:
    main = sys.modules["__main__"]
    job = Path(getattr(main, "__file__", None) or "JOB").name
    sections = [
        f"  {name:<10} {_first_line(field.annotation) or field.description or ''}".rstrip()
        for name, field in kind.model_fields.items()
    ]
    return "\n".join(
        [
            (main.__doc__ or "").strip(),
            "",
            USAGE.format(job=f"jobs/{job}"),
            f"without a recipe: {' '.join(path.name for path in defaults)}",
            "",
            "sections (all keys: `janus config schema`; all values: `janus config show RECIPE.yaml ...`):",
            *sections,
        ]
    )


def _first_line(annotation: Any) -> str:
    has_help = isinstance(annotation, type) and annotation.__module__.startswith("janus_dist")
    return (annotation.__doc__ or "").split("\n")[0] if has_help else ""

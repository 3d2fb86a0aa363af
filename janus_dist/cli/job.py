"""Frame of every job: read the recipe of the command line, show errors, exit with a code.

Invariants: an error that a user can cause ends with a message on stderr and the exit code of its kind (docs/errors.md),
never with a traceback; every other exception keeps its traceback and ends with 1. A job imports nothing else of the
program before it has its recipe, so that a fault in the recipe is reported within a second.
"""

import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.text import Text

from janus_dist.config.fields import nearest_key
from janus_dist.config.load import Loaded, load
from janus_dist.config.recipe import BaseRecipe, StageRecipe
from janus_dist.config.settings import OVERRIDE
from janus_dist.errors import ConfigError, JanusError, PreemptedError, write_exit_record

R = TypeVar("R", bound=BaseRecipe)

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
LOCAL_OPTION = "--local"
USAGE = "usage: python {job} [RECIPE.yaml ...] [key.path=value ...]"
LOCAL_HELP = "  --local    start a Ray for this job alone, even if another one is running; same as RAY_ADDRESS=local"


def recipe_from_args(kind: type[R], defaults: Sequence[Path], argv: Sequence[str] | None = None) -> Loaded[R]:
    """Load the recipe of a job's command line; `defaults` are its files when the command line names none.

    Raises ConfigError with every fault at once. `--help` prints the job's docstring and ends the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(arguments):
        print(_job_help(kind, defaults))
        raise SystemExit(0)
    files, overrides = split_arguments(arguments)
    return load(kind, files or defaults, overrides)


def take_number(arguments: Sequence[str], option: str) -> tuple[list[str], int | None]:
    """Split a command line with `OPTION N` or `OPTION=N` into (other arguments, N); N is None without the option.

    Raises ConfigError when N is not a whole number above 0.
    """
    rest, text = take_value(arguments, option)
    if text is not None and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"{option} takes a whole number above 0, got {text!r}", f"write {option} 200")
    return rest, None if text is None else int(text)


def take_choice(arguments: Sequence[str], option: str, choices: Sequence[str]) -> tuple[list[str], str | None]:
    """Split a command line into (other arguments, value of an option); the value is None without the option.

    Raises ConfigError when the value is not one of the choices.
    """
    rest, text = take_value(arguments, option)
    if text is not None and text not in choices:
        raise ConfigError(f"{option} takes {' or '.join(choices)}, got {text!r}", f"write {option} {choices[0]}")
    return rest, text


def take_value(arguments: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """Split a command line with `OPTION VALUE` or `OPTION=VALUE` into (other arguments, value).

    The value is empty if nothing follows the option, and None without the option.
    """
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            length = 1 if equals else 2
            text = value if equals else "".join(arguments[index + 1 : index + 2])
            return [*arguments[:index], *arguments[index + length :]], text
    return list(arguments), None


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split a command line into (recipe files, overrides). Raises ConfigError for any option."""
    options = [argument for argument in arguments if argument.startswith("-")]
    if options:
        key = nearest_key(StageRecipe, re.sub(r"^-+", "", options[0]).partition("=")[0])
        raise ConfigError(
            f"no such option: {', '.join(options)}",
            f"settings are given as {key or 'key.path'}=VALUE; --help lists the arguments of this job",
        )
    overrides = [argument for argument in arguments if OVERRIDE.match(argument)]
    return [Path(argument) for argument in arguments if not OVERRIDE.match(argument)], overrides


class SigtermHandler:
    """Handler of SIGTERM until launch.train replaces it: records the signal and ends the job like Ctrl-C, which Ray
    understands."""

    def __init__(self) -> None:
        self.is_received = False
        signal.signal(signal.SIGTERM, self)

    def __call__(self, *_: Any) -> None:
        """Record the signal and raise KeyboardInterrupt."""
        self.is_received = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not disturb the shutdown
        raise KeyboardInterrupt


def take_local(arguments: list[str]) -> None:
    """Remove `--local` from a job's command line and, if it was given, set RAY_ADDRESS to request a local Ray."""
    if LOCAL_OPTION in arguments:
        arguments[:] = [argument for argument in arguments if argument != LOCAL_OPTION]
        os.environ["RAY_ADDRESS"] = "local"


def run_job(main: Callable[[], int | None]) -> NoReturn:
    """Run a job and end the process with its exit code.

    The code is the result of `main`, that of the error that `main` raised, or that of PreemptedError when SIGTERM ended
    the job. Every job accepts `--local`.
    """
    take_local(sys.argv)
    sigterm = SigtermHandler()
    try:
        code = run(main)
    except KeyboardInterrupt:
        code = interrupted(sigterm.is_received)
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        code = interrupted(True)  # once Ray is joined, its own handler turns SIGTERM into SystemExit
    write_exit_record(code)
    sys.exit(code)


def interrupted(by_request: bool) -> int:
    """Print what ended a job and return its exit code; `by_request` is True for SIGTERM and False for Ctrl-C."""
    if not by_request:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    error = PreemptedError("the job was stopped by SIGTERM", "finished work is kept: run the same command to resume")
    _show(error)
    return error.exit_code


def run(main: Callable[[], int | None]) -> int:
    """Call `main`, show an error that it raises, and return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that a log file or `ray job logs` shows each line at once
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
            LOCAL_HELP,
            f"without a recipe: {' '.join(path.name for path in defaults)}",
            "",
            "sections (all keys: `janus config schema`; all values: `janus config show RECIPE.yaml ...`):",
            *sections,
        ]
    )


def _first_line(annotation: Any) -> str:
    has_help = isinstance(annotation, type) and annotation.__module__.startswith("janus_dist")
    return (annotation.__doc__ or "").split("\n")[0] if has_help else ""

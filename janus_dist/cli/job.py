"""What every job does around its work: read the recipe of its command line, show what went wrong, end with a code.

Invariants: whatever a user can cause ends with a message on stderr and the exit code of its kind (docs/errors.md),
never with a traceback; whatever else goes wrong keeps its traceback and ends with 1. A job imports nothing else of the
program before it has its recipe, so that a fault in the recipe is told within a second.
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
LOCAL_OPTION = "--local"
USAGE = "usage: python {job} [RECIPE.yaml ...] [key.path=value ...]"
LOCAL_HELP = "  --local    start a Ray for this job alone, whatever else runs here; RAY_ADDRESS=local means the same"


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
        key = nearest_key(StageRecipe, re.sub(r"^-+", "", options[0]).partition("=")[0])
        raise ConfigError(
            f"no such option: {', '.join(options)}",
            f"settings are given as {key or 'key.path'}=VALUE; --help says what this job takes",
        )
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


def take_local(arguments: list[str]) -> None:
    """Remove `--local` from a job's command line, and ask for a local Ray by RAY_ADDRESS where it was there."""
    if LOCAL_OPTION in arguments:
        arguments[:] = [argument for argument in arguments if argument != LOCAL_OPTION]
        os.environ["RAY_ADDRESS"] = "local"


def run_job(main: Callable[[], int | None]) -> NoReturn:
    """Run a job and end the process with its exit code: what `main` returns, or that of the error it raised; that of
    PreemptedError when SIGTERM ended it. Every job takes `--local`."""
    take_local(sys.argv)
    asked = Asked()
    try:
        code = run(main)
    except KeyboardInterrupt:
        code = interrupted(asked.to_stop)
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        code = interrupted(True)  # SIGTERM while Ray was joined: Ray's own way
    write_exit_record(code)
    sys.exit(code)


def interrupted(by_request: bool) -> int:
    """Say what ended a job; its exit code."""
    if not by_request:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    error = PreemptedError("the job was asked to stop by SIGTERM", "what was done stays: the same command goes on")
    _show(error)
    return error.exit_code


def run(main: Callable[[], int | None]) -> int:
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

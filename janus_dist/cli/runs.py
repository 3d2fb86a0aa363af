"""`janus runs`: list runs, show one, compare two, and compare one with a stored curve.

Invariant: everything is read from the files of a run's folder (config.json, metrics.jsonl). Only `report`, `curve` and
`compare --html` write, and only the file that they name.
"""

import json
import time
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from janus_dist.errors import DataError
from janus_dist.monitor.console import count, duration, figure, print_json
from janus_dist.report.compare import write_comparison
from janus_dist.report.comparison import compare_runs, labels
from janus_dist.report.curves import BAND, EQUAL_STEPS, SPAN_STEPS, Curve, follow
from janus_dist.report.run import write_report
from janus_dist.report.standing import WINDOW, details, is_run, summary

runs_app = typer.Typer(no_args_is_help=True, help="List runs, show one, compare two.")

Root = Annotated[Path, typer.Argument(metavar="RUN_ROOT", help="The folder that holds the runs.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

SHOWN_EVENTS = 20
"""Number of latest events that `show` prints."""
FILES = ("metrics.jsonl", "logs", "samples", "report.html")


@runs_app.command("list")
def list_command(root: Root, as_json: AsJson = False) -> None:
    """List the runs under a folder: stage, steps, state, loss and speed of the last 20 steps.

    States: starting, training, stopped (on request), failed, dead (its driver was killed; the same command resumes it),
    silent (no sign of its driver, on another machine), complete.
    """
    runs = [summary(root / name) for name in _runs_in(root)]
    if not runs:
        raise DataError(
            f"no run under {root}" if root.exists() else f"{root} does not exist",
            "give the folder of runs (run.root, for example runs/tiny); a run that is starting has no folder until its "
            "shards are made",
        )
    if as_json:
        print_json({"runs": runs})
        return
    width = max(len(run["name"]) for run in runs)
    print(f"{'run':<{width}}  {'stage':<7}  {'steps':>15}  {'state':<8}  over the last {WINDOW} steps")
    for run in runs:
        loss = "" if run["loss"] is None else f"loss {run['loss']:.3f}  {count(run['tokens_per_s'])} tok/s"
        steps = f"{run['step']:,}/{run['steps']:,}"
        print(f"{run['name']:<{width}}  stage {run['stage']}  {steps:>15}  {run['state']:<8}  {loss}".rstrip())


@runs_app.command("show")
def show_command(run: RunDir, as_json: AsJson = False) -> None:
    """Show the state of a run: losses by stream at its beginning and end, held-out losses, mixture, speed, files and
    events."""
    _check_is_run(run)
    status = summary(run) | details(run)
    if as_json:
        print_json(status)
        return
    print(f"{run}: stage {status['stage']}, step {status['step']:,} of {status['steps']:,}, {status['state']}")
    for name, value in _lines(status):
        print(f"  {name:<18} {value}")
    files = [name for name in FILES if (run / name).exists()]
    print(f"  {'in its folder':<18} {', '.join(files)}")
    for event in status["events"][-SHOWN_EVENTS:]:
        print(f"  {time.strftime('%m-%d %H:%M:%S', time.localtime(event['time']))}  {event['text']}")


@runs_app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run's folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another run's folder.")],
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with the curves to FILE.")
    ] = None,
) -> None:
    """Compare two runs: settings that differ, the step where their losses diverge, which is ahead and by how much."""
    for run in (first, second):
        _check_is_run(run)
    comparison = compare_runs(first, second)
    if html:
        write_comparison(first, second, comparison, html)
    if as_json:
        print_json(comparison.to_json())
        return
    for key, (value, other) in comparison.settings.items():
        print(f"{key}: {json.dumps(value)} -> {json.dumps(other)}")
    if not comparison.settings:
        print("the same settings")
    print(f"{comparison.describe_common_steps()}; means of the last {comparison.window:,} of them:")
    for name, values in comparison.metrics.items():
        value, other = map(figure, values)
        of_step = f"  of step {comparison.validated_step:,}" if name.startswith("validation/") else ""
        print(f"  {name:<26} {value:>10} -> {other:>10}{of_step}")
    print(comparison.describe_winner(*labels(first, second)))
    if html:
        print(f"page: {html}")


@runs_app.command("curve")
def curve_command(
    run: RunDir, file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, for `runs follows`.")]
) -> None:
    """Write the loss curves of a run to a small file with which other runs can be compared."""
    curve = Curve.of(run)
    curve.write(file)
    print(f"{file}: {curve.steps:,} steps of {', '.join(curve.losses)} in {curve.dtype} on {curve.machine}")


@runs_app.command("follows")
def follows_command(
    run: RunDir, file: Annotated[Path, typer.Argument(metavar="FILE", help="File that `runs curve` wrote.")]
) -> None:
    """Check whether a run follows a curve: bit for bit at first on the same kind of machine, then within a band; exits
    with 3 if not."""
    curve = Curve.of(run)
    reference = Curve.read(file, curve.dtype)
    result = follow(curve, reference)
    kind = "the same" if result.is_same_kind else "another"
    print(f"{result.steps:,} steps in common, on {kind} kind of machine ({reference.machine}) and packages")
    print(f"the losses of the first {result.equal_steps:,} are equal bit for bit")
    for name, worst in result.worst.items():
        print(f"  {name:<14} at most {worst:.2%} off, over {SPAN_STEPS} steps each")
    if not result.is_within:
        raise DataError(
            f"{run} does not follow {file}: more than {BAND:.0%} off, or other losses in the first {EQUAL_STEPS} steps",
            "if the change in numbers is intended, write the curve again: janus runs curve RUN FILE",
        )


@runs_app.command("report")
def report_command(root: Root) -> None:
    """Write the report of all runs in a folder and print its path."""
    print(write_report(root))


def _check_is_run(path: Path) -> None:
    """Raise DataError, with a suggestion, if a path is not the folder of a run."""
    if is_run(path):
        return
    if inside := _runs_in(path):
        raise DataError(f"{path} is a folder of runs", f"name one of them: {', '.join(inside)}")
    if path.exists():
        message = f"{path} is not a run: it has no config.json of a stage"
        raise DataError(message, "give a run's folder: run.root/run.name")
    siblings = _runs_in(path.parent)
    near = get_close_matches(path.name, siblings, 1)
    if near:
        hint = f"did you mean {path.parent / near[0]}?"
    elif siblings:
        hint = f"the runs in {path.parent} are {', '.join(siblings)}"
    else:
        hint = "give a run's folder: run.root/run.name"
    raise DataError(f"{path} does not exist", hint)


def _runs_in(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/config.json") if is_run(path.parent))


def _lines(status: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the (name, value) lines about a run that `show` prints."""
    steps = status["window"]
    lines = [
        (
            f"loss {stream}",
            " -> ".join("-" if value is None else f"{value:.3f}" for value in values)
            + "  first and last "
            + ("step" if steps == 1 else f"{steps:,} steps"),
        )
        for stream, values in status["losses"].items()
    ]
    if held_out := dict(status["held_out"]):
        step = held_out.pop("step")
        losses = ", ".join(f"{stream} {loss:.3f}" for stream, loss in held_out.items())
        lines.append(("held out", f"{losses}  step {step:,}"))
    lines.append(("mixture", ", ".join(f"{stream} {share:.1%}" for stream, share in status["mix"].items())))
    lines.append(("trained", f"{count(status['tokens'])} tokens in {duration(status['trained_s'])}"))
    wait = status["data_wait"] or 0.0
    lines.append(("speed", f"{count(status['tokens_per_s'])} tok/s, {wait:.0%} of it waiting for data"))
    if status["mfu"] is not None:
        lines.append(("MFU", f"{status['mfu']:.1%}"))
    for key, label in (("skipped_steps", "skipped"), ("left_out_steps", "left out"), ("bad_samples", "bad samples")):
        if status[key]:
            lines.append((label, f"{status[key]:,}"))
    if status["slowest_rank"] > 1.5:
        lines.append(("slowest rank", f"{status['slowest_rank']:.1f} times the median"))
    return lines

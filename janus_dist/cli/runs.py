"""`janus runs`: which runs there are, how one stands, where two differ.

Invariant: everything is read from what a run leaves in its folder (config.json, metrics.jsonl); nothing is written.
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
FILES = ("metrics.jsonl", "logs", "samples", "report.html")


@runs_app.command("list")
def list_command(root: Root, as_json: AsJson = False) -> None:
    """List the runs under a folder: stage, steps, state, loss and speed of the last 20 steps.

    States: starting, training, stopped (it was asked to), failed, dead (its driver was killed: the same command goes
    on), silent (nothing is heard of its driver, on another machine), complete.
    """
    found = [summary(root / name) for name in _runs_in(root)]
    if not found:
        raise DataError(
            f"no run under {root}" if root.exists() else f"{root} does not exist",
            "give the folder of runs (run.root, as runs/tiny); one that is being started has a folder once its shards "
            "are made",
        )
    if as_json:
        print_json({"runs": found})
        return
    width = max(len(one["name"]) for one in found)
    print(f"{'run':<{width}}  {'stage':<7}  {'steps':>15}  {'state':<8}  of the last {WINDOW} steps")
    for one in found:
        loss = "" if one["loss"] is None else f"loss {one['loss']:.3f}  {count(one['tokens_per_s'])} tok/s"
        steps = f"{one['step']:,}/{one['steps']:,}"
        print(f"{one['name']:<{width}}  stage {one['stage']}  {steps:>15}  {one['state']:<8}  {loss}".rstrip())


@runs_app.command("show")
def show_command(run: RunDir, as_json: AsJson = False) -> None:
    """Show how a run stands: losses by stream at its beginning and end, held-out losses, mixture, speed, where its
    files are, what happened."""
    _must_be_run(run)
    found = summary(run) | details(run)
    if as_json:
        print_json(found)
        return
    print(f"{run}: stage {found['stage']}, step {found['step']:,} of {found['steps']:,}, {found['state']}")
    for name, value in _lines(found):
        print(f"  {name:<18} {value}")
    there = [name for name in FILES if (run / name).exists()]
    print(f"  {'in its folder':<18} {', '.join(there)}")
    for one in found["events"][-SHOWN_EVENTS:]:
        print(f"  {time.strftime('%m-%d %H:%M:%S', time.localtime(one['time']))}  {one['text']}")


@runs_app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run's folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with curves too.")] = None,
) -> None:
    """Lay two runs side by side: settings that differ, where their losses part, which is ahead and by how much."""
    for run in (first, second):
        _must_be_run(run)
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
def curve_command(run: RunDir, file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Write the loss curves of a run into a small file, for others to be compared with."""
    curve = Curve.of(run)
    curve.write(file)
    print(f"{file}: {curve.steps:,} steps of {', '.join(curve.losses)} in {curve.dtype} on {curve.machine}")


@runs_app.command("follows")
def follows_command(
    run: RunDir, file: Annotated[Path, typer.Argument(metavar="FILE", help="What `runs curve` wrote.")]
) -> None:
    """Say whether a run follows a curve: bit for bit at first on the same kind of machine, within a band after; 3 if
    not."""
    curve = Curve.of(run)
    reference = Curve.read(file, curve.dtype)
    found = follow(curve, reference)
    kind = "the same" if found.is_same_kind else "another"
    print(f"{found.steps:,} steps in common, on {kind} kind of machine ({reference.machine}) and packages")
    print(f"the first {found.equal_steps:,} have losses that are equal bit for bit")
    for name, worst in found.worst.items():
        print(f"  {name:<14} at most {worst:.2%} off, over {SPAN_STEPS} steps each")
    if not found.is_within:
        raise DataError(
            f"{run} does not follow {file}: more than {BAND:.0%} off, or other losses in the first {EQUAL_STEPS} steps",
            "where a change was meant to change numbers, write the curve again: janus runs curve RUN FILE",
        )


@runs_app.command("report")
def report_command(root: Root) -> None:
    """Write the report of all runs in a folder and print its path."""
    print(write_report(root))


def _must_be_run(path: Path) -> None:
    """DataError, with what was meant, where a path is no run's."""
    if is_run(path):
        return
    if inside := _runs_in(path):
        raise DataError(f"{path} is a folder of runs", f"name one of them: {', '.join(inside)}")
    if path.exists():
        raise DataError(f"{path} is no run: it has no config.json of a stage", "give a run's folder: run.root/run.name")
    beside = _runs_in(path.parent)
    near = get_close_matches(path.name, beside, 1)
    there = f"there are {', '.join(beside)}" if beside else "give a run's folder: run.root/run.name"
    raise DataError(f"{path} does not exist", f"did you mean {path.parent / near[0]}?" if near else there)


def _runs_in(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("*/config.json") if is_run(path.parent))


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    steps = found["window"]
    lines = [
        (
            f"loss {stream}",
            " -> ".join("-" if value is None else f"{value:.3f}" for value in values)
            + "  first and last "
            + ("step" if steps == 1 else f"{steps:,} steps"),
        )
        for stream, values in found["losses"].items()
    ]
    if held_out := dict(found["held_out"]):
        step = held_out.pop("step")
        losses = ", ".join(f"{stream} {loss:.3f}" for stream, loss in held_out.items())
        lines.append(("held out", f"{losses}  step {step:,}"))
    lines.append(("mixture", ", ".join(f"{stream} {share:.1%}" for stream, share in found["mix"].items())))
    lines.append(("trained", f"{count(found['tokens'])} tokens in {duration(found['trained_s'])}"))
    wait = found["data_wait"] or 0.0
    lines.append(("speed", f"{count(found['tokens_per_s'])} tok/s, {wait:.0%} of it waiting for data"))
    if found["mfu"] is not None:
        lines.append(("MFU", f"{found['mfu']:.1%}"))
    for name, what in (("skipped_steps", "skipped"), ("left_out_steps", "left out"), ("bad_samples", "bad samples")):
        if found[name]:
            lines.append((what, f"{found[name]:,}"))
    if found["slowest_rank"] > 1.5:
        lines.append(("slowest rank", f"{found['slowest_rank']:.1f} times the median"))
    return lines

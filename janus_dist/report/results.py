"""docs/results.md: the tables and plots of the proof, and the figures that they are made of.

    python -m janus_dist.report.results runs/proof/summary.json docs [jobs/recipes/proof/notes.yaml]

Invariant: every figure is one of summary.json, and what is said of aims and arms follows from the figures; why one
failed is written by hand and shown only where it did.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from janus_dist.config.streams import IMAGE_STREAMS
from janus_dist.errors import DataError
from janus_dist.report import plot
from janus_dist.report.curves import BAND, EQUAL_STEPS, SPAN_STEPS
from janus_dist.storage.local import write_whole

MEASURES = IMAGE_STREAMS
AIMS = {"understanding": 0.97, "generation": 0.95}
DIRECTIONS = (
    ("understanding", "D", "A", "two encoders understand better than a single one"),
    ("understanding", "D", "E", "Janus understands as well as training for understanding alone"),
    ("generation", "D", "F", "Janus draws as well as training for generation alone"),
)
"""(measure, Janus, the arm beside it, what the paper's table 5 says of them)."""
CHANCES = {"understanding": "understanding_blind", "generation": "generation_chance"}
"""What an arm gets that has not learned to see, or to draw what is asked."""
ABOVE_CHANCE = 0.05
"""Each seed of both arms must be so far above chance, or their order says nothing of what they learned."""
TOLERANCE = 0.05
"""Largest spread of seeds at which two arms can be compared."""
NOT_KNOWN = "The reason is not known."
ABOUT_ARMS = f"""\
Arms of Janus's table 5, on the same shards in the same number of steps. A spread is a standard deviation
over seeds. The language model starts from random weights; the vision tower and the VQ tokenizer are frozen, as the
embedded default ships them.

Arms are compared where every seed of both is at least {ABOVE_CHANCE} above chance (for understanding: what the words of
a question give away) and seeds spread by at most {TOLERANCE}.

As in the paper, an arm with one task sees as much of it as D does: as many tokens in as many steps.

One thing weighs in before any arm learns. The vision tower of D and E was trained on the captions of these very images,
while the VQ tokenizer, by which A reads, knows their pixels only: the direction D over A is partly built in.
"""
CURVES = (
    "## Reference curves",
    "",
    "`jobs/recipes/tiny/curves/` has the losses of each stream in each stage of `make demo`, a line for each",
    "dtype that it can run in. `make curves` runs the",
    "demo and compares; a run of your own is compared by",
    "",
    "    janus runs follows runs/demo/stage2 jobs/recipes/tiny/curves/stage2.json",
    "",
    f"On the same kind of machine with the same packages the losses of the first {EQUAL_STEPS} steps must be equal bit",
    f"for bit; everywhere, losses averaged over {SPAN_STEPS} steps must stay within {BAND:.0%} of the curve.",
)


def read_notes(path: Path) -> dict[str, str]:
    """Return why aims and directions failed, by `aim-MEASURE` and `MEASURE-JANUS-OTHER`, and the notes on `scenes`.
    Raises DataError at any other key."""
    notes = yaml.safe_load(path.read_text()) or {}
    known = [f"aim-{name}" for name in AIMS] + [f"{name}-{mine}-{theirs}" for name, mine, theirs, _ in DIRECTIONS]
    known.append("scenes")
    if other := sorted(set(notes) - set(known)):
        raise DataError(f"{path}: no aim, direction or part is {', '.join(other)}", f"there are {', '.join(known)}")
    return notes


def write_results(summary: Mapping[str, Any], folder: Path, notes: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Return FOLDER/results.md, the plots that it shows and results.json, of the parts of the proof that are there.

    `notes` say why what failed did, see `read_notes`.
    """
    write_whole(folder / "results.json", json.dumps(summary, indent=1) + "\n")
    lines = [
        "# What the proof found",
        "",
        "By `make proof`; this page, with its tables and plots, by `make results` from the figures in `results.json`.",
        "",
        *(_easy_vqa(summary, notes) if "understanding_intervals" in summary else ()),
        *(_arms(summary, folder, notes) if "ablation" in summary else ()),
        *(_scenes(summary, notes) if "scenes" in summary else ()),
        *CURVES,
    ]
    path = folder / "results.md"
    write_whole(path, "\n".join(lines) + "\n")
    return path


def directions(arms: Sequence[Mapping[str, Any]], notes: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """Yield for each of the paper's directions whether the arms show it, and why if they do not."""
    rows = {row["name"]: row for row in arms}
    for measure, janus, other, claim in DIRECTIONS:
        is_reproduced, verdict = _verdict(rows[janus], rows[other], measure, must_be_better=other == "A")
        why = "" if is_reproduced else f". {notes.get(f'{measure}-{janus}-{other}', NOT_KNOWN).strip()}"
        yield f"{claim} ({janus} beside {other}): {verdict}{why}"


def _verdict(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], measure: str, must_be_better: bool
) -> tuple[bool, str]:
    """Return whether two arms reproduce a direction, and a verdict in words with the figures that it follows from."""
    chance, spreads = mine[CHANCES[measure]], (mine[f"{measure}_spread"], theirs[f"{measure}_spread"])
    lowest = {row["name"]: min(row[f"{measure}_each"]) for row in (mine, theirs)}
    if low := [f"{name} ({value:.3f})" for name, value in lowest.items() if value < chance + ABOVE_CHANCE]:
        return (
            False,
            f"not shown: at chance ({chance:.3f}) or less than {ABOVE_CHANCE} above it with a seed: {', '.join(low)}",
        )
    if None in spreads:
        return False, "cannot tell: one seed has no spread"
    spread = max(spreads)
    if spread > TOLERANCE:
        return False, f"cannot tell: seeds spread by {spread:.3f}, more than {TOLERANCE}"
    difference = mine[f"{measure}_mean"] - theirs[f"{measure}_mean"]
    seen = "within the spread of seeds" if abs(difference) <= spread else "more than the spread of seeds"
    is_reproduced = difference > spread if must_be_better else difference >= -spread
    return (
        is_reproduced,
        f"{'reproduced' if is_reproduced else 'NOT reproduced'}; {difference:+.3f}, {seen} ({spread:.3f})",
    )


def _made(summary: Mapping[str, Any], part: str) -> str:
    """Return what a part of the proof was made on, when, by which code and in what time."""
    made = summary.get("parts", {}).get(part)
    if made is None:
        return "On what machine and when was not written down."
    commit = f"commit `{made['commit']}`" if made["commit"] else "a commit that is not known"
    minutes = f"{made['took_s'] / 60:.0f} minutes by the clock"
    return f"Made on {made['machine']}, {made['cores']} cores, {made['date']}, of {commit}, in {minutes}."


def _learned(summary: Mapping[str, Any], aims: Mapping[str, float], notes: Mapping[str, str]) -> Iterator[str]:
    """Yield what one data set's runs learned, and what is lost before they begin."""
    yield "| what | accuracy | 95 % interval | of | aim |"
    yield "| --- | --- | --- | --- | --- |"
    for measure in MEASURES:
        for kind, found in summary[f"{measure}_intervals"].items():
            aim = f"{aims[measure]:.2f}" if kind == "all" and measure in aims else ""
            yield (
                f"| {measure}, {kind} | {found['share']:.3f} | {found['low']:.3f} to {found['high']:.3f} "
                f"| {found['of']:,} | {aim} |"
            )
    if (exact := summary.get("generation_exact_accuracy")) is not None:
        yield f"| generation, and nothing else drawn | {exact:.3f} | | | |"
    yield f"| understanding, by the question's words alone | {summary['understanding_blind']:.3f} | | | |"
    yield f"| generation, by drawing another prompt | {summary['generation_chance']:.3f} | | | |"
    yield ""
    yield "The VQ tokenizer gives held-out images"
    yield f"back at {summary['vq_psnr_db']:.1f} dB with {summary['vq_codes_used']} codes; the detector is right about"
    yield f"{summary['detector_accuracy_on_real']:.1%} of the images themselves and"
    yield f"{summary['detector_accuracy_on_reconstructions']:.1%} of what comes back, which shows what its ids can say."
    for measure, aim in aims.items():
        found, bound = summary[f"{measure}_accuracy"], summary["detector_accuracy_on_reconstructions"]
        if found < aim:
            seen = f" Of real images, {bound:.3f} come through the VQ tokenizer rightly."
            known = seen if measure == "generation" and bound < aim else ""
            why = notes.get(f"aim-{measure}") or ("" if known else NOT_KNOWN)
            yield ""
            yield f"**The aim of {aim:.2f} for {measure} is not reached ({found:.3f}).**{known} {why.strip()}".rstrip()


def _easy_vqa(summary: Mapping[str, Any], notes: Mapping[str, str]) -> Iterator[str]:
    yield "## Janus `tiny` on easy-vqa"
    yield ""
    yield _made(summary, "easy-vqa")
    yield ""
    yield from _learned(summary, AIMS, notes)
    yield ""


def _arms(summary: Mapping[str, Any], folder: Path, notes: Mapping[str, str]) -> Iterator[str]:
    """Yield the section of the ablation; its plots are written into `folder`."""
    arms = summary["ablation"]
    yield "## One encoder or two"
    yield ""
    yield _made(summary, "ablation")
    yield ""
    yield ABOUT_ARMS
    yield "| arm | what | seeds | understanding | generation |"
    yield "| --- | --- | --- | --- | --- |"
    for row in arms:
        cells = (_mean_and_spread(row, measure) for measure in MEASURES)
        yield f"| {row['name']} | {row['meaning']} | {row['seeds']} | {' | '.join(cells)} |"
    yield ""
    yield from (f"- {line}" for line in directions(arms, notes))
    yield ""
    for measure in MEASURES:
        each = {row["name"]: row[f"{measure}_each"] for row in arms if row[f"{measure}_each"]}
        write_whole(folder / f"results-{measure}.svg", plot.points(each, f"{measure} accuracy", measure))
        yield f"![{measure} accuracy of the arms](results-{measure}.svg)"
    yield ""


def _scenes(summary: Mapping[str, Any], notes: Mapping[str, str]) -> Iterator[str]:
    yield "## Janus `tiny` on scenes"
    yield ""
    yield _made(summary, "scenes")
    yield ""
    # no link: the page stands in docs and beside the runs
    yield "The same three stages on the harder data set of `docs/scenes.md`: several shapes with places and numbers."
    yield ""
    yield from _learned(summary["scenes"], {}, {})
    yield ""
    if "scenes" in notes:
        yield notes["scenes"].strip()
        yield ""


def _mean_and_spread(row: Mapping[str, Any], measure: str) -> str:
    mean, spread = row[f"{measure}_mean"], row[f"{measure}_spread"]
    if mean is None:
        return "-"
    return f"{mean:.3f}" + ("" if spread is None else f" (spread {spread:.3f})")


def merged(summary: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary with the parts that it lacks taken from an earlier one; those keep their date and commit.

    Parts of other settings are left out.
    """
    if before.get("settings") != summary.get("settings"):
        return dict(summary)
    return {**before, **summary, "parts": {**before.get("parts", {}), **summary.get("parts", {})}}


if __name__ == "__main__":
    summary_file, target, *notes_file = map(Path, sys.argv[1:])
    kept = target / "results.json"
    found = merged(json.loads(summary_file.read_text()), json.loads(kept.read_text()) if kept.is_file() else {})
    write_results(found, target, read_notes(notes_file[0]) if notes_file else {})

"""Tables, plots and figures of the proof for docs/results.md.

    python -m janus_dist.report.results runs/proof/summary.json docs [jobs/recipes/proof/notes.yaml]

Invariant: every figure comes from summary.json, and the verdicts on aims and arms follow from the figures; the reason
for a failure is written by hand and shown only for an aim or arm that failed.
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
"""Accuracy to reach on easy-vqa, by measure."""
DIRECTIONS = (
    ("understanding", "D", "A", "two encoders understand better than a single one"),
    ("understanding", "D", "E", "Janus understands as well as training for understanding alone"),
    ("generation", "D", "F", "Janus draws as well as training for generation alone"),
)
"""(measure, arm of Janus, the other arm, claim of the paper's table 5 about the two)."""
CHANCES = {"understanding": "understanding_blind", "generation": "generation_chance"}
"""Key of the accuracy of an arm that has not learned to see, or to follow a prompt, by measure."""
ABOVE_CHANCE = 0.05
"""Smallest accuracy above chance of each seed at which the order of two arms is meaningful."""
TOLERANCE = 0.05
"""Largest standard deviation over seeds at which two arms can be compared."""
NOT_KNOWN = "The reason is not known."
ABOUT_ARMS = f"""\
Arms of Janus's table 5, on the same shards in the same number of steps. A spread is a standard deviation
over seeds. The language model starts from random weights; the vision tower and the VQ tokenizer are frozen, as the
embedded default ships them.

Arms are compared where every seed of both is at least {ABOVE_CHANCE} above chance (for understanding: what the words of
a question give away) and seeds spread by at most {TOLERANCE}.

As in the paper, an arm with one task sees as much of it as D does: as many tokens in as many steps.

One difference exists before training. The vision tower of D and E was trained on the captions of these very images,
while the VQ tokenizer, which A reads images with, was trained on their pixels only: D has an advantage over A
from the start.
"""
CURVES = (
    "## Reference curves",
    "",
    "`jobs/recipes/tiny/curves/` has the losses of each stream in each stage of `make demo`, one line for each",
    "dtype that it can run in. `make curves` runs the demo and compares. To compare a run of your own:",
    "",
    "    janus runs follows runs/demo/stage2 jobs/recipes/tiny/curves/stage2.json",
    "",
    f"On the same kind of machine with the same packages the losses of the first {EQUAL_STEPS} steps must be equal bit",
    f"for bit; everywhere, losses averaged over {SPAN_STEPS} steps must stay within {BAND:.0%} of the curve.",
)


def read_notes(path: Path) -> dict[str, str]:
    """Return the reasons why aims and directions failed, by `aim-MEASURE` and `MEASURE-JANUS-OTHER`, and remarks about
    `scenes`.

    Raises DataError for any other key.
    """
    notes = yaml.safe_load(path.read_text()) or {}
    known = [f"aim-{name}" for name in AIMS] + [f"{name}-{janus}-{other}" for name, janus, other, _ in DIRECTIONS]
    known.append("scenes")
    if unknown := sorted(set(notes) - set(known)):
        raise DataError(f"{path}: unknown keys: {', '.join(unknown)}", f"known keys are {', '.join(known)}")
    return notes


def write_results(summary: Mapping[str, Any], folder: Path, notes: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write FOLDER/results.md, its plots and results.json for the finished parts of the proof; return the page.

    `notes` are the reasons for failures, see `read_notes`.
    """
    write_whole(folder / "results.json", json.dumps(summary, indent=1) + "\n")
    lines = [
        "# Results of the proof",
        "",
        "`make proof` makes the figures in `results.json`; `make results` makes this page and its plots from them.",
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
    """Yield for each of the paper's directions whether the arms reproduce it, and the reason when they do not."""
    rows = {row["name"]: row for row in arms}
    for measure, janus, other, claim in DIRECTIONS:
        is_reproduced, verdict = _verdict(rows[janus], rows[other], measure, must_be_better=other == "A")
        reason = "" if is_reproduced else f". {notes.get(f'{measure}-{janus}-{other}', NOT_KNOWN).strip()}"
        yield f"{claim} ({janus} against {other}): {verdict}{reason}"


def _verdict(
    janus: Mapping[str, Any], other: Mapping[str, Any], measure: str, must_be_better: bool
) -> tuple[bool, str]:
    """Return whether two arms reproduce a direction, and a verdict in words with the figures that it follows from."""
    chance, spreads = janus[CHANCES[measure]], (janus[f"{measure}_spread"], other[f"{measure}_spread"])
    lowest = {row["name"]: min(row[f"{measure}_each"]) for row in (janus, other)}
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
    difference = janus[f"{measure}_mean"] - other[f"{measure}_mean"]
    size = "within the spread of seeds" if abs(difference) <= spread else "more than the spread of seeds"
    is_reproduced = difference > spread if must_be_better else difference >= -spread
    return (
        is_reproduced,
        f"{'reproduced' if is_reproduced else 'NOT reproduced'}; {difference:+.3f}, {size} ({spread:.3f})",
    )


def _origin(summary: Mapping[str, Any], part: str) -> str:
    """Return a sentence about the machine, date, commit and duration of a part of the proof."""
    origin = summary.get("parts", {}).get(part)
    if origin is None:
        return "The machine and the date were not recorded."
    commit = f"commit `{origin['commit']}`" if origin["commit"] else "an unknown commit"
    minutes = f"{origin['took_s'] / 60:.0f} minutes"
    return f"Made on {origin['machine']}, {origin['cores']} cores, on {origin['date']}, with {commit}, in {minutes}."


def _accuracies(summary: Mapping[str, Any], aims: Mapping[str, float], notes: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines about the accuracies on one data set, and the losses of the VQ tokenizer and the detector."""
    yield "| measure | accuracy | 95 % interval | number | aim |"
    yield "| --- | --- | --- | --- | --- |"
    for measure in MEASURES:
        for kind, interval in summary[f"{measure}_intervals"].items():
            aim = f"{aims[measure]:.2f}" if kind == "all" and measure in aims else ""
            yield (
                f"| {measure}, {kind} | {interval['share']:.3f} | {interval['low']:.3f} to {interval['high']:.3f} "
                f"| {interval['of']:,} | {aim} |"
            )
    if (exact := summary.get("generation_exact_accuracy")) is not None:
        yield f"| generation, with nothing else drawn | {exact:.3f} | | | |"
    yield f"| understanding, from the question alone | {summary['understanding_blind']:.3f} | | | |"
    yield f"| generation, by drawing for another prompt | {summary['generation_chance']:.3f} | | | |"
    yield ""
    yield "The VQ tokenizer reconstructs held-out images"
    yield f"at {summary['vq_psnr_db']:.1f} dB with {summary['vq_codes_used']} codes; the detector judges"
    yield f"{summary['detector_accuracy_on_real']:.1%} of the originals correctly and"
    yield f"{summary['detector_accuracy_on_reconstructions']:.1%} of the reconstructions: what VQ ids can represent."
    for measure, aim in aims.items():
        accuracy, bound = summary[f"{measure}_accuracy"], summary["detector_accuracy_on_reconstructions"]
        if accuracy < aim:
            explanation = f" Of real images, {bound:.3f} are judged correctly after the VQ tokenizer."
            known = explanation if measure == "generation" and bound < aim else ""
            reason = notes.get(f"aim-{measure}") or ("" if known else NOT_KNOWN)
            yield ""
            verdict = f"**The aim of {aim:.2f} for {measure} is not reached ({accuracy:.3f}).**"
            yield f"{verdict}{known} {reason.strip()}".rstrip()


def _easy_vqa(summary: Mapping[str, Any], notes: Mapping[str, str]) -> Iterator[str]:
    yield "## Janus `tiny` on easy-vqa"
    yield ""
    yield _origin(summary, "easy-vqa")
    yield ""
    yield from _accuracies(summary, AIMS, notes)
    yield ""


def _arms(summary: Mapping[str, Any], folder: Path, notes: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of the section about the ablation; write its plots into `folder`."""
    arms = summary["ablation"]
    yield "## One encoder or two"
    yield ""
    yield _origin(summary, "ablation")
    yield ""
    yield ABOUT_ARMS
    yield "| arm | meaning | seeds | understanding | generation |"
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
    yield _origin(summary, "scenes")
    yield ""
    # not a link: the page is written to docs and to the folder of the runs
    yield "The same three stages on the harder data set of `docs/scenes.md`: several shapes with positions and counts."
    yield ""
    yield from _accuracies(summary["scenes"], {}, {})
    yield ""
    if "scenes" in notes:
        yield notes["scenes"].strip()
        yield ""


def _mean_and_spread(row: Mapping[str, Any], measure: str) -> str:
    mean, spread = row[f"{measure}_mean"], row[f"{measure}_spread"]
    if mean is None:
        return "-"
    return f"{mean:.3f}" + ("" if spread is None else f" (spread {spread:.3f})")


def merged(summary: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary with the missing parts taken from an earlier one; these keep their date and commit.

    Parts that were made with other settings are left out.
    """
    if earlier.get("settings") != summary.get("settings"):
        return dict(summary)
    return {**earlier, **summary, "parts": {**earlier.get("parts", {}), **summary.get("parts", {})}}


if __name__ == "__main__":
    summary_file, target, *notes_file = map(Path, sys.argv[1:])
    earlier_file = target / "results.json"
    earlier_summary = json.loads(earlier_file.read_text()) if earlier_file.is_file() else {}
    results = merged(json.loads(summary_file.read_text()), earlier_summary)
    write_results(results, target, read_notes(notes_file[0]) if notes_file else {})

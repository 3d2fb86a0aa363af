"""Tokens per second and core that a loader delivers: ours beside Megatron-Energon, MosaicML Streaming, LitData and
plain WebDataset.

    make peers                                # a virtual environment of their own, .venv-peers
    .venv/bin/python benchmarks/loader.py --json

Compared: the same samples (`samples.py`: conversations with a 384x384 JPEG, documents, VQ ids behind prompts) in each
loader's own format on the local disk, in the page cache; an endless stream mixed 2 : 3 : 5 by token (understanding,
text, generation: Janus's second stage); rows of 4,096 tokens where the loader packs; JPEGs decoded to uint8 by the same
decoder; the same number of tokens in a delivery (4 rows). Each contender runs in a process of its own with the same
number of workers, each peer with its own documented settings for speed (the docstrings below `peers/`). Peers build the
least that a packed model needs (ids, lengths, images, VQ ids); ours also builds labels, positions and head rows.

Counted is what reaches the consumer in `--seconds` after `--warmup`, in rounds in which all take their turn, so that
the noise of a shared machine hits all alike; medians over rounds, with the smallest and largest. The figure is tokens
per core-second: CPU time of the consumer and all its processes, which other users of the machine hardly change.
`wall` has the tokens per second of the whole machine, where a loader that cannot use its cores shows.

Predicted before measuring: decoding takes 0.4 ms an image with libjpeg-turbo, and 20 % of the tokens are images of 677
tokens each, so no loader can pass 8.5 million tokens per core-second; a Python loader spends 0.1 to 0.3 ms on each of
the 1,430 samples in a million tokens, so peers come to 2 to 3 million at best. Ours as it is (Pillow, a scalar packing
loop, one file and tar object a sample) to about 1.5 million: behind MosaicML and LitData, near Energon.
"""

import os
import sys

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120 - pathlib is not loaded yet
    sys.path[0] = os.path.dirname(sys.path[0])  # noqa: PTH120 - or tokenize.py here would be the standard library's

import argparse
import json
import statistics
import subprocess
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import samples
from benchmarks.peers import common

ROOT = Path(__file__).parents[1]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
CONTENDERS = {
    "ours": (sys.executable, "benchmarks.ours"),
    "energon": (str(PEERS_PYTHON), "benchmarks.peers.energon"),
    "mosaic": (str(PEERS_PYTHON), "benchmarks.peers.mosaic"),
    "litdata": (str(PEERS_PYTHON), "benchmarks.peers.litdata"),
    "webdataset": (str(PEERS_PYTHON), "benchmarks.peers.webdataset"),
}
PACKS_AND_MIXES = ("energon",)
RATIO = {"understanding": 2.0, "text": 3.0, "generation": 5.0}
ROW_TOKENS, ROWS = 4_096, 4
PATIENCE_S = 300.0  # beyond the time asked for: imports, first shards


class Failed(Exception):
    """A contender did not run; the message says why."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "janus-dist-loader")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured, per contender and round")
    parser.add_argument("--warmup", type=float, default=4.0, help="seconds before")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--decoder", choices=("simplejpeg", "pillow"), default="simplejpeg", help="of the peers")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    asked = parser.parse_args()
    samples.make(asked.folder / "dump", ROW_TOKENS)
    settings = settings_for(asked)
    failures: dict[str, str] = {}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in asked.only}
    for name in asked.only:
        try:
            prepare(name, asked.folder)
        except Failed as failure:
            failures[name] = str(failure)
    for turn in range(asked.rounds):
        for name in asked.only[turn % len(asked.only) :] + asked.only[: turn % len(asked.only)]:
            if name in failures:
                continue
            try:
                measured[name].append(run(name, replace(settings, folder=str(asked.folder / name))))
            except Failed as failure:
                failures[name] = str(failure)
                continue
            show(name, measured[name][-1])
    report = summary(asked, settings, measured, failures)
    if asked.json:
        print(json.dumps(report))


def settings_for(asked: argparse.Namespace) -> common.Settings:
    """The same for all; shares by sample follow from shares by token and the mean lengths."""
    means = samples.mean_tokens(asked.folder / "dump")
    by_sample = {stream: RATIO[stream] / means[stream] for stream in common.STREAMS}
    weights = {stream: weight / sum(by_sample.values()) for stream, weight in by_sample.items()}
    mean = sum(weights[stream] * means[stream] for stream in common.STREAMS)
    return common.Settings(
        folder="",
        workers=asked.workers,
        rows=ROWS,
        row_tokens=ROW_TOKENS,
        ratio=RATIO,
        weights=weights,
        batch_samples=round(ROWS * ROW_TOKENS / mean),
        seconds=asked.seconds,
        warmup_s=asked.warmup,
        decoder=asked.decoder,
    )


def prepare(name: str, folder: Path) -> None:
    """Write the samples in a contender's format, unless they are there; Failed if it cannot."""
    ready = folder / name / "ready"
    if not ready.exists():
        call(name, ["write", str(folder / "dump"), str(folder / name)], PATIENCE_S)
        ready.touch()


def run(name: str, settings: common.Settings) -> dict[str, Any]:
    """One measurement; Failed if the contender stops or does not finish."""
    return call(name, ["read", common.as_json(settings)], PATIENCE_S + settings.seconds + settings.warmup_s)


def call(name: str, arguments: list[str], timeout_s: float) -> dict[str, Any]:
    """The JSON object that a contender prints last."""
    python, module = CONTENDERS[name]
    if not Path(python).exists():
        raise Failed(f"{python} is missing: make peers")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [python, "-m", module, *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as expired:
        raise Failed(f"not done after {expired.timeout:.0f} s") from expired
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        raise Failed((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(lines[-1])


def show(name: str, found: dict[str, Any]) -> None:
    print(
        f"{name:12s} {found['tokens_per_core_s'] / 1e6:6.2f} M tokens per core-second, "
        f"{found['tokens_per_s'] / 1e6:6.2f} M a second on {found['cores']:.2f} cores "
        f"(others used {found['others_cores']:.2f})",
        flush=True,
    )


def summary(
    asked: argparse.Namespace,
    settings: common.Settings,
    measured: dict[str, list[dict[str, Any]]],
    failures: dict[str, str],
) -> dict[str, Any]:
    """The object that `--json` prints: median tokens per core-second by contender, null for one that did not run."""
    done = {name: rounds for name, rounds in measured.items() if rounds and name not in failures}
    medians = {name: _median(done[name], "tokens_per_core_s") if name in done else None for name in CONTENDERS}
    walls = {name: _median(done[name], "tokens_per_s") if name in done else None for name in CONTENDERS}
    peers = [name for name in done if name != "ours"]
    packing = [name for name in peers if name in PACKS_AND_MIXES]
    return {
        "benchmark": "loader",
        "unit": "tokens per core-second",
        **medians,
        "ratio_best_peer": _ratio(medians, packing),
        "ratio_best_any": _ratio(medians, peers),
        "wall": {
            "unit": "tokens per second",
            **walls,
            "ratio_best_peer": _ratio(walls, packing),
            "ratio_best_any": _ratio(walls, peers),
        },
        "spread": {name: [min(values), max(values)] for name, values in _values(done, "tokens_per_core_s").items()},
        "rounds": asked.rounds,
        "seconds": asked.seconds,
        "workers": settings.workers,
        "decoder": settings.decoder,
        "ratio": RATIO,
        "details": {
            name: {
                **{key: rounds[-1][key] for key in ("version", "settings", "shares")},
                **{key: _median(rounds, key) for key in ("cores", "others_cores")},
                "fill": rounds[-1]["fill"],
            }
            for name, rounds in done.items()
        },
        "failures": failures,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "date": date.today().isoformat(),
    }


def _values(done: dict[str, list[dict[str, Any]]], key: str) -> dict[str, list[float]]:
    return {name: [found[key] for found in rounds] for name, rounds in done.items()}


def _median(rounds: list[dict[str, Any]], key: str) -> float:
    return statistics.median(found[key] for found in rounds)


def _ratio(values: dict[str, float | None], peers: list[str]) -> float | None:
    """Ours over the best of some peers; None when either is missing."""
    best = max((value for name in peers if (value := values[name])), default=None)
    return values["ours"] / best if values["ours"] and best else None


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()

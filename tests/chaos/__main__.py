"""`make chaos`: one run to which everything happens, and the proof that it is the run that nothing happened to.

    python -m tests.chaos [--faults N] [--kills N] [--seed N] [--out runs/chaos]
    make chaos ARGS="--faults 10 --kills 0"        (each kind once; all of it takes more than half an hour)

Writes OUT/summary.json; ends with 1 when losses or consumed samples differ from the undisturbed run's.
"""

import argparse
import json
import logging
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.chaos.arena import KILLS
from tests.chaos.run import KINDS, Result, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=30, help="how many; each kind comes once before any comes again")
    parser.add_argument("--kills", type=int, default=30, help="how many of them kill something, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # of the S3 server
    kinds = schedule(given.faults, given.seed, given.kills)
    print(f"{len(kinds)} faults, {count_kills(kinds)} of them kills")
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = run(given.out.absolute(), monkeypatch, kinds, given.seed, say=print)
    (given.out / "summary.json").write_text(json.dumps(found.summary, indent=1) + "\n")
    show(found)
    return 0 if found.is_equal else 1


def schedule(faults: int, seed: int, kills: int) -> list[str]:
    """Every kind in order, then any, until there are so many, and so many kills; after a node went another comes."""
    found = list(KINDS)
    choose = random.Random(seed)
    while len(found) < faults or count_kills(found) < kills:
        kind = choose.choice([kind for kind in KINDS if kind != "node_back"])
        found += [kind, "node_back"] if kind == "node" else [kind]
    return found


def count_kills(kinds: Sequence[str]) -> int:
    return sum(kind in KILLS for kind in kinds)


def show(found: Result) -> None:
    """The table of faults and the verdict."""
    table = Table("fault", "at step", "went on from", "steps lost", "recovered in", "ranks then")
    for fault in found.faults:
        table.add_row(
            fault.kind.replace("_", " "), str(fault.at_step), str(fault.from_step), str(fault.steps_lost),
            f"{fault.recovered_s:.1f} s", str(fault.ranks),
        )  # fmt: skip
    console = Console()
    console.print(table)
    for line in found.verdict:
        console.print(line)


if __name__ == "__main__":
    sys.exit(main())

"""How long a user waits for an answer that needs no work: a typo in a job's command line, and help.

    python benchmarks/startup.py [--json] [--rounds 5]

Each command is a fresh process; the figures are seconds by the clock, the median over rounds, and their ratio to a
process that imports what settings are read with (pydantic, yaml, rich) and nothing else, run in turn with them.

Predicted before the first run: 0.3 s for a typo (11.7 s of a core before recipes were read first), a ratio of 2.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BARE = ("-c", "import pydantic, rich.console, yaml")
JANUS = "from janus_dist.cli.main import janus; janus()"
COMMANDS: dict[str, tuple[str, ...]] = {
    "typo": ("jobs/stage2.py", "modle.x=1"),
    "job_help": ("jobs/stage2.py", "--help"),
    "janus_help": ("-c", JANUS, "--help"),
    "config_show": ("-c", JANUS, "config", "show", "jobs/recipes/tiny/base.yaml", "jobs/recipes/tiny/stage2.yaml"),
}


def seconds(command: tuple[str, ...]) -> float:
    """Run a Python command; return the seconds that it took."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - began


def measure(rounds: int) -> dict[str, Any]:
    """Return medians and ratios over rounds in which all commands take turns."""
    every = {"bare": BARE, **COMMANDS}
    taken: dict[str, list[float]] = {name: [] for name in every}
    for command in every.values():
        seconds(command)  # bytecode and the disk's cache
    for _ in range(rounds):
        for name, command in every.items():
            taken[name].append(seconds(command))
    median = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "ratio_bare": {name: round(median[name] / median["bare"], 2) for name in COMMANDS},
        "spread": {name: [round(min(values), 3), round(max(values), 3)] for name, values in taken.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args()
    found = measure(given.rounds)
    for key, value in found.items():
        print(f"{key:12} {value}")
    if given.json:
        print(json.dumps({"benchmark": "startup", **found}))


if __name__ == "__main__":
    main()

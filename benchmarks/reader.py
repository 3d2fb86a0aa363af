"""Samples a second from an S3 store on loopback whose answers take `--latency-ms` to begin, side by side in one run.

    python benchmarks/reader.py --json

`one by one`: s3fs, one request a sample, each after the other. `by threads`: the same from as many threads as the
reader has. `reader`: ours without cache. `cache, empty` and `cache, full`: ours with the node's cache. The samples of
a step lie `near` (drawn from 4 MiB, as the plan's windows do) or `scattered` over the whole object. Arms take turns,
round after round; speeds are medians over rounds with their range. `fetched` is bytes fetched over bytes asked for.
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
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np

from janus_dist.config.data import ReadConfig
from janus_dist.data.reader import ByteRange, RangeReader

ROOT = Path(__file__).parents[1]
PATH = "s3://shards/shard"
WINDOW_BYTES = 4 << 20


@contextmanager
def store(latency_ms: float, mib: int) -> Iterator[None]:
    """An S3 server in a process of its own, and the environment that leads to it."""
    command = [sys.executable, "-m", "tests.s3_faults", "--latency-ms", str(latency_ms), "--mib", str(mib)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        os.environ["AWS_ENDPOINT_URL"] = server.stdout.readline().strip()
        os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            os.environ.pop(name, None)
        yield
    finally:
        server.kill()
        server.wait()


def steps(pattern: str, given: argparse.Namespace, seed: int) -> list[list[ByteRange]]:
    """Ranges of each step's samples, none twice in a step."""
    dice, size = np.random.default_rng(seed), given.sample_bytes
    span = WINDOW_BYTES if pattern == "near" else given.mib << 20
    found = []
    for _ in range(given.steps):
        start = int(dice.integers(0, (given.mib << 20) - span + 1))
        places = dice.choice(span // size, given.samples, replace=False)
        found.append([ByteRange(PATH, start + int(place) * size, size) for place in places])
    return found


def one_by_one(threads: int) -> tuple[Callable[[list[ByteRange]], object], Callable[[], None]]:
    """Reads each sample by a request of its own, on so many threads."""
    files = fsspec.filesystem("s3", config_kwargs={"max_pool_connections": threads})
    pool = ThreadPoolExecutor(threads)

    def cat(one: ByteRange) -> bytes:
        return files.cat_file(one.path, start=one.offset, end=one.stop)

    return lambda ranges: list(pool.map(cat, ranges)), pool.shutdown


def measure(pattern: str, given: argparse.Namespace, seed: int, cache: str) -> dict[str, tuple[float, float]]:
    """Of each arm: samples a second, and bytes fetched over bytes asked for."""
    work, found = steps(pattern, given, seed), {}

    def timed(name: str, read: Callable[[list[ByteRange]], object]) -> None:
        read([ByteRange(PATH, 0, 1)])  # connects
        began = time.perf_counter()
        for ranges in work:
            read(ranges)
        found[name] = (given.steps * given.samples / (time.perf_counter() - began), 1.0)

    for name, threads in (("one by one", 1), ("by threads", given.threads)):
        read, close = one_by_one(threads)
        timed(name, read)
        close()
    for name, folder in (("reader", None), ("cache, empty", cache), ("cache, full", cache)):
        reader = RangeReader(ReadConfig(cache_dir=folder), threads=given.threads)
        timed(name, reader.read)
        counters = reader.counters()
        found[name] = (found[name][0], counters.bytes_fetched / counters.bytes_asked)
        reader.close()
    return found


def summary(pattern: str, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    rounds = []
    for seed in range(given.rounds):
        with tempfile.TemporaryDirectory() as cache:
            rounds.append(measure(pattern, given, seed, cache))
    found = {}
    for name in rounds[0]:
        speeds = [one[name][0] for one in rounds]
        found[name] = {
            "samples_per_s": round(statistics.median(speeds), 1),
            "lowest": round(min(speeds), 1),
            "highest": round(max(speeds), 1),
            "over_one_by_one": round(statistics.median(one[name][0] / one["one by one"][0] for one in rounds), 2),
            "over_by_threads": round(statistics.median(one[name][0] / one["by threads"][0] for one in rounds), 2),
            "fetched": round(statistics.median(one[name][1] for one in rounds), 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line, and nothing else")
    for name, default in (("rounds", 3), ("steps", 6), ("samples", 64), ("sample-bytes", 16_384), ("mib", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    given = parser.parse_args()
    with store(given.latency_ms, given.mib):
        found = {pattern: summary(pattern, given) for pattern in ("near", "scattered")}
    if given.json:
        asked = {name: value for name, value in vars(given).items() if name != "json"}
        print(json.dumps({"benchmark": "reader", **asked, "patterns": found}))
        return
    for pattern, arms in found.items():
        for name, values in arms.items():
            print(f"{pattern:10} {name:13}", *(f"{key} {value:<9}" for key, value in values.items()))


if __name__ == "__main__":
    main()

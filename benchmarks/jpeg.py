"""Which JPEG decoder: CPU milliseconds for a 384x384 image of `samples.py`, and whether threads can share the work.

    make peers
    .venv-peers/bin/pip install opencv-python-headless
    .venv-peers/bin/python benchmarks/jpeg.py --json

Compared: Pillow, simplejpeg and OpenCV on the same bytes in one process, in turns, medians over turns, and the median
ratio to Pillow of the same turn. `releases_lock`: whether another Python thread runs while an image is decoded. A
decoder that is not installed is null.
"""

import os
import sys

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120 - pathlib is not loaded yet
    sys.path[0] = os.path.dirname(sys.path[0])  # noqa: PTH120 - or tokenize.py here would be the standard library's

import argparse
import io
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import samples
from benchmarks.peers.common import samples as stored_samples

IMAGES = 100
Decoder = Callable[[bytes], Any]


def decoders() -> dict[str, Decoder | None]:
    """RGB arrays from bytes, by library."""
    found: dict[str, Decoder | None] = {"pillow": lambda encoded: np.asarray(Image.open(io.BytesIO(encoded)))}
    simplejpeg, cv2 = _library("simplejpeg"), _library("cv2")
    found["simplejpeg"] = simplejpeg and (lambda encoded: simplejpeg.decode_jpeg(encoded, colorspace="RGB"))
    if cv2:
        cv2.setNumThreads(0)
    found["opencv"] = cv2 and (lambda encoded: cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB))
    return found


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def cpu_ms(decode: Decoder, images: list[bytes]) -> float:
    """CPU milliseconds an image."""
    started = time.process_time()
    for image in images:
        decode(image)
    return 1e3 * (time.process_time() - started) / len(images)


def releases_lock(decode: Decoder, image: bytes) -> bool:
    """Whether this thread, which waits for the interpreter lock, gets it while another one decodes."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)  # nobody is asked to hand the lock on
    try:
        return any(_seen_decoding(decode, image) for _ in range(50))
    finally:
        sys.setswitchinterval(interval)


def _seen_decoding(decode: Decoder, image: bytes) -> bool:
    said: list[str] = []

    def work() -> None:
        said.append("begun")
        decode(image)
        said.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    while not said:
        time.sleep(0)
    seen = said == ["begun"]
    thread.join()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "janus-dist-loader")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    asked = parser.parse_args()
    samples.make(asked.folder / "dump", row_tokens=4_096)
    kept = stored_samples(asked.folder / "dump", "understanding")
    images = [sample["jpg"] for sample, _ in zip(kept, range(IMAGES), strict=False)]
    found = decoders()
    measured: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(asked.rounds):
        for name, decode in found.items():
            if decode is not None:
                measured[name].append(cpu_ms(decode, images))
    report: dict[str, Any] = {"benchmark": "jpeg", "unit": "CPU milliseconds an image", "rounds": asked.rounds}
    for name, decode in found.items():
        report[name] = decode and {
            "ms": statistics.median(measured[name]),
            "spread": [min(measured[name]), max(measured[name])],
            "over_pillow": statistics.median(
                mine / theirs for mine, theirs in zip(measured[name], measured["pillow"], strict=True)
            ),
            "releases_lock": releases_lock(decode, images[0]),
        }
        print(name, report[name])
    if asked.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()

"""What the image pipelines cost beside bare loops over the same images, and beside img2dataset.

    make peers                                  # for img2dataset; without it `ratio_img2dataset` is null
    .venv/bin/python benchmarks/tokenize.py --json

- `ratio_vq`: images a second of the generation pipeline (a real local Ray; from listing the input to the manifest) over
  those of the same VQ tokenizers fed with full batches that are decoded and lie in Ray's object store already. As many
  VQ tokenizers of one thread as there are cores in both; starting Ray, them and the workers is in neither. The VQ
  tokenizer is one that takes a core about 0.25 s an image, so that it dominates as VQ-16 does on a GPU. Jobs of
  96 images, 12 s of both cores; recipes take 1,000 and more, so that starting a job weighs less. Rounds
  in turns, in one process.
- `ratio_decode`: CPU time of a bare loop (libjpeg-turbo decode, Pillow's bicubic resize, padding, libjpeg-turbo encode
  4:4:4, nothing checked) over that of the understanding step on the same photographs, which also reads headers, checks
  limits, turns and measures images and makes token ids. In turns, image by image, in one process.
- `ratio_img2dataset`: CPU time of img2dataset's Resizer (OpenCV; border, bicubic, same side and quality, but 4:2:0)
  over that of the same step. Processes in turns.

Predicted before measuring: 0.95 (a crop takes 5 ms of 500, a job 0.1 s beside its batches); 0.9; 0.8, since OpenCV's
resize has no antialiasing and takes a third of the time.
"""

import os
import sys

if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # noqa: PTH100, PTH120 - pathlib is not loaded yet
    sys.path[0] = os.path.dirname(sys.path[0])  # noqa: PTH120 - or tokenize.py here would be the standard library's

import argparse
import json
import logging
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import ray
import simplejpeg
import torch
from PIL import Image

from data_pipelines import stream
from data_pipelines.encoder import EncoderPool
from data_pipelines.job import InputWork, prepared
from data_pipelines.prepare import input_work
from data_pipelines.record import Picture, Record
from data_pipelines.steps.understanding import Understanding
from janus_dist.config.load import load
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.shipped import TINY
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.launch.session import connect
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config
from janus_dist.weights.vq import save_vq

ROOT = Path(__file__).parents[1]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
BASE, TINY_TOKENIZER = TINY / "base.yaml", TINY / "tokenizer.json"
PHOTOS = (
    ("scikit-learn", "sklearn/datasets/images/china.jpg"),
    ("scikit-learn", "sklearn/datasets/images/flower.jpg"),
    ("scikit-image", "skimage/data/rocket.jpg"),
    ("scikit-image", "skimage/data/hubble_deep_field.jpg"),
    ("scikit-image", "skimage/data/coffee.png"),
    ("scikit-image", "skimage/data/chelsea.png"),
    ("scikit-image", "skimage/data/astronaut.png"),
)
SIDE, QUALITY, BATCH, JOB_IMAGES = 384, 95, 8, 96
PADDING = (127, 127, 127)


def photographs(folder: Path, number: int) -> list[Path]:
    """JPEG files of about 500 x 375 pixels: cuts of photographs that come with Python packages."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(0), []
    whole = []
    for package, path in PHOTOS:
        try:
            whole.append(Image.open(str(distribution(package).locate_file(path))).convert("RGB"))
        except PackageNotFoundError:
            raise SystemExit(f"{package} is not installed; `make setup` installs it") from None
    for place in range(number):
        image = whole[place % len(whole)]
        width, height = min(500, image.width), min(375, image.height)
        left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
        paths.append(folder / f"{place:05d}.jpg")
        image.crop((left, top, left + width, top + height)).save(paths[-1], "JPEG", quality=90)
    return paths


def recipe(folder: Path, root: Path) -> BaseRecipe:
    """Generation from a folder of one class; a VQ tokenizer that takes its time."""
    return load(
        BaseRecipe,
        [BASE],
        [
            "model.image_size=128",
            "model.vq.base_channels=96",
            "model.vq.res_blocks=2",
            f"data.tokenizer={TINY_TOKENIZER}",
            f"data.vq_weights={folder / 'vq.safetensors'}",
            f"data.root={root}",
            f"pipeline.inputs={{photos: {{stream: generation, format: folders, path: '{folder / 'classes'}'}}}}",
            f"pipeline.shard_samples={JOB_IMAGES}",
            f"pipeline.encode_batch={BATCH}",
        ],
    ).recipe


def vq_rounds(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Images a second of the pipeline and of the bare loop, a pair for each round."""
    photographs(folder / "classes" / "photo", images)
    made = recipe(folder, folder / "warm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_vq(vq_model.build(vq_config(made.model)), folder / "vq.safetensors")
    tokenizer = Tokenizer.load(made.data.tokenizer)
    connect()
    pool = EncoderPool.start(made)
    pixels = [one.pixels for one in prepared(input_work("photos", made, tokenizer))]
    batches = [ray.put(np.stack(pixels[start : start + BATCH])) for start in range(0, len(pixels) - BATCH + 1, BATCH)]
    started = EncoderPool.start, EncoderPool.stop
    EncoderPool.start = classmethod(lambda cls, recipe: pool)  # type: ignore[method-assign]
    EncoderPool.stop = lambda self: None  # type: ignore[method-assign]
    try:
        bare(pool, batches[: 2 * len(pool.actors)])
        piped(input_work("photos", made, tokenizer), images)
        found: dict[str, list[float]] = {"bare": [], "pipeline": []}
        for turn in range(rounds):
            found["bare"].append(bare(pool, batches))
            work = input_work("photos", recipe(folder, folder / f"round-{turn}"), tokenizer)
            found["pipeline"].append(piped(work, images))
    finally:
        EncoderPool.start, EncoderPool.stop = started
        pool.stop()
        ray.shutdown()
    return found


def bare(pool: EncoderPool, batches: list[ray.ObjectRef]) -> float:
    """Images a second of the VQ tokenizers alone, none ever without work."""
    began = time.perf_counter()
    ray.get([pool.actors[number % len(pool.actors)].encode.remote(batch) for number, batch in enumerate(batches)])
    return BATCH * len(batches) / (time.perf_counter() - began)


def piped(work: InputWork, images: int) -> float:
    """Images a second of the whole pipeline."""
    began = time.perf_counter()
    manifest = stream.run(work)
    assert manifest.samples == images
    return images / (time.perf_counter() - began)


def decode_rounds(paths: list[Path], rounds: int) -> list[tuple[float, float]]:
    """(bare, ours) CPU milliseconds an image."""
    made = load(BaseRecipe, [BASE], [f"model.image_size={SIDE}", f"pipeline.jpeg_quality={QUALITY}"]).recipe
    step = Understanding(made, made.pipeline.inputs["understanding"], Tokenizer.load(TINY_TOKENIZER))
    images = [path.read_bytes() for path in paths]
    records = [Record("a", "", (Picture("", image),), (("what is it?", "a photograph"),)) for image in images]
    found = []
    for _ in range(rounds):
        spent = [0.0, 0.0]
        for image, record in zip(images, records, strict=True):
            began = time.process_time()
            bare_crop(image)
            between = time.process_time()
            step.check(record)
            step.make(record)
            spent[0] += between - began
            spent[1] += time.process_time() - between
        found.append((1e3 * spent[0] / len(images), 1e3 * spent[1] / len(images)))
    return found


def bare_crop(encoded: bytes) -> bytes:
    """The least that makes a padded square of a JPEG."""
    image = Image.fromarray(simplejpeg.decode_jpeg(encoded, "RGB"))
    width, height = (int(length / max(image.size) * SIDE) for length in image.size)
    square = Image.new("RGB", (SIDE, SIDE), PADDING)
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((SIDE - width) // 2, (SIDE - height) // 2))
    return simplejpeg.encode_jpeg(np.asarray(square), QUALITY, "RGB", "444")


def img2dataset_ms(folder: Path) -> float:
    """CPU milliseconds an image of img2dataset's Resizer; raises RuntimeError when it does not run."""
    command = [str(PEERS_PYTHON), str(ROOT / "benchmarks" / "peers" / "img2dataset.py")]
    try:
        done = subprocess.run([*command, str(folder), str(SIDE), str(QUALITY)], capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"no .venv-peers ({error}); `make peers` makes it") from error
    if done.returncode:
        raise RuntimeError(done.stderr.strip().split("\n")[-1])
    return json.loads(done.stdout.splitlines()[-1])["ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    asked = parser.parse_args()
    logging.getLogger("janus_dist").setLevel(logging.WARNING)
    failure = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = photographs(folder / "photos", 60)
        decoded, peers = [], []
        for _ in range(asked.rounds):
            decoded += decode_rounds(paths, 1)
            try:
                peers.append(img2dataset_ms(folder / "photos"))
            except RuntimeError as error:
                failure = str(error)
        rates = vq_rounds(folder, asked.images, asked.rounds)
    bare_ms, ours_ms = (statistics.median(column) for column in zip(*decoded, strict=True))
    found = {
        "ratio_vq": statistics.median(p / b for p, b in zip(rates["pipeline"], rates["bare"], strict=True)),
        "ratio_decode": statistics.median(bare / ours for bare, ours in decoded),
        "ratio_img2dataset": statistics.median(p / o for p, (_, o) in zip(peers, decoded, strict=True))
        if peers
        else None,
        "images_per_s": {name: [round(rate, 2) for rate in found] for name, found in rates.items()},
        "ms_per_image": {
            "bare": round(bare_ms, 3),
            "ours": round(ours_ms, 3),
            "img2dataset": round(statistics.median(peers), 3) if peers else None,
        },
        "img2dataset_failure": failure,
        "rounds": asked.rounds,
        "images": asked.images,
    }
    for key, value in found.items():
        print(f"{key:20} {value}")
    if asked.json:
        print(json.dumps({"benchmark": "tokenize", **found}))


if __name__ == "__main__":
    main()

"""The samples that every loader of `benchmarks/loader.py` is given, as a neutral folder of .npy files.

Their lengths are those that Janus trains on, by published descriptions: a conversation is a 384x384 JPEG of about 35 kB
that stands for 576 tokens, with log-normal text (median 80 tokens); a generation sample is 576 VQ ids behind a
log-normal prompt (median 45); a document of text is log-normal (median 600, sigma 1.1), cut at a row's length. The
images are sums of smooth random fields and noise, so that they compress and decode as photographs do.

Invariant: the same seed gives the same bytes; a folder with a `ready` file is complete.

A stream is stored as `ids.npy` (uint32, all samples in a line), `ids_ends.npy`, and where it has them `images.npy`
(the bytes of all JPEGs), `images_ends.npy` and `vq.npy` ([sample, 576] uint16).
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SAMPLES = {"understanding": 3_000, "text": 4_000, "generation": 6_000}
IMAGE_SIDE, IMAGE_TOKENS, VQ_CODES = 384, 576, 16_384
BEGIN, END, BEGIN_OF_IMAGE, PLACEHOLDER, END_OF_IMAGE = 100_000, 100_001, 100_003, 100_004, 100_005
FIRST_SPECIAL = 100_000
JPEG_QUALITY = 90
FIELDS = ((3, 70.0), (8, 40.0), (24, 22.0), (64, 10.0))  # (cells along a side, amplitude in grey levels)
NOISE = 4.0  # grey levels; gives JPEGs of about 35 kB


def make(folder: Path, row_tokens: int, seed: int = 0) -> None:
    """Write all streams below `folder`, unless they are there; takes about two minutes."""
    if (folder / "ready").exists():
        return
    for number, (stream, count) in enumerate(SAMPLES.items()):
        rng = np.random.default_rng([seed, number])
        path = folder / stream
        path.mkdir(parents=True, exist_ok=True)
        ids = [_ids(rng, stream, row_tokens) for _ in range(count)]
        _save_line(path, "ids", ids)
        if stream == "understanding":
            _save_line(path, "images", [np.frombuffer(_jpeg(rng), np.uint8) for _ in range(count)])
        if stream == "generation":
            np.save(path / "vq.npy", rng.integers(VQ_CODES, size=(count, IMAGE_TOKENS)).astype(np.uint16))
    (folder / "ready").touch()


def mean_tokens(folder: Path) -> dict[str, float]:
    """Row positions of the mean sample of each stream."""
    extra = {"understanding": IMAGE_TOKENS - 1, "text": 0, "generation": IMAGE_TOKENS}
    ends = {stream: np.load(folder / stream / "ids_ends.npy") for stream in SAMPLES}
    return {stream: float(ends[stream][-1]) / len(ends[stream]) + extra[stream] for stream in SAMPLES}


def _ids(rng: np.random.Generator, stream: str, row_tokens: int) -> NDArray[np.uint32]:
    median, sigma, most = {
        "understanding": (80, 0.6, 1_024),
        "text": (600, 1.1, row_tokens - 2),
        "generation": (45, 0.6, 512),
    }[stream]
    length = int(np.clip(round(rng.lognormal(np.log(median), sigma)), 4, most))
    words = rng.integers(FIRST_SPECIAL, size=length)
    match stream:
        case "understanding":
            parts = [BEGIN, BEGIN_OF_IMAGE, PLACEHOLDER, END_OF_IMAGE], words, [END]
        case "text":
            parts = [BEGIN], words, [END]
        case _:
            parts = [BEGIN], words, [BEGIN_OF_IMAGE]
    return np.concatenate(parts).astype(np.uint32)


def _jpeg(rng: np.random.Generator) -> bytes:
    size = (IMAGE_SIDE, IMAGE_SIDE)
    pixels = np.full((*size, 3), 128, dtype=np.float32)
    for cells, amplitude in FIELDS:
        small = rng.standard_normal((3, cells, cells), dtype=np.float32)
        fields = [np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)) for plane in small]
        pixels += amplitude * np.stack(fields, axis=-1)
    pixels += NOISE * rng.standard_normal(pixels.shape, dtype=np.float32)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _save_line(path: Path, name: str, pieces: list[NDArray[np.uint32]] | list[NDArray[np.uint8]]) -> None:
    np.save(path / f"{name}.npy", np.concatenate(pieces))
    np.save(path / f"{name}_ends.npy", np.cumsum([len(piece) for piece in pieces]))

"""What all contenders of `benchmarks/loader.py` share: the samples, decoding, a batch, and the measured loop.

A contender is a module with `write(dump, folder)`, which stores the samples of a dump in its own format, and
`read(settings)`, which gives an endless stream of deliveries. It runs in a process of its own, under its own Python,
and prints one JSON object. Invariant: the consumer receives arrays that are ready for the model: token ids on one line
without padding, images decoded to uint8, VQ ids; what a loader delivers is counted in tokens, padding never.
"""

import gc
import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from numpy.typing import NDArray

STREAMS = ("understanding", "text", "generation")
IMAGE_TOKENS = 576
IMAGE_AT = 2  # position of the image's placeholder in a stored conversation
CPU_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Settings:
    """What is asked of every contender."""

    folder: str
    """Where the contender's own format lies."""
    workers: int
    """Processes (ours: threads) that read, besides the consumer."""
    rows: int
    """Packed rows in one delivery."""
    row_tokens: int
    ratio: dict[str, float]
    """Share of each stream, by token."""
    weights: dict[str, float]
    """The same shares by sample, for loaders that mix by sample; they add up to 1."""
    batch_samples: int
    """Samples in one delivery of a loader that does not pack: as many tokens as `rows` rows hold."""
    seconds: float
    warmup_s: float
    decoder: str
    """`simplejpeg` or `pillow`."""


@dataclass
class Delivery:
    """What the consumer receives at once."""

    batch: Any
    tokens: list[int]
    """Tokens of each stream."""
    images: int
    rows: int | None = None
    """Packed rows, None without packing."""


@dataclass
class Encoded:
    """One sample, ready to be put on the token line."""

    stream: int
    ids: NDArray[np.int64]
    pixels: NDArray[np.uint8] | None = None
    vq_ids: NDArray[np.int64] | None = None


@dataclass
class Packed:
    """A delivery as it leaves a worker process: four tensors and a few numbers."""

    input_ids: torch.Tensor
    pixels: torch.Tensor
    vq_ids: torch.Tensor
    lengths: list[int]
    tokens: list[int]
    rows: int | None = None

    def delivery(self) -> Delivery:
        return Delivery(self, self.tokens, len(self.pixels), self.rows)


@dataclass
class Count:
    """What was delivered in a time."""

    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    images: int = 0
    rows: int | None = None
    deliveries: int = 0

    def add(self, delivery: Delivery) -> None:
        for stream, tokens in zip(STREAMS, delivery.tokens, strict=True):
            self.tokens[stream] += int(tokens)
        self.images += delivery.images
        self.deliveries += 1
        if delivery.rows is not None:
            self.rows = (self.rows or 0) + delivery.rows


def samples(dump: Path, stream: str) -> Iterator[dict[str, bytes]]:
    """`ids` (uint32), and where the stream has them `jpg` or `vq` (uint16), of each sample as bytes."""
    path = dump / stream
    lines = {"ids": _pieces(path, "ids")}
    if (path / "images.npy").exists():
        lines["jpg"] = _pieces(path, "images")
    if (path / "vq.npy").exists():
        lines["vq"] = iter(np.load(path / "vq.npy", mmap_mode="r"))
    for pieces in zip(*lines.values(), strict=True):
        yield {name: np.ascontiguousarray(piece).tobytes() for name, piece in zip(lines, pieces, strict=True)}


def _pieces(path: Path, name: str) -> Iterator[NDArray[Any]]:
    line, start = np.load(path / f"{name}.npy", mmap_mode="r"), 0
    for end in np.load(path / f"{name}_ends.npy").tolist():
        yield line[start:end]
        start = end


def num_tokens(ids: bytes, jpg: bytes | None, vq: bytes | None) -> int:
    """Row positions of a stored sample."""
    return len(ids) // 4 + (IMAGE_TOKENS - 1 if jpg else len(vq) // 2 if vq else 0)


def encode(ids: bytes, jpg: bytes | None, vq: bytes | None, decode: Callable[[bytes], NDArray[np.uint8]]) -> Encoded:
    """A stored sample with its placeholder expanded and its image decoded; empty bytes count as none."""
    stored = np.frombuffer(ids, np.uint32)
    if jpg:
        line = np.zeros(len(stored) + IMAGE_TOKENS - 1, np.int64)
        line[:IMAGE_AT] = stored[:IMAGE_AT]
        line[IMAGE_AT + IMAGE_TOKENS :] = stored[IMAGE_AT + 1 :]
        return Encoded(0, line, pixels=decode(jpg))
    if vq:
        codes = np.frombuffer(vq, np.uint16).astype(np.int64)
        line = np.zeros(len(stored) + len(codes), np.int64)
        line[: len(stored)] = stored
        return Encoded(2, line, vq_ids=codes)
    return Encoded(1, stored.astype(np.int64))


def pack(encoded: list[Encoded], rows: int | None = None) -> Packed:
    """Samples one behind the other; each tensor is written once."""
    lengths = [len(sample.ids) for sample in encoded]
    tokens = [0, 0, 0]
    for sample, length in zip(encoded, lengths, strict=True):
        tokens[sample.stream] += length
    pixels = [sample.pixels for sample in encoded if sample.pixels is not None]
    codes = [sample.vq_ids for sample in encoded if sample.vq_ids is not None]
    return Packed(
        input_ids=torch.from_numpy(np.concatenate([sample.ids for sample in encoded])),
        pixels=torch.from_numpy(np.stack(pixels)) if pixels else torch.zeros((0, 384, 384, 3), dtype=torch.uint8),
        vq_ids=torch.from_numpy(np.concatenate(codes)) if codes else torch.zeros(0, dtype=torch.int64),
        lengths=lengths,
        tokens=tokens,
        rows=rows,
    )


def decoder(name: str) -> Callable[[bytes], NDArray[np.uint8]]:
    """A function from JPEG bytes to [height, width, 3] uint8."""
    if name == "simplejpeg":
        import simplejpeg

        return lambda encoded: simplejpeg.decode_jpeg(encoded, colorspace="RGB")
    from PIL import Image

    return lambda encoded: np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def measure(deliveries: Iterator[Delivery], settings: Settings) -> dict[str, Any]:
    """Consume for `warmup_s` from the first delivery on, then count for `seconds`: tokens, seconds, and CPU time of
    this process and all below.
    """
    next(deliveries)
    warm_until = time.perf_counter() + settings.warmup_s
    for _ in deliveries:
        if time.perf_counter() >= warm_until:
            break
    count = Count()
    machine, cpu, started = machine_cpu_s(), tree_cpu_s(), time.perf_counter()
    for delivery in deliveries:
        count.add(delivery)
        if time.perf_counter() >= started + settings.seconds:
            break
    seconds = time.perf_counter() - started
    cpu_s, machine_s = tree_cpu_s() - cpu, machine_cpu_s() - machine
    total = sum(count.tokens.values())
    return {
        "tokens": total,
        "seconds": seconds,
        "cores": cpu_s / seconds,
        "tokens_per_s": total / seconds,
        "tokens_per_core_s": total / cpu_s,
        "others_cores": max(machine_s - cpu_s, 0.0) / seconds,
        "images": count.images,
        "deliveries": count.deliveries,
        "shares": {stream: tokens / total for stream, tokens in count.tokens.items()},
        "fill": total / (count.rows * settings.row_tokens) if count.rows else None,
    }


def tree_cpu_s() -> float:
    """CPU seconds, user and system, of this process, all processes below it, and those below it that have ended."""
    times: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        times[int(path.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])) * CPU_TICK_S)
    mine = {os.getpid()}
    while added := {pid for pid, (parent, _) in times.items() if parent in mine} - mine:
        mine |= added
    return sum(times[pid][1] for pid in mine)


def machine_cpu_s() -> float:
    """CPU seconds that the machine was busy, for whomever."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) * CPU_TICK_S


def main(
    write: Callable[[Path, Path], None],
    read: Callable[[Settings], Iterator[Delivery]],
    version: str,
    describe: Callable[[Settings], dict[str, Any]],
) -> None:
    """`MODULE write DUMP FOLDER` or `MODULE read SETTINGS-AS-JSON`; the last line printed is JSON."""
    torch.set_num_threads(1)
    torch.multiprocessing.set_sharing_strategy("file_system")  # as fast as file descriptors or faster, for all peers
    gc.collect()
    gc.freeze()  # what the imports made is not looked through again, here and in workers that are forked
    match sys.argv[1:]:
        case ["write", dump, folder]:
            write(Path(dump), Path(folder))
            result = {"written": folder}
        case ["read", text]:
            settings = Settings(**json.loads(text))
            result = measure(iter(read(settings)), settings)
            result |= {"version": version, "settings": describe(settings)}
        case _:
            raise SystemExit(main.__doc__)
    print(json.dumps(result), flush=True)
    for worker in multiprocessing.active_children():  # those of an endless stream are not asked to finish
        worker.kill()
        worker.join()
    os._exit(0)


def as_json(settings: Settings) -> str:
    """What `read` takes."""
    return json.dumps(asdict(settings))

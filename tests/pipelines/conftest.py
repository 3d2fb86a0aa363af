"""One local Ray for all pipeline tests, and small sources of images with everything that can be wrong with them."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from data_pipelines.job import InputWork
from data_pipelines.prepare import input_work
from data_pipelines.tokenizer import PATH
from janus_dist.config.load import load
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config
from janus_dist.weights.vq import save_vq

BASE = Path(__file__).parent.parent.parent / "jobs" / "recipes" / "tiny" / "base.yaml"
SMALL = [
    "model.image_size=16",
    "model.vq.codes=32",
    "model.vq.channel_multipliers=[1,1,2]",
    "model.vq.latent_channels=32",
    "pipeline.shard_samples=8",
    "pipeline.text_document_tokens=40",
    "pipeline.encode_batch=3",
    f"data.tokenizer={PATH}",
]
MakeWork = Callable[..., InputWork]


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """Address of a Ray of two CPUs that lives as long as the session."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(PATH)


@pytest.fixture(scope="session")
def vq_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQ tokenizer with random weights."""
    path = tmp_path_factory.mktemp("vq") / "vq.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_vq(vq_model.build(vq_config(load(BaseRecipe, [BASE], SMALL).recipe.model)), path)
    return path


@pytest.fixture
def make_recipe(tmp_path: Path, vq_weights: Path) -> Callable[..., BaseRecipe]:
    """A recipe of a small model that writes into the test's own folder."""

    def make(*overrides: str) -> BaseRecipe:
        own = [f"data.root={tmp_path / 'data'}", f"data.vq_weights={vq_weights}"]
        return load(BaseRecipe, [BASE], [*SMALL, *own, *overrides]).recipe

    return make


@pytest.fixture
def make_work(make_recipe: Callable[..., BaseRecipe], tokenizer: Tokenizer) -> MakeWork:
    """The work on one input, named like its stream, of files at a path."""

    def make(stream: str, path: Path | str, *overrides: str, form: str = "jsonl") -> InputWork:
        own = f"pipeline.inputs.{stream}={{format: {form}, path: '{path}'}}"
        return input_work(stream, make_recipe(own, *overrides), tokenizer)

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 50 images of different sizes, PNG and JPEG, `photo-000.png` and so on."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(50):
        width, height = rng.integers(16, 80, 2).tolist()
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(folder / f"photo-{number:03d}.png", "JPEG" if number % 3 == 0 else "PNG")
    return folder


@pytest.fixture
def spoiled(photos: Path, tmp_path: Path) -> Path:
    """The same 50, of which 5 are bad: truncated, no image, too small, too long, missing."""
    folder = tmp_path / "spoiled"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = (photos / "photo-004.png").read_bytes()
    (folder / "photo-004.png").write_bytes(content[: len(content) // 2])
    (folder / "photo-013.png").write_bytes(b"<html>not found</html>")
    (folder / "photo-021.png").write_bytes(picture(40, 5))
    (folder / "photo-022.png").write_bytes(picture(420, 20))
    (folder / "photo-049.png").unlink()
    return folder


def picture(width: int, height: int) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def lines(path: Path, entries: list[dict]) -> Path:
    """A JSONL file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def conversations(folder: Path, number: int = 50) -> Path:
    """`FOLDER/conversations.jsonl`, two turns about each photo."""
    said = [("human", "what is it?"), ("gpt", "a circle"), ("human", "is it {}?"), ("gpt", "yes")]
    return lines(
        folder / "conversations.jsonl",
        [
            {
                "image": f"photo-{place:03d}.png",
                "conversations": [{"from": role, "value": text.format(place)} for role, text in said],
            }
            for place in range(number)
        ],
    )


def captions(folder: Path, number: int = 50) -> Path:
    """`FOLDER/captions.jsonl`, one for each photo."""
    return lines(
        folder / "captions.jsonl",
        [{"image": f"photo-{place:03d}.png", "caption": f"a circle {place}"} for place in range(number)],
    )


def documents(folder: Path, number: int) -> Path:
    """`FOLDER/documents.jsonl`."""
    return lines(folder / "documents.jsonl", [{"text": f"Text {place}. " * (1 + place % 9)} for place in range(number)])

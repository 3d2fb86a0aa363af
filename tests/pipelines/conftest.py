"""One local Ray for all pipeline tests, and a small source of images with everything that can be wrong with them."""

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from data_pipelines.sources import Caption, Conversation, Document, Item
from data_pipelines.tokenizer import PATH
from janus_dist.config.load import load
from janus_dist.config.recipe import BaseRecipe
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config
from janus_dist.model.vq_weights import save_vq

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
MakeRecipe = Callable[..., BaseRecipe]


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """Address of a Ray of two CPUs that lives as long as the session."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
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
def make_recipe(tmp_path: Path, vq_weights: Path) -> MakeRecipe:
    """A recipe of a small model that writes into the test's own folder."""

    def make(*overrides: str) -> BaseRecipe:
        own = [f"data.root={tmp_path / 'data'}", f"data.vq_weights={vq_weights}"]
        return load(BaseRecipe, [BASE], [*SMALL, *own, *overrides]).recipe

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """50 images of different sizes, PNG and JPEG."""
    folder, rng, paths = tmp_path_factory.mktemp("photos"), np.random.default_rng(0), []
    for number in range(50):
        width, height = rng.integers(16, 80, 2).tolist()
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        paths.append(folder / f"{number:03d}.{'jpg' if number % 3 == 0 else 'png'}")
        image.save(paths[-1])
    return paths


@pytest.fixture
def spoiled(photos: list[Path], tmp_path: Path) -> list[Path]:
    """The same 50, of which 5 are bad: truncated, no image, too small, too long, missing."""
    paths = list(photos)
    content = photos[4].read_bytes()
    bad = {
        4: content[: len(content) // 2],
        13: b"<html>not found</html>",
        21: picture(40, 5),
        22: picture(320, 20),
        49: None,
    }
    for number, spoil in bad.items():
        paths[number] = tmp_path / f"bad-{number:03d}.png"
        if spoil is not None:
            paths[number].write_bytes(spoil)
    return paths


def picture(width: int, height: int) -> bytes:
    """A PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def conversations(paths: list[Path]) -> list[Item]:
    return [
        Conversation(
            f"photo-{number:03d}", str(path), str(path), (("what is it?", "a circle"), (f"is it {number}?", "yes"))
        )
        for number, path in enumerate(paths)
    ]


def captions(paths: list[Path]) -> list[Item]:
    return [
        Caption(f"photo-{number:03d}", str(path), str(path), f"a circle {number}") for number, path in enumerate(paths)
    ]


def documents(number: int) -> list[Item]:
    return [
        Document(f"document-{place:03d}", f"made:{place}", f"Text {place}. " * (1 + place % 9))
        for place in range(number)
    ]

"""Training with a single encoder, on ranks: the VQ tokenizer reads, and no rank's number changes what is learned."""

from pathlib import Path
from typing import Any

import pytest
import torch

from janus_dist.model import vq as vq_model
from janus_dist.model.janus import vq_config
from janus_dist.weights.vq import save_vq
from tests import prepared, tiny
from tests.numerics.test_single import CONFIG
from tests.resume.test_trainer import losses, train

READS: dict[str, Any] = {"model": {"reads_by": "vq", "vision": CONFIG.vision.model_dump()}}
SIGLIP: dict[str, Any] = {"model": {"vision": CONFIG.vision.model_dump()}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepared.prepare(folder, model=CONFIG)
    torch.manual_seed(0)
    save_vq(vq_model.build(vq_config(tiny.MODEL)), folder / "vq.safetensors")
    return folder


def test_a_run_reads_by_vq_ids_on_any_number_of_ranks(folder, tmp_path):
    on_two, on_one, siglip = (tmp_path / name for name in ("two", "one", "siglip"))
    train(folder, on_two, workers=2, **READS)
    train(folder, on_one, workers=1, **READS)
    train(folder, siglip, workers=1, **SIGLIP)
    found, alone = losses(on_two), losses(on_one)
    assert list(found) == [1, 2, 3, 4, 5, 6] and found[6][0] < found[1][0]
    for step, values in found.items():
        assert values == pytest.approx(alone[step], rel=2e-3)
    assert losses(siglip)[1] != alone[1], "the images are read otherwise"

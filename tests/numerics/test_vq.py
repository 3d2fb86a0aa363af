"""Ids of the VQ tokenizer against an independent formula in float64: nearest code by squared distance on the sphere."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_dist.model import janus, vq
from tests import tiny

NORMS = (0.1, 10.0)


@pytest.fixture(scope="module")
def tokenizer() -> JanusVQVAE:
    """One with codes of very different lengths: only there do normalised and raw codes choose differently."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = vq.build(janus.vq_config(tiny.MODEL)).eval()
        codes = made.quantize.embedding.weight
        low, high = np.log(NORMS)
        norms = torch.empty(len(codes), 1).uniform_(low, high).exp()
        norms[:2, 0] = torch.tensor(NORMS)
        codes.copy_(torch.nn.functional.normalize(torch.randn_like(codes), dim=-1) * norms)
    return made


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    side = tiny.MODEL.image_size
    return torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.sqrt((vectors**2).sum(axis=-1, keepdims=True))


def distances(latents: NDArray[np.float64], codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared, [latent, code]."""
    return ((latents[:, None] - codes[None]) ** 2).sum(axis=-1)


@torch.no_grad()
def raw(tokenizer: JanusVQVAE, pixels: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latents [image x row x column, code_dim] in row-major order and codes [code, code_dim], neither normalised."""
    grids = tokenizer.quant_conv(tokenizer.encoder(pixels)).double().numpy()
    codes = tokenizer.quantize.embedding.weight.double().numpy()
    latents = [
        grid[:, row, column] for grid in grids for row in range(grid.shape[1]) for column in range(grid.shape[2])
    ]
    return np.stack(latents), codes


def test_ids_are_the_nearest_codes_on_the_unit_sphere(tokenizer, pixels):
    latents, codes = raw(tokenizer, pixels)
    norms = np.sqrt((codes**2).sum(axis=-1))
    assert norms.min() == pytest.approx(NORMS[0]) and norms.max() == pytest.approx(NORMS[1])
    found = distances(unit(latents), unit(codes))
    nearest, second = np.sort(found, axis=-1)[:, :2].T
    assert (second - nearest).min() > 1e-5, "float32 decides no id here by its rounding"
    expected = found.argmin(axis=-1)
    assert vq.encode(tokenizer, pixels).flatten().tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 4
    # what transformers' own encoder does, and what half a normalisation would do, are other ids
    for one, other in ((latents, codes), (unit(latents), codes)):
        assert (distances(one, other).argmin(axis=-1) != expected).mean() > 0.1


@torch.no_grad()
def test_pixels_are_made_of_normalised_codes(tokenizer):
    ids = torch.randint(tiny.MODEL.vq.codes, (2, tiny.MODEL.image_ids), generator=torch.Generator().manual_seed(2))
    side = round(tiny.MODEL.image_ids**0.5)
    codes = tokenizer.quantize.embedding.weight.double().numpy()

    def painted(of: NDArray[np.float64]) -> torch.Tensor:
        grid = torch.from_numpy(of[ids.numpy()]).float().reshape(2, side, side, -1).permute(0, 3, 1, 2)
        return tokenizer.decoder(tokenizer.post_quant_conv(grid)).clamp(-1, 1)

    found = vq.decode(tokenizer, ids)
    assert torch.allclose(found, painted(unit(codes)), atol=1e-5)
    assert (found - painted(codes)).abs().max() > 1e-2

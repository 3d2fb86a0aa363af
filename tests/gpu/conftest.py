"""Tests that need a GPU. They import no Ray, no DeepSpeed but where one says so, and no packages for data, so that they
run on a machine that has torch, transformers, pydantic and pytest only."""

import pytest
import torch


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The GPU; a test that asks for it is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())

"""Which machines compute in bfloat16 natively, by what they say of themselves, and how slow the others are."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from janus_dist.model import native

EPYC_ZEN2 = {"avx", "avx2", "fma", "f16c"}
XEON_SKYLAKE = {"avx2", "avx512f", "avx512bw", "avx512_vnni"}
EPYC_ZEN4 = {"avx2", "avx512f", "avx512_bf16"}
SAPPHIRE_RAPIDS = EPYC_ZEN4 | {"amx_bf16", "amx_tile"}
GRAVITON2, GRAVITON3 = {"asimd", "fphp"}, {"asimd", "bf16", "i8mm"}


@pytest.fixture(autouse=True)
def nothing_remembered():
    native.is_native.cache_clear()
    yield
    native.is_native.cache_clear()


@pytest.mark.parametrize(
    ("flags", "is_native"),
    [(EPYC_ZEN2, False), (XEON_SKYLAKE, False), (EPYC_ZEN4, True), (SAPPHIRE_RAPIDS, True), (GRAVITON2, False),
     (GRAVITON3, True), (set(), False)],
)  # fmt: skip
def test_a_cpu_has_bfloat16_by_its_flags(flags, is_native):
    assert native.cpu_is_native(flags, None) == is_native


@pytest.mark.parametrize(("limit", "is_native"), [("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True)])
def test_a_limit_of_the_library_that_computes_counts(limit, is_native):
    assert native.cpu_is_native(SAPPHIRE_RAPIDS, limit) == is_native


@pytest.mark.parametrize(
    ("said", "is_native"), [("9.0\n9.0\n", True), ("8.0\n7.5\n", False), ("12.0\n", True), ("\n", False)]
)
def test_gpus_have_bfloat16_by_their_compute_capability(monkeypatch, said, is_native):
    monkeypatch.setattr(native.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert native.is_native(gpu=True) == is_native


@pytest.mark.parametrize("failure", [FileNotFoundError("nvidia-smi"), subprocess.CalledProcessError(9, "nvidia-smi")])
def test_without_the_tool_torch_is_asked(monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(native.subprocess, "run", fail)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(8, 6), (9, 0)][index])
    assert native.gpu_capabilities() == [(8, 6), (9, 0)]


def test_the_slowdown_is_a_ratio_of_seconds_a_product(monkeypatch):
    now = [0.0]

    def product(left, right):
        now[0] += 0.08 if left.dtype == torch.bfloat16 else 0.01

    monkeypatch.setattr(torch, "mm", product)
    assert native.emulation_slowdown(clock=lambda: now[0]) == pytest.approx(8.0)
    assert native.slow_line(8.04, "take float32") == (
        "this CPU emulates bfloat16: a matrix product takes 8.0 times as long as in float32; take float32"
    )


@pytest.mark.parametrize("is_native", [True, False])
def test_matrix_products_of_small_trainings_are_in_bfloat16_where_it_is_native(monkeypatch, is_native):
    monkeypatch.setattr(native, "is_native", lambda gpu: is_native)
    with native.autocast("cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if is_native else torch.float32)

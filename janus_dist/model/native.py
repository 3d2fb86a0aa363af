"""Whether this machine computes in bfloat16 natively, and how much slower it is where the machine emulates it.

The rule (`is_native`): a GPU of compute capability 8.0 or more (NVIDIA Ampere); a CPU with AVX512-BF16, AMX-BF16 or
arm64's BF16 instructions. Elsewhere a matrix product in bfloat16 takes 5 to 10 times as long as in float32.
Nothing here imports torch before it is needed, because a process on every node of a cluster is asked.
"""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from janus_dist.config.train import Dtype

MIN_CAPABILITY = (8, 0)
"""Compute capability of the first NVIDIA GPUs with bfloat16 (A100)."""
X86_FLAGS = {"avx512_bf16", "amx_bf16"}
ARM_FLAGS = {"bf16", "svebf16"}
ONEDNN_LIMITS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA, which limits the library that computes, that exclude bfloat16 instructions."""
NVIDIA_SMI_TIMEOUT_S = 60.0
MEASURED_SIDE = 384
"""Rows and columns of the matrices that are multiplied to compare speeds."""
MEASURED_S = 0.5
"""Seconds for each of the two dtypes."""


@cache
def is_native(gpu: bool) -> bool:
    """Return whether the GPUs of this machine, or its CPU, compute in bfloat16 natively."""
    if gpu:
        capabilities = gpu_capabilities()
        return bool(capabilities) and min(capabilities) >= MIN_CAPABILITY
    return cpu_is_native(_cpu_flags(), os.environ.get("ONEDNN_MAX_CPU_ISA"))


def best_dtype(gpu: bool) -> Dtype:
    """Return the fastest dtype of this machine's GPUs, or its CPU, that training takes: bfloat16 where it is native."""
    return "bfloat16" if is_native(gpu) else "float32"


def cpu_is_native(flags: set[str], onednn_limit: str | None) -> bool:
    """Return whether a CPU with these flags (names of /proc/cpuinfo) has instructions for bfloat16 that may be used."""
    if onednn_limit is not None and onednn_limit.upper() in ONEDNN_LIMITS:
        return False
    return bool(flags & (X86_FLAGS | ARM_FLAGS))


def gpu_capabilities() -> list[tuple[int, int]]:
    """Return the compute capability of each GPU of this machine, also of those that this process may not use."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True)
        return [parse_capability(line) for line in done.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):  # a container without the tool, or a very old driver
        import torch  # here: it takes seconds, and nearly every machine with a GPU has the tool

        return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]


def parse_capability(text: str) -> tuple[int, int]:
    """Return (major, minor) of a compute capability such as `9.0`; ValueError when the text has another form."""
    major, _, minor = text.strip().partition(".")
    return int(major), int(minor)


def autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which matrix products on a device (cpu or cuda) are in bfloat16 where that is native, else in
    float32."""
    import torch  # here: see the first lines of this file

    return torch.autocast(device, torch.bfloat16, enabled=is_native(gpu=device == "cuda"))


def emulation_slowdown(clock: Callable[[], float] = time.perf_counter) -> float:
    """Measure for about a second how many times as long this CPU takes for a matrix product in bfloat16 as in float32.

    Uses the torch threads that are set. Below 1 where bfloat16 is faster.
    """
    import torch  # here: see the first lines of this file

    def seconds_per_product(dtype: torch.dtype) -> float:
        left, right = (torch.ones(MEASURED_SIDE, MEASURED_SIDE, dtype=dtype) for _ in range(2))
        torch.mm(left, right)  # the first product of a dtype prepares the library
        began, products = clock(), 0
        while products == 0 or clock() - began < MEASURED_S:
            torch.mm(left, right)
            products += 1
        return (clock() - began) / products

    return seconds_per_product(torch.bfloat16) / seconds_per_product(torch.float32)


def slow_line(slowdown: float, remedy: str) -> str:
    """Return the line that says how slow emulated bfloat16 is here; `remedy`: what would be faster."""
    return f"this CPU emulates bfloat16: a matrix product takes {slowdown:.1f} times as long as in float32; {remedy}"


def _cpu_flags() -> set[str]:
    """Return the CPU's instruction set extensions by the names of Linux; on macOS those that matter here."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()}
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        command = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return {"bf16"} if done.stdout.strip() == "1" else set()
    return set()

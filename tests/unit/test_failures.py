"""Texts of Ray, NCCL, gloo and CUDA, as they were printed."""

import pytest

from janus_dist import failures


@pytest.mark.parametrize("text", [
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:60060. This is "
    "typically caused by a peer process that exited or crashed.",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"
    " to complete",
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3384, remote process exited or there was "
    "a network error, NCCL version 2.27.5",
    "The client socket has timed out after 60000ms while trying to connect to (127.0.0.1, 29500).",
    "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but "
    "store->get('0') got error: Connection reset by peer",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: hardware stack error",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "CUDA error: uncorrectable NVLink error detected during the execution",
])  # fmt: skip
def test_texts_of_lost_ranks_and_broken_devices(text):
    assert failures.is_communication_or_device(text)


@pytest.mark.parametrize("text", [
    "CUDA error: device-side assert triggered",
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "CUDA error: an illegal memory access was encountered",
    "",
])  # fmt: skip
def test_texts_of_mistakes(text):
    assert not failures.is_communication_or_device(text)


def test_foreign_errors_on_one_line():
    assert failures.one_line(OSError("two\n  lines")) == "two lines"
    assert failures.one_line(OSError()) == "OSError" and len(failures.one_line(OSError("x" * 999))) == 300
    assert failures.named_line(OSError("two\n  lines")) == "OSError: two lines"
    assert failures.named_line(OSError()) == "OSError" and len(failures.named_line(OSError("x" * 999))) == 400


def test_what_ray_adds_is_left_out():
    error = RuntimeError("A worker health check failed.\nWorker info: Worker(\n  actor=Actor(RayTrainWorker, 1f),\n)")
    line = failures.without_worker_info(failures.named_line(error))
    assert line == "RuntimeError: A worker health check failed."
    log = (
        "2026-01-02 03:04:05,678\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        "Running entrypoint for job raysubmit_1: python jobs/stage2.py\nstep 1\n"
    )
    assert failures.without_ray_preamble(log) == "step 1\n"


def test_a_type_is_known_by_its_name_and_those_above_it():
    assert failures.has_type(FileNotFoundError(), "OSError") and not failures.has_type(OSError(), "FileNotFoundError")

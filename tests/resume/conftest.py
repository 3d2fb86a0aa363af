"""Shards and a tokenizer to train on, made once for the tests of a file; a file that needs others has its own."""

from pathlib import Path

import pytest

from tests import prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepared.prepare(folder)
    return folder

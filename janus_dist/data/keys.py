"""Keys of stored samples, which only the tar files hold.

Invariant: keys are in the order of the samples, so the index of a sample is the index of its key.
"""

import json
import tarfile
from typing import BinaryIO

from janus_dist.config.streams import SPECS, Stream
from janus_dist.data.manifest import Manifest
from janus_dist.errors import DataError
from janus_dist.storage import fs

TOKENS = ".tokens"
"""Ending of the member that holds the token ids of an understanding sample."""


def keys_in_tar(file: BinaryIO, stream: Stream) -> list[str]:
    """Return the keys of a shard's samples, in their order; only headers and names are read.

    Raises ValueError when the file is not a shard.
    """
    keys: list[str] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if SPECS[stream].has_own_tar_members and member.name.endswith(TOKENS):
                    keys.append(member.name.removesuffix(TOKENS))
                elif not SPECS[stream].has_own_tar_members and member.name.endswith(".json"):
                    content = tar.extractfile(member)
                    keys += json.loads(content.read())["keys"] if content else []
    except (tarfile.TarError, KeyError, TypeError) as error:
        raise ValueError(f"not a shard of the {stream} stream: {error}") from error
    return keys


def shard_keys(folder: str, manifest: Manifest, shard: int) -> list[str]:
    """Return the keys of a shard's samples, in their order; raise DataError when the tar cannot be read."""
    path = f"{folder}/{manifest.shards[shard].name}.tar"
    try:
        with fs.open_binary(path) as file:
            return keys_in_tar(file, manifest.stream)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", see_lint(folder)) from error


def see_lint(folder: str) -> str:
    """Return the hint for a shard set that cannot be read."""
    return f"`janus data lint {folder}` lists what is wrong"

"""The files that a shard set was made with, its tokenizer and its VQ weights: given by a user or embedded in a recipe.

Invariant: what is returned has the digest that the manifest names; ids never meet a tokenizer that did not make them.
"""

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from janus_dist.config.shipped import RECIPES
from janus_dist.data.manifest import Manifest
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.errors import DataError

CODEBOOK = "quantize.embedding.weight"
SHOWN_DIGITS = 12


def find_tokenizer(manifest: Manifest, given: Path | None) -> Tokenizer | None:
    """Return the tokenizer that a shard set was made with: the given one, or an embedded recipe's, or None.

    Raises DataError when the given one is another.
    """
    if given is None:
        path = _embedded("tokenizer.json", manifest.tokenizer_sha256)
        return None if path is None else Tokenizer.load(path)
    tokenizer = Tokenizer.load(given)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise DataError(
            f"{given} has sha256 {tokenizer.sha256[:SHOWN_DIGITS]}, the {manifest.stream} shards were made with "
            f"{manifest.tokenizer_sha256[:SHOWN_DIGITS]}",
            "its ids mean other text; give the tokenizer.json that the shards were made with",
        )
    return tokenizer


def need_tokenizer(manifest: Manifest, given: Path | None) -> Tokenizer:
    """Return the tokenizer that a shard set was made with. Raises DataError when it is unknown."""
    tokenizer = find_tokenizer(manifest, given)
    if tokenizer is None:
        raise DataError(
            f"the tokenizer of the {manifest.stream} shards, sha256 {manifest.tokenizer_sha256[:SHOWN_DIGITS]}, is "
            "not among the embedded ones",
            "give it with --tokenizer PATH/tokenizer.json",
        )
    return tokenizer


def find_codes(manifest: Manifest, given: Path | None) -> int | None:
    """Return the number of codes of a shard set's VQ tokenizer, by the given weights or those of an embedded recipe.

    None when the shards hold no VQ ids or no such weights are known. Raises DataError when the given weights are
    others.
    """
    if manifest.vq_sha256 is None:
        return None
    path = given or _embedded("vq.safetensors", manifest.vq_sha256)
    if path is None:
        return None
    check_vq(manifest, path)
    try:
        with safe_open(path, framework="numpy") as file:
            return int(file.get_slice(CODEBOOK).get_shape()[0])
    except SafetensorError as error:
        raise DataError(f"{path} is not a safetensors file with VQ weights: {error}") from error


def check_vq(manifest: Manifest, path: Path) -> None:
    """Raise DataError when a shard set holds VQ ids that other weights than these made."""
    if manifest.vq_sha256 is None:
        return
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if found != manifest.vq_sha256:
        raise DataError(
            f"{path} has sha256 {found[:SHOWN_DIGITS]}, the {manifest.stream} shards were made with VQ weights "
            f"{manifest.vq_sha256[:SHOWN_DIGITS]}",
            "its codes mean other pixels; give the weights that the shards were made with",
        )


def _embedded(name: str, sha256: str) -> Path | None:
    paths = sorted(RECIPES.glob(f"*/{name}"))
    return next((path for path in paths if hashlib.sha256(path.read_bytes()).hexdigest() == sha256), None)

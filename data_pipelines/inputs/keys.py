"""Keys of records: unique in their input, and safe as names of members of a tar.

Invariant: a key is made of letters, digits, `_`, `-`, `%` and `/` between them, in at most 80 bytes; two texts of which
neither had to be shortened never have the same key.
"""

import hashlib
import re
from urllib.parse import quote

LONGEST_KEY = 80
"""Bytes: with the longest ending of ours it fits into the 100 of a tar's header."""
OUTER_SLASH = re.compile("(?<![^/])/|/(?![^/])")
"""A slash that does not stand between two names."""


def safe_key(text: str) -> str:
    """A text as a key: letters, digits, `_`, `-` and `/` between names stay, all else is written as %XX.

    So is the dot, at which plain webdataset ends a key. What is too long ends in a hash of all of it.
    """
    return _shortened(_percent(text))


def record_key(stem: str, own: str) -> str:
    """The key of a record by the file that it is in and the name that it has there."""
    return _shortened(f"{_percent(stem)}/{_percent(own).replace('/', '%2F')}")


def drawn(key: str) -> float:
    """A number from 0 to 1, below 1, as if drawn at random, that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:6], "big") / 2**48


def _percent(text: str) -> str:
    encoded = quote(text.encode(errors="surrogatepass"), safe="/").replace(".", "%2E").replace("~", "%7E")
    return OUTER_SLASH.sub("%2F", encoded) or "%"  # which no other text becomes


def _shortened(encoded: str) -> str:
    if len(encoded) <= LONGEST_KEY:
        return encoded
    return f"{encoded[: LONGEST_KEY - 17]}-{hashlib.sha256(encoded.encode()).hexdigest()[:16]}"

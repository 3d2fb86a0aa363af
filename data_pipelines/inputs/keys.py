"""Keys of records: unique in their input, and safe as names of members of a tar.

Invariant: a key consists of letters, digits, `_`, `-`, `%` and `/` between them, in at most 80 bytes; two
different texts that were not shortened never have the same key.
"""

import hashlib
import re
from urllib.parse import quote

LONGEST_KEY = 80
"""Most bytes of a key: with our longest ending it fits into the 100 bytes of a tar's header."""
OUTER_SLASH = re.compile("(?<![^/])/|/(?![^/])")
"""A slash that is not between two names."""


def safe_key(text: str) -> str:
    """Return a text as a key: letters, digits, `_`, `-` and `/` between names are kept, others are written as %XX.

    The dot is written so, too, since plain webdataset ends a key at it. A text that is too long ends in its hash.
    """
    return _shortened(_percent(text))


def record_key(stem: str, own: str) -> str:
    """Return the key of a record by its file and its name in the file."""
    return _shortened(f"{_percent(stem)}/{_percent(own).replace('/', '%2F')}")


def drawn(key: str) -> float:
    """Return a pseudo-random number, at least 0 and below 1, that depends only on the key."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:6], "big") / 2**48


def _percent(text: str) -> str:
    encoded = quote(text.encode(errors="surrogatepass"), safe="/").replace(".", "%2E").replace("~", "%7E")
    return OUTER_SLASH.sub("%2F", encoded) or "%"  # which no other text becomes


def _shortened(encoded: str) -> str:
    if len(encoded) <= LONGEST_KEY:
        return encoded
    return f"{encoded[: LONGEST_KEY - 17]}-{hashlib.sha256(encoded.encode()).hexdigest()[:16]}"

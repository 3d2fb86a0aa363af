"""Which records a recipe keeps: rules on their columns and on what is measured of their pictures and captions.

Invariant: a rule looks at one value; a record that has no such value is dropped, and is never bad.
"""

import math
from collections.abc import Mapping
from typing import Any

from data_pipelines.record import Dropped, Record
from janus_dist.config.pipeline import Keep
from janus_dist.data import images

MEASURED = ("width", "height", "aspect")
"""Of every picture; `aspect` is the long side over the short one."""
CAPTION_CHARS = "caption_chars"

Facts = tuple[tuple[str, float], ...]


def check_columns(where: Mapping[str, Keep], record: Record) -> None:
    """Dropped when a column or the caption's length is not as `where` says."""
    for name, keep in where.items():
        if name == CAPTION_CHARS:
            check(name, keep, len(record.caption.strip()))
        elif name not in MEASURED:
            check(name, keep, record.columns.get(name))


def check_picture(where: Mapping[str, Keep], encoded: bytes) -> Facts:
    """Width, height and aspect of an encoded picture; Dropped when they are not as `where` says, DataError when it has
    no header."""
    width, height = images.upright_size(encoded)
    facts = (("width", width), ("height", height), ("aspect", max(width, height) / max(1, min(width, height))))
    for name, value in facts:
        if name in where:
            check(name, where[name], value)
    return facts


def check(name: str, keep: Keep, value: Any) -> None:
    """Dropped when a value does not keep to a rule. Text that is a number counts as one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Dropped(f"{name} is missing", "")
    if keep.one_of and value not in keep.one_of:
        raise Dropped(f"{name} is one of {', '.join(map(str, keep.one_of))}", str(value))
    if keep.min is None and keep.max is None:
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Dropped(f"{name} is a number", str(value)) from None
    if keep.min is not None and not number >= keep.min:
        raise Dropped(f"{name} >= {keep.min:g}", f"{number:g}")
    if keep.max is not None and not number <= keep.max:
        raise Dropped(f"{name} <= {keep.max:g}", f"{number:g}")

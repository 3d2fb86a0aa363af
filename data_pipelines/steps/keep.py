"""Rules of a recipe on values of records (`pipeline.inputs.NAME.where`).

Invariant: a record without the value that a rule needs is dropped, never kept.
"""

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.record import DroppedByRule
from janus_dist.config.pipeline import KeepRule
from janus_dist.config.streams import SPECS, Stream
from janus_dist.data import images

OF_PICTURES = ("width", "height", "aspect")
CAPTION_CHARS = "caption_chars"
TEXT_CHARS = "text_chars"
COMPUTED: Mapping[Stream, tuple[str, ...]] = {
    name: (*OF_PICTURES, CAPTION_CHARS) if spec.has_images else (TEXT_CHARS,) for name, spec in SPECS.items()
}
"""Values that a stream's step computes; rules on other names are on columns of the input."""
TRUE_WORDS = ("true", "yes", "on")
FALSE_WORDS = ("false", "no", "off")
"""Texts that are truth values, as in YAML 1.1."""
SHOWN = 100
"""Characters of a value that a message shows."""

Rules = Mapping[str, KeepRule]


def split(where: Rules) -> tuple[Rules, Rules]:
    """Return the rules on a record's values, and those on the measures of each of its pictures."""
    return (
        {name: rule for name, rule in where.items() if name not in OF_PICTURES},
        {name: rule for name, rule in where.items() if name in OF_PICTURES},
    )


def check(rules: Rules, values: Mapping[str, Any]) -> None:
    """Raise DroppedByRule for the first rule that the values break, also by an absent or a non-numeric value."""
    for name, rule in rules.items():
        _check(name, rule, values.get(name))


def measures(picture: Image.Image) -> dict[str, float]:
    """Return `width` and `height` in pixels and `aspect` of an image of which only the header has been read."""
    width, height = images.size(picture)
    return {"width": width, "height": height, "aspect": max(width, height) / min(width, height)}


def is_missing(value: Any) -> bool:
    """Return whether a value counts as absent: null, an empty text or NaN, as in CSV and Parquet by pandas."""
    return value is None or _text(value).lower() in ("", "nan", "nat")


def _check(name: str, rule: KeepRule, value: Any) -> None:
    """Raise DroppedByRule when a value breaks a rule."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_missing(value):
        raise DroppedByRule(f"{name} is missing", "")
    shown = _formatted(value)
    for bound, sign in ((rule.min, ">="), (rule.max, "<=")):
        if bound is None:
            continue
        converted = _date(value) if isinstance(bound, datetime) else _number(value)
        if converted is None:
            raise DroppedByRule(f"{name} is no {'date' if isinstance(bound, datetime) else 'number'}", shown)
        if not (converted >= bound if sign == ">=" else converted <= bound):  # pyright: ignore[reportOperatorIssue]
            raise DroppedByRule(f"{name} {sign} {_formatted(bound)}", shown)
    if rule.one_of and not any(_equals(value, choice) for choice in rule.one_of):
        raise DroppedByRule(f"{name} is one of {', '.join(map(_formatted, rule.one_of))}", shown)


def _equals(value: Any, choice: str | float | bool) -> bool:
    """Return whether a value equals one of the recipe, also if its file stores it as text or as another type."""
    if isinstance(choice, bool):
        return _text(value).lower() in (TRUE_WORDS if choice else FALSE_WORDS)
    if isinstance(value, bool):
        return _text(value).lower() == _text(choice).lower()
    if isinstance(choice, str):
        return choice in (_text(value), _formatted(value)) or (
            isinstance(value, date) and _date(choice) == _date(value)
        )
    return _number(value) == choice


def _number(value: Any) -> float | None:
    """Return a number, or a text that holds one, as a float; None for anything else, NaN included."""
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return None if math.isnan(number) else number


def _date(value: Any) -> datetime | None:
    """Return a date, a time stamp or an ISO 8601 text as a time stamp, in UTC by default; None for anything else."""
    try:
        moment = datetime.fromisoformat(value.isoformat() if isinstance(value, date) else _text(value))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(value: Any) -> str:
    return str(value).strip()


def _formatted(value: Any) -> str:
    """Return a value as people write it: 256 instead of 256.0, and a day without its midnight."""
    if isinstance(value, datetime):
        return value.isoformat().removesuffix("+00:00").removesuffix("T00:00:00")
    if isinstance(value, float):
        value = int(value) if value.is_integer() else f"{value:.6g}"
    return _text(value)[:SHOWN]

"""Rules of a recipe on values of records (`pipeline.inputs.NAME.where`).

Invariant: a record without the value that a rule asks for is dropped, never kept.
"""

import math
from collections.abc import Mapping
from typing import Any

from PIL import Image

from data_pipelines.record import Dropped
from janus_dist.config.pipeline import Keep
from janus_dist.data import images

OF_PICTURES = ("width", "height", "aspect")
CAPTION_CHARS = "caption_chars"
SHOWN = 100
"""Characters of a value."""

Rules = Mapping[str, Keep]


def split(where: Rules) -> tuple[Rules, Rules]:
    """Rules on a record's values, and on the measures of each of its pictures."""
    return (
        {name: rule for name, rule in where.items() if name not in OF_PICTURES},
        {name: rule for name, rule in where.items() if name in OF_PICTURES},
    )


def check(rules: Rules, values: Mapping[str, Any]) -> None:
    """Dropped with the first rule that the values break, or for which there is no value or no number."""
    for name, rule in rules.items():
        _check(name, rule, values.get(name))


def measures(picture: Image.Image) -> dict[str, float]:
    """`width`, `height` and `aspect` of an image of which only the header is read."""
    width, height = images.size(picture)
    return {"width": width, "height": height, "aspect": max(width, height) / min(width, height)}


def _check(name: str, rule: Keep, value: Any) -> None:
    if value is None or _text(value).lower() in ("", "nan"):  # CSV and Parquet written by pandas
        raise Dropped(f"{name} is missing", "")
    shown = _shown(value)
    if rule.min is not None or rule.max is not None:
        number = _number(value)
        if number is None or math.isnan(number):
            raise Dropped(f"{name} is no number", shown)
        if rule.min is not None and not number >= rule.min:
            raise Dropped(f"{name} >= {_shown(rule.min)}", shown)
        if rule.max is not None and not number <= rule.max:
            raise Dropped(f"{name} <= {_shown(rule.max)}", shown)
    if rule.one_of and not any(_same(value, choice) for choice in rule.one_of):
        raise Dropped(f"{name} is one of {', '.join(map(_shown, rule.one_of))}", shown)


def _same(value: Any, choice: str | float | bool) -> bool:
    """Whether a value is what the recipe says, also where its file holds it as text."""
    if isinstance(choice, bool) or isinstance(value, bool):
        return _text(value).lower() == _text(choice).lower()
    if isinstance(choice, str):
        return _text(value) == choice
    return _number(value) == choice


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):
        return None


def _text(value: Any) -> str:
    return str(value).strip()


def _shown(value: Any) -> str:
    """A value as people write it: 256, not 256.0."""
    if isinstance(value, float):
        value = int(value) if value.is_integer() else f"{value:.6g}"
    return _text(value)[:SHOWN]

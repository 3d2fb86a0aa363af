"""Following a hint: the error that an action ends with, and what its text names."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from janus_dist.errors import JanusError


def refused(action: Callable[..., Any], *arguments: Any, **values: Any) -> JanusError:
    """Return the error that an action ends with."""
    with pytest.raises(JanusError) as caught:
        action(*arguments, **values)
    return caught.value


def hint_of(action: Callable[..., Any], *arguments: Any, **values: Any) -> str:
    """Return the hint of the error that an action ends with."""
    hint = refused(action, *arguments, **values).hint
    assert hint
    return hint


def found(pattern: str, text: str) -> re.Match[str]:
    """Return the match of a pattern that a text must have."""
    match = re.search(pattern, text)
    assert match is not None, text
    return match

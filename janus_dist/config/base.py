"""The base of every settings class: frozen, unknown keys refused, docstrings under the fields are their help.

Invariant: nothing in `janus_dist.config` imports torch or ray, so that a recipe can be checked anywhere in a moment.
"""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all settings classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def refuse(faults: Iterable[str]) -> None:
    """Raise all faults that a validator found in one ValueError, one a line; the loader shows each on its own."""
    text = "\n".join(faults)
    if text:
        raise ValueError(text)

"""The base of every settings class: frozen, unknown keys refused, docstrings under the fields are their help.

Invariant: nothing in `janus_dist.config` imports torch or ray, so that a recipe can be checked anywhere in a moment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all settings classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


FaultKind = Literal["missing", "unknown", "type", "value", "rule", "text"]
"""Kinds of faults: a required setting is absent; a key does not exist; a section or value has another type; a value is
not allowed; settings do not fit together; the YAML text or an override cannot be read."""


@dataclass(frozen=True)
class Fault:
    """One thing that a validator found wrong."""

    paths: tuple[str, ...]
    """Dotted paths of the settings that the rule is about, relative to the section that the validator belongs to; where
    to look is decided by them and never by the message."""
    message: str
    kind: FaultKind = "rule"


class SettingFaults(ValueError):
    """All faults that a validator found, as pydantic hands them on in the context of its error."""

    def __init__(self, faults: Sequence[Fault]):
        super().__init__("\n".join(fault.message for fault in faults))
        self.faults = tuple(faults)


def refuse(faults: Iterable[Fault]) -> None:
    """Raise all faults that a validator found as one SettingFaults; the loader shows each on its own."""
    found = list(faults)
    if found:
        raise SettingFaults(found)

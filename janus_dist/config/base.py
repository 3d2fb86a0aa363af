"""Base of every settings class: frozen, refuses unknown keys, uses the docstrings of its fields as help texts.

Invariant: `janus_dist.config` does not import torch or ray, so that a recipe can be checked quickly on any machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all settings classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


FaultKind = Literal["missing", "unknown", "type", "value", "rule", "text"]
"""Kinds of faults: a required setting is absent; a key does not exist; a section or value has the wrong type; a value
is not allowed; settings contradict each other; the YAML text or an override cannot be read."""


@dataclass(frozen=True)
class SettingFault:
    """One fault that a validator found."""

    paths: tuple[str, ...]
    """Dotted paths of the settings that the rule involves, relative to the section of the validator; they alone, never
    the message, decide which file and line the user is pointed to."""
    message: str
    kind: FaultKind = "rule"


class InvalidSettings(ValueError):
    """All faults that a validator found; pydantic passes them on in the context of its own error."""

    def __init__(self, faults: Sequence[SettingFault]):
        super().__init__("\n".join(fault.message for fault in faults))
        self.faults = tuple(faults)


def refuse(faults: Iterable[SettingFault]) -> None:
    """Raise one InvalidSettings with all faults, if there are any; the loader shows each fault separately."""
    collected = list(faults)
    if collected:
        raise InvalidSettings(collected)

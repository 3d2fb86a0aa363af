"""Comparison of committed shard sets with the settings of a recipe.

Invariant: a shard set that was made with other settings is neither replaced nor trained on unless the user says so.
"""

import json
from collections.abc import Iterator
from typing import Any

from data_pipelines.job import InputWork
from janus_dist.config import diff
from janus_dist.config.data import ChatConfig
from janus_dist.config.pipeline import InputConfig
from janus_dist.data.manifest import Manifest
from janus_dist.errors import ConfigError

WHERE = ("input.path", "input.images", "input.class_names")
"""Settings that name locations of files, which may have been moved since."""
WITHOUT_EFFECT = ("pipeline_version", "input.stream")
"""The version of the program, which a user does not set, and the input's stream, which is compared separately."""
PIPELINE = ("shard_samples", "text_document_tokens", "jpeg_quality", "max_image_pixels")


def refuse_other_settings(work: InputWork, manifest: Manifest, settings: dict[str, Any]) -> list[str]:
    """Return the differences between the settings of an input's shards and the recipe's `settings` that do not change
    the samples: the locations of files and the version of the program.

    Raises ConfigError when another setting differs.
    """
    new_settings = json.loads(json.dumps(settings))
    changes = list(differences(manifest.settings, new_settings))
    conflicts = [_described(work, name, old, new) for name, old, new in changes if not _is_mild(name, old, new)]
    if conflicts:
        raise ConfigError(
            f"{work.name}: the shards in {work.folder} were made with other settings than the recipe's: "
            f"{', '.join(conflicts)}",
            "undo the change, or set another data.root; to make these shards again: "
            "python jobs/prepare.py RECIPE.yaml ... --replace",
        )
    return [_described(work, name, old, new) for name, old, new in changes]


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name with dots, old value, new value) of settings that differ.

    A setting that only one side has, because it was written by another version of the program, counts as its default;
    without a default it is not compared.
    """
    defaults = {
        "input": {
            name: field.get_default(call_default_factory=True)
            for name, field in InputConfig.model_fields.items()
            if not field.is_required()
        },
        "chat": ChatConfig().model_dump(mode="json"),
    }
    defaults = json.loads(json.dumps(defaults))
    sides: list[dict[str, Any]] = []
    for side, other in ((old, new), (new, old)):
        known = {name: value for name, value in side.items() if name in other}
        for section, values in defaults.items():
            if isinstance(known.get(section), dict):
                known[section] = values | known[section]
        sides.append(known)
    for name, before, after in sorted(diff.changes(*sides), key=lambda change: change[0]):
        if _none_if_empty(before) != _none_if_empty(after):
            yield name, before, after


def _is_mild(name: str, old: Any, new: Any) -> bool:
    """Return whether a difference does not change the samples."""
    if name in WITHOUT_EFFECT:
        return True
    return name in WHERE and None not in (old, new) and _path_count(old) == _path_count(new)


def _none_if_empty(value: Any) -> Any:
    return None if value in ([], {}) else value


def _path_count(paths: Any) -> int:
    return len(paths) if isinstance(paths, list) else 1


def _described(work: InputWork, name: str, old: Any, new: Any) -> str:
    section, _, rest = name.partition(".")
    if section == "input":
        name = f"pipeline.inputs.{work.name}.{rest}"
    elif section in PIPELINE:
        name = f"pipeline.{name}"
    return f"{name}={_shown_value(new)} (the shards: {_shown_value(old)})"


def _shown_value(value: Any) -> str:
    return "none" if value is None else json.dumps(value)[:200]

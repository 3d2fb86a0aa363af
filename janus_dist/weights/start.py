"""The weights of others that a run starts from: a whole Janus, or a language model and a vision tower.

Invariant: what is opened has every tensor, of the size and the make that the recipe's `model` asks for; if not,
CheckpointError says all that differs. Only what a rank asks for is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from janus_dist.config.model import ModelConfig
from janus_dist.config.train import Part
from janus_dist.errors import CheckpointError, ConfigError
from janus_dist.model.janus import parameter_shapes
from janus_dist.model.parts import PREFIXES, part_of
from janus_dist.weights.folders import Folder
from janus_dist.weights.layouts import EMBEDDING, HEAD, Layout, Shape, TensorLocation, closest, places

STARTS: dict[str, tuple[Part, ...]] = {
    "janus": tuple(PREFIXES),
    "language_model": ("language_model", "text_head"),
    "vision_tower": ("vision_tower",),
}
"""Kinds of start weights and the parts that each provides."""
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "janus": ("transformers", "deepseek"),
    "language_model": ("llama", "transformers", "deepseek"),
    "vision_tower": ("siglip", "transformers", "deepseek"),
}
SHOWN_TENSORS = 3
"""Number of tensors named in a message about a different model."""
SETTING = "run.start_weights"

_TEXT = (
    ("text.vocab", "vocab_size"),
    ("text.hidden", "hidden_size"),
    ("text.layers", "num_hidden_layers"),
    ("text.heads", "num_attention_heads"),
    ("text.mlp", "intermediate_size"),
    ("text.norm_eps", "rms_norm_eps"),
    ("text.rope_theta", "rope_theta"),
    ("text.rope_theta", "rope_parameters.rope_theta"),
)
_VISION = (
    ("image_size", "image_size"),
    ("vision.patch", "patch_size"),
    ("vision.hidden", "hidden_size"),
    ("vision.layers", "num_hidden_layers"),
    ("vision.heads", "num_attention_heads"),
    ("vision.mlp", "intermediate_size"),
)
_TEXT_AT: dict[Layout, str] = {"llama": "", "transformers": "text_config.", "deepseek": "language_config."}
_CONFIG: dict[Layout, tuple[tuple[str, str], ...]] = {
    "llama": _TEXT,
    "siglip": (*_VISION, *((setting, f"vision_config.{key}") for setting, key in _VISION)),
    "transformers": (
        *((setting, f"text_config.{key}") for setting, key in _TEXT),
        *((setting, f"vision_config.{key}") for setting, key in _VISION),
        ("vq.codes", "vq_config.num_embeddings"),
        ("vq.code_dim", "vq_config.embed_dim"),
    ),
    "deepseek": (
        *((setting, f"language_config.{key}") for setting, key in _TEXT),
        *((setting, f"vision_config.params.{key}") for setting, key in _VISION),
        ("vq.codes", "gen_vision_config.params.image_token_size"),
        ("vq.code_dim", "gen_vision_config.params.n_embed"),
    ),
}
"""Settings of `model` and where each layout's config.json says them; a file need not say all."""


@dataclass(frozen=True)
class StoredParameter:
    """One parameter in the files of others."""

    folder: Folder
    place: TensorLocation
    shape: Shape
    """The parameter's shape in our model."""
    elements: int
    """Elements that are there: all, or fewer when the vocabulary has fewer rows; the rest keeps its random values."""

    @property
    def dtype(self) -> torch.dtype:
        found = self.folder.entries[self.place.name].dtype
        assert found is not None
        return found

    def read(self, first: int, last: int) -> Tensor:
        """Return the elements [first, last) of the flattened parameter, in the stored type; fewer where `elements`
        ends, as in a slice of a list."""
        first, last = min(first, self.elements), min(last, self.elements)
        return self.folder.read(self.place.name, self.place.offset + first, self.place.offset + last)


def open_weights(config: ModelConfig, start: Mapping[Any, str]) -> dict[str, StoredParameter]:
    """Return the parameters that `start` gives, by name: `{janus: DIR}`, or any of `{language_model: DIR, vision_tower:
    DIR}`.

    A parameter that is not in the result keeps its random values. Raises ConfigError when `start` names something else,
    CheckpointError when a folder is absent, damaged or of another model.
    """
    unknown = sorted(set(start) - set(STARTS))
    if unknown or ("janus" in start and len(start) > 1):
        raise ConfigError(
            f"{SETTING} names {', '.join(unknown or start)}",
            "it takes janus alone, or any of language_model and vision_tower",
        )
    shapes = parameter_shapes(config)
    found: dict[str, StoredParameter] = {}
    for what, path in start.items():
        wanted = {name: shape for name, shape in shapes.items() if part_of(name) in STARTS[what]}
        found |= _open(config, what, path, wanted)
    return found


@torch.no_grad()
def load_start(model: nn.Module, config: ModelConfig, start: Mapping[Any, str]) -> None:
    """Copy what `start` gives into a model in one process; errors as of `open_weights`."""
    parameters = dict(model.named_parameters())
    for name, stored in open_weights(config, start).items():
        parameters[name].view(-1)[: stored.elements].copy_(stored.read(0, stored.elements))


def _open(config: ModelConfig, what: str, path: str, wanted: Mapping[str, Shape]) -> dict[str, StoredParameter]:
    """Return the parameters `wanted` of one folder. Raises CheckpointError when it has another layout or model."""
    folder = Folder.open(path, f"{SETTING}.{what}")
    layout = _layout_of(folder, what, path, wanted)
    at = _place_parameters(folder, layout, wanted)
    # A Janus has its special tokens in its vocabulary; a language model may have to be given more rows for them.
    growing = {at[EMBEDDING].name, at[HEAD].name} if what == "language_model" else set[str]()
    _refuse_other_model(config, what, path, folder, layout, folder.differences(at.values(), growing))
    entries = folder.entries
    return {
        name: StoredParameter(
            folder, place, wanted[name], _elements(wanted[name], entries[place.name].elements - place.offset)
        )
        for name, place in at.items()
    }


def _layout_of(folder: Folder, what: str, path: str, wanted: Mapping[str, Shape]) -> Layout:
    """Return the layout whose names fit a folder best. Raises CheckpointError when none fits."""
    layout = closest(LAYOUTS[what], wanted, folder.entries)
    if layout is None:
        raise CheckpointError(
            f"{SETTING}.{what}={path} holds no {what} of a known layout ({', '.join(LAYOUTS[what])}); its first tensor "
            f"is {min(folder.entries, default='absent')}"
        )
    return layout


def _place_parameters(folder: Folder, layout: Layout, wanted: Mapping[str, Shape]) -> dict[str, TensorLocation]:
    """Return where each parameter is in a folder; a text head that is absent and tied is where the embedding is."""
    at = places(layout, wanted)
    if HEAD in at and at[HEAD].name not in folder.entries and _may_be_tied(folder, layout):
        at[HEAD] = at[EMBEDDING]
    return at


def _refuse_other_model(
    config: ModelConfig, what: str, path: str, folder: Folder, layout: Layout, differences: Sequence[str]
) -> None:
    """Raise CheckpointError when config.json or the tensors of a folder are of another model than the recipe's."""
    settings = [told for told in _told(config, layout, folder) if told[0].startswith(_sections(what))]
    if what == "language_model":  # which may have fewer rows
        settings = [told for told in settings if not (told[0] == "text.vocab" and told[2] < config.text.vocab)]
    faults = [f"config.json says {key}={theirs}, model.{name}={_ours(config, name)}" for name, key, theirs in settings]
    faults += _unsupported(layout, folder) if what != "vision_tower" else []
    if not faults and not differences:
        return
    faults += differences[:SHOWN_TENSORS]
    if len(differences) > SHOWN_TENSORS:
        faults.append(f"and {len(differences) - SHOWN_TENSORS} more kinds of tensors")
    fitting = " ".join(dict.fromkeys(f"model.{name}={theirs}" for name, _, theirs in settings))
    raise CheckpointError(
        "\n    ".join([f"{SETTING}.{what}={path} is of another model than this recipe:", *faults]),
        f"set {fitting}, or give other weights" if fitting else "change the recipe's model to fit, or the folder",
    )


def _elements(shape: Shape, there: int) -> int:
    return min(torch.Size(shape).numel(), there)


def _sections(what: str) -> tuple[str, ...]:
    """Return the prefixes of the settings that weights of a kind must fit."""
    return {"language_model": ("text.",), "vision_tower": ("vision.", "image_size")}.get(what, ("",))


def _told(config: ModelConfig, layout: Layout, folder: Folder) -> Iterator[tuple[str, str, Any]]:
    """Yield (setting, key, value) of each value in config.json that differs from the recipe."""
    for setting, key in _CONFIG[layout]:
        theirs = _at(folder, key)
        if isinstance(theirs, int | float) and theirs != _ours(config, setting):
            yield setting, key, theirs


def _unsupported(layout: Layout, folder: Folder) -> list[str]:
    """Return the features in a language model's config.json that our model lacks and shapes need not show."""
    root = _TEXT_AT[layout]
    heads, groups = _at(folder, f"{root}num_attention_heads"), _at(folder, f"{root}num_key_value_heads")
    faults = []
    if groups is not None and groups != heads:
        faults.append(f"config.json says {root}num_key_value_heads={groups} of {heads} heads: ours has one for each")
    for key in ("rope_scaling", "rope_parameters"):
        values = _at(folder, f"{root}{key}")
        kind = values.get("rope_type", values.get("type", "default")) if isinstance(values, Mapping) else "default"
        if kind != "default":
            faults.append(f"config.json says {root}{key}.rope_type={kind}: ours has plain rotary positions")
    for key, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if _at(folder, f"{root}{key}") not in (None, only):
            faults.append(f"config.json says {root}{key}={_at(folder, f'{root}{key}')}: ours is {only}")
    return faults


def _may_be_tied(folder: Folder, layout: Layout) -> bool:
    """Return whether an absent text head may be the embedding; False only when config.json denies it."""
    said = [_at(folder, key) for key in (f"{_TEXT_AT[layout]}tie_word_embeddings", "tie_word_embeddings")]
    return False not in said or True in said


def _ours(config: ModelConfig, setting: str) -> Any:
    value: Any = config
    for name in setting.split("."):
        value = getattr(value, name)
    return value


def _at(folder: Folder, key: str) -> Any:
    """Return the value of a dotted key of config.json, or None."""
    value: Any = folder.config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value

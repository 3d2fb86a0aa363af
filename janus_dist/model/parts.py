"""Parts: the named groups of parameters that a stage trains or leaves alone.

Invariant: every parameter of the model belongs to exactly one part (facts of Janus, figure 3; names as in the
glossary).
"""

from collections.abc import Iterable

from torch import nn

from janus_dist.config.train import Part

PREFIXES: dict[Part, str] = {
    "vision_tower": "model.vision_model.",
    "understanding_adaptor": "model.aligner.",
    "language_model": "model.language_model.",
    "text_head": "lm_head.",
    "generation_embedding": "model.generation_embeddings.",
    "generation_adaptor": "model.generation_aligner.",
    "image_head": "model.generation_head.",
}


def part_of(parameter_name: str) -> Part:
    """Return the part that a parameter belongs to, by its name in transformers' Janus."""
    found: list[Part] = [part for part, prefix in PREFIXES.items() if parameter_name.startswith(prefix)]
    assert len(found) == 1, f"{parameter_name} belongs to {found}"
    return found[0]


def set_trainable(model: nn.Module, trainable: Iterable[Part]) -> None:
    """Let exactly the parameters of `trainable` parts require gradients; must happen before ZeRO-3 takes the model."""
    wanted = set(trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in wanted)


def train_mode(model: nn.Module) -> None:
    """Put trained parts into training mode and frozen ones into evaluation mode.

    But for frozen layers that are computed again in the backward: transformers does that in training mode only.
    """
    model.train()
    for prefix in PREFIXES.values():
        part = model.get_submodule(prefix.removesuffix("."))
        if any(parameter.requires_grad for parameter in part.parameters()):
            continue
        for module in part.modules():
            module.training = bool(getattr(module, "gradient_checkpointing", False))

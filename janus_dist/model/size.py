"""Checks that a checkpoint holds the model of a recipe, by the names and shapes of its parameters.

Nothing here needs torch, so that `janus check` can use it.
"""

from collections.abc import Mapping, Sequence

from janus_dist.errors import CheckpointError


def other_size(where: str, differences: str) -> CheckpointError:
    """Return the error for a checkpoint of another model; `where` names it and `differences` say what differs."""
    return CheckpointError(
        f"{where} holds a model of another size: {differences}",
        "use the recipe that the checkpoint was made with (config.json in its run folder), or another run.name",
    )


def check_shapes(wanted: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], where: str) -> None:
    """Raise CheckpointError unless `found` has the names and shapes of `wanted`, the parameters of the recipe's model.

    `where` names the checkpoint that has the shapes `found`.
    """
    mine, theirs = ({name: tuple(shape) for name, shape in shapes.items()} for shapes in (wanted, found))
    differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differing:
        name = differing[0]
        raise other_size(
            where,
            f"{len(differing)} parameters differ, the first is {name}: {theirs.get(name, 'absent')} in the checkpoint, "
            f"{mine.get(name, 'absent')} in this recipe",
        )

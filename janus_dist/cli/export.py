"""`janus export`: a checkpoint becomes a folder that other programs load.

Invariant: stdout says what was written, or nothing was.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from janus_dist.monitor.console import several

GB = 1_000_000_000

Checkpoint = Annotated[str, typer.Argument(metavar="CKPT", help="A run's folder (its newest), or a checkpoint in it.")]
Target = Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; absent or empty.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.path=value ...]", help="Changes of the recipe.")]
As = Annotated[Literal["transformers", "deepseek"], typer.Option("--layout", help="Whose program is to load it.")]
Dtype = Annotated[Literal["bfloat16", "float16", "float32"], typer.Option("--dtype", help="Of the weights.")]
MaxShard = Annotated[float, typer.Option("--max-shard-gb", min=1e-6, help="Size of a file at most, in GB.")]


def export_command(
    checkpoint: Checkpoint,
    target: Target,
    overrides: Overrides = None,
    layout: As = "transformers",
    dtype: Dtype = "bfloat16",
    max_shard_gb: MaxShard = 5.0,
) -> None:
    """Write a checkpoint as a folder that transformers, or DeepSeek's own code, loads."""
    # here, because it takes seconds to import torch and transformers, and no other command needs them
    from janus_dist.weights.export import export

    found = export(checkpoint, target, layout, overrides or (), dtype, int(max_shard_gb * GB))
    size = f"{found.bytes / GB:.3f} GB in {several(found.files, 'file')}"
    print(f"{found.folder}: step {found.step} of {found.checkpoint}, {size}")
    for note in found.notes:
        print(f"  {note}")

"""`janus export`: write a checkpoint as a folder that other programs load.

Invariant: stdout lists what was written; if it is empty, nothing was written.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from janus_dist.monitor.console import several

GB = 1_000_000_000

Checkpoint = Annotated[
    str, typer.Argument(metavar="CKPT", help="A run's folder (its newest checkpoint) or a checkpoint.")
]
Target = Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; must be absent or empty.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.path=value ...]", help="Changes to the recipe.")]
Layout = Annotated[
    Literal["transformers", "deepseek"], typer.Option("--layout", help="Program that will load the folder.")
]
Dtype = Annotated[Literal["bfloat16", "float16", "float32"], typer.Option("--dtype", help="Data type of the weights.")]
MaxShard = Annotated[float, typer.Option("--max-shard-gb", min=1e-6, help="Largest size of a file, in GB.")]


def export_command(
    checkpoint: Checkpoint,
    target: Target,
    overrides: Overrides = None,
    layout: Layout = "transformers",
    dtype: Dtype = "bfloat16",
    max_shard_gb: MaxShard = 5.0,
) -> None:
    """Write a checkpoint as a folder that transformers or DeepSeek's own code can load."""
    # here, because it takes seconds to import torch and transformers, and no other command needs them
    from janus_dist.weights.export import export

    exported = export(checkpoint, target, layout, overrides or (), dtype, int(max_shard_gb * GB))
    size = f"{exported.bytes / GB:.3f} GB in {several(exported.files, 'file')}"
    print(f"{exported.folder}: step {exported.step} of {exported.checkpoint}, {size}")
    for note in exported.notes:
        print(f"  {note}")

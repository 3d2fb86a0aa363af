"""`janus sample`: what a checkpoint draws and answers.

Invariant: nothing in the run's folder is changed but `samples/`.
"""

from pathlib import Path
from typing import Annotated

import typer

from janus_dist.config.paths import path_or_url
from janus_dist.config.train import DtypeChoice
from janus_dist.errors import ConfigError
from janus_dist.monitor.console import print_json

Source = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder (its newest checkpoint), or a checkpoint.")]
Prompt = Annotated[list[str] | None, typer.Option("--prompt", help="Draw this; may be given several times.")]
Question = Annotated[str | None, typer.Option("--question", help="Answer this, about --image.")]
ImageFile = Annotated[list[str] | None, typer.Option("--image", help="An image that the question is about.")]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="A JSONL file of prompts and questions.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write; RUN/samples when absent.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the first drawing of a prompt; the next have the next.")]
Each = Annotated[int, typer.Option("--images-per-prompt", min=1)]
Guidance = Annotated[float | None, typer.Option("--guidance", help="The run's evaluate.guidance when absent.")]
Temperature = Annotated[float | None, typer.Option("--temperature", min=0, help="Likewise; 0: the likeliest ids.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=0, help="Likewise; 0: of all ids.")]
MaxTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")]
Computed = Annotated[
    DtypeChoice, typer.Option("--dtype", help="What the model computes in; auto: what fits run and device.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Follow = Annotated[bool, typer.Option("--follow", help="Sample every checkpoint while the run trains.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def sample_command(
    source: Source,
    prompt: Prompt = None,
    question: Question = None,
    image: ImageFile = None,
    prompts: Prompts = None,
    out: Out = None,
    seed: Seed = 0,
    images_per_prompt: Each = 1,
    guidance: Guidance = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    max_new_tokens: MaxTokens = 64,
    device: Device = "cpu",
    dtype: Computed = "auto",
    is_followed: Follow = False,
    as_json: AsJson = False,
) -> None:
    """Draw prompts and answer questions with a checkpoint; without either, draw the built-in ones."""
    # here, because it takes seconds to import torch and transformers, and no other command needs them
    from janus_dist.checkpoint.find import find, recipe_of
    from janus_dist.evaluation import samples
    from janus_dist.evaluation.prompts import Asked, read_prompts
    from janus_dist.evaluation.samples import How
    from janus_dist.model.sample import Choice

    if image and question is None:
        raise ConfigError(f"--image {image[0]} without --question", "say what to answer about it")
    asked = [Asked(caption=one) for one in prompt or ()]
    asked += [Asked(question=question, images=tuple(image or ()))] if question is not None else []
    asked += read_prompts(prompts) if prompts is not None else []
    source = path_or_url(source)
    recipe, checkpoint = (recipe_of(Path(source)), None) if is_followed else find(source)
    settings = recipe.evaluate
    choice = Choice(
        settings.temperature if temperature is None else temperature, settings.top_k if top_k is None else top_k
    )
    guidance = settings.guidance if guidance is None else guidance
    how = How(seed, images_per_prompt, guidance, choice, max_new_tokens, device, dtype)
    asked = asked or samples.fixed_prompts()
    if checkpoint is None:
        samples.follow(Path(source), asked, how, out or Path(source) / "samples", print)
        return
    is_run = Path(source, "config.json").is_file()
    out = out or (Path(source) if is_run else recipe.run.dir) / "samples"
    found = samples.make(recipe, checkpoint, asked, how, out)
    if as_json:
        print_json(found)
        return
    for drawn in found["drawings"]:
        print(f"{found['folder']}/{drawn['file']}  seed {drawn['seed']}  {drawn['prompt']}")
    if len(found["drawings"]) > 1:
        print(f"{found['folder']}/grid.png  all of them")
    for answered in found["answers"]:
        print(f"{answered['question']}\n  {answered['answer']}")

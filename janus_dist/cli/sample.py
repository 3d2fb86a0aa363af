"""`janus sample`: generate images and answer questions with a checkpoint.

Invariant: only `samples/` changes in the run's folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from janus_dist.config.evaluate import EvaluateConfig
from janus_dist.config.paths import path_or_url
from janus_dist.config.train import DtypeChoice
from janus_dist.errors import ConfigError
from janus_dist.evaluation.prompts import UserPrompt, read_prompts
from janus_dist.monitor.console import print_json

Source = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder (its newest checkpoint), or a checkpoint.")]
Prompt = Annotated[list[str] | None, typer.Option("--prompt", help="Prompt of an image; may be repeated.")]
Question = Annotated[str | None, typer.Option("--question", help="Question to answer, about --image if given.")]
ImageFile = Annotated[
    list[str] | None, typer.Option("--image", help="Image that the question is about; may be repeated.")
]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="JSONL file of prompts and questions.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results; RUN/samples when absent.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of a prompt's first image; the next ones count up.")]
Each = Annotated[int, typer.Option("--images-per-prompt", min=1, help="Images generated for each prompt.")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Guidance scale; the run's evaluate.guidance when absent.")
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", min=0, help="The run's evaluate.temperature when absent; 0: the top id."),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", min=0, help="The run's evaluate.top_k when absent; 0: sample from all ids.")
]
MaxTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Largest number of tokens in an answer.")]
Computed = Annotated[
    DtypeChoice, typer.Option("--dtype", help="Data type of the model; auto: one that fits the run and the device.")
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
    """Generate images of prompts and answer questions with a checkpoint; without either, use the built-in prompts."""
    # here, because it takes seconds to import torch and transformers, and no other command needs them
    from janus_dist.checkpoint.find import find, recipe_of
    from janus_dist.evaluation import samples
    from janus_dist.model.sample import TokenChoice

    requests = _requests(prompt or (), question, image or (), prompts) or samples.fixed_prompts()
    source = path_or_url(source)
    recipe, checkpoint = (recipe_of(Path(source)), None) if is_followed else find(source)
    guidance, temperature, top_k = _sampling(recipe.evaluate, guidance, temperature, top_k)
    choice = TokenChoice(temperature, top_k)
    how = samples.SamplingSettings(seed, images_per_prompt, guidance, choice, max_new_tokens, device, dtype)
    if checkpoint is None:
        samples.follow(Path(source), requests, how, out or Path(source) / "samples", print)
        return
    is_run = Path(source, "config.json").is_file()
    out = out or (Path(source) if is_run else recipe.run.dir) / "samples"
    result = samples.make(recipe, checkpoint, requests, how, out)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _requests(
    captions: Sequence[str], question: str | None, images: Sequence[str], prompts: Path | None
) -> list[UserPrompt]:
    """Return the prompts and questions of a command line.

    Raises ConfigError for images without a question and for a file of prompts that is not valid.
    """
    if images and question is None:
        raise ConfigError(f"--image {images[0]} without --question", "ask something about it: --question TEXT")
    requests = [UserPrompt(caption=caption) for caption in captions]
    if question is not None:
        requests.append(UserPrompt(question=question, images=tuple(images)))
    if prompts is not None:
        requests += read_prompts(prompts)
    return requests


def _sampling(
    defaults: EvaluateConfig, guidance: float | None, temperature: float | None, top_k: int | None
) -> tuple[float, float, int]:
    """Return guidance, temperature and top_k; those that are None are taken from the recipe's section `evaluate`."""
    return (
        defaults.guidance if guidance is None else guidance,
        defaults.temperature if temperature is None else temperature,
        defaults.top_k if top_k is None else top_k,
    )


def _print(result: dict[str, Any]) -> None:
    """Print the files of generated images and the answers."""
    folder, drawings = result["folder"], result["drawings"]
    for drawing in drawings:
        print(f"{folder}/{drawing['file']}  seed {drawing['seed']}  {drawing['prompt']}")
    if len(drawings) > 1:
        print(f"{folder}/grid.png  all of them")
    for answer in result["answers"]:
        print(f"{answer['question']}\n  {answer['answer']}")

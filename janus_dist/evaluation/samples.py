"""Answers and drawings for prompts of the user, by one checkpoint or by each checkpoint of a training run.

    OUT/step-00000100/{samples.json, grid.png, 000-0.png, ...}

Invariant: the folder of a checkpoint is complete or absent; the same checkpoint, prompts and seed give the same files.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.find import recipe_of, saved_in
from janus_dist.config.recipe import StageRecipe
from janus_dist.config.train import DtypeChoice
from janus_dist.errors import JanusError
from janus_dist.evaluation import easy_vqa
from janus_dist.evaluation.prompts import UserPrompt
from janus_dist.evaluation.sampler import Sampler
from janus_dist.model.sample import LIKELIEST, TokenChoice
from janus_dist.storage.local import whole_folder

POLL_S = 5.0
"""Seconds between two checks for new checkpoints."""
CAPTION_PIXELS = 14
"""Height of the caption of a row in pixels."""
FIXED_DRAWINGS = 8
"""Number of built-in prompts: every third combination of easy-vqa's colors and shapes."""


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of answers and drawings."""

    seed: int = 0
    images_per_prompt: int = 1
    guidance: float = 5.0
    choice: TokenChoice = LIKELIEST
    """Choice of VQ ids; answers are always the most likely ones."""
    max_new_tokens: int = 64
    device: str = "cpu"
    dtype: DtypeChoice = "auto"
    """Dtype that the model computes in; for `auto` see `sampler.dtype_for`."""


def fixed_prompts() -> list[UserPrompt]:
    """Return prompts of drawings that show the progress of a run on easy-vqa."""
    return [UserPrompt(caption=prompt.caption) for prompt in easy_vqa.PROMPTS[::3][:FIXED_DRAWINGS]]


def make(
    recipe: StageRecipe, checkpoint: str, prompts: Sequence[UserPrompt], how: SamplingSettings, out: Path
) -> dict[str, Any]:
    """Answer and draw, write OUT/step-XXXXXXXX and return the content of its samples.json and its `folder`."""
    sampler = Sampler.load(recipe, checkpoint, how.device, how.dtype)
    folder = out / commits.name_of(checkpoint)
    with whole_folder(folder, replace=True) as temporary:
        samples = {
            "checkpoint": checkpoint,
            "step": commits.step_of(checkpoint),
            "guidance": how.guidance,
            "temperature": how.choice.temperature,
            "top_k": how.choice.top_k,
            "dtype": sampler.dtype,
            "drawings": _draw(
                sampler, [prompt.caption for prompt in prompts if prompt.caption is not None], how, temporary
            ),
            "answers": _answer(sampler, [prompt for prompt in prompts if prompt.question is not None], how, temporary),
        }
        (temporary / "samples.json").write_text(json.dumps(samples, indent=1) + "\n")
    return samples | {"folder": str(folder)}


def follow(
    run_dir: Path, prompts: Sequence[UserPrompt], how: SamplingSettings, out: Path, say: Callable[[str], None]
) -> None:
    """Make samples of each checkpoint that a run commits, until that of its last step; existing samples are kept."""
    done: set[str] = {path.name for path in out.glob("step-*")}
    last = -1
    while True:
        recipe = recipe_of(run_dir)
        for path in commits.committed(saved_in(run_dir, recipe)):
            if commits.name_of(path) in done:
                last = max(last, commits.step_of(path))
                continue
            try:
                samples = make(recipe, path, prompts, how, out)
                say(f"step {samples['step']}: samples in {samples['folder']}")
            except (JanusError, OSError) as error:
                if commits.is_committed(path):
                    raise
                say(f"{path} was deleted before it was sampled ({type(error).__name__})")
            done.add(commits.name_of(path))
            last = max(last, commits.step_of(path))
        if last >= recipe.train.steps:
            return
        time.sleep(POLL_S)


def _draw(sampler: Sampler, captions: Sequence[str], how: SamplingSettings, folder: Path) -> list[dict[str, Any]]:
    """Draw the captions, save drawings and grid in `folder` and return the entries of samples.json."""
    if not captions:
        return []
    per_prompt = how.images_per_prompt
    drawings = sampler.draw(
        [caption for caption in captions for _ in range(per_prompt)],
        [how.seed + index for _ in captions for index in range(per_prompt)],
        how.guidance,
        how.choice,
    )
    entries = []
    for row, caption in enumerate(captions):
        for column in range(per_prompt):
            name = f"{row:03d}-{column}.png"
            Image.fromarray(drawings[row * per_prompt + column]).save(folder / name)
            entries.append({"prompt": caption, "seed": how.seed + column, "file": name})
    grid(drawings.reshape(len(captions), per_prompt, *drawings.shape[1:]), captions).save(folder / "grid.png")
    return entries


def _answer(
    sampler: Sampler, prompts: Sequence[UserPrompt], how: SamplingSettings, folder: Path
) -> list[dict[str, Any]]:
    """Answer the questions, save their pictures in `folder` and return their entries of samples.json."""
    if not prompts:
        return []
    files = list(dict.fromkeys(name for prompt in prompts for name in prompt.images))
    side = sampler.recipe.model.image_size
    pictures = [sampler.picture(name) for name in files]
    for index, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"asked-{index:03d}.png")
    features = sampler.image_features(torch.stack(pictures) if pictures else torch.empty(0, 3, side, side))
    answers = sampler.answer(
        [prompt.question or "" for prompt in prompts],
        features,
        [[files.index(name) for name in prompt.images] for prompt in prompts],
        how.max_new_tokens,
    )
    return [
        {
            "question": prompt.question,
            "images": list(prompt.images),
            "pictures": [f"asked-{files.index(name):03d}.png" for name in prompt.images],
            "answer": answer,
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def grid(drawings: NDArray[np.uint8], captions: Sequence[str]) -> Image.Image:
    """Return one picture of `drawings`: [prompts, seeds, height, width, 3] uint8, one row per captioned prompt."""
    rows, columns, height, width = drawings.shape[:4]
    scale = max(1, 96 // height)  # enlarge small drawings without interpolation
    height, width = height * scale, width * scale
    line = height + CAPTION_PIXELS + 4
    picture = Image.new("RGB", (max(columns * (width + 4), 240), rows * line), "white")
    pen = ImageDraw.Draw(picture)
    for row in range(rows):
        pen.text((2, row * line), captions[row][:120], fill="black")
        for column in range(columns):
            drawn = Image.fromarray(drawings[row, column]).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(drawn, (column * (width + 4), row * line + CAPTION_PIXELS))
    return picture

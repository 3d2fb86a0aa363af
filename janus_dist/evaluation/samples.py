"""Answers and drawings at prompts of one's own, of one checkpoint or of each that a training run leaves.

    OUT/step-00000100/{samples.json, grid.png, 000-0.png, ...}

Invariant: the folder of a checkpoint is whole or absent; the same checkpoint, prompts and seed give the same files.
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
from janus_dist.evaluation.prompts import Asked
from janus_dist.evaluation.sampler import Sampler
from janus_dist.model.sample import LIKELIEST, Choice
from janus_dist.storage.local import whole_folder

POLL_S = 5.0
CAPTION_PIXELS = 14
FIXED_DRAWINGS = 8
"""Drawings of the built-in prompts: every third of easy-vqa's colors and shapes."""


@dataclass(frozen=True)
class How:
    """How to answer and to draw."""

    seed: int = 0
    images_per_prompt: int = 1
    guidance: float = 5.0
    choice: Choice = LIKELIEST
    """Of VQ ids; answers are the likeliest."""
    max_new_tokens: int = 64
    device: str = "cpu"
    dtype: DtypeChoice = "auto"
    """What the model computes in; `auto` as `sampler.dtype_for`."""


def fixed_prompts() -> list[Asked]:
    """Return the drawings that show how far a run on easy-vqa is."""
    return [Asked(caption=prompt.caption) for prompt in easy_vqa.PROMPTS[::3][:FIXED_DRAWINGS]]


def make(recipe: StageRecipe, checkpoint: str, asked: Sequence[Asked], how: How, out: Path) -> dict[str, Any]:
    """Answer and draw; writes OUT/step-XXXXXXXX and returns what its samples.json says."""
    sampler = Sampler.load(recipe, checkpoint, how.device, how.dtype)
    folder = out / commits.name_of(checkpoint)
    with whole_folder(folder, replace=True) as temporary:
        found = {
            "checkpoint": checkpoint,
            "step": commits.step_of(checkpoint),
            "guidance": how.guidance,
            "temperature": how.choice.temperature,
            "top_k": how.choice.top_k,
            "dtype": sampler.dtype,
            "drawings": _draw(sampler, [one.caption for one in asked if one.caption is not None], how, temporary),
            "answers": _answer(sampler, [one for one in asked if one.question is not None], how, temporary),
        }
        (temporary / "samples.json").write_text(json.dumps(found, indent=1) + "\n")
    return found | {"folder": str(folder)}


def follow(run_dir: Path, asked: Sequence[Asked], how: How, out: Path, say: Callable[[str], None]) -> None:
    """Make samples of each checkpoint that a run commits, until that of its last step; what is there is left alone."""
    done: set[str] = {path.name for path in out.glob("step-*")}
    last = -1
    while True:
        recipe = recipe_of(run_dir)
        for path in commits.committed(saved_in(run_dir, recipe)):
            if commits.name_of(path) in done:
                last = max(last, commits.step_of(path))
                continue
            try:
                found = make(recipe, path, asked, how, out)
                say(f"step {found['step']}: samples in {found['folder']}")
            except (JanusError, OSError) as error:
                if commits.is_committed(path):
                    raise
                say(f"{path} was deleted before it was sampled ({type(error).__name__})")
            done.add(commits.name_of(path))
            last = max(last, commits.step_of(path))
        if last >= recipe.train.steps:
            return
        time.sleep(POLL_S)


def _draw(sampler: Sampler, captions: Sequence[str], how: How, folder: Path) -> list[dict[str, Any]]:
    if not captions:
        return []
    each = how.images_per_prompt
    drawings = sampler.draw(
        [caption for caption in captions for _ in range(each)],
        [how.seed + number for _ in captions for number in range(each)],
        how.guidance,
        how.choice,
    )
    found = []
    for number, caption in enumerate(captions):
        for place in range(each):
            name = f"{number:03d}-{place}.png"
            Image.fromarray(drawings[number * each + place]).save(folder / name)
            found.append({"prompt": caption, "seed": how.seed + place, "file": name})
    grid(drawings.reshape(len(captions), each, *drawings.shape[1:]), captions).save(folder / "grid.png")
    return found


def _answer(sampler: Sampler, asked: Sequence[Asked], how: How, folder: Path) -> list[dict[str, Any]]:
    if not asked:
        return []
    files = list(dict.fromkeys(name for one in asked for name in one.images))
    side = sampler.recipe.model.image_size
    pictures = [sampler.picture(name) for name in files]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"asked-{number:03d}.png")
    features = sampler.image_features(torch.stack(pictures) if pictures else torch.empty(0, 3, side, side))
    answers = sampler.answer(
        [one.question or "" for one in asked],
        features,
        [[files.index(name) for name in one.images] for one in asked],
        how.max_new_tokens,
    )
    return [
        {
            "question": one.question,
            "images": list(one.images),
            "pictures": [f"asked-{files.index(name):03d}.png" for name in one.images],
            "answer": answer,
        }
        for one, answer in zip(asked, answers, strict=True)
    ]


def grid(drawings: NDArray[np.uint8], captions: Sequence[str]) -> Image.Image:
    """Return one picture of drawings [prompt, seed, height, width, 3]: a row for each prompt, below its words."""
    rows, columns, height, width = drawings.shape[:4]
    scale = max(1, 96 // height)  # small ones are shown larger, pixel by pixel
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

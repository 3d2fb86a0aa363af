"""Evaluation of a trained run: what it answers to held-out questions, and what it draws.

Writes OUT/evaluation.json and the pictures that the report shows beside it. Invariant: the same weights, recipe and
seed give the same figures.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_dist.config.recipe import BaseRecipe
from janus_dist.data import chat
from janus_dist.data.tokenizer import Tokenizer
from janus_dist.engine.stored import load_weights
from janus_dist.errors import DataError
from janus_dist.evaluation import easy_vqa
from janus_dist.model import janus, sample
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import Janus
from janus_dist.model.vq_weights import load_vq
from janus_dist.model.weights import load_into

MAX_ANSWER_TOKENS = 4
SHOWN_QUESTIONS = 24
SHOWN_PAIRS = 16


def evaluate(recipe: BaseRecipe, run_dir: Path, out: Path) -> dict[str, Any]:
    """Evaluate the newest checkpoint of a run, write what was found into `out`.

    CheckpointError when there is none or it does not fit the recipe, DataError when the tokenizer does not.
    """
    began = time.perf_counter()
    (out / "images").mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(recipe)
    vq = load_vq(recipe.model, recipe.data.vq_weights)
    model = load_model(recipe, run_dir)
    found = {
        "run": str(run_dir),
        **understanding(recipe, model, tokenizer, out),
        **generation(recipe, model, tokenizer, vq, out),
        **reconstruction(recipe, vq, out),
        "detector_accuracy_on_real": easy_vqa.detector_accuracy(),
    }
    found["seconds"] = round(time.perf_counter() - began, 1)
    temporary = out / "evaluation.json.tmp"
    temporary.write_text(json.dumps(found, indent=1) + "\n")
    temporary.replace(out / "evaluation.json")  # pictures first, then the file that names them, whole or not at all
    return found


def load_tokenizer(recipe: BaseRecipe) -> Tokenizer:
    """The recipe's tokenizer; DataError when it has ids that the model has not."""
    tokenizer = Tokenizer.load(recipe.data.tokenizer)
    if tokenizer.size > recipe.model.text.vocab:
        raise DataError(
            f"data.tokenizer={recipe.data.tokenizer} has {tokenizer.size} ids, "
            f"more than model.text.vocab={recipe.model.text.vocab}",
            "use the tokenizer that this model was trained with (config.json in its run folder)",
        )
    return tokenizer


def load_model(recipe: BaseRecipe, run_dir: Path) -> Janus:
    """The run's model in bfloat16, ready to answer and to draw."""
    model = janus.build(recipe.model, recipe.run.seed)
    load_into(model, load_weights(run_dir), str(run_dir))
    model.model.language_model.set_attn_implementation("sdpa")  # prompts of one length, with a cache
    model.bfloat16()
    return model.eval()


def understanding(recipe: BaseRecipe, model: Janus, tokenizer: Tokenizer, out: Path) -> dict[str, Any]:
    """Ask the held-out questions, each alone with its image."""
    asked = easy_vqa.questions(recipe.evaluate.max_questions)
    images = easy_vqa.held_out_images(recipe.model.image_size, "padded")
    prompts = [chat.understanding_ids(tokenizer, recipe.data.chat, [(q.question, None)], 1)[0] for q in asked]
    answers = sample.answer(
        model,
        prompts,
        sample.image_features(model, images, recipe.evaluate.batch),
        [q.image for q in asked],
        tokenizer.image,
        tokenizer.eos,
        MAX_ANSWER_TOKENS,
        recipe.evaluate.batch,
    )
    given = [tokenizer.decode(ids).strip() for ids in answers]
    majority = easy_vqa.majority_answer()
    by_kind = easy_vqa.accuracy_by_kind(asked, given)
    blind = easy_vqa.accuracy_by_kind(asked, easy_vqa.blind_answers(asked))
    shown = []
    for position in easy_vqa.balanced(asked, SHOWN_QUESTIONS):
        question = asked[position]
        name = f"question-{question.image:04d}.png"
        save_image(images[question.image], out / "images" / name)
        shown.append(
            {"image": name, "question": question.question, "answer": given[position], "truth": question.answer}
        )
    return {
        "understanding_accuracy": by_kind.pop("all"),
        "understanding_majority": sum(question.answer == majority for question in asked) / len(asked),
        "understanding_blind": blind.pop("all"),
        "understanding_by_kind": by_kind,
        "understanding_blind_by_kind": blind,
        "majority_answer": majority,
        "num_questions": len(asked),
        "questions": shown,
    }


def generation(recipe: BaseRecipe, model: Janus, tokenizer: Tokenizer, vq: JanusVQVAE, out: Path) -> dict[str, Any]:
    """Draw every color and shape and judge the drawings."""
    settings = recipe.evaluate
    asked = [prompt for prompt in easy_vqa.PROMPTS for _ in range(settings.images_per_prompt)]
    prompts = [chat.generation_prompt_ids(tokenizer, recipe.data.chat, prompt.caption) for prompt in asked]
    generator = torch.Generator().manual_seed(recipe.run.seed)
    ids = sample.draw(
        model,
        prompts,
        recipe.model.image_ids,
        tokenizer.pad,
        settings.guidance,
        settings.temperature,
        generator,
        settings.batch,
    )
    drawings = decode(vq, ids, settings.batch)
    verdicts = easy_vqa.judge(list(drawings))
    shown = []
    for number, (prompt, verdict) in enumerate(zip(asked, verdicts, strict=True)):
        name = f"drawing-{number:04d}.png"
        Image.fromarray(drawings[number]).save(out / "images" / name)
        shown.append(
            {
                "image": name,
                "prompt": prompt.caption,
                "seen": [verdict.color, verdict.shape],
                "color_right": verdict.color == prompt.color,
                "shape_right": verdict.shape == prompt.shape,
            }
        )
    return {
        "generation_accuracy": sum(s["color_right"] and s["shape_right"] for s in shown) / len(shown),
        "generation_color_accuracy": sum(s["color_right"] for s in shown) / len(shown),
        "generation_shape_accuracy": sum(s["shape_right"] for s in shown) / len(shown),
        "generation_chance": 1 / len(easy_vqa.PROMPTS),
        "num_images": len(shown),
        "drawings": shown,
    }


def reconstruction(recipe: BaseRecipe, vq: JanusVQVAE, out: Path) -> dict[str, Any]:
    """Held-out images through the VQ tokenizer and back."""
    images = easy_vqa.held_out_images(recipe.model.image_size, "cropped")
    batch = recipe.evaluate.batch
    ids = torch.cat([vq_model.encode(vq, vq_model.to_float(chunk)) for chunk in images.split(batch)])
    decoded = decode(vq, ids, batch)
    back = torch.from_numpy(decoded).permute(0, 3, 1, 2)
    error = (back.float() - images.float()).square().mean(dim=(1, 2, 3))
    pairs = []
    for number in range(min(SHOWN_PAIRS, len(images))):
        names = [f"vq-{number:02d}-{side}.png" for side in ("original", "reconstruction")]
        for name, image in zip(names, (images[number], back[number]), strict=True):
            save_image(image, out / "images" / name)
        pairs.append({"original": names[0], "reconstruction": names[1]})
    return {
        "vq_psnr_db": float((10 * torch.log10(255**2 / error)).mean()),
        "vq_codes_used": int(ids.unique().numel()),
        "detector_accuracy_on_reconstructions": easy_vqa.detector_accuracy(list(decoded)),
        "vq_pairs": pairs,
    }


def decode(vq: JanusVQVAE, ids: Tensor, batch: int) -> NDArray[np.uint8]:
    """Images [image, height, width, 3] of VQ ids [image, ids]."""
    pixels = torch.cat([vq_model.decode(vq, chunk) for chunk in ids.split(batch)])
    return vq_model.to_uint8(pixels).permute(0, 2, 3, 1).numpy()


def save_image(image: Tensor, path: Path) -> None:
    """Write an image [3, height, width] uint8 as PNG."""
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)

"""Evaluation of a trained run: what it answers to held-out questions, and what it draws.

Writes OUT/evaluation.json and the pictures that the report shows beside it. Invariant: the same weights, recipe and
seed give the same figures.
"""

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_dist.checkpoint import commits
from janus_dist.checkpoint.find import require_checkpoint
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.streams import IMAGE_STREAMS, Stream
from janus_dist.config.train import DtypeChoice
from janus_dist.data.tokenizer import load_tokenizer
from janus_dist.evaluation import held_out
from janus_dist.evaluation.easy_vqa import EasyVqa
from janus_dist.evaluation.held_out import DataSet, Verdict
from janus_dist.evaluation.interval import measured
from janus_dist.evaluation.sampler import Sampler
from janus_dist.evaluation.scenes import Scenes
from janus_dist.model import vq as vq_model
from janus_dist.model.sample import Choice
from janus_dist.storage.local import write_whole
from janus_dist.weights.vq import digest, load_vq

BOTH = IMAGE_STREAMS
MAX_ANSWER_TOKENS = 4
SHOWN_QUESTIONS = 24
SHOWN_PAIRS = 16


def evaluate(
    recipe: BaseRecipe,
    run_dir: Path,
    out: Path,
    streams: Collection[Stream] = BOTH,
    with_images: bool = True,
    dtype: DtypeChoice = "auto",
) -> dict[str, Any]:
    """Evaluate what the newest checkpoint of a run has learned of `streams`, write what was found into `out`.

    `with_images` also puts the held-out images through the VQ tokenizer and the judge, which no training changes.
    CheckpointError when there is no checkpoint or it does not fit the recipe, DataError when the tokenizer does not.
    """
    began = time.perf_counter()
    (out / "images").mkdir(parents=True, exist_ok=True)
    checkpoint = require_checkpoint(recipe.run.saved_in)
    sampler = Sampler.load(recipe, checkpoint, "cuda" if recipe.cluster.gpu else "cpu", dtype)
    found = {
        "run": str(run_dir),
        "of": what_decides(recipe, checkpoint, sampler.vq, streams, with_images)
        | ({} if dtype == "auto" else {"dtype": dtype}),
        "dtype": sampler.dtype,
        **(understanding(sampler, out) if "understanding" in streams else {}),
        **(generation(sampler, out) if "generation" in streams else {}),
    }
    if with_images:
        found |= reconstruction(sampler, out)
        found["detector_accuracy_on_real"] = data_set(recipe).detector_accuracy()
    found["seconds"] = round(time.perf_counter() - began, 1)
    # pictures first, then the file that names them
    write_whole(out / "evaluation.json", json.dumps(found, indent=1) + "\n")
    return found


def found_before(
    recipe: BaseRecipe, out: Path, streams: Collection[Stream] = BOTH, with_images: bool = True
) -> dict[str, Any] | None:
    """Return what an earlier `evaluate` left in `out`, if it is of the run's newest checkpoint and of the same
    settings."""
    checkpoint, path = commits.latest_committed(recipe.run.saved_in), out / "evaluation.json"
    if checkpoint is None or not path.is_file():
        return None
    found = json.loads(path.read_text())
    vq = load_vq(recipe.model, recipe.data.vq_weights)
    return found if found.get("of") == what_decides(recipe, checkpoint, vq, streams, with_images) else None


def what_decides(
    recipe: BaseRecipe, checkpoint: str, vq: JanusVQVAE, streams: Collection[Stream], with_images: bool
) -> dict[str, Any]:
    """Return all that decides what an evaluation finds, in terms of JSON; no path, so that runs may be moved."""
    return {
        "checkpoint": commits.identity(checkpoint),
        "vq": digest(vq),
        "tokenizer": load_tokenizer(recipe).sha256,
        "chat": recipe.data.chat.model_dump(mode="json"),
        "evaluate": recipe.evaluate.model_dump(mode="json", exclude={"benchmarks"}),
        "seed": recipe.run.seed,
        "data_set": data_set(recipe).name,
        "streams": sorted(streams),
        "with_images": with_images,
    }


def data_set(recipe: BaseRecipe) -> DataSet[Any]:
    """Return what a run is asked when no benchmark is named: scenes when an input of its recipe is made of them."""
    formats = {of.format for of in recipe.pipeline.inputs.values()}
    return Scenes() if "scenes" in formats else EasyVqa()


def understanding(sampler: Sampler, out: Path) -> dict[str, Any]:
    """Ask the held-out questions, each alone with its image."""
    recipe = sampler.recipe
    of = data_set(recipe)
    asked = of.questions(recipe.evaluate.max_questions)
    images = of.held_out_images(recipe.model.image_size, "padded")[: 1 + max(question.image for question in asked)]
    given = sampler.answer(
        [question.question for question in asked],
        sampler.image_features(images),
        [[question.image] for question in asked],
        MAX_ANSWER_TOKENS,
    )
    trained = of.trained()
    majority = held_out.majority_answer(trained)
    by_kind = held_out.accuracy_by_kind(asked, given)
    blind = held_out.accuracy_by_kind(asked, held_out.blind_answers(asked, trained))
    shown = []
    for position in held_out.balanced(asked, SHOWN_QUESTIONS):
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
        "understanding_intervals": {
            kind: measured(right) for kind, right in held_out.answers_by_kind(asked, given).items()
        },
        "understanding_blind_by_kind": blind,
        "majority_answer": majority,
        "num_questions": len(asked),
        "questions": shown,
    }


def generation(sampler: Sampler, out: Path) -> dict[str, Any]:
    """Draw the data set's prompts and judge the drawings."""
    settings, of = sampler.recipe.evaluate, data_set(sampler.recipe)
    asked = [prompt for prompt in of.prompts() for _ in range(settings.images_per_prompt)]
    drawings = sampler.draw(
        [prompt.caption for prompt in asked],
        [sampler.recipe.run.seed + number for number in range(len(asked))],
        settings.guidance,
        Choice(settings.temperature, settings.top_k),
    )
    verdicts: list[Verdict] = of.judge(asked, list(drawings))
    shown = []
    for number, (prompt, verdict) in enumerate(zip(asked, verdicts, strict=True)):
        name = f"drawing-{number:04d}.png"
        Image.fromarray(drawings[number]).save(out / "images" / name)
        shown.append({"image": name, "prompt": prompt.caption, "seen": verdict.seen, "right": verdict.right})
    right = [verdict.right for verdict in verdicts]
    by_kind = held_out.right_by_kind([verdict.kinds for verdict in verdicts], right)
    parts = {f"generation_{part}_accuracy": [one.parts[part] for one in verdicts] for part in verdicts[0].parts}
    return {
        "generation_accuracy": sum(right) / len(right),
        **{name: sum(found) / len(found) for name, found in parts.items()},
        "generation_intervals": {kind: measured(found) for kind, found in by_kind.items()},
        "generation_chance": of.chance(),
        "num_images": len(shown),
        "drawings": shown,
    }


def reconstruction(sampler: Sampler, out: Path) -> dict[str, Any]:
    """Return the held-out images through the VQ tokenizer and back."""
    of = data_set(sampler.recipe)
    images = of.held_out_images(sampler.recipe.model.image_size, "cropped")
    chunks = (chunk.to(sampler.vq.device) for chunk in images.split(sampler.recipe.evaluate.batch))
    ids = torch.cat([vq_model.encode(sampler.vq, vq_model.to_float(chunk)) for chunk in chunks])
    decoded = sampler.decode(ids)
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
        "detector_accuracy_on_reconstructions": of.detector_accuracy(list(decoded)),
        "vq_pairs": pairs,
    }


def save_image(image: Tensor, path: Path) -> None:
    """Write an image [3, height, width] uint8 as PNG."""
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)

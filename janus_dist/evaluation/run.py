"""Evaluation of a trained run on held-out questions and prompts.

Writes OUT/evaluation.json and the pictures for the report. Invariant: the same weights, recipe and
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
from janus_dist.model.sample import TokenChoice
from janus_dist.storage.local import write_whole
from janus_dist.weights.vq import digest, load_vq

BOTH = IMAGE_STREAMS
MAX_ANSWER_TOKENS = 4
SHOWN_QUESTIONS = 24
"""Number of questions in the report."""
SHOWN_PAIRS = 16
"""Number of images in the report with their reconstruction."""


def evaluate(
    recipe: BaseRecipe,
    run_dir: Path,
    out: Path,
    streams: Collection[Stream] = BOTH,
    with_images: bool = True,
    dtype: DtypeChoice = "auto",
) -> dict[str, Any]:
    """Evaluate `streams` of the newest checkpoint of a run, write the results into `out` and return them.

    `with_images` also evaluates the VQ tokenizer and the detector on held-out images, which no training changes.
    Raises CheckpointError when no checkpoint exists or it does not fit the recipe, DataError when the tokenizer
    does not fit.
    """
    began = time.perf_counter()
    (out / "images").mkdir(parents=True, exist_ok=True)
    checkpoint = require_checkpoint(recipe.run.saved_in)
    sampler = Sampler.load(recipe, checkpoint, "cuda" if recipe.cluster.gpu else "cpu", dtype)
    results = {
        "run": str(run_dir),
        "of": what_decides(recipe, checkpoint, sampler.vq, streams, with_images)
        | ({} if dtype == "auto" else {"dtype": dtype}),
        "dtype": sampler.dtype,
        **(understanding(sampler, out) if "understanding" in streams else {}),
        **(generation(sampler, out) if "generation" in streams else {}),
    }
    if with_images:
        results |= reconstruction(sampler, out)
        results["detector_accuracy_on_real"] = data_set(recipe).detector_accuracy()
    results["seconds"] = round(time.perf_counter() - began, 1)
    # after the pictures that it names
    write_whole(out / "evaluation.json", json.dumps(results, indent=1) + "\n")
    return results


def found_before(
    recipe: BaseRecipe, out: Path, streams: Collection[Stream] = BOTH, with_images: bool = True
) -> dict[str, Any] | None:
    """Return the results of an earlier `evaluate` in `out`, or None when its checkpoint or settings were others."""
    checkpoint, path = commits.latest_committed(recipe.run.saved_in), out / "evaluation.json"
    if checkpoint is None or not path.is_file():
        return None
    results = json.loads(path.read_text())
    vq = load_vq(recipe.model, recipe.data.vq_weights)
    return results if results.get("of") == what_decides(recipe, checkpoint, vq, streams, with_images) else None


def what_decides(
    recipe: BaseRecipe, checkpoint: str, vq: JanusVQVAE, streams: Collection[Stream], with_images: bool
) -> dict[str, Any]:
    """Return everything that determines the results, as for JSON; without paths, so that runs can be moved."""
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
    """Return the data set for runs without a named benchmark: scenes when an input of the recipe is made of them."""
    formats = {source.format for source in recipe.pipeline.inputs.values()}
    return Scenes() if "scenes" in formats else EasyVqa()


def understanding(sampler: Sampler, out: Path) -> dict[str, Any]:
    """Ask the held-out questions, each alone with its image, and return the results."""
    recipe = sampler.recipe
    dataset = data_set(recipe)
    questions = dataset.questions(recipe.evaluate.max_questions)
    images = dataset.held_out_images(recipe.model.image_size, "padded")[
        : 1 + max(question.image for question in questions)
    ]
    answers = sampler.answer(
        [question.question for question in questions],
        sampler.image_features(images),
        [[question.image] for question in questions],
        MAX_ANSWER_TOKENS,
    )
    trained = dataset.trained()
    majority = held_out.majority_answer(trained)
    by_kind = held_out.accuracy_by_kind(questions, answers)
    blind = held_out.accuracy_by_kind(questions, held_out.blind_answers(questions, trained))
    shown = []
    for position in held_out.balanced(questions, SHOWN_QUESTIONS):
        question = questions[position]
        name = f"question-{question.image:04d}.png"
        save_image(images[question.image], out / "images" / name)
        shown.append(
            {"image": name, "question": question.question, "answer": answers[position], "truth": question.answer}
        )
    return {
        "understanding_accuracy": by_kind.pop("all"),
        "understanding_majority": sum(question.answer == majority for question in questions) / len(questions),
        "understanding_blind": blind.pop("all"),
        "understanding_by_kind": by_kind,
        "understanding_intervals": {
            kind: measured(right) for kind, right in held_out.answers_by_kind(questions, answers).items()
        },
        "understanding_blind_by_kind": blind,
        "majority_answer": majority,
        "num_questions": len(questions),
        "questions": shown,
    }


def generation(sampler: Sampler, out: Path) -> dict[str, Any]:
    """Draw the data set's prompts, judge the drawings and return the results."""
    settings, dataset = sampler.recipe.evaluate, data_set(sampler.recipe)
    prompts = [prompt for prompt in dataset.prompts() for _ in range(settings.images_per_prompt)]
    drawings = sampler.draw(
        [prompt.caption for prompt in prompts],
        [sampler.recipe.run.seed + index for index in range(len(prompts))],
        settings.guidance,
        TokenChoice(settings.temperature, settings.top_k),
    )
    verdicts: list[Verdict] = dataset.judge(prompts, list(drawings))
    shown = []
    for index, (prompt, verdict) in enumerate(zip(prompts, verdicts, strict=True)):
        name = f"drawing-{index:04d}.png"
        Image.fromarray(drawings[index]).save(out / "images" / name)
        shown.append({"image": name, "prompt": prompt.caption, "seen": verdict.seen, "right": verdict.right})
    right = [verdict.right for verdict in verdicts]
    by_kind = held_out.right_by_kind([verdict.kinds for verdict in verdicts], right)
    parts = {f"generation_{part}_accuracy": [verdict.parts[part] for verdict in verdicts] for part in verdicts[0].parts}
    return {
        "generation_accuracy": sum(right) / len(right),
        **{name: sum(marks) / len(marks) for name, marks in parts.items()},
        "generation_intervals": {kind: measured(marks) for kind, marks in by_kind.items()},
        "generation_chance": dataset.chance(),
        "num_images": len(shown),
        "drawings": shown,
    }


def reconstruction(sampler: Sampler, out: Path) -> dict[str, Any]:
    """Encode and decode held-out images with the VQ tokenizer and return the results."""
    dataset = data_set(sampler.recipe)
    images = dataset.held_out_images(sampler.recipe.model.image_size, "cropped")
    chunks = (chunk.to(sampler.vq.device) for chunk in images.split(sampler.recipe.evaluate.batch))
    ids = torch.cat([vq_model.encode(sampler.vq, vq_model.to_float(chunk)) for chunk in chunks])
    decoded = sampler.decode(ids)
    decoded_images = torch.from_numpy(decoded).permute(0, 3, 1, 2)
    error = (decoded_images.float() - images.float()).square().mean(dim=(1, 2, 3))
    pairs = []
    for index in range(min(SHOWN_PAIRS, len(images))):
        names = [f"vq-{index:02d}-{side}.png" for side in ("original", "reconstruction")]
        for name, image in zip(names, (images[index], decoded_images[index]), strict=True):
            save_image(image, out / "images" / name)
        pairs.append({"original": names[0], "reconstruction": names[1]})
    return {
        "vq_psnr_db": float((10 * torch.log10(255**2 / error)).mean()),
        "vq_codes_used": int(ids.unique().numel()),
        "detector_accuracy_on_reconstructions": dataset.detector_accuracy(list(decoded)),
        "vq_pairs": pairs,
    }


def save_image(image: Tensor, path: Path) -> None:
    """Write an image [3, height, width] uint8 as PNG."""
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)

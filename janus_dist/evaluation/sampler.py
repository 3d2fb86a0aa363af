"""Sampler of a checkpoint: its model, VQ tokenizer and tokenizer on one device.

Invariant: everything comes from the run's own recipe, so that prompts have the format of the training.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_dist.checkpoint.stored import StoredWeights
from janus_dist.config.recipe import BaseRecipe
from janus_dist.config.train import Dtype, DtypeChoice
from janus_dist.data import chat, images
from janus_dist.data.tokenizer import Tokenizer, load_tokenizer
from janus_dist.errors import ConfigError, DataError
from janus_dist.model import janus, native, sample, single
from janus_dist.model import vq as vq_model
from janus_dist.model.janus import Janus
from janus_dist.model.sample import LIKELIEST, TokenChoice
from janus_dist.model.size import check_shapes
from janus_dist.weights.start import load_start
from janus_dist.weights.vq import load_vq

log = logging.getLogger("janus_dist")

READ_ELEMENTS = 2**28
"""Elements of a checkpoint that are read at once: 1 GiB in float32."""


def dtype_for(recipe: BaseRecipe, device: str, choice: DtypeChoice = "auto") -> Dtype:
    """Return the dtype to sample in: `choice`, or with `auto` float32 for a run that is trained in it, else bfloat16
    when the device computes in it natively, else float32."""
    if choice != "auto":
        return choice
    return "float32" if recipe.engine.dtype == "float32" else native.best_dtype(torch.device(device).type == "cuda")


@dataclass(frozen=True)
class Sampler:
    """Model that answers questions and draws prompts."""

    recipe: BaseRecipe
    model: Janus
    vq: JanusVQVAE
    tokenizer: Tokenizer

    @property
    def dtype(self) -> str:
        """Name of the dtype that the model computes in: bfloat16 or float32."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @classmethod
    def load(
        cls, recipe: BaseRecipe, checkpoint: str | None, device: str = "cpu", dtype: DtypeChoice = "auto"
    ) -> "Sampler":
        """Load the model of a checkpoint, or of `run.start_weights` without one, in the dtype of `dtype_for`.

        Raises CheckpointError or DataError when the weights or the tokenizer do not fit the recipe.
        """
        name = dtype_for(recipe, device, dtype)
        if name == "bfloat16" and device == "cpu" and not native.is_native(gpu=False):
            log.warning("%s", native.slow_line(native.emulation_slowdown(), "use --dtype float32 or auto"))
        tokenizer = load_tokenizer(recipe)
        vq = load_vq(recipe.model, recipe.data.vq_weights).to(device)  # pyright: ignore[reportArgumentType]
        model = janus.on_meta(recipe.model)
        for module in janus.made(model, recipe.run.seed, torch.device("cpu"), drawn=checkpoint is None):
            for parameter in module.parameters(
                recurse=False
            ):  # rotary frequencies are buffers and stay float32, as in training
                parameter.data = parameter.data.to(getattr(torch, name))
        if checkpoint is None:
            load_start(model, recipe.model, recipe.run.start_weights)
        else:
            _read(model, checkpoint)
        model.model.language_model.set_attn_implementation("sdpa")  # prompts of one length, with a cache
        return cls(recipe, model.to(device).eval(), vq, tokenizer)  # pyright: ignore[reportArgumentType]

    def answer(
        self,
        questions: Sequence[str],
        features: Tensor,
        images_of: Sequence[Sequence[int]],
        max_new_tokens: int,
        choice: TokenChoice = LIKELIEST,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Return the answers to questions about images; `images_of` are positions in `features`,
        [image, image_tokens, hidden] of `image_features`.

        Raises ConfigError when a question is too long for the model.
        """
        recipe, tokenizer = self.recipe, self.tokenizer
        prompts = [
            chat.understanding_ids(tokenizer, recipe.data.chat, [(question, None)], len(of))[0]
            for question, of in zip(questions, images_of, strict=True)
        ]
        extra = recipe.model.image_tokens - 1
        for question, ids, of in zip(questions, prompts, images_of, strict=True):
            self._check_length(question, len(ids) + extra * len(of) + max_new_tokens)
        found = sample.answer(
            self.model,
            prompts,
            features,
            images_of,
            tokenizer.image,
            tokenizer.eos,
            max_new_tokens,
            recipe.evaluate.batch,
            choice,
            seeds,
        )
        return [tokenizer.decode(ids).strip() for ids in found]

    def image_features(self, pictures: Tensor) -> Tensor:
        """Return the features [images, image_tokens, hidden] of `pictures`: [images, 3, side, side] uint8."""
        if len(pictures) == 0:
            return torch.empty(0, self.recipe.model.image_tokens, self.recipe.model.text.hidden)
        if self.recipe.model.reads_by == "vq":
            return single.image_features(self.model, self.vq, pictures, self.recipe.evaluate.batch)
        return sample.image_features(self.model, pictures, self.recipe.evaluate.batch)

    def draw(
        self, captions: Sequence[str], seeds: Sequence[int], guidance: float, choice: TokenChoice
    ) -> NDArray[np.uint8]:
        """Return drawings [images, height, width, 3] uint8, one for each caption and its seed.

        Raises ConfigError when a caption is too long for the model.
        """
        recipe, tokenizer = self.recipe, self.tokenizer
        prompts = [chat.generation_prompt_ids(tokenizer, recipe.data.chat, caption) for caption in captions]
        for caption, ids in zip(captions, prompts, strict=True):
            self._check_length(caption, len(ids) + recipe.model.image_ids)
        batch = recipe.evaluate.batch
        ids = sample.draw(self.model, prompts, recipe.model.image_ids, tokenizer.pad, guidance, choice, seeds, batch)
        return self.decode(ids)

    def decode(self, ids: Tensor) -> NDArray[np.uint8]:
        """Return the images [images, height, width, 3] uint8 of VQ ids [images, ids] int64."""
        chunks = ids.to(self.vq.device).split(self.recipe.evaluate.batch)
        pixels = torch.cat([vq_model.decode(self.vq, chunk) for chunk in chunks])
        return vq_model.to_uint8(pixels).permute(0, 2, 3, 1).cpu().numpy()

    def picture(self, source: str | Path | bytes) -> Tensor:
        """Return an image file or its bytes as [3, side, side] uint8, padded. Raises DataError when it is invalid."""
        shown = "in the question file" if isinstance(source, bytes) else source
        try:
            content = source if isinstance(source, bytes) else Path(source).read_bytes()
            image = images.load(content, self.recipe.pipeline.max_image_pixels)
        except OSError as error:
            raise DataError(f"the image {shown} cannot be read: {error.strerror}") from error
        except DataError as error:
            raise DataError(f"the image {shown}: {error.message}") from error
        pixels = np.asarray(images.pad_to_square(image, self.recipe.model.image_size))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    def _check_length(self, text: str, tokens: int) -> None:
        most = self.recipe.model.text.max_positions
        if tokens > most:
            raise ConfigError(
                f"{text[:40]!r} needs {tokens} positions with its images and answer, the model has {most}",
                "shorten the text, or use fewer images",
            )


@torch.no_grad()
def _read(model: Janus, checkpoint: str) -> None:
    """Copy the weights of a checkpoint into a model, group by group, so that memory never holds all stored ones."""
    stored = StoredWeights(checkpoint)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    check_shapes(shapes, stored.shapes, checkpoint)
    for group in stored.groups(READ_ELEMENTS):
        for name, values in group.items():
            parameters[name].copy_(values)

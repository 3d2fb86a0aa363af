"""A checkpoint ready to answer and to draw: its model, VQ tokenizer and tokenizer on one device.

Invariant: everything comes from the run's own recipe, so that a checkpoint is asked as it was trained.
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
from janus_dist.model.sample import LIKELIEST, Choice
from janus_dist.model.size import check_shapes
from janus_dist.weights.start import load_start
from janus_dist.weights.vq import load_vq

log = logging.getLogger("janus_dist")

READ_ELEMENTS = 2**28
"""Of a checkpoint, read at once: 1 GiB in float32."""


def dtype_for(recipe: BaseRecipe, device: str, choice: DtypeChoice = "auto") -> Dtype:
    """Return the dtype to sample in: the one chosen; with `auto` float32 where the run is trained in it, else bfloat16
    where the device computes in it natively, else float32."""
    if choice != "auto":
        return choice
    return "float32" if recipe.engine.dtype == "float32" else native.best_dtype(torch.device(device).type == "cuda")


@dataclass(frozen=True)
class Sampler:
    """What answers and draws."""

    recipe: BaseRecipe
    model: Janus
    vq: JanusVQVAE
    tokenizer: Tokenizer

    @property
    def dtype(self) -> str:
        """Return the name of the dtype that the model computes in: bfloat16 or float32."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @classmethod
    def load(
        cls, recipe: BaseRecipe, checkpoint: str | None, device: str = "cpu", dtype: DtypeChoice = "auto"
    ) -> "Sampler":
        """Load a checkpoint's model, or without one that of `run.start_weights`, in the dtype of `dtype_for`.

        Raises CheckpointError or DataError when something does not fit the recipe.
        """
        name = dtype_for(recipe, device, dtype)
        if name == "bfloat16" and device == "cpu" and not native.is_native(gpu=False):
            log.warning("%s", native.slow_line(native.emulation_slowdown(), "take --dtype float32 or auto"))
        tokenizer = load_tokenizer(recipe)
        vq = load_vq(recipe.model, recipe.data.vq_weights).to(device)  # pyright: ignore[reportArgumentType]
        model = janus.on_meta(recipe.model)
        for module in janus.made(model, recipe.run.seed, torch.device("cpu"), drawn=checkpoint is None):
            for parameter in module.parameters(recurse=False):  # not rotary frequencies: float32, as in training
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
        choice: Choice = LIKELIEST,
        seeds: Sequence[int] | None = None,
    ) -> list[str]:
        """Return the answers to questions about images, whose features `image_features` gives."""
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
        """Return [image, image_tokens, hidden] features for the language model of pictures [image, 3, side, side]
        uint8."""
        if len(pictures) == 0:
            return torch.empty(0, self.recipe.model.image_tokens, self.recipe.model.text.hidden)
        if self.recipe.model.reads_by == "vq":
            return single.image_features(self.model, self.vq, pictures, self.recipe.evaluate.batch)
        return sample.image_features(self.model, pictures, self.recipe.evaluate.batch)

    def draw(self, captions: Sequence[str], seeds: Sequence[int], guidance: float, choice: Choice) -> NDArray[np.uint8]:
        """Return the drawings [image, height, width, 3], one for each caption and its seed."""
        recipe, tokenizer = self.recipe, self.tokenizer
        prompts = [chat.generation_prompt_ids(tokenizer, recipe.data.chat, caption) for caption in captions]
        for caption, ids in zip(captions, prompts, strict=True):
            self._check_length(caption, len(ids) + recipe.model.image_ids)
        batch = recipe.evaluate.batch
        ids = sample.draw(self.model, prompts, recipe.model.image_ids, tokenizer.pad, guidance, choice, seeds, batch)
        return self.decode(ids)

    def decode(self, ids: Tensor) -> NDArray[np.uint8]:
        """Return the images [image, height, width, 3] of VQ ids [image, ids]."""
        chunks = ids.to(self.vq.device).split(self.recipe.evaluate.batch)
        pixels = torch.cat([vq_model.decode(self.vq, chunk) for chunk in chunks])
        return vq_model.to_uint8(pixels).permute(0, 2, 3, 1).cpu().numpy()

    def picture(self, source: str | Path | bytes) -> Tensor:
        """Return [3, side, side] uint8: an image file or its bytes as the vision tower takes it. Raises DataError when
        it is none."""
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
                f"{text[:40]!r} takes {tokens} positions with its images and answer, the model has {most}",
                "ask for less, or with fewer images",
            )


@torch.no_grad()
def _read(model: Janus, checkpoint: str) -> None:
    """Give a model the weights of a checkpoint, in the model's own type; never all of them in the stored one."""
    stored = StoredWeights(checkpoint)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    check_shapes(shapes, stored.shapes, checkpoint)
    for group in stored.groups(READ_ELEMENTS):
        for name, values in group.items():
            parameters[name].copy_(values)
